#!/usr/bin/python3
"""Writes one frame of every message type to tests/fuzz/seeds/fuzz_wire, and the dictionary of field names.

usage: tests/fuzz/make_wire_seeds.py docs/protocol.md
"""
import os
import re
import sys

import msgpack

here = os.path.dirname(os.path.abspath(__file__))
protocol = open(sys.argv[1], encoding="utf-8").read()
protocol = protocol[protocol.index("<!-- messages"):protocol.index("<!-- end of messages")]


def sample(kind, records):
    """A value of this kind that is within its bounds."""
    if kind.startswith("integer"):
        return 1
    if kind.startswith("number"):
        return -0.5 if kind.endswith(" to 0") else 0.5
    if kind == "boolean":
        return True
    if kind.startswith("array of "):
        element = re.match(r"array of (\w+)", kind).group(1)
        whole = fields(records[element], records)
        values = list(whole.values())
        return [values[0] if element in bare else values if element in listed else whole] * 2
    return kind.split(" or ")[0] if " or " in kind else "a1"


def fields(rows, records):
    return {name: sample(kind, records) for name, kind in rows if name != "code"} | (
        {"code": 429} if any(name == "code" for name, _ in rows) else {})


records, numbers, bare, listed = {}, {}, set(), set()
for block in protocol.split("### ")[1:]:
    title = re.match(r"(?:(\d+)|element) `(\w+)`", block)
    records[title.group(2)] = re.findall(r"^\| `(\w+)` \| ([^|]*?) \|", block, re.M)
    if "as the bare" in block:
        bare.add(title.group(2))
    if "as an array of these values" in block:
        listed.add(title.group(2))
    if title.group(1):
        numbers[title.group(2)] = int(title.group(1))
os.makedirs(f"{here}/seeds/fuzz_wire", exist_ok=True)
for name, number in numbers.items():
    with open(f"{here}/seeds/fuzz_wire/{name}", "wb") as out:
        out.write(msgpack.packb([1, number, fields(records[name], records)]))
names = sorted({name for rows in records.values() for name, _ in rows})
with open(f"{here}/fuzz_wire.dict", "w", encoding="utf-8") as out:
    out.write("# The fields of every message, as msgpack strings; make_wire_seeds.py writes this file.\n")
    for name in names:
        prefix = f"\\x{0xA0 | len(name):02x}" if len(name) < 32 else f"\\xd9\\x{len(name):02x}"
        out.write(f'"{prefix}{name}"\n')
