#!/usr/bin/env python3
"""Makes the seeds of fuzz_gguf: small files that together use every value type, tensor type and rule of the format.

usage: make_gguf_seeds.py [DIR]   (default: seeds/fuzz_gguf beside this script)
"""
import os
import struct
import sys

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
PACK = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}


def string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind, v):
    return string(v) if kind == STRING else struct.pack("<" + PACK[kind], v)


def key(name, kind, v):
    return string(name) + struct.pack("<I", kind) + value(kind, v)


def array(name, kind, values):
    return string(name) + struct.pack("<IIQ", ARRAY, kind, len(values)) + b"".join(value(kind, v) for v in values)


def pad(data, alignment):
    return data + bytes(-len(data) % alignment)


def build(keys=(), tensors=(), version=3, alignment=32):
    """tensors: (name, dims with the fastest first, type number, bytes)"""
    table, data = b"", b""
    for name, dims, kind, size in tensors:
        table += string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, len(data))
        data = pad(data + bytes(i * 7 % 256 for i in range(size)), alignment)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + table
    return pad(head, alignment) + data if tensors else head


SEEDS = {
    "empty": build(),
    "version2": build([key("general.architecture", STRING, "llama")], version=2),
    "scalars": build([key("a", U8, 1), key("b", I8, -1), key("c", U16, 2), key("d", I16, -2), key("e", U32, 3),
                      key("f", I32, -3), key("g", F32, 0.5), key("h", BOOL, 1), key("i", STRING, "x\u2581"),
                      key("j", U64, 2**63), key("k", I64, -4), key("l", F64, 1e300)]),
    "arrays": build([array("a", U8, [1, 2]), array("b", I16, [-1]), array("c", BOOL, [0, 1]), array("d", F64, [0.5]),
                     array("e", STRING, ["", "<unk>", b"\xff"]), array("f", U32, []), array("g", F32, [1] * 40)]),
    "tensors": build([key("general.alignment", U32, 8)],
                     [("f32", (2,), 0, 8), ("f16", (3, 2), 1, 12), ("q8_0", (32, 1, 2), 8, 68),
                      ("i32", (1, 1, 1, 2), 26, 8), ("bf16", (4,), 30, 8)], alignment=8),
    "model": build([key("general.architecture", STRING, "llama"), key("llama.block_count", U32, 1),
                    array("tokenizer.ggml.tokens", STRING, ["<unk>", "<s>", "</s>", "<0x0A>"]),
                    array("tokenizer.ggml.scores", F32, [0, 0, 0, -1.5]),
                    array("tokenizer.ggml.token_type", I32, [2, 3, 3, 6])],
                   [("token_embd.weight", (4, 4), 0, 64), ("output_norm.weight", (4,), 0, 16)]),
    "refused_type": build([], [("iq2_xxs", (256,), 16, 66)]),
    "k_types": build([], [("q2_k", (256,), 10, 84), ("q4_k", (512, 2), 12, 576), ("q6_k", (256,), 14, 210)]),
    "refused_overlap": build([], [("a", (9,), 0, 32), ("b", (8,), 0, 32)]),
    "refused_bigendian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
}


def main():
    default = os.path.join(os.path.dirname(os.path.abspath(__file__)), "seeds", "fuzz_gguf")
    directory = sys.argv[1] if len(sys.argv) > 1 else default
    os.makedirs(directory, exist_ok=True)
    for name, data in SEEDS.items():
        with open(os.path.join(directory, name + ".gguf"), "wb") as f:
            f.write(data)


if __name__ == "__main__":
    main()
