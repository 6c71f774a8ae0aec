"""Hugging Face directories written by hand, from the formats' published descriptions alone: safetensors (a length, a JSON
header, bytes), the SentencePiece protobuf, tokenizer.json, config.json. Nothing here comes from Lepton's own writers. Also
a small GGUF reader, for comparing tensors byte for byte."""
import json
import os
import struct

import numpy as np

GGUF_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
GGUF_TYPES = {0: ("F32", 4), 1: ("F16", 2), 30: ("BF16", 2), 8: ("Q8_0", None)}


def read_gguf(path):
    """(keys, tensors): tensors[name] = (type name, shape with the slowest dimension first, bytes)."""
    data = open(path, "rb").read()
    at = 4

    def take(form):
        nonlocal at
        value, = struct.unpack_from(form, data, at)
        at += struct.calcsize(form)
        return value

    def string():
        nonlocal at
        size = take("<Q")
        at += size
        return data[at - size:at].decode()

    def value(kind):
        if kind == 8:
            return string()
        if kind == 9:
            element, count = take("<I"), take("<Q")
            return [value(element) for _ in range(count)]
        return take(GGUF_SCALARS[kind])

    assert data[:4] == b"GGUF" and take("<I") == 3
    tensor_count, key_count = take("<Q"), take("<Q")
    keys = {}
    for _ in range(key_count):
        name = string()
        keys[name] = value(take("<I"))
    records = []
    for _ in range(tensor_count):
        name, dims = string(), [take("<Q") for _ in range(take("<I"))]
        records.append((name, dims[::-1], take("<I"), take("<Q")))
    alignment = keys.get("general.alignment", 32)
    start = (at + alignment - 1) // alignment * alignment
    tensors = {}
    for name, shape, kind, offset in records:
        label, width = GGUF_TYPES[kind]
        elements = int(np.prod(shape))
        size = elements * width if width else elements // 32 * 34
        tensors[name] = (label, shape, data[start + offset:start + offset + size])
    return keys, tensors


def read_safetensors(path):
    data = open(path, "rb").read()
    size, = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return {name: (r["dtype"], r["shape"], data[8 + size + r["data_offsets"][0]:8 + size + r["data_offsets"][1]])
            for name, r in header.items()}


def write_safetensors(path, tensors, metadata=None):
    """tensors: {name: (dtype name, shape, bytes)}."""
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, (kind, shape, content) in tensors.items():
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text + data)


def write_shards(folder, tensors, count):
    names = sorted(tensors)
    parts = [names[k::count] for k in range(count)]
    weight_map = {}
    for k, part in enumerate(parts):
        file = f"model-{k + 1:05d}-of-{count:05d}.safetensors"
        write_safetensors(f"{folder}/{file}", {n: tensors[n] for n in part})
        weight_map.update({n: file for n in part})
    json.dump({"metadata": {"total_size": sum(len(t[2]) for t in tensors.values())}, "weight_map": weight_map},
              open(f"{folder}/model.safetensors.index.json", "w"))


