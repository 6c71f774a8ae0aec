#!/usr/bin/python3
"""The hand-written scanners of worker/model/pretokenize_scan.c against the published regular expressions.

Each rule stands here as the expressions of its model's tokenizer.json (`default` as llama.cpp has it), applied one
after the other by an engine that shares nothing with Lepton: python3-regex. Random texts of many scripts are cut by
both, and every word must be the same. Characters whose category changed between the engine's Unicode and version 14,
which Debian 12's utf8proc has, are left out.

usage: test_pretokenize.py [TEXTS_FOR_EACH_RULE [SEED]]
"""
import os
import random
import struct
import subprocess
import sys
import unicodedata

try:
    import regex
except ImportError:
    print("skip - scanners agree with the published expressions: no python3-regex")
    sys.exit(0)

root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
driver = os.path.join(root, os.environ.get("LEPTON_BUILD", "build/release"), "tests/drivers/pretokenize")

# ---- the published expressions -------------------------------------------------------------------------------------

S = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # White_Space, which \s means to them
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = rf"[{S}]*[\r\n]+|[{S}]+(?![^{S}])|[{S}]+"
GPT2 = (rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^{S}\p{{L}}\p{{N}}]+|"
        rf"[{S}]+(?![^{S}])|[{S}]+")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
FRONT = r"[^\r\n\p{L}\p{N}]?"
BLOOM = rf" ?[^({S}|.,!?…。，、।۔،)]+"
EAST_ASIAN = r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DEEPSEEK_LETTERS = (
    r"[A-Za-z\u00B5\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u01BA\u01BC-\u01BF\u01C4-\u0293\u0295-\u02AF\u0370-\u0373"
    r"\u0376\u0377\u037B-\u037D\u037F\u0386\u0388-\u038A\u038C\u038E-\u03A1\u03A3-\u03F5\u03F7-\u0481"
    r"\u048A-\u052F\u0531-\u0556\u10A0-\u10C5\u13A0-\u13F5\u13F8-\u13FD\u1C90-\u1CBA\u1CBD-\u1CBF\u1D00-\u1D2B"
    r"\u1D6B-\u1D77\u1D79-\u1D9A\u1E00-\u1F15\u1F18-\u1F1D\u1F20-\u1F45\u1F48-\u1F4D\u1F50-\u1F57\u1F59\u1F5B"
    r"\u1F5D\u1F5F-\u1F7D\u1F80-\u1FB4\u1FB6-\u1FBC\u1FBE\u1FC2-\u1FC4\u1FC6-\u1FCC\u1FD0-\u1FD3\u1FD6-\u1FDB"
    r"\u1FE0-\u1FEC\u1FF2-\u1FF4\u1FF6-\u1FFC\u2102\u2107\u210A-\u2113\u2115\u2119-\u211D\u2124\u2126\u2128"
    r"\u212A-\u212D\u212F-\u2134\u2139\u213C-\u213F\u2145-\u2149\u214E\u2183\u2184\u2C00-\u2C7B\u2C7E-\u2CE4"
    r"\u2CEB-\u2CEE\u2CF2\u2CF3\uA640-\uA66D\uA680-\uA69B\uA722-\uA76F\uA771-\uA787\uA78B-\uA78E\uAB70-\uABBF"
    r"\uFB00-\uFB06\uFB13-\uFB17\uFF21-\uFF3A\uFF41-\uFF5A\U00010400-\U0001044F\U000104B0-\U000104D3"
    r"\U000104D8-\U000104FB\U00010C80-\U00010CB2\U00010CC0-\U00010CF2\U000118A0-\U000118DF\U0001E900-\U0001E943]")
