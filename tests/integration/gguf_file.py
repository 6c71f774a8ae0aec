"""A GGUF writer that shares no code with Lepton's (ggml docs/gguf.md, version 3): tests write models with it."""
import struct

import numpy as np

ALIGNMENT = 32
F32, F16, Q8_0 = 0, 1, 8


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def value(v):
    """Type and bytes of a metadata value: bool, int (u32), np.int32, float (f32), str, or a list of one of these."""
    if isinstance(v, bool):
        return 7, struct.pack("<B", v)
    if isinstance(v, np.int32):
        return 5, struct.pack("<i", v)
    if isinstance(v, int):
        return 4, struct.pack("<I", v)
    if isinstance(v, float):
        return 6, struct.pack("<f", v)
    if isinstance(v, str):
        return 8, string(v)
    parts = [value(item) for item in v]
    return 9, struct.pack("<IQ", parts[0][0], len(parts)) + b"".join(data for _, data in parts)


def quantise_q8_0(rows):
    """Blocks of 32: an F16 scale and 32 signed bytes."""
    blocks = np.asarray(rows, np.float32).reshape(-1, 32)
    scale = (np.abs(blocks).max(axis=1) / 127).astype(np.float16)
    inverse = np.where(scale == 0, 0, 1 / np.maximum(scale.astype(np.float32), 1e-30))
    q = np.clip(np.rint(blocks * inverse[:, None]), -127, 127).astype(np.int8)
    return scale, q


def pack(array, kind):
    """(bytes, what they mean as float64)."""
    if kind == Q8_0:
        scale, q = quantise_q8_0(array)
        data = b"".join(scale[i].tobytes() + q[i].tobytes() for i in range(len(scale)))
        return data, (scale.astype(np.float64)[:, None] * q).reshape(array.shape)
    stored = np.asarray(array, np.float16 if kind == F16 else np.float32)
    return stored.tobytes(), stored.astype(np.float64)


def write(path, metadata, tensors, kinds=None):
    """tensors: name -> array, row-major. kinds: name -> F32|F16|Q8_0 for those that are not F32."""
    kinds = kinds or {}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, v in metadata.items():
        kind, data = value(v)
        head += string(key) + struct.pack("<I", kind) + data
    offset, blobs = 0, []
    for name, array in tensors.items():
        kind = kinds.get(name, F32)
        data, _ = pack(np.asarray(array), kind)
        dims = np.asarray(array).shape
        head += string(name) + struct.pack("<I", len(dims))
        head += b"".join(struct.pack("<Q", d) for d in reversed(dims)) + struct.pack("<IQ", kind, offset)
        data += b"\0" * (-len(data) % ALIGNMENT)
        blobs.append(data)
        offset += len(data)
    head += b"\0" * (-len(head) % ALIGNMENT)
    with open(path, "wb") as f:
        f.write(head + b"".join(blobs))


def find(path, name):
    """(kind, shape as numpy has it, offset in the file) of a tensor of a file."""
    with open(path, "rb") as f:
        data = f.read()
    at = 8

    def take(form):
        nonlocal at
        out = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return out if len(out) > 1 else out[0]

    def text():
        nonlocal at
        n = take("Q")
        at += n
        return data[at - n:at].decode()

    def skip(kind):
        nonlocal at
        if kind == 8:
            text()
        elif kind == 9:
            inner, count = take("IQ")
            for _ in range(count):
                skip(inner)
        else:
            at += {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}[kind]

    tensors, values = take("QQ")
    for _ in range(values):
        text()
        skip(take("I"))
    found = None
    for _ in range(tensors):
        this, dims = text(), take("I")
        shape = tuple(take("Q") for _ in range(dims))[::-1]
        kind, offset = take("IQ")
        if this == name:
            found = kind, shape, offset
    begin = at + -at % ALIGNMENT
    return found[0], found[1], begin + found[2]