def halves_from_pairs(content, width, rows, heads):
    """RoPE turns pairs of a head's elements. GGUF's llama has pair i at rows 2i and 2i + 1 of the head, Hugging Face's
    rotate_half has it at rows i and i + n/2."""
    n = rows // heads
    table = np.frombuffer(content, dtype=np.uint8).reshape(heads, n, -1)
    out = np.empty_like(table)
    for i in range(n // 2):
        out[:, i] = table[:, 2 * i]
        out[:, i + n // 2] = table[:, 2 * i + 1]
    assert out.nbytes == len(content) and width
    return out.tobytes()


LLAMA_LAYER = {
    "attn_norm.weight": "input_layernorm.weight", "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight", "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight", "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight", "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
LLAMA_GLOBAL = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
                "output.weight": "lm_head.weight"}


def llama_tensors(keys, tensors):
    """A GGUF llama's tensors under their Hugging Face names and in their Hugging Face order."""
    heads = {"attn_q.weight": keys["llama.attention.head_count"],
             "attn_k.weight": keys.get("llama.attention.head_count_kv", keys["llama.attention.head_count"])}
    out = {}
    for name, (kind, shape, content) in tensors.items():
        if name in LLAMA_GLOBAL:
            out[LLAMA_GLOBAL[name]] = (kind, shape, content)
            continue
        _, layer, rest = name.split(".", 2)
        if rest in heads:
            content = halves_from_pairs(content, shape[1], shape[0], heads[rest])
        out[f"model.layers.{layer}.{LLAMA_LAYER[rest]}"] = (kind, shape, content)
    return out


QWEN_LAYER = dict(LLAMA_LAYER, **{
    "attn_q.bias": "self_attn.q_proj.bias", "attn_k.bias": "self_attn.k_proj.bias", "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.bias": "self_attn.o_proj.bias", "ffn_gate.bias": "mlp.gate_proj.bias", "ffn_up.bias": "mlp.up_proj.bias",
    "ffn_down.bias": "mlp.down_proj.bias", "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight", "attn_norm.bias": "input_layernorm.bias",
    "ffn_norm.bias": "post_attention_layernorm.bias"})
GEMMA2_LAYER = dict(QWEN_LAYER, **{
    "post_attention_norm.weight": "post_attention_layernorm.weight", "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight"})
PHI3_LAYER = dict(QWEN_LAYER, **{"attn_qkv.weight": "self_attn.qkv_proj.weight", "ffn_up.weight": "mlp.gate_up_proj.weight"})
GPT2_LAYER = {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias") for ours, theirs in (
    ("attn_norm", "ln_1"), ("attn_qkv", "attn.c_attn"), ("attn_output", "attn.c_proj"), ("ffn_norm", "ln_2"),
    ("ffn_up", "mlp.c_fc"), ("ffn_down", "mlp.c_proj"))}
GPT2_GLOBAL = {"token_embd.weight": "wte.weight", "position_embd.weight": "wpe.weight", "output_norm.weight": "ln_f.weight",
               "output_norm.bias": "ln_f.bias", "output.weight": "lm_head.weight"}
EXPERTS = {"llama": ("block_sparse_moe.experts.{}.{}.weight", {"ffn_gate_exps": "w1", "ffn_down_exps": "w2", "ffn_up_exps": "w3"},
                     "block_sparse_moe.gate.weight"),
           "qwen3moe": ("mlp.experts.{}.{}.weight", {"ffn_gate_exps": "gate_proj", "ffn_down_exps": "down_proj",
                                                     "ffn_up_exps": "up_proj"}, "mlp.gate.weight")}
WIDTH = {"F32": 4, "F16": 2, "BF16": 2}


def expected_tensors(keys, tensors):
    """What a Hugging Face checkpoint of this GGUF model holds, for every family: names, order of elements, shapes."""
    family = keys["general.architecture"]
    layer_names = {"gemma2": GEMMA2_LAYER, "phi3": PHI3_LAYER, "gpt2": GPT2_LAYER}.get(family, QWEN_LAYER)
    global_names = GPT2_GLOBAL if family == "gpt2" else dict(LLAMA_GLOBAL, **{"output_norm.bias": "model.norm.bias"})
    heads = {"attn_q": keys[f"{family}.attention.head_count"],
             "attn_k": keys.get(f"{family}.attention.head_count_kv", keys[f"{family}.attention.head_count"])}
    out = {}
    for name, (kind, shape, content) in tensors.items():
        if name.startswith("rope_"):
            continue  # in config.json
        if family.startswith("gemma") and name.endswith("norm.weight"):
            content = (np.frombuffer(content, np.float32) - np.float32(1)).tobytes()
        if not name.startswith("blk."):
            out[global_names[name]] = (kind, shape, content)
            continue
        _, layer, rest = name.split(".", 2)
        place = f"h.{layer}." if family == "gpt2" else f"model.layers.{layer}."
        base = rest.rsplit(".", 1)[0]
        if base.endswith("_exps"):
            pattern, parts, _ = EXPERTS[family]
            size = len(content) // shape[0]
            for e in range(shape[0]):
                out[place + pattern.format(e, parts[base])] = (kind, shape[1:], content[e * size:(e + 1) * size])
            continue
        if base == "ffn_gate_inp":
            out[place + EXPERTS[family][2]] = (kind, shape, content)
            continue
        if family == "llama" and base in heads:
            content = halves_from_pairs(content, WIDTH[kind], shape[0], heads[base])
        if family == "gpt2" and len(shape) == 2:
            table = np.frombuffer(content, np.uint8).reshape(*shape, WIDTH[kind])
            content, shape = np.ascontiguousarray(table.transpose(1, 0, 2)).tobytes(), shape[::-1]
        out[place + layer_names[rest]] = (kind, shape, content)
    return out


def llama_config(keys, tied):
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "num_hidden_layers": keys["llama.block_count"], "max_position_embeddings": keys["llama.context_length"],
            "hidden_size": keys["llama.embedding_length"], "intermediate_size": keys["llama.feed_forward_length"],
            "num_attention_heads": keys["llama.attention.head_count"],
            "num_key_value_heads": keys.get("llama.attention.head_count_kv", keys["llama.attention.head_count"]),
            "rms_norm_eps": round(keys["llama.attention.layer_norm_rms_epsilon"], 12),
            "rope_theta": keys.get("llama.rope.freq_base", 10000.0), "rope_scaling": None,
            "vocab_size": len(keys["tokenizer.ggml.tokens"]), "tie_word_embeddings": tied,
            "bos_token_id": keys["tokenizer.ggml.bos_token_id"], "eos_token_id": keys["tokenizer.ggml.eos_token_id"]}


