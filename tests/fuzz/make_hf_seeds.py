#!/usr/bin/python3
"""Writes the seeds of fuzz_safetensors, fuzz_sentencepiece and fuzz_hf_tokenizer: small sound files of every kind.
usage: tests/fuzz/make_hf_seeds.py"""
import json
import os
import struct
import sys

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, f"{os.path.dirname(here)}/integration")
import hf_fixtures as hf  # noqa: E402


def folder(name):
    path = f"{here}/seeds/{name}"
    os.makedirs(path, exist_ok=True)
    return path


def put(path, content):
    with open(path, "wb") as out:
        out.write(content)


to = folder("fuzz_safetensors")
hf.write_safetensors(f"{to}/one.safetensors", {"a": ("F32", [2, 3], bytes(24))}, {"format": "pt"})
hf.write_safetensors(f"{to}/three.safetensors",
                     {"w": ("BF16", [4], bytes(8)), "b": ("BOOL", [3], bytes(3)), "s": ("I64", [], bytes(8))})
put(f"{to}/none.safetensors", struct.pack("<Q", 8) + b"{}      ")

pieces = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3), ("<0x0A>", 0, 6), ("\u2581", -1, 1), ("a", -2, 1), ("\u2581a", -0.5, 1),
          ("<tool>", 0, 4), ("x", 0, 5)]
to = folder("fuzz_sentencepiece")
put(f"{to}/bpe.model", hf.sentencepiece(pieces))
put(f"{to}/plain.model", hf.sentencepiece(pieces, prefix=False, ids=(0, -1, 2, 3), extra=hf.text_field(4, b"test")))
put(f"{to}/unigram.model", hf.sentencepiece(pieces, model_type=1))

to = folder("fuzz_hf_tokenizer")
keys = {"tokenizer.ggml.tokens": [p[0] for p in pieces], "tokenizer.ggml.scores": [p[1] for p in pieces],
        "tokenizer.ggml.token_type": [p[2] for p in pieces]}
put(f"{to}/fallback.json", json.dumps(hf.sentencepiece_json(keys)).encode())
put(f"{to}/pairs.json", json.dumps(hf.sentencepiece_json(keys, arrays=True), ensure_ascii=False).encode())
bytes_step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
for name, pre in {"gpt2": bytes_step,
                  "digits": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, bytes_step]}}.items():
    put(f"{to}/{name}.json", json.dumps({
        "added_tokens": [{"id": 3, "content": "<|end|>", "special": True}], "normalizer": {"type": "NFC"}, "pre_tokenizer": pre,
        "post_processor": bytes_step,
        "model": {"type": "BPE", "unk_token": None, "vocab": {"a": 0, "\u0120": 1, "\u0120a": 2}, "merges": ["\u0120 a"]}}).encode())
