#!/usr/bin/python3
"""Hugging Face directories: written by hand they give a GGUF file's very tokens; lepton convert takes models there and back
byte for byte."""
import json
import math
import os
import struct
import subprocess
import sys
import tempfile

try:
    import numpy  # noqa: F401
except ImportError as missing:
    print(f"skip - Hugging Face directories: {missing}")
    sys.exit(0)

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, here)
import hf_fixtures as hf  # noqa: E402
import test_arch  # noqa: E402

root = os.path.dirname(os.path.dirname(here))
lepton = os.path.join(os.environ.get("LEPTON_BUILD", f"{root}/build/release"), "lepton")
demo = f"{root}/tools/demo/lepton-demo.gguf"
shared = os.environ.get("LEPTON_SHARED", f"{root}/../shared")
stories = f"{shared}/data/lm/stories260K/stories260K.gguf"
texts = ["Once upon a time", " Lily  and\tTom\nwent h\u00f6me \u2581 \U0001F600.", "a", "The red ball, 1234567 </s>"]
failed = 0


def check(sentence, good, seen=""):
    global failed
    failed += not good
    print(f"{'ok' if good else 'not ok'} - {sentence}" + ("" if good else f": {seen}"), flush=True)


def run(*arguments, code=0):
    done = subprocess.run([lepton, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=250)
    if done.returncode != code:
        raise RuntimeError(f"lepton {' '.join(arguments)}: exit code {done.returncode}: {done.stderr[-400:]}")
    return done.stdout if code == 0 else done.stderr


def ids(model, text):
    return json.loads(run("tokenize", "--json", "--special", model, "-p", text))["tokens"]


def greedy(model, prompt="Once upon a time", tokens=24):
    """The ids that a whole cluster of two stages generates."""
    answer = run("run", model, "--stages", "2", "-p", prompt, "-n", str(tokens), "--temperature", "0", "--json", "--threads",
                 "1")
    return json.loads(answer.strip().splitlines()[-1])["tokens"]


def logits(model, tokens):
    """Of every position, as printed: every digit counts."""
    return run("logits", model, "--ids", ",".join(map(str, tokens)), "--all", "--json").split('"logits"', 1)[1]


def same_tensors(a, b):
    x, y = hf.read_gguf(a)[1], hf.read_gguf(b)[1]
    return x.keys() == y.keys() and all(x[n] == y[n] for n in x)


def test_by_hand(folder, gguf, name):
    """Directories that Lepton's writers had no part in."""
    forms = {"tokenizer.model": ("model", 1), "tokenizer.json": ("json", 1), "tokenizer.json with merges as pairs": ("arrays", 3)}
    for label, (tokenizer, shards) in forms.items():
        directory = f"{folder}/{name}-{tokenizer}"
        hf.write_llama(directory, gguf, tokenizer, shards, ascii_json=tokenizer == "json")
        before = {f: os.stat(f"{directory}/{f}").st_mtime_ns for f in os.listdir(directory)}
        wrong = [t for t in texts if ids(directory, t) != ids(gguf, t)]
        check(f"{name}: {label} gives the ids of the GGUF vocabulary", not wrong, wrong)
        prompt = ids(gguf, "Once upon a time")
        check(f"{name}: with {label}, in {shards} shards, the logits are the same to the last bit",
              logits(directory, prompt) == logits(gguf, prompt))
        run("convert", directory, f"{folder}/hand.gguf")
        check(f"{name}: with {label} it converts into the GGUF file's own tensors", same_tensors(gguf, f"{folder}/hand.gguf"))
        after = {f: os.stat(f"{directory}/{f}").st_mtime_ns for f in os.listdir(directory)}
        check(f"{name}: nothing was written into the directory", before == after, after)
    one, two = greedy(gguf), greedy(f"{folder}/{name}-model")
    check(f"{name}: lepton run generates the same ids from the directory", len(one) == 24 and one == two, (one, two))


def test_round_trip(folder, gguf, name):
    keys, tensors = hf.read_gguf(gguf)
    run("convert", gguf, f"{folder}/{name}-hf")
    written = hf.read_safetensors(f"{folder}/{name}-hf/model.safetensors")
    check(f"{name}: convert writes what the definition of the formats gives", written == hf.llama_tensors(keys, tensors))
    run("convert", f"{folder}/{name}-hf", f"{folder}/{name}-back.gguf")
    check(f"{name}: GGUF to HF to GGUF is byte-equal in tensors", same_tensors(gguf, f"{folder}/{name}-back.gguf"))
    again = hf.read_gguf(f"{folder}/{name}-back.gguf")[0]
    lost = [k for k in keys if k.split(".")[0] in ("llama", "tokenizer") and keys[k] != again.get(k) and keys[k] != 2**32 - 1]
    check(f"{name}: and so is the metadata of model and tokenizer", not lost, lost)
    run("convert", gguf, f"{folder}/{name}-shards", "--shard-mb", "1")
    files = sorted(os.listdir(f"{folder}/{name}-shards"))
    run("convert", f"{folder}/{name}-shards", f"{folder}/{name}-shards.gguf")
    check(f"{name}: a directory of several shards reads back byte-equal",
          "model.safetensors.index.json" in files and same_tensors(gguf, f"{folder}/{name}-shards.gguf"), files)


def vocabulary_json(keys):
    """A byte-level vocabulary as tokenizer.json; the pre-tokenizers as their models' files have them."""
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    falcon = {"type": "Sequence", "pretokenizers": [
        {"type": "Punctuation", "behavior": "Contiguous"}, step, {"type": "Digits", "individual_digits": False},
        {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False}]}
    types, tokens = keys["tokenizer.ggml.token_type"], keys["tokenizer.ggml.tokens"]
    added = [{"id": i, "content": t, "special": types[i] == 3} for i, t in enumerate(tokens) if types[i] in (3, 4)]
    return {"added_tokens": added, "normalizer": None, "pre_tokenizer": falcon if keys["tokenizer.ggml.pre"] == "falcon" else step,
            "post_processor": None,
            "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": keys["tokenizer.ggml.merges"]}}