# ---- tokenizer.model ------------------------------------------------------------------------------------------------


def varint(n):
    n &= (1 << 64) - 1
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def field(number, wire, content):
    return varint(number << 3 | wire) + content


def text_field(number, content):
    return field(number, 2, varint(len(content)) + content)


def sentencepiece(pieces, model_type=2, ids=(0, 1, 2, -1), prefix=True, extra=b""):
    """pieces: [(text, score, type)]; a ModelProto of sentencepiece_model.proto."""
    out = b""
    for text, score, kind in pieces:
        out += text_field(1, text_field(1, text.encode()) + field(2, 5, struct.pack("<f", score)) +
                          field(3, 0, varint(kind)))
    trainer = field(3, 0, varint(model_type)) + field(4, 0, varint(len(pieces))) + field(35, 0, varint(1))
    for number, value in zip((40, 41, 42, 43), ids):
        trainer += field(number, 0, varint(value))
    normalizer = text_field(1, b"identity") + text_field(2, b"") + field(3, 0, varint(prefix)) + field(
        4, 0, varint(0)) + field(5, 0, varint(1))
    return out + text_field(2, trainer) + text_field(3, normalizer) + extra


def write_tokenizer_model(folder, keys):
    with open(f"{folder}/tokenizer.model", "wb") as out:
        out.write(sentencepiece(list(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"],
                                         keys["tokenizer.ggml.token_type"]))))
    json.dump({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>",
               "unk_token": "<unk>"}, open(f"{folder}/tokenizer_config.json", "w"))


# ---- tokenizer.json -------------------------------------------------------------------------------------------------


def sentencepiece_json(keys, arrays=False):
    """The same vocabulary as BPE with byte fallback: the merges of every pair that makes a piece, the piece with the
    highest score first, as the converters of the transformers library order them."""
    tokens, scores = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"]
    types = keys["tokenizer.ggml.token_type"]
    normal = {t: i for i, t in enumerate(tokens) if types[i] == 1}
    merges = []
    for piece in sorted(normal, key=lambda t: -scores[normal[t]]):
        pairs = [(piece[:k], piece[k:]) for k in range(1, len(piece)) if piece[:k] in normal and piece[k:] in normal]
        merges += sorted(pairs, key=lambda p: (normal[p[0]], normal[p[1]]))
    added = [{"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i in range(len(tokens)) if types[i] in (2, 3)]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
            "pre_tokenizer": None,
            "post_processor": {"type": "TemplateProcessing",
                               "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                               "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
            "decoder": None,
            "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
                      "vocab": {t: i for i, t in enumerate(tokens)},
                      "merges": [list(m) if arrays else " ".join(m) for m in merges]}}


def write_llama(folder, gguf_path, tokenizer="model", shards=1, ascii_json=True):
    keys, tensors = read_gguf(gguf_path)
    os.makedirs(folder)
    out = llama_tensors(keys, tensors)
    if shards == 1:
        write_safetensors(f"{folder}/model.safetensors", out, {"format": "pt"})
    else:
        write_shards(folder, out, shards)
    json.dump(llama_config(keys, "output.weight" not in tensors), open(f"{folder}/config.json", "w"))
    if tokenizer == "model":
        write_tokenizer_model(folder, keys)
    else:
        json.dump(sentencepiece_json(keys, arrays=tokenizer == "arrays"), open(f"{folder}/tokenizer.json", "w"),
                  ensure_ascii=ascii_json)
    return keys, tensors
