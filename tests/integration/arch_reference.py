"""The model families in float64, each written out from its published description, sharing no code and no tables
with the engine. Weights come under the names of GGUF files; what a name means is said where it is used.

  Llama      Touvron et al. 2023      Mistral   Jiang et al. 2023       Mixtral  Jiang et al. 2024
  Qwen2/3    Qwen Team 2024, 2025     GPT-2     Radford et al. 2019     Gemma    Gemma Team 2024 (1 and 2)
  Phi-3      Abdin et al. 2024        StableLM  Bellagente et al. 2024  RoPE     Su et al. 2021
"""
import numpy as np


# ---- pieces

def rms_norm(x, gain, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def layer_norm(x, gain, bias, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + eps) * gain + bias


def silu(z):
    return z / (1 + np.exp(-z))


def gelu_tanh(z):
    return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z ** 3)))


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def frequencies(length, base):
    return base ** (-np.arange(0, length, 2) / length)


def rotate_neighbours(x, frequency):
    """x [T, H, D]: turns the pairs (0, 1), (2, 3), ... of each head."""
    angle = np.arange(len(x))[:, None, None] * frequency
    out = x.copy()
    a, b, n = x[..., 0:2 * len(frequency):2], x[..., 1:2 * len(frequency):2], 2 * len(frequency)
    out[..., 0:n:2] = a * np.cos(angle) - b * np.sin(angle)
    out[..., 1:n:2] = a * np.sin(angle) + b * np.cos(angle)
    return out


def rotate_halves(x, frequency):
    """x [T, H, D]: turns the pairs (i, i + R/2) of the first R elements of each head; the rest stays."""
    half = len(frequency)
    angle = np.arange(len(x))[:, None, None] * frequency
    a, b, rest = x[..., :half], x[..., half:2 * half], x[..., 2 * half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle), rest], -1)