def test_vocabulary(folder, name, form):
    """A vocabulary of 32,000 to 65,024 pieces, without weights or a configuration, on the reference's texts."""
    gguf = f"{shared}/data/tokenizer/ggml-vocab-{name}.gguf"
    if not os.path.exists(gguf):
        print(f"skip - the vocabulary {name} as {form}: no shared data")
        return
    directory = f"{folder}/vocabulary-{name}-{form}"
    os.makedirs(directory)
    keys = hf.read_gguf(gguf)[0]
    if form == "tokenizer.model":
        hf.write_tokenizer_model(directory, keys)
    else:
        made = hf.sentencepiece_json(keys) if keys["tokenizer.ggml.model"] == "llama" else vocabulary_json(keys)
        json.dump(made, open(f"{directory}/tokenizer.json", "w"), ensure_ascii=False)
    samples = open(f"{gguf}.inp", encoding="utf-8").read().split("\n__ggml_vocab_test__\n")
    wrong = [t for t in samples if t and ids(directory, t) != ids(gguf, t)]
    check(f"the vocabulary {name} as {form} gives the GGUF file's ids for {len(samples)} texts", len(samples) > 40 and not wrong,
          wrong[:3])


def test_families(folder):
    """Tiny models of every architecture there and back; a model that a directory cannot say is refused, not bent."""
    refused = {"llama with divided frequencies and a tied output": "no rope_scaling known here",
               "mixtral in a tensor for each expert": "has no Hugging Face name in a mixtral model"}
    for name, build in test_arch.MODELS:
        gguf = f"{folder}/model.gguf"
        build()[0].write(gguf)
        if name in refused or any(t[0] not in hf.WIDTH for t in hf.read_gguf(gguf)[1].values()):
            check(f"{name} is refused", refused.get(name, "safetensors has no type") in
                  run("convert", gguf, f"{folder}/{name}", code=1))
            continue
        run("convert", gguf, f"{folder}/{name}")
        run("convert", f"{folder}/{name}", f"{folder}/{name}.gguf")
        check(f"{name}: there and back byte-equal, and the logits the same from all three",
              same_tensors(gguf, f"{folder}/{name}.gguf") and
              logits(gguf, [1, 2, 3, 4]) == logits(f"{folder}/{name}", [1, 2, 3, 4]) == logits(f"{folder}/{name}.gguf", [1, 2, 3, 4]))
        expected, written = hf.expected_tensors(*hf.read_gguf(gguf)), hf.read_safetensors(f"{folder}/{name}/model.safetensors")
        check(f"{name}: the directory holds what the definition of the formats gives", expected == written,
              [n for n in expected if expected[n] != written.get(n)] + [n for n in written if n not in expected])


