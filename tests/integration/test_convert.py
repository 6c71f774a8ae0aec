#!/usr/bin/python3
"""Hugging Face directories: written by hand they give a GGUF file's very tokens; lepton convert takes models there and back
byte for byte."""
import json
import os
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


with tempfile.TemporaryDirectory() as folder:
    test_by_hand(folder, demo, "the demo model")
    test_round_trip(folder, demo, "the demo model")
    if os.path.exists(stories):
        test_by_hand(folder, stories, "stories260K")
        test_round_trip(folder, stories, "stories260K")
    else:
        print("skip - stories260K as a Hugging Face directory: no shared data")
sys.exit(failed != 0)