RULES = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
    "gpt-2": [GPT2],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"],
    "starcoder": [r"\p{N}", GPT2],
    "llama-bpe": [
        rf"{CONTRACTIONS}|{FRONT}\p{{L}}+|\p{{N}}{{1,3}}| ?[^{S}\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"],
    "qwen2": [rf"{CONTRACTIONS}|{FRONT}\p{{L}}+|\p{{N}}| ?[^{S}\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"],
    "gpt-4o": [
        rf"{FRONT}{UPPER}*{LOWER}+{CONTRACTIONS}?|{FRONT}{UPPER}+{LOWER}*{CONTRACTIONS}?|\p{{N}}{{1,3}}|"
        rf" ?[^{S}\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"],
    "tekken": [
        rf"{FRONT}{UPPER}*{LOWER}+|{FRONT}{UPPER}+{LOWER}*|\p{{N}}| ?[^{S}\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"],
    "seed-coder": [rf"{CONTRACTIONS}|{FRONT}\p{{L}}+|\p{{N}}| ?[^{S}\p{{L}}\p{{N}}\r\n]+|{SPACES}"],
    "deepseek-llm": [
        r"[\r\n]", rf"[{S}]?{DEEPSEEK_LETTERS}+", rf"[{S}]?[!-/:-~！-／：-～‘-‟\u3000-。]+", rf"[{S}]+$", EAST_ASIAN,
        r"\p{N}+"],
    "deepseek-coder": [r"[\r\n]", rf"[{S}]?\p{{L}}+", rf"[{S}]?\p{{P}}+", EAST_ASIAN, r"\p{N}"],
    "deepseek-v3": [
        r"\p{N}{1,3}", r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
        + SPACES],
    "bloom": [BLOOM],
    "viking": [BLOOM, r"\p{N}"],
}


def split(passes, text):
    """Each expression cuts every piece that the one before it left: matches, and what lies between."""
    pieces = [text]
    for expression in passes:
        cut = []
        for piece in pieces:
            end = 0
            for match in expression.finditer(piece):
                if match.end() == match.start():
                    continue
                if match.start() > end:
                    cut.append(piece[end:match.start()])
                cut.append(match.group())
                end = match.end()
            if end < len(piece):
                cut.append(piece[end:])
        pieces = cut
    return pieces


def cut_by_lepton(name, texts):
    data = b"".join(struct.pack("<I", len(t)) + t for t in texts)
    out = subprocess.run([driver, name], input=data, stdout=subprocess.PIPE, check=True).stdout
    numbers = memoryview(out).cast("I")
    at, result = 0, []
    for text in texts:
        lengths = numbers[at + 1:at + 1 + numbers[at]]
        at += 1 + numbers[at]
        words, place = [], 0
        for n in lengths:
            words.append(text[place:place + n])
            place += n
        assert place == len(text) and 0 not in lengths, (name, text, list(lengths))
        result.append(words)
    assert at == len(numbers)
    return result


# ---- random texts --------------------------------------------------------------------------------------------------

CATEGORIES = ["Lu", "Ll", "Lt", "Lm", "Lo", "N", "P", "S", "M"]


def stable_characters():
    """Code points that the engine and Unicode 14 (Python's unicodedata) see alike, by category."""
    by_category = {}
    known = {c: regex.compile(rf"\p{{{c}}}") for c in CATEGORIES}
    for code in range(0x110000):
        if 0xD800 <= code < 0xE000:
            continue
        character = chr(code)
        category = unicodedata.category(character)
        if category == "Co":
            continue
        mine = [c for c in CATEGORIES if category.startswith(c)]
        if all((c in mine) == bool(known[c].match(character)) for c in CATEGORIES):
            by_category.setdefault(category, []).append(character)
    return by_category


class Writer:
    """Texts in which the boundaries of the expressions meet often."""
    BITS = ["'s", "'S", "'t", "'re", "'RE", "'Ve", "'m", "'ll", "'lL", "'d", "'", "''", "'\u017f", "\u017f", "'l",
            "\r\n", "\n", "\r", "\n\n", "  ", "   ", "\t", " \n ", "\u3000", "\u3000\u3002", "\u2028", "\xa0", "\x85",
            "\x1c", "\x0b", "\u200b", "\ufeff", "\0", "hello", "World", "HTTPServer", "iPhone", "x", "123", "1234567",
            "3.14", "٣٤٥", "Ⅷ", "½", "²", "中文", "日本語", "ひらがな", "カタカナ", "한국어", "Привет", "Ελλάδα", "ὀδός",
            "ไทย", "हिन्दी", "العربية", "ა", "Ა", "e\u0301", "\u0301", "\u0300\u0301A", "ǅ", "ʰ", "👍", "👨‍👩‍👧", "🇩🇪", "☃️",
            "!", "...", "?!", "(", ")", "|", "。", "，", "、", "।", "۔", "،", "…", "“", "”", "$", "+", "<=>", "^", "~", "`",
            "\\", "/", "//", "/\n", "!\n/", "_", "-", "#", "＄", "Ａ", "１", "ﬀ", "𐐀", "𞤀", "𝔘", "\ue000", "\U000e0001",
            "\uffff", "\U0010ffff", "\u0378"]

    def __init__(self, seed, characters):
        self.random = random.Random(seed)
        self.categories = list(characters.values())
        self.all = [c for group in self.categories for c in group]
        self.ascii = [chr(c) for c in range(128)]
        self.tight = list(" \n\r'sStTrReElLvVmMdD aA1!/\t\u3000中\u0301")

    def text(self):
        r, parts = self.random, []
        kind = r.randrange(5)
        for _ in range(r.randrange(1, 24)):
            if kind == 0:
                parts.append(r.choice(self.tight))
            elif kind == 1:
                parts.append(r.choice(self.ascii))
            elif kind == 2:
                parts.append(r.choice(r.choice(self.categories)))
            elif kind == 3:
                parts.append(r.choice(self.BITS))
            else:
                parts.append(r.choice([r.choice(self.tight), r.choice(self.BITS), r.choice(self.all)]))
            if r.random() < 0.2:
                parts.append(parts[-1] * r.randrange(1, 5))
        return "".join(parts)


