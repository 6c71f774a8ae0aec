#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Make the Lepton demo model: tokenizer, training, GGUF export, checks.

    train.py                  train and write lepton-demo.gguf beside this file
    train.py --polish         only the second pass, from the existing file
    train.py --verify         check the GGUF with a separate numpy model
    train.py --golden FILE    write the reference values for the C tests

Training needs Debian's python3-torch and python3-numpy.  The numpy part below
shares no code with the torch part except the configuration, so that one checks
the other.
"""
import argparse
import json
import math
import os
import re
import struct
import sys
import time
from collections import Counter

import numpy as np

sys.dont_write_bytecode = True
from corpus import texts

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL_FILE = os.path.join(HERE, "lepton-demo.gguf")

SEED, TEXTS, VOCAB = 1, 40000, 1024
DIM, LAYERS, HEADS, KV_HEADS, FFN, CONTEXT = 128, 4, 8, 4, 352, 512
HEAD_DIM = DIM // HEADS
EPS, ROPE_BASE = 1e-5, 10000.0
BATCH_TOKENS = 1024
STEPS, PEAK_LR = 4000, 3e-3                    # first pass
POLISH_STEPS, POLISH_LR = 600, 1e-3            # second pass, see rows_for()

UNK, BOS, EOS, BYTE0 = 0, 1, 2, 3
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
SPACE = "\u2581"

PROMPTS = ["Once upon a time", "The little robot", "In the morning",
           "Anna and Tom", "The cluster", "A long time ago",
           "Tell me a story about a fox.", "Hello"]


# ---------------------------------------------------------------- tokenizer

def words(text):
    """Cut text so that no merge crosses a word or mixes letters and marks."""
    marked = SPACE + text.replace(" ", SPACE)
    return re.findall(f"{SPACE}?[A-Za-z]+|{SPACE}?[^A-Za-z{SPACE}]+|{SPACE}", marked)


def train_bpe(corpus):
    """Plain BPE; returns (pieces, scores, types) in GGUF order."""
    counts = Counter(w for t in corpus for w in words(t))
    chars = sorted(set("".join(counts)) | {SPACE})
    split = {w: list(w) for w in counts}
    merges = []
    while BYTE0 + 256 + len(chars) + len(merges) < VOCAB:
        pairs = Counter()
        for w, parts in split.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += counts[w]
        # ties are broken by the text of the pair, so the result is stable
        best = max(pairs, key=lambda p: (pairs[p], p))
        piece = "".join(best)
        if piece not in merges:
            merges.append(piece)
        for w, parts in split.items():
            split[w] = join(parts, best)
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + merges + chars
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(merges) + len(chars))
    # Earlier merges win: the score of a piece is minus its rank.
    scores = [0.0] * (BYTE0 + 256) + [-float(r) for r in range(len(merges) + len(chars))]
    return pieces, scores, types


def join(parts, pair):
    out, i = [], 0
    while i < len(parts):
        if tuple(parts[i:i + 2]) == pair:
            out.append(parts[i] + parts[i + 1])
            i += 2
        else:
            out.append(parts[i])
            i += 1
    return out


class Tokenizer:
    """SentencePiece BPE: merge the neighbours whose joined piece scores best."""

    def __init__(self, pieces, scores, types):
        self.pieces, self.types = pieces, types
        self.ids = {p: i for i, p in enumerate(pieces) if types[i] == NORMAL}
        self.scores = scores
        self.cache = {}

    def merge(self, marked):
        parts = list(marked)
        while True:
            best, at = None, -1
            for i in range(len(parts) - 1):
                token = self.ids.get(parts[i] + parts[i + 1])
                if token is not None and (best is None or self.scores[token] > best):
                    best, at = self.scores[token], i
            if at < 0:
                break
            parts[at:at + 2] = [parts[at] + parts[at + 1]]
        out = []
        for p in parts:
            out += [self.ids[p]] if p in self.ids else [BYTE0 + b for b in p.encode()]
        return out

    def encode(self, text):
        """Whole-text algorithm: what every SentencePiece reader does."""
        return [BOS] + self.merge(SPACE + text.replace(" ", SPACE))

    def encode_fast(self, text):
        """The same ids, word by word with a cache (checked against encode)."""
        out = [BOS]
        for w in words(text):
            if w not in self.cache:
                self.cache[w] = self.merge(w)
            out += self.cache[w]
        return out

    def decode(self, ids):
        raw = b""
        for i in ids:
            if self.types[i] == BYTE:
                raw += bytes([i - BYTE0])
            elif self.types[i] == NORMAL:
                raw += self.pieces[i].replace(SPACE, " ").encode()
        text = raw.decode("utf-8", "replace")
        return text[1:] if text.startswith(" ") else text


# -------------------------------------------------------------- torch model

def make_model():
    """Built in a function: checking the GGUF with numpy needs no torch."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(DIM))

        def forward(self, x):
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * self.weight

    def linear(n_in, n_out, scale=1.0):
        layer = nn.Linear(n_in, n_out, bias=False)
        nn.init.normal_(layer.weight, std=scale / math.sqrt(n_in))
        return layer

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            quiet = 1 / math.sqrt(2 * LAYERS)   # keep the residual sum small at the start
            self.attn_norm, self.ffn_norm = Norm(), Norm()
            self.attn_q = linear(DIM, HEADS * HEAD_DIM)
            self.attn_k = linear(DIM, KV_HEADS * HEAD_DIM)
            self.attn_v = linear(DIM, KV_HEADS * HEAD_DIM)
            self.attn_output = linear(HEADS * HEAD_DIM, DIM, quiet)
            self.ffn_gate, self.ffn_up = linear(DIM, FFN), linear(DIM, FFN)
            self.ffn_down = linear(FFN, DIM, quiet)

        def attention(self, x, cos, sin, mask):
            b, t, _ = x.shape
            group = HEADS // KV_HEADS
            q = rotate(self.attn_q(x).view(b, t, HEADS, HEAD_DIM), cos, sin)
            k = rotate(self.attn_k(x).view(b, t, KV_HEADS, HEAD_DIM), cos, sin)
            v = self.attn_v(x).view(b, t, KV_HEADS, HEAD_DIM).transpose(1, 2)
            # the query heads of one kv head are stacked along time: no copies of k, v
            q = q.transpose(1, 2).reshape(b, KV_HEADS, group * t, HEAD_DIM)
            s = q @ k.permute(0, 2, 3, 1) / math.sqrt(HEAD_DIM)
            s = s.view(b, KV_HEADS, group, t, t) + mask
            y = torch.softmax(s, -1).view(b, KV_HEADS, group * t, t) @ v
            y = y.view(b, HEADS, t, HEAD_DIM).transpose(1, 2).reshape(b, t, -1)
            return self.attn_output(y)

        def forward(self, x, cos, sin, mask):
            x = x + self.attention(self.attn_norm(x), cos, sin, mask)
            h = self.ffn_norm(x)
            return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))

    def rotate(x, cos, sin):
        """Interleaved RoPE: pairs (2i, 2i+1), the order GGUF 'llama' uses."""
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.token_embd = nn.Embedding(VOCAB, DIM)
            nn.init.normal_(self.token_embd.weight, std=1 / math.sqrt(DIM))
            self.blk = nn.ModuleList(Block() for _ in range(LAYERS))
            self.output_norm = Norm()

        def forward(self, ids, alone=False):
            """`alone`: a text does not see the texts before it in its row."""
            t = ids.shape[1]
            rates = ROPE_BASE ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
            angle = torch.arange(t)[:, None] * rates
            cos, sin = angle.cos()[:, None, :], angle.sin()[:, None, :]
            mask = torch.full((t, t), float("-inf")).triu(1)
            if alone:
                text = (ids == BOS).cumsum(1)
                other = text[:, :, None] != text[:, None, :]
                mask = mask.masked_fill(other, float("-inf"))[:, None, None]
            x = self.token_embd(ids)
            for block in self.blk:
                x = block(x, cos, sin, mask)
            # the output matrix is the embedding matrix (tied)
            return F.linear(self.output_norm(x), self.token_embd.weight)

    return Model()


