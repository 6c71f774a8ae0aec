#!/usr/bin/python3
"""Writes the first inputs of fuzz_tokenizer to tests/fuzz/seeds/fuzz_tokenizer: texts for its fixed vocabulary,
patches to that vocabulary's file, and small vocabularies whose merges compete. fuzz_tokenizer.c has the forms.

usage: tests/fuzz/make_tokenizer_seeds.py
"""
import os

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "seeds", "fuzz_tokenizer")


def vocabulary(text, *pieces):
    """Mode 2. Pieces: (text, score from 0 to 31, type)."""
    body = b"\x02"
    for piece, score, kind in pieces:
        piece = piece.encode()
        body += bytes([len(piece)]) + piece + bytes([score << 3 | kind])
    return body + b"\x00" + text.encode()


unknown = ("<unk>", 0, UNKNOWN)
seeds = {
    "text": b"\x00\x00the cat <tool>!  ## hello aaaa\xe6\x97\xa5 \xff\xe2\x82",
    "text_special": b"\x00\x02<s>hello</s>hello<unk>",
    "text_without_prefix": b"\x00\x01 abcbc never",
    "patches": b"\x01\x00\x08\x01\x02\x00\xff",
    "competing": vocabulary(
        " abababa aabb", unknown, ("\u2581", 1, NORMAL), ("a", 1, NORMAL), ("b", 1, NORMAL), ("ab", 2, NORMAL),
        ("ba", 3, NORMAL), ("aba", 4, NORMAL), ("\u2581a", 2, NORMAL), ("\u2581ab", 9, NORMAL)),
    "ties": vocabulary(
        "abcdabcabcdbcd", unknown, ("<s>", 0, CONTROL), ("ab", 2, NORMAL), ("bc", 2, NORMAL), ("abc", 4, NORMAL),
        ("cd", 5, NORMAL), ("bcd", 9, NORMAL), ("abcd", 1, NORMAL)),
    "user_defined": vocabulary("a<x><xy>b", unknown, ("<x>", 1, USER_DEFINED), ("<xy>", 1, USER_DEFINED)),
    "run": vocabulary(
        "aaaabaaabaaaaaab", unknown, ("aa", 2, NORMAL), ("aaa", 3, NORMAL), ("aaaa", 1, NORMAL),
        ("aab", 4, NORMAL), ("baa", 4, NORMAL)),
}
os.makedirs(folder, exist_ok=True)
for name, data in seeds.items():
    with open(os.path.join(folder, name), "wb") as f:
        f.write(data)
