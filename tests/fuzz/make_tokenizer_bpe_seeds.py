#!/usr/bin/python3
"""Writes the first inputs of fuzz_tokenizer_bpe to tests/fuzz/seeds/fuzz_tokenizer_bpe: texts in which the rules of
pre-tokenizers meet, patches to the fixed vocabulary's file, and merges. fuzz_tokenizer_bpe.c has the forms.

usage: tests/fuzz/make_tokenizer_bpe_seeds.py
"""
import os

folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "seeds", "fuzz_tokenizer_bpe")
text = "he's the HELLO'LL 1234567 aaaaaaaa\r\n \n  <tool>! 日本語、のe\u0301 👍 ٣٤ ǅabc's/\n".encode()
seeds = {f"text_{rule}": bytes([0, rule]) + text for rule in (0, 1, 17, 24, 25, 37, 44, 46, 48, 49, 50, 52, 55)}
seeds |= {
    "bytes": b"\x00\x01\xff\xe2\x82 a\xc3\xa9\xed\xa0\x80\n",
    "patches": b"\x01\x00\x08\x01\x02\x00\xff",
    "merges": b"\x02ab\xc8c\xc9\xc9aa\xcb\xcb\x00\x00abcabcaaaaab",
    "competing": b"\x02abba\xc8a\xc9b\xc8\xc8\x00\x00abababbaababb aab",
}
os.makedirs(folder, exist_ok=True)
for name, data in seeds.items():
    with open(os.path.join(folder, name), "wb") as f:
        f.write(data)