# ---- tests ---------------------------------------------------------------------------------------------------------

def test_rules(writer, characters, count):
    """Random texts, then characters between letters and around digits: those of the first scripts, where the sets
    that expressions list begin and end, and a sample of the others."""
    edges = set()
    for listed in (DEEPSEEK_LETTERS, EAST_ASIAN, "[！-／：-～‘-‟\u3000-。]"):
        inside = [bool(regex.match(listed, chr(c))) for c in range(0x20000)]
        edges |= {c + d for c in range(1, 0x20000) if inside[c] != inside[c - 1] for d in (-1, 0)}
    for name, expressions in RULES.items():
        passes = [regex.compile(e) for e in expressions]
        texts = [writer.text() for _ in range(count)]
        for group in characters.values():
            chosen = [c for c in group if ord(c) < 0x3100 or ord(c) in edges or writer.random.random() < 0.02]
            texts += [f"a{c}b {c}1{c} 中{c}中" for c in chosen]
        cut = cut_by_lepton(name, [t.encode() for t in texts])
        for text, words in zip(texts, cut):
            expected = [w.encode() for w in split(passes, text)]
            assert words == expected, f"{name}: {text!r}\n  expected {expected}\n  found    {words}"
        print(f"ok - {name}: {len(texts)} texts are cut as its expressions say")


def test_no_valid_utf8():
    """A byte that is no character is a symbol of its own: the cuts of U+FFFD in its place."""
    bad = [b"\xff", b"\x80", b"\xc3", b"\xe2\x82", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"]
    for name, expressions in RULES.items():
        passes = [regex.compile(e) for e in expressions]
        for piece in bad:
            raw = b"ab " + piece + b"c1 " + piece + b"\n x" + piece
            plain = raw.decode("latin-1").translate({c: 0xFFFD for c in range(0x80, 0x100)})
            lengths, at, words = [len(w) for w in split(passes, plain)], 0, []
            for n in lengths:
                words.append(raw[at:at + n])
                at += n
            found = cut_by_lepton(name, [raw])[0]
            assert found == words, f"{name}: {raw!r}\n  expected {words}\n  found    {found}"
    print("ok - bytes that are no characters are symbols")


def test_names():
    listed = subprocess.run([driver], stdout=subprocess.PIPE, check=True, text=True).stdout.split("\n")[:-1]
    names = dict(line.rsplit(" ", 1) for line in listed)
    assert len(names) == len(listed) and set(names.values()) == set(RULES), (names, set(RULES))
    text = open(os.path.join(root, "docs/models.md"), encoding="utf-8").read()
    for name in names:
        assert f"`{name}`" in text, f"docs/models.md does not name {name}"
    print("ok - every rule is compared here and every name stands in docs/models.md")


def test_linear():
    """Long runs of anything are cut in time that grows with their length: what is quadratic would take minutes."""
    bytes_each = 1 << 18
    for name in RULES:
        for unit in (" ", "a", "A", "1", "'", "!", "\n", "\t ", "\u0301", "中", " \n", "A\u0301", "\0", " (", "'s", "\u3000"):
            text = (unit * (bytes_each // len(unit))).encode()
            for tail in (b"", b"x"):
                cut_by_lepton(name, [text + tail])
    print("ok - long runs of every kind are cut")


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    characters = stable_characters()
    test_rules(Writer(seed, characters), characters, count)
    test_no_valid_utf8()
    test_names()
    test_linear()


main()