def rows(docs, length, rng):
    """Endless rows of length+1 ids; every row starts at the start of a text."""
    while True:
        row = []
        for d in rng.permutation(len(docs)):
            row += docs[d]
            if len(row) > length:
                yield row[:length + 1]
                row = []


def rows_for(step, steps, polish):
    """(row length, whether each text stands alone) of one step.

    Short rows are cheaper.  The first pass ends with rows of the whole context,
    so that all positions are seen.  The second pass trains what the demo does
    most: one text by itself; every eighth step keeps the long rows in mind.
    """
    if polish:
        return (CONTEXT, False) if step % 8 == 7 else (CONTEXT // 2, True)
    return (CONTEXT if step >= int(steps * 0.88) else CONTEXT // 2), False


def optimizer(model):
    import torch
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    return torch.optim.AdamW([{"params": decay, "weight_decay": 0.05},
                              {"params": plain, "weight_decay": 0.0}],
                             betas=(0.9, 0.98))


def train(model, docs, steps, peak, polish):
    import torch
    from torch.nn import functional as F
    opt = optimizer(model)
    rng = np.random.default_rng(SEED)
    source = {n: rows(docs, n, rng) for n in (CONTEXT // 2, CONTEXT)}
    began, recent = time.time(), []
    for step in range(steps):
        length, alone = rows_for(step, steps, polish)
        batch = torch.tensor([next(source[length]) for _ in range(BATCH_TOKENS // length)])
        warm = min(1.0, (step + 1) / 60)
        cool = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in opt.param_groups:
            group["lr"] = peak * warm * (0.01 + 0.99 * cool)
        logits = model(batch[:, :-1], alone)
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        recent = recent[-99:] + [loss.item()]
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {np.mean(recent[-50:]):.4f}  "
                  f"{time.time() - began:.0f} s", flush=True)
    print(f"final loss (mean of 100 steps) {np.mean(recent):.4f}")


# --------------------------------------------------------------------- GGUF

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
GGML_F32, GGML_F16 = 0, 1
ALIGN = 32


def pack_string(s):
    raw = s.encode()
    return struct.pack("<Q", len(raw)) + raw


def pack_value(kind, value):
    if kind == STRING:
        return pack_string(value)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], value)


def pack_pair(key, kind, value):
    head = pack_string(key)
    if isinstance(value, list):
        body = b"".join(pack_value(kind, v) for v in value)
        return head + struct.pack("<IIQ", ARRAY, kind, len(value)) + body
    return head + struct.pack("<I", kind) + pack_value(kind, value)


def metadata(tok, scores):
    return [
        ("general.architecture", STRING, "llama"),
        ("general.name", STRING, "lepton-demo"),
        ("general.license", STRING, "apache-2.0"),
        ("general.file_type", U32, 1),              # mostly F16
        ("general.alignment", U32, ALIGN),
        ("llama.context_length", U32, CONTEXT),
        ("llama.embedding_length", U32, DIM),
        ("llama.block_count", U32, LAYERS),
        ("llama.feed_forward_length", U32, FFN),
        ("llama.attention.head_count", U32, HEADS),
        ("llama.attention.head_count_kv", U32, KV_HEADS),
        ("llama.attention.layer_norm_rms_epsilon", F32, EPS),
        ("llama.rope.dimension_count", U32, HEAD_DIM),
        ("llama.rope.freq_base", F32, ROPE_BASE),
        ("llama.vocab_size", U32, VOCAB),
        ("tokenizer.ggml.model", STRING, "llama"),
        ("tokenizer.ggml.tokens", STRING, tok.pieces),
        ("tokenizer.ggml.scores", F32, scores),
        ("tokenizer.ggml.token_type", I32, tok.types),
        ("tokenizer.ggml.bos_token_id", U32, BOS),
        ("tokenizer.ggml.eos_token_id", U32, EOS),
        ("tokenizer.ggml.unknown_token_id", U32, UNK),
        ("tokenizer.ggml.add_bos_token", BOOL, True),
        ("tokenizer.ggml.add_eos_token", BOOL, False),
        ("tokenizer.ggml.add_space_prefix", BOOL, True),
    ]


def padded(raw):
    return raw + b"\0" * (-len(raw) % ALIGN)


def write_gguf(path, pairs, tensors):
    """Vectors are stored as F32, matrices as F16; ne[0] is the row length."""
    info, data = b"", b""
    for name, value in tensors.items():
        kind = GGML_F32 if value.ndim == 1 else GGML_F16
        dims = value.shape[::-1]
        info += pack_string(name) + struct.pack("<I", len(dims))
        info += struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, len(data))
        data += padded(value.astype("<f4" if kind == GGML_F32 else "<f2").tobytes())
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(pairs))
    head += b"".join(pack_pair(*p) for p in pairs) + info
    with open(path, "wb") as f:
        f.write(padded(head) + data)


class Reader:
    """Reads a GGUF back: `meta` (dict) and `tensors` (float64 arrays)."""

    def __init__(self, path):
        with open(path, "rb") as f:
            self.raw, self.at = f.read(), 0
        magic, version, n_tensors, n_pairs = self.take("<4sIQQ")
        assert magic == b"GGUF" and version == 3
        self.meta = {}
        for _ in range(n_pairs):
            key = self.string()
            self.meta[key] = self.value(self.take("<I")[0])
        infos = [self.info() for _ in range(n_tensors)]
        base = -(-self.at // ALIGN) * ALIGN
        self.tensors = {name: self.tensor(base + offset, dims, kind)
                        for name, dims, kind, offset in infos}

    def take(self, form):
        out = struct.unpack_from(form, self.raw, self.at)
        self.at += struct.calcsize(form)
        return out

    def string(self):
        size = self.take("<Q")[0]
        return self.take(f"<{size}s")[0].decode()

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            item, count = self.take("<IQ")
            return [self.value(item) for _ in range(count)]
        return self.take({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind])[0]

    def info(self):
        name, n = self.string(), self.take("<I")[0]
        dims = self.take(f"<{n}Q")
        return (name, dims) + self.take("<IQ")

    def tensor(self, at, dims, kind):
        form = {GGML_F32: "<f4", GGML_F16: "<f2"}[kind]
        count = int(np.prod(dims))
        flat = np.frombuffer(self.raw, form, count, at)
        return flat.reshape(dims[::-1]).astype(np.float64)


# ------------------------------------------------- numpy model (independent)

class NumpyModel:
    """One token at a time with a KV cache, everything in float64."""

    def __init__(self, gguf):
        self.w, m = gguf.tensors, gguf.meta
        self.layers = m["llama.block_count"]
        self.heads = m["llama.attention.head_count"]
        self.kv_heads = m["llama.attention.head_count_kv"]
        self.size = m["llama.embedding_length"] // self.heads
        self.eps = float(m["llama.attention.layer_norm_rms_epsilon"])
        self.base = float(m["llama.rope.freq_base"])
        self.reset()

    def reset(self):
        self.keys = [[] for _ in range(self.layers)]
        self.values = [[] for _ in range(self.layers)]

    def norm(self, x, name):
        return x / np.sqrt(np.mean(x * x) + self.eps) * self.w[name]

    def rope(self, heads, pos):
        """Each pair (2i, 2i+1) is a complex number turned by pos * base^(-2i/d)."""
        turn = np.exp(1j * pos * self.base ** (-np.arange(0, self.size, 2) / self.size))
        z = (heads[:, 0::2] + 1j * heads[:, 1::2]) * turn
        return np.stack((z.real, z.imag), -1).reshape(heads.shape)

    def attend(self, layer, x):
        p, pos = f"blk.{layer}.", len(self.keys[layer])
        q = self.rope((self.w[p + "attn_q.weight"] @ x).reshape(self.heads, -1), pos)
        k = self.rope((self.w[p + "attn_k.weight"] @ x).reshape(self.kv_heads, -1), pos)
        v = (self.w[p + "attn_v.weight"] @ x).reshape(self.kv_heads, -1)
        self.keys[layer].append(k)
        self.values[layer].append(v)
        keys, values = np.array(self.keys[layer]), np.array(self.values[layer])
        out = []
        for h in range(self.heads):
            g = h * self.kv_heads // self.heads
            s = keys[:, g] @ q[h] / np.sqrt(self.size)
            e = np.exp(s - s.max())
            out.append(e / e.sum() @ values[:, g])
        return self.w[p + "attn_output.weight"] @ np.concatenate(out)

    def step(self, token):
        """Logits after one more token."""
        x = self.w["token_embd.weight"][token]
        for i in range(self.layers):
            p = f"blk.{i}."
            x = x + self.attend(i, self.norm(x, p + "attn_norm.weight"))
            h = self.norm(x, p + "ffn_norm.weight")
            gate = self.w[p + "ffn_gate.weight"] @ h
            up = self.w[p + "ffn_up.weight"] @ h
            x = x + self.w[p + "ffn_down.weight"] @ (gate / (1 + np.exp(-gate)) * up)
        x = self.norm(x, "output_norm.weight")
        return self.w.get("output.weight", self.w["token_embd.weight"]) @ x

    def generate(self, prompt, limit, choose, stop=True):
        """Yield (token, logits); `choose` maps logits to a token."""
        self.reset()
        for token in prompt:
            logits = self.step(token)
        for _ in range(limit):
            token = choose(logits)
            yield token, logits
            if stop and token == EOS:
                return
            logits = self.step(token)


def sampler(temperature, seed):
    rng = np.random.default_rng(seed)

    def choose(logits):
        e = np.exp((logits - logits.max()) / temperature)
        return int(rng.choice(len(e), p=e / e.sum()))
    return choose


def greedy(logits):
    return int(np.argmax(logits))


# ------------------------------------------------------------------- checks

def open_model():
    gguf = Reader(MODEL_FILE)
    m = gguf.meta
    tok = Tokenizer(m["tokenizer.ggml.tokens"], m["tokenizer.ggml.scores"],
                    m["tokenizer.ggml.token_type"])
    return gguf, tok, NumpyModel(gguf)


def check_tokenizer(tok):
    assert len(set(tok.pieces)) == len(tok.pieces) == VOCAB
    for text in texts(200, SEED + 1):
        ids = tok.encode(text)
        assert ids == tok.encode_fast(text) and tok.decode(ids) == text
        assert not any(tok.types[i] == BYTE for i in ids)
    other = "Gr\u00fc\u00df dich 42!\n"      # characters outside the corpus: bytes
    assert tok.decode(tok.encode(other)) == other


def load_torch(gguf):
    import torch
    model = make_model()
    model.load_state_dict({n: torch.tensor(w, dtype=torch.float32)
                           for n, w in gguf.tensors.items()})
    return model


def torch_logits(model, ids):
    import torch
    with torch.no_grad():
        return model(torch.tensor([ids]))[0].numpy()


def numpy_logits(reference, ids):
    reference.reset()
    return np.array([reference.step(i) for i in ids])


def compare_trained(model):
    """The exported file against the trained weights: F16 rounding only."""
    _, tok, reference = open_model()
    ids = tok.encode(next(texts(1, SEED + 2)))
    gap = np.abs(torch_logits(model, ids) - numpy_logits(reference, ids)).max()
    print(f"largest logit difference, trained model and GGUF: {gap:.5f}")
    assert gap < 0.1


def compare_loaded(gguf, tok, reference):
    """Both implementations on the weights of the file: float32 rounding only."""
    model = load_torch(gguf)
    ids = [i for t in texts(6, SEED + 3) for i in tok.encode(t) + [EOS]][:CONTEXT]
    a, b = torch_logits(model, ids), numpy_logits(reference, ids)
    gap = np.abs(a - b).max()
    print(f"largest logit difference, torch and numpy over {len(ids)} tokens: {gap:.6f}")
    assert gap < 1e-3


def held_out_loss(tok, reference, count=60):
    """Mean loss per token on texts of another seed."""
    total, n = 0.0, 0
    for text in texts(count, SEED + 4):
        ids = tok.encode(text) + [EOS]
        logits = numpy_logits(reference, ids[:-1])
        top = logits.max(-1)
        logsum = top + np.log(np.exp(logits - top[:, None]).sum(-1))
        total += (logsum - logits[np.arange(len(ids) - 1), ids[1:]]).sum()
        n += len(ids) - 1
    print(f"loss on unseen texts: {total / n:.4f} per token")


def verify():
    gguf, tok, reference = open_model()
    print(f"{os.path.getsize(MODEL_FILE)} bytes, "
          f"{sum(w.size for w in gguf.tensors.values())} parameters")
    check_tokenizer(tok)
    compare_loaded(gguf, tok, reference)
    held_out_loss(tok, reference)
    for i, prompt in enumerate(PROMPTS):
        for label, choose in (("greedy", greedy), ("T=0.7", sampler(0.7, i))):
            start = tok.encode(prompt)
            ids = [t for t, _ in reference.generate(start, 250, choose)]
            ended = "ended" if ids[-1] == EOS else "NOT ENDED"
            print(f"\n[{label}, {len(ids)} tokens, {ended}]\n{tok.decode(start + ids)}")


GOLDEN_TOKENS, GOLDEN_TOP = 48, 8
GOLDEN_PROMPTS = ["The little fox", "Tell me a story about a fox.", "Lepton"]   # wide margins


def golden_case(tok, reference, prompt):
    """Reference values of one prompt and the smallest greedy margin."""
    ids = tok.encode(prompt)
    path = list(reference.generate(ids, GOLDEN_TOKENS, greedy, stop=False))
    margins = [float(np.diff(np.sort(logits)[-2:])[0]) for _, logits in path]
    first = path[0][1]
    top = np.argsort(-first)[:GOLDEN_TOP]
    return {
        "prompt": prompt,
        "prompt_ids": ids,
        "greedy_ids": [t for t, _ in path],
        "greedy_text": tok.decode(ids + [t for t, _ in path]),
        "min_margin": round(min(margins), 6),
        "first_top": [[int(i), float(first[i])] for i in top],
    }


def write_golden(path):
    _, tok, reference = open_model()
    cases = [golden_case(tok, reference, p) for p in GOLDEN_PROMPTS]
    for c in cases:
        print(f"margin {c['min_margin']:.4f}  {c['greedy_text']}")
        assert c["min_margin"] > 1e-3
    with open(path, "w") as f:
        json.dump({"model": "lepton-demo.gguf", "arithmetic": "float64", "cases": cases}, f, indent=1)
        f.write("\n")


def encode_all(tok, corpus):
    docs = [tok.encode_fast(t) + [EOS] for t in corpus]
    sizes = [len(d) for d in docs]
    print(f"{len(docs)} texts, {sum(map(len, corpus))} characters, {sum(sizes)} tokens, "
          f"{np.mean(sizes):.0f} per text, longest {max(sizes)}", flush=True)
    return docs


def export(model, tok):
    tensors = {n: p.detach().numpy() for n, p in model.state_dict().items()}
    write_gguf(MODEL_FILE, metadata(tok, tok.scores), tensors)
    compare_trained(model)


def one_thread():
    import torch
    torch.manual_seed(SEED)
    torch.set_num_threads(1)


def first_pass(steps):
    one_thread()
    corpus = list(texts(TEXTS, SEED))
    tok = Tokenizer(*train_bpe(corpus))
    check_tokenizer(tok)
    docs = encode_all(tok, corpus)
    model = make_model()
    train(model, docs, steps, PEAK_LR, polish=False)
    export(model, tok)


def second_pass(steps):
    """Go on from the exported file, on texts of another seed."""
    one_thread()
    gguf, tok, _ = open_model()
    docs = encode_all(tok, list(texts(TEXTS, SEED + 10)))
    model = load_torch(gguf)
    train(model, docs, steps, POLISH_LR, polish=True)
    export(model, tok)


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--steps", type=int, default=STEPS)
    args.add_argument("--polish-steps", type=int, default=POLISH_STEPS)
    args.add_argument("--polish", action="store_true", help="second pass only")
    args.add_argument("--verify", action="store_true")
    args.add_argument("--golden", metavar="FILE")
    args = args.parse_args()
    if args.verify:
        verify()
    elif args.golden:
        write_golden(args.golden)
    else:
        if not args.polish:
            first_pass(args.steps)
        second_pass(args.polish_steps)


if __name__ == "__main__":
    main()