def test_llama3(folder):
    """rope_scaling of type llama3 becomes rope_freqs.weight by its published formula, and comes back."""
    directory = f"{folder}/llama3"
    hf.write_llama(directory, demo)
    config = json.load(open(f"{directory}/config.json"))
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}
    config.update(rope_scaling=scaling, rope_theta=500000.0)
    json.dump(config, open(f"{directory}/config.json", "w"))
    length = config["hidden_size"] // config["num_attention_heads"]
    wanted = []
    for i in range(length // 2):
        wave = 2 * math.pi * 500000.0**(2 * i / length)
        smooth = (8192 / wave - 1) / (4 - 1)
        wanted.append(1 if wave < 8192 / 4 else 32 if wave > 8192 else 1 / ((1 - smooth) / 32 + smooth))
    run("convert", directory, f"{folder}/llama3.gguf")
    kind, shape, content = hf.read_gguf(f"{folder}/llama3.gguf")[1]["rope_freqs.weight"]
    found = struct.unpack(f"<{length // 2}f", content)
    check("llama3's rope_scaling becomes the divisors of its formula", len(set(wanted)) > 2 and
          all(abs(a - b) <= 1e-6 * b for a, b in zip(found, wanted)), (found, wanted))
    run("convert", f"{folder}/llama3.gguf", f"{folder}/llama3-back")
    back = json.load(open(f"{folder}/llama3-back/config.json"))["rope_scaling"]
    check("and comes back as it was", back == scaling, back)
    run("convert", f"{folder}/llama3-back", f"{folder}/llama3-back.gguf")
    check("with the same divisors", same_tensors(f"{folder}/llama3.gguf", f"{folder}/llama3-back.gguf"))


def test_types(folder):
    """--type converts matrices and leaves vectors; block types need it on the way to a directory."""
    run("convert", demo, f"{folder}/f32.gguf", "--type", "f32")
    run("convert", demo, f"{folder}/f32", "--type", "f32")
    run("convert", f"{folder}/f32", f"{folder}/f16.gguf", "--type", "f16")
    check("F16 to F32 to F16 is the same", same_tensors(demo, f"{folder}/f16.gguf"))
    kinds = {t[0] for t in hf.read_safetensors(f"{folder}/f32/model.safetensors").values()}
    check("--type f32 gives F32 everywhere", kinds == {"F32"}, kinds)
    run("quantize", "--type", "q8_0", demo, f"{folder}/q8.gguf")
    said = run("convert", f"{folder}/q8.gguf", f"{folder}/q8", code=1)
    check("a block type is refused by name", "safetensors has no type q8_0" in said and not os.path.exists(f"{folder}/q8"), said)
    run("convert", f"{folder}/q8.gguf", f"{folder}/q8", "--type", "f32")
    prompt = ids(demo, "Once upon a time")
    check("dequantised, it computes the same", logits(f"{folder}/q8", prompt) == logits(f"{folder}/q8.gguf", prompt))
    said = run("convert", demo, f"{folder}/f32", code=1)
    check("a directory that holds something is not replaced", "expected a name that is free" in said, said)
    left = [f for f in os.listdir(folder) if ".tmp-" in f]
    check("nothing is left of what failed", not left, left)
    said = run("convert", demo, "/dev/full/x.gguf", code=1)
    check("an output that cannot be made is named", "/dev/full/x.gguf" in said, said)


with tempfile.TemporaryDirectory() as folder:
    test_types(folder)
    test_llama3(folder)
    test_families(folder)
    for name, form in (("gpt-2", "tokenizer.json"), ("falcon", "tokenizer.json"), ("llama-spm", "tokenizer.model"),
                       ("llama-spm", "tokenizer.json")):
        test_vocabulary(folder, name, form)
    test_by_hand(folder, demo, "the demo model")
    test_round_trip(folder, demo, "the demo model")
    if os.path.exists(stories):
        test_by_hand(folder, stories, "stories260K")
        test_round_trip(folder, stories, "stories260K")
    else:
        print("skip - stories260K as a Hugging Face directory: no shared data")
sys.exit(failed != 0)