def attend(q, k, v, scale, window=None, cap=None):
    """q [T, H, D], k and v [T, G, D]: every query head with its group's keys; [T, H * D]."""
    T, H, D = q.shape
    k, v = np.repeat(k, H // k.shape[1], 1), np.repeat(v, H // v.shape[1], 1)
    scores = np.einsum("thd,shd->hts", q, k) * scale
    if cap:
        scores = cap * np.tanh(scores / cap)
    i, j = np.arange(T)[:, None], np.arange(T)[None, :]
    seen = j <= i
    if window:
        seen &= j > i - window
    weights = softmax(np.where(seen, scores, -np.inf))
    return np.einsum("hts,shd->thd", weights, v).reshape(T, H * D)


def mixture(x, router, gate, up, down, used):
    """x [T, C]; gate and up [E, F, C], down [E, C, F]. The weights of the experts used add up to 1."""
    logits = x @ router.T
    out = np.zeros_like(x)
    for t in range(len(x)):
        probability = softmax(logits[t])
        chosen = np.argsort(-probability, kind="stable")[:used]
        weight = probability[chosen] / probability[chosen].sum()
        for e, w in zip(chosen, weight):
            out[t] += w * (down[e] @ (silu(gate[e] @ x[t]) * (up[e] @ x[t])))
    return out


# ---- families. config holds plain numbers; w(name) gives a weight, None when absent; ids a list.

def linear(w, name, x):
    bias = w(name + ".bias")
    y = x @ w(name + ".weight").T
    return y if bias is None else y + bias


def heads(x, count):
    return x.reshape(len(x), count, -1)


def logits_of(w, x):
    output = w("output.weight")
    return x @ (w("token_embd.weight") if output is None else output).T


def stacked(w, b, name, experts):
    whole = w(b + name + "_exps.weight")
    return whole if whole is not None else np.stack([w(f"{b}{name}.{e}.weight") for e in range(experts)])


def llama(config, w, ids):
    """Llama, Mistral (window), Mixtral (experts). GGUF keeps the pairs of a rotation beside each other."""
    H, G, eps = config["heads"], config["kv_heads"], config["eps"]
    frequency = config["frequency"]
    x = w("token_embd.weight")[ids]
    for layer in range(config["layers"]):
        b = f"blk.{layer}."
        h = rms_norm(x, w(b + "attn_norm.weight"), eps)
        q = rotate_neighbours(heads(linear(w, b + "attn_q", h), H), frequency) * config.get("magnitude", 1)
        k = rotate_neighbours(heads(linear(w, b + "attn_k", h), G), frequency) * config.get("magnitude", 1)
        v = heads(linear(w, b + "attn_v", h), G)
        x = x + linear(w, b + "attn_output", attend(q, k, v, q.shape[-1] ** -0.5, config.get("window")))
        h = rms_norm(x, w(b + "ffn_norm.weight"), eps)
        if config.get("experts"):
            parts = [stacked(w, b, name, config["experts"]) for name in ("ffn_gate", "ffn_up", "ffn_down")]
            x = x + mixture(h, w(b + "ffn_gate_inp.weight"), *parts, config["used"])
        else:
            x = x + linear(w, b + "ffn_down", silu(linear(w, b + "ffn_gate", h)) * linear(w, b + "ffn_up", h))
    return logits_of(w, rms_norm(x, w("output_norm.weight"), eps))


def qwen(config, w, ids):
    """Qwen2: biases on q, k, v. Qwen3: an RMS norm over each head of q and k instead; with experts: Qwen3-MoE."""
    H, G, eps = config["heads"], config["kv_heads"], config["eps"]
    x = w("token_embd.weight")[ids]
    for layer in range(config["layers"]):
        b = f"blk.{layer}."
        h = rms_norm(x, w(b + "attn_norm.weight"), eps)
        q, k, v = (heads(linear(w, b + "attn_" + n, h), c) for n, c in (("q", H), ("k", G), ("v", G)))
        if w(b + "attn_q_norm.weight") is not None:
            q = rms_norm(q, w(b + "attn_q_norm.weight"), eps)
            k = rms_norm(k, w(b + "attn_k_norm.weight"), eps)
        frequency = frequencies(q.shape[-1], config["base"])
        q, k = rotate_halves(q, frequency), rotate_halves(k, frequency)
        x = x + linear(w, b + "attn_output", attend(q, k, v, q.shape[-1] ** -0.5))
        h = rms_norm(x, w(b + "ffn_norm.weight"), eps)
        if config.get("experts"):
            parts = [w(f"{b}{name}_exps.weight") for name in ("ffn_gate", "ffn_up", "ffn_down")]
            x = x + mixture(h, w(b + "ffn_gate_inp.weight"), *parts, config["used"])
        else:
            x = x + linear(w, b + "ffn_down", silu(linear(w, b + "ffn_gate", h)) * linear(w, b + "ffn_up", h))
    return logits_of(w, rms_norm(x, w("output_norm.weight"), eps))


def gpt2(config, w, ids):
    H, eps = config["heads"], config["eps"]
    x = w("token_embd.weight")[ids] + w("position_embd.weight")[:len(ids)]
    C = x.shape[1]
    for layer in range(config["layers"]):
        b = f"blk.{layer}."
        h = layer_norm(x, w(b + "attn_norm.weight"), w(b + "attn_norm.bias"), eps)
        qkv = linear(w, b + "attn_qkv", h)
        q, k, v = (heads(part, H) for part in (qkv[:, :C], qkv[:, C:2 * C], qkv[:, 2 * C:]))
        x = x + linear(w, b + "attn_output", attend(q, k, v, q.shape[-1] ** -0.5))
        h = layer_norm(x, w(b + "ffn_norm.weight"), w(b + "ffn_norm.bias"), eps)
        x = x + linear(w, b + "ffn_down", gelu_tanh(linear(w, b + "ffn_up", h)))
    return logits_of(w, layer_norm(x, w("output_norm.weight"), w("output_norm.bias"), eps))


def gemma(config, w, ids):
    """Gemma and, with post-norms, Gemma 2. The stored gains are 1 + the paper's."""
    H, G, eps, two = config["heads"], config["kv_heads"], config["eps"], config.get("two", False)
    x = w("token_embd.weight")[ids] * np.sqrt(w("token_embd.weight").shape[1])
    for layer in range(config["layers"]):
        b = f"blk.{layer}."
        h = rms_norm(x, w(b + "attn_norm.weight"), eps)
        q, k, v = (heads(linear(w, b + "attn_" + n, h), c) for n, c in (("q", H), ("k", G), ("v", G)))
        frequency = frequencies(q.shape[-1], config["base"])
        q, k = rotate_halves(q, frequency), rotate_halves(k, frequency)
        local = two and layer % 2 == 0
        a = attend(q, k, v, config.get("scale", q.shape[-1] ** -0.5), config["window"] if local else None,
                   config.get("attention_cap"))
        a = linear(w, b + "attn_output", a)
        x = x + (rms_norm(a, w(b + "post_attention_norm.weight"), eps) if two else a)
        h = rms_norm(x, w(b + "ffn_norm.weight"), eps)
        f = linear(w, b + "ffn_down", gelu_tanh(linear(w, b + "ffn_gate", h)) * linear(w, b + "ffn_up", h))
        x = x + (rms_norm(f, w(b + "post_ffw_norm.weight"), eps) if two else f)
    logits = logits_of(w, rms_norm(x, w("output_norm.weight"), eps))
    return config["logit_cap"] * np.tanh(logits / config["logit_cap"]) if two else logits


def phi3(config, w, ids):
    """One matrix holds q, k and v; one the gate and, behind it, up."""
    H, G, eps = config["heads"], config["kv_heads"], config["eps"]
    D = config["head_length"]
    x = w("token_embd.weight")[ids]
    frequency = frequencies(config["rotated"], config["base"])
    if config.get("original"):  # LongRoPE (Ding et al. 2024): other frequencies beyond the original context
        frequency = frequency / w(f"rope_factors_{'long' if len(ids) > config['original'] else 'short'}.weight")
    magnitude = config.get("magnitude", 1)
    for layer in range(config["layers"]):
        b = f"blk.{layer}."
        qkv = rms_norm(x, w(b + "attn_norm.weight"), eps) @ w(b + "attn_qkv.weight").T
        q, k, v = (heads(part, n) for part, n in zip(np.split(qkv, [H * D, (H + G) * D], 1), (H, G, G)))
        q, k = rotate_halves(q, frequency) * magnitude, rotate_halves(k, frequency) * magnitude
        x = x + linear(w, b + "attn_output", attend(q, k, v, D ** -0.5, config["window"]))
        gate, up = np.split(rms_norm(x, w(b + "ffn_norm.weight"), eps) @ w(b + "ffn_up.weight").T, 2, 1)
        x = x + linear(w, b + "ffn_down", up * silu(gate))
    return logits_of(w, rms_norm(x, w("output_norm.weight"), eps))


def stablelm(config, w, ids):
    """LayerNorm; a part of each head is rotated."""
    H, G, eps = config["heads"], config["kv_heads"], config["eps"]
    x = w("token_embd.weight")[ids]
    frequency = frequencies(config["rotated"], config["base"])
    for layer in range(config["layers"]):
        b = f"blk.{layer}."
        h = layer_norm(x, w(b + "attn_norm.weight"), w(b + "attn_norm.bias"), eps)
        q, k, v = (heads(linear(w, b + "attn_" + n, h), c) for n, c in (("q", H), ("k", G), ("v", G)))
        q, k = rotate_halves(q, frequency), rotate_halves(k, frequency)
        x = x + linear(w, b + "attn_output", attend(q, k, v, q.shape[-1] ** -0.5))
        h = layer_norm(x, w(b + "ffn_norm.weight"), w(b + "ffn_norm.bias"), eps)
        x = x + linear(w, b + "ffn_down", silu(linear(w, b + "ffn_gate", h)) * linear(w, b + "ffn_up", h))
    return logits_of(w, layer_norm(x, w("output_norm.weight"), w("output_norm.bias"), eps))
