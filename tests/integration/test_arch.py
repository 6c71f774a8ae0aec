#!/usr/bin/python3
"""Every model family against its float64 reference: tiny models of random weights, written here, run by
`lepton logits` with one stage and with two, the prompt longer than any window. gpt-nano-sort against the
activations that came with it."""
import base64
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import arch_reference as reference
import gguf_file

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
LEPTON = os.path.join(os.environ.get("LEPTON_BUILD", os.path.join(ROOT, "build/release")), "lepton")
SLOTS = os.path.join(os.path.dirname(LEPTON), "tests/drivers/slots")
SHARED = os.environ.get("LEPTON_SHARED", os.path.join(ROOT, "../shared"))
TOLERANCE = 1e-4
TOKENS, LAYERS, VOCAB, CONTEXT = 47, 4, 97, 64
C, F, H, G = 48, 80, 6, 3  # embedding, feed-forward, heads, KV heads


class Model:
    """Tensors in the order they were asked for, and the metadata of a family."""

    def __init__(self, arch, eps_key="attention.layer_norm_rms_epsilon", seed=1, **sizes):
        self.arch, self.random, self.tensors, self.kinds = arch, np.random.default_rng(seed), {}, {}
        self.sizes = {"C": C, "F": F, "H": H, "G": G, "D": C // H, **sizes}
        s = self.sizes
        self.metadata = {"general.architecture": arch}
        self.set("block_count", LAYERS)
        self.set("context_length", CONTEXT)
        self.set("embedding_length", s["C"])
        self.set("feed_forward_length", s["F"])
        self.set("attention.head_count", s["H"])
        self.set("attention.head_count_kv", s["G"])
        self.set(eps_key, 1e-5)
        if s["D"] * s["H"] != s["C"]:
            self.set("attention.key_length", s["D"])
            self.set("attention.value_length", s["D"])

    def set(self, key, value):
        self.metadata[f"{self.arch}.{key}"] = value

    def matrix(self, name, *dims, kind=gguf_file.F32, size=3.0):
        values = self.random.uniform(-1, 1, dims) * size / np.sqrt(dims[-1])
        self.tensors[name], self.kinds[name] = values.astype(np.float32), kind

    def gain(self, name, length):
        self.tensors[name] = (1 + self.random.uniform(-0.4, 0.4, length)).astype(np.float32)

    def bias(self, name, length):
        self.tensors[name] = self.random.uniform(-0.5, 0.5, length).astype(np.float32)

    def norm(self, name, length, bias=False):
        self.gain(name + ".weight", length)
        if bias:
            self.bias(name + ".bias", length)

    def attention(self, b, bias=()):
        s = self.sizes
        for name, rows in (("q", s["H"] * s["D"]), ("k", s["G"] * s["D"]), ("v", s["G"] * s["D"])):
            self.matrix(f"{b}attn_{name}.weight", rows, s["C"])
            if name in bias:
                self.bias(f"{b}attn_{name}.bias", rows)
        self.matrix(b + "attn_output.weight", s["C"], s["H"] * s["D"])
        if "output" in bias:
            self.bias(b + "attn_output.bias", s["C"])

    def ffn(self, b, bias=False):
        s = self.sizes
        for name, rows, columns in (("gate", s["F"], s["C"]), ("up", s["F"], s["C"]), ("down", s["C"], s["F"])):
            self.matrix(f"{b}ffn_{name}.weight", rows, columns)
            if bias:
                self.bias(f"{b}ffn_{name}.bias", rows)

    def ends(self, output=True, bias=False):
        self.matrix("token_embd.weight", VOCAB, self.sizes["C"], size=6.0)
        self.norm("output_norm", self.sizes["C"], bias)
        if output:
            self.matrix("output.weight", VOCAB, self.sizes["C"])

    def write(self, path):
        gguf_file.write(path, self.metadata, self.tensors, self.kinds)

    def weight(self, name):
        if name not in self.tensors:
            return None
        return gguf_file.pack(self.tensors[name], self.kinds.get(name, gguf_file.F32))[1]


def base_config(m, **more):
    s = m.sizes
    return {"layers": LAYERS, "heads": s["H"], "kv_heads": s["G"], "head_length": s["D"],
            "eps": float(np.float32(1e-5)), "base": 10000.0, **more}


# ---- the models: each gives (model, reference function, config)

def plain_llama(**sizes):
    m = Model("llama", **sizes)
    m.ends()
    for layer in range(LAYERS):
        b = f"blk.{layer}."
        m.norm(b + "attn_norm", m.sizes["C"])
        m.attention(b)
        m.norm(b + "ffn_norm", m.sizes["C"])
        m.ffn(b)
    return m, base_config(m, frequency=reference.frequencies(m.sizes["D"], 10000.0))


def llama3():
    """Llama 3: divisors of the frequencies, another base; the output tied (Llama 3.2)."""
    m, config = plain_llama()
    m.set("rope.freq_base", 500000.0)
    divisors = np.array([1, 1.7, 8, 8], np.float32)
    m.tensors["rope_freqs.weight"] = divisors
    del m.tensors["output.weight"]
    config["frequency"] = reference.frequencies(m.sizes["D"], 500000.0) / divisors
    return m, reference.llama, config


def llama_biased():
    """Every bias that the row allows."""
    m = Model("llama")
    m.ends()
    for layer in range(LAYERS):
        b = f"blk.{layer}."
        m.norm(b + "attn_norm", C)
        m.attention(b, bias=("q", "k", "v", "output"))
        m.norm(b + "ffn_norm", C)
        m.ffn(b, bias=True)
    return m, reference.llama, base_config(m, frequency=reference.frequencies(C // H, 10000.0))


def llama_linear():
    m, config = plain_llama()
    m.set("rope.scaling.type", "linear")
    m.set("rope.scaling.factor", 4.0)
    config["frequency"] = config["frequency"] / 4
    return m, reference.llama, config


def llama_yarn():
    """YaRN (Peng et al. 2023): a ramp between interpolation and none; scores grow by the square of the factor."""
    m, config = plain_llama(D=16)
    for key, value in (("type", "yarn"), ("factor", 4.0), ("original_context_length", 16)):
        m.set("rope.scaling." + key, value)
    D, base, original = 16, 10000.0, 16.0
    turns = lambda n: D * np.log(original / (n * 2 * np.pi)) / (2 * np.log(base))
    low, high = max(np.floor(turns(32)), 0), min(np.ceil(turns(1)), D - 1)
    ramp = np.clip((np.arange(D // 2) - low) / max(high - low, 0.001), 0, 1)
    config["frequency"] = config["frequency"] * (ramp / 4 + 1 - ramp)
    config["magnitude"] = 1 + 0.1 * np.log(4)
    return m, reference.llama, config


def mistral():
    m, config = plain_llama()
    m.set("attention.sliding_window", 13)
    return m, reference.llama, {**config, "window": 13}


def mixtral(each=False):
    m = Model("llama")
    E = 5
    m.set("expert_count", E)
    m.set("expert_used_count", 2)
    m.ends()
    for layer in range(LAYERS):
        b = f"blk.{layer}."
        m.norm(b + "attn_norm", C)
        m.attention(b)
        m.norm(b + "ffn_norm", C)
        m.matrix(b + "ffn_gate_inp.weight", E, C)
        for name, rows, columns in (("gate", F, C), ("up", F, C), ("down", C, F)):
            if each:
                for e in range(E):
                    m.matrix(f"{b}ffn_{name}.{e}.weight", rows, columns)
            else:
                m.matrix(f"{b}ffn_{name}_exps.weight", E, rows, columns)
    return m, reference.llama, base_config(m, frequency=reference.frequencies(C // H, 10000.0), experts=E, used=2)


def qwen2():
    m = Model("qwen2")
    m.set("rope.freq_base", 1000000.0)
    m.ends(output=False)
    for layer in range(LAYERS):
        b = f"blk.{layer}."
        m.norm(b + "attn_norm", C)
        m.attention(b, bias=("q", "k", "v"))
        m.norm(b + "ffn_norm", C)
        m.ffn(b)
    return m, reference.qwen, base_config(m, base=1000000.0)


def qwen3(experts=0):
    m = Model("qwen3moe" if experts else "qwen3", D=12)
    m.ends()
    for layer in range(LAYERS):
        b = f"blk.{layer}."
        m.norm(b + "attn_norm", C)
        m.attention(b)
        m.norm(b + "attn_q_norm", 12)
        m.norm(b + "attn_k_norm", 12)
        m.norm(b + "ffn_norm", C)
        if not experts:
            m.ffn(b)
            continue
        m.matrix(b + "ffn_gate_inp.weight", experts, C)
        for name, rows, columns in (("gate", 20, C), ("up", 20, C), ("down", C, 20)):
            m.matrix(f"{b}ffn_{name}_exps.weight", experts, rows, columns)
    if experts:
        m.set("expert_count", experts)
        m.set("expert_used_count", 3)
        m.set("expert_feed_forward_length", 20)
    return m, reference.qwen, base_config(m, experts=experts, used=3)


def gpt2():
    m = Model("gpt2", eps_key="attention.layer_norm_epsilon", G=H)
    m.ends(output=False, bias=True)
    m.matrix("position_embd.weight", CONTEXT, C, size=3.0)
    for layer in range(LAYERS):
        b = f"blk.{layer}."
        m.norm(b + "attn_norm", C, True)
        m.norm(b + "ffn_norm", C, True)
        for name, rows, columns in (("attn_qkv", 3 * C, C), ("attn_output", C, C), ("ffn_up", F, C), ("ffn_down", C, F)):
            m.matrix(f"{b}{name}.weight", rows, columns)
            m.bias(f"{b}{name}.bias", rows)
    return m, reference.gpt2, base_config(m)


def gemma():
    m = Model("gemma", D=20, G=1)
    m.ends(output=False)
    for layer in range(LAYERS):
        b = f"blk.{layer}."
        m.norm(b + "attn_norm", C)
        m.attention(b)
        m.norm(b + "ffn_norm", C)
        m.ffn(b)
    return m, reference.gemma, base_config(m)


def gemma2():
    m = Model("gemma2", D=20)
    m.set("attention.sliding_window", 11)
    m.set("attn_logit_softcapping", 2.5)
    m.set("final_logit_softcapping", 3.0)
    m.ends(output=False)
    for layer in range(LAYERS):
        b = f"blk.{layer}."
        m.norm(b + "attn_norm", C)
        m.attention(b)
        m.norm(b + "post_attention_norm", C)
        m.norm(b + "ffn_norm", C)
        m.ffn(b)
        m.norm(b + "post_ffw_norm", C)
    return m, reference.gemma, base_config(m, two=True, window=11, attention_cap=2.5, logit_cap=3.0)


def gemma2_scaled():
    m, family, config = gemma2()
    m.set("attention.scale", 0.11)
    return m, family, {**config, "scale": float(np.float32(0.11))}


def phi3(kind=gguf_file.F32):
    sizes = {} if kind == gguf_file.F32 else {"C": 64, "F": 96, "H": 4, "G": 2, "D": 16}
    m = Model("phi3", **sizes)
    s = m.sizes
    m.set("attention.sliding_window", 17)
    m.set("rope.dimension_count", 6 if kind == gguf_file.F32 else 16)
    m.ends()
    for layer in range(LAYERS):
        b = f"blk.{layer}."
        m.norm(b + "attn_norm", s["C"])
        m.matrix(b + "attn_qkv.weight", (s["H"] + 2 * s["G"]) * s["D"], s["C"], kind=kind)
        m.matrix(b + "attn_output.weight", s["C"], s["H"] * s["D"], kind=kind)
        m.norm(b + "ffn_norm", s["C"])
        m.matrix(b + "ffn_up.weight", 2 * s["F"], s["C"], kind=kind)
        m.matrix(b + "ffn_down.weight", s["C"], s["F"], kind=kind)
    return m, reference.phi3, base_config(m, window=17, rotated=m.metadata["phi3.rope.dimension_count"])


def phi3_long(original):
    """LongRoPE; the whole head is rotated, as in the models that have it, so that its magnitude meets all of it."""
    m, family, config = phi3()
    m.set("rope.dimension_count", 8)
    m.set("attention.sliding_window", 0)
    m.set("rope.scaling.original_context_length", original)
    m.set("rope.scaling.attn_factor", 1.19)
    m.tensors["rope_factors_long.weight"] = np.array([1, 1.5, 4, 9], np.float32)
    m.tensors["rope_factors_short.weight"] = np.array([1, 1.1, 1.2, 1.3], np.float32)
    return m, family, {**config, "rotated": 8, "window": None, "original": original,
                       "magnitude": float(np.float32(1.19))}


def stablelm(biased=True):
    m = Model("stablelm", eps_key="attention.layer_norm_epsilon", D=16, C=96)
    m.set("rope.dimension_count", 4)
    m.set("use_parallel_residual", False)
    m.ends(bias=True)
    for layer in range(LAYERS):
        b = f"blk.{layer}."
        m.norm(b + "attn_norm", 96, True)
        m.attention(b, bias=("q", "k", "v") if biased else ())
        m.norm(b + "ffn_norm", 96, True)
        m.ffn(b)
    return m, reference.stablelm, base_config(m, rotated=4)


MODELS = [
    ("llama with divided frequencies and a tied output", llama3),
    ("llama with every bias", llama_biased),
    ("llama with linear scaling", llama_linear),
    ("llama with YaRN", llama_yarn),
    ("mistral with a sliding window", mistral),
    ("mixtral", mixtral),
    ("mixtral in a tensor for each expert", lambda: mixtral(each=True)),
    ("qwen2", qwen2),
    ("qwen3", qwen3),
    ("qwen3moe", lambda: qwen3(experts=8)),
    ("gpt2", gpt2),
    ("gemma", gemma),
    ("gemma2", gemma2),
    ("gemma2 with a scale of its own", gemma2_scaled),
    ("phi3", phi3),
    ("phi3 in F16", lambda: phi3(gguf_file.F16)),
    ("phi3 in Q8_0", lambda: phi3(gguf_file.Q8_0)),
    ("phi3 beyond its original context", lambda: phi3_long(TOKENS - 1)),
    ("phi3 within its original context", lambda: phi3_long(TOKENS)),
    ("stablelm", stablelm),
    ("stablelm without biases", lambda: stablelm(biased=False)),
]


# ---- the engine

def lepton(path, ids, *arguments):
    command = [LEPTON, "logits", path, "--ids", ",".join(map(str, ids)), "--json", "--all", "--threads", "1", *arguments]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise AssertionError(run.stderr.strip())
    return json.loads(run.stdout)


def slots(path, ids, width):
    """The logits when the layers are split over so many tensor slots."""
    run = subprocess.run([SLOTS, path, str(width), *map(str, ids)], capture_output=True, text=True)
    if run.returncode != 0:
        raise AssertionError(run.stderr.strip())
    return np.array([[float(word) for word in line.split()] for line in run.stdout.splitlines()])


def check_model(build, directory):
    m, family, config = build()
    path = os.path.join(directory, "model.gguf")
    m.write(path)
    ids = np.random.default_rng(5).integers(0, VOCAB, TOKENS).tolist()
    expected = family(config, m.weight, ids)
    results = [np.array(lepton(path, ids, *more)["logits"])
               for more in ((), ("--stages", "2"), ("--stages", str(LAYERS), "--chunk", "7"))]
    assert expected.shape == results[0].shape == (TOKENS, VOCAB), (expected.shape, results[0].shape)
    assert expected.std() > 0.1, f"logits hardly differ from each other: {expected.std()}"
    difference = np.abs(results[0] - expected).max()
    assert difference <= TOLERANCE, f"logits differ by {difference:.2e}"
    for other in results[1:]:
        assert (other == results[0]).all(), "stages or chunks show in the bits"
    split = slots(path, ids, 2)
    apart = np.abs(split - results[0]).max()
    assert apart <= TOLERANCE, f"logits of two tensor slots differ by {apart:.2e}"
    return difference


def check_nano_sort(directory):
    """The trained model: weights and activations of another implementation (batch 0 of its partials)."""
    folder = os.path.join(SHARED, "data/lm/gpt-nano-sort")
    load = lambda name: json.load(open(os.path.join(folder, name)))
    weights, partials = load("gpt-nano-sort-model.json"), load("gpt-nano-sort-t0-partials.json")
    array = lambda entry: decode(entry).reshape(entry["shape"])
    names = {"transformer.wte.weight": "token_embd.weight", "transformer.wpe.weight": "position_embd.weight",
             "transformer.ln_f.weight": "output_norm.weight", "transformer.ln_f.bias": "output_norm.bias",
             "lm_head.weight": "output.weight"}
    for layer in range(3):
        for theirs, ours in (("ln_1", "attn_norm"), ("attn.c_attn", "attn_qkv"), ("attn.c_proj", "attn_output"),
                             ("ln_2", "ffn_norm"), ("mlp.c_fc", "ffn_up"), ("mlp.c_proj", "ffn_down")):
            for part in ("weight", "bias"):
                names[f"transformer.h.{layer}.{theirs}.{part}"] = f"blk.{layer}.{ours}.{part}"
    metadata = {"general.architecture": "gpt2", "gpt2.block_count": 3, "gpt2.context_length": 11,
                "gpt2.embedding_length": 48, "gpt2.feed_forward_length": 192, "gpt2.attention.head_count": 3,
                "gpt2.attention.layer_norm_epsilon": 1e-5}
    path = os.path.join(directory, "nano.gguf")
    gguf_file.write(path, metadata, {ours: array(weights[theirs]).astype(np.float32) for theirs, ours in names.items()})
    worst = 0
    for row in range(partials["idx"]["shape"][0]):
        ids = array(partials["idx"])[row].astype(int).tolist()
        got = lepton(path, ids, "--trace", "--stages", "3")
        wanted = {("attention", 0): "yProj", ("ffn", 0): "mlp",
                  ("block", 0): "block0", ("block", 1): "block1", ("block", 2): "block2"}
        for (what, layer), name in wanted.items():
            difference = np.abs(np.array(got["layers"][layer][what]) - array(partials[name])[row]).max()
            assert difference <= 1e-5, f"{name} of batch row {row} differs by {difference:.2e}"
            worst = max(worst, difference)
        difference = np.abs(np.array(got["logits"]) - array(partials["lm_head"])[row]).max()
        assert difference <= TOLERANCE, f"logits differ by {difference:.2e}"
    return worst


def check_command(directory):
    """What `lepton logits` refuses, and that a chunked prompt and another number of threads change no bit."""
    m, _, _ = mistral()
    path = os.path.join(directory, "model.gguf")
    m.write(path)
    ids = list(range(20))
    assert lepton(path, ids, "--chunk", "3", "--threads", "3")["logits"] == lepton(path, ids)["logits"]
    for arguments, code, message in ((["--ids", "1,2,x"], 1, '"x": expected token ids'),
                                     (["--ids", "1,,2"], 1, "expected token ids"),
                                     (["--ids", f"1,{VOCAB}"], 1, f"token 1 is {VOCAB}, expected less than"),
                                     (["--ids", ",".join(["1"] * (CONTEXT + 1))], 1, "the model's context is 64"),
                                     (["--ids", "1", "--stages", "5"], 1, "the model has 4 layers"),
                                     (["--ids", "1", "--trace"], 2, "expected --json"),
                                     ([], 2, "--ids")):
        run = subprocess.run([LEPTON, "logits", path, *arguments], capture_output=True, text=True)
        assert run.returncode == code and message in run.stderr, (arguments, run.returncode, run.stderr)
    run = subprocess.run([LEPTON, "logits", path, "--ids", "4,5", "--top", "2"], capture_output=True, text=True)
    best = int(np.argmax(lepton(path, [4, 5])["logits"][-1]))
    lines = run.stdout.splitlines()
    assert lines[0] == "behind token 1 (id 5):" and int(lines[1].split()[0]) == best and len(lines) == 3, lines
    return 0


def check_cluster(build, directory):
    """The same through a coordinator and a group of two stages: greedy tokens as the reference picks them. Characters
    are the vocabulary, so that a prompt is what it says."""
    m, family, config = build()
    pieces = ["<unk>", "<s>", "</s>", "\u2581"] + [chr(33 + i) for i in range(VOCAB - 4)]
    m.metadata.update({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": pieces,
                       "tokenizer.ggml.scores": [0.0] * VOCAB, "tokenizer.ggml.token_type": [np.int32(t) for t in [2, 3, 3] + [1] * (VOCAB - 3)],
                       "tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False})
    path = os.path.join(directory, "model.gguf")
    m.write(path)
    prompt = "The_quick_brown_fox_jumps"
    run = subprocess.run([LEPTON, "run", path, "-p", prompt, "-n", "16", "--temperature", "0", "--stages", "2", "-t", "1",
                          "--ignore-eos", "--json"], capture_output=True, text=True, timeout=120,
                         env={**os.environ, "LEPTON_HOME": directory})
    assert run.returncode == 0, run.stderr
    ids = [pieces.index(c) for c in prompt]
    start = len(ids)
    for _ in range(16):
        logits = family(config, m.weight, ids)[-1]
        logits[2] = -np.inf  # --ignore-eos never draws the end
        ids.append(int(np.argmax(logits)))
    got = json.loads(run.stdout.splitlines()[-1])["tokens"]
    assert got == ids[start:], (got, ids[start:])
    return 0


def decode(entry):
    """The floats of a tensor, base64 of little-endian bytes."""
    return np.frombuffer(base64.b64decode(entry["data"]), "<f4").astype(np.float64)


def main():
    failures = 0
    checks = [(f"{name}: logits of one, two and {LAYERS} stages, and of two tensor slots", lambda d, b=build: check_model(b, d))
              for name, build in MODELS]
    for name, build in (("gpt2", gpt2), ("gemma2", gemma2), ("mixtral", mixtral)):
        checks.append((f"{name}: a cluster of two stages draws the reference's tokens",
                       lambda d, b=build: check_cluster(b, d)))
    checks.append(("lepton logits: refusals, chunks, threads and text", check_command))
    if os.path.isdir(os.path.join(SHARED, "data/lm/gpt-nano-sort")):
        checks.append(("gpt-nano-sort: what every block computes", check_nano_sort))
    else:
        print("skip - gpt-nano-sort: the shared data are not here")
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    for name, check in checks:
        if wanted not in name:
            continue
        with tempfile.TemporaryDirectory() as directory:
            try:
                difference = check(directory)
                print(f"# largest difference {difference:.1e}")
                print(f"ok - {name}")
            except AssertionError as error:
                print(f"# {error}")
                print(f"not ok - {name}")
                failures += 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
