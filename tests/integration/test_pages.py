#!/usr/bin/python3
"""The KV cache as a user meets it: prompts that are computed once, memory too small for all, choices, page types; with
the real programs, from the command line."""
import json
import os
import re
import subprocess
import sys
import threading

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from coordinator_harness import BUILD, run  # noqa: E402
from local_cluster import DEMO, LocalCluster  # noqa: E402

STORY = "Once upon a time there was a little robot who lived in a small house near the sea. "


def cluster_of(*worker, **options):
    def mark(test):
        test.options = dict(options, worker=worker)
        return test
    return mark


def answer(result):
    return [c["tokens"] for c in result["choices"]] if "choices" in result else [result["tokens"]]


@cluster_of(stages=2)
def test_prefix(c):
    """a prompt that was served before is found in pages, over two stages: the same tokens, counted and shown"""
    words = ("-n", "20", "--seed", "3", "--repetition-penalty", "1.2")
    first = c.generate(STORY * 3, *words)
    second = c.generate(STORY * 3, *words)
    assert first["tokens"] == second["tokens"]
    prompt = first["prompt_tokens"]
    assert first["cached_tokens"] == 0 and prompt - 16 <= second["cached_tokens"] < prompt, second
    c.until(lambda: c.group("g-0")["prefix_hits"] == second["cached_tokens"], "the heartbeat with the reused tokens")
    g = c.group("g-0")
    assert g["prefix_queries"] == 2 * prompt and g["pages_used"] == 0 and g["pages_cached"] >= prompt // 16, g
    table = c.lepton("status").stdout
    assert re.search(r"pages 0 used, \d+ cached, \d+ free; %d of %d prompt tokens reused; 0 preemptions"
                     % (second["cached_tokens"], 2 * prompt), table), table


@cluster_of()
def test_salt(c):
    """another cache salt finds nothing, and gives the same tokens"""
    words = ("-n", "8", "--seed", "3")
    first = c.generate(STORY, *words)
    other = c.generate(STORY, *words, "--cache-salt", "mine")
    again = c.generate(STORY, *words, "--cache-salt", "mine")
    assert first["tokens"] == other["tokens"] == again["tokens"]
    assert other["cached_tokens"] == 0 and again["cached_tokens"] > 0, (other, again)


@cluster_of("--prefix-cache=false")
def test_no_cache(c):
    """prefix_cache = false finds nothing"""
    for _ in range(2):
        assert c.generate(STORY, "-n", "2")["cached_tokens"] == 0
    c.until(lambda: c.group("g-0")["tokens_generated"] == 4, "the heartbeat with the tokens")
    assert c.group("g-0")["pages_cached"] == 0


def page_bytes(model, page_tokens=16):
    """Of one page over all layers, in F32, from what `lepton inspect` says."""
    done = subprocess.run([BUILD + "/lepton", "inspect", "--json", model], text=True, stdout=subprocess.PIPE, check=True)
    shape = json.loads(done.stdout)
    head_length = shape["embedding_length"] // shape["attention.head_count"]
    return shape["block_count"] * 2 * shape["attention.head_count_kv"] * head_length * 4 * page_tokens


FEW = str(12 * page_bytes(DEMO)) if os.path.exists(DEMO) else "1000000"


def test_few_pages(_):
    """memory for 12 pages: eight choices that grow to 10 pages each are preempted, and are what they are with room"""
    given = []
    for worker in ((), ("--kv-bytes", FEW)):
        c = LocalCluster(worker=worker)
        try:
            given.append(answer(c.generate(STORY, "-n", "120", "--seed", "2", "--ignore-eos", "--choices", "8")))
            c.until(lambda: c.group("g-0")["tokens_generated"] == 8 * 120, "the heartbeat with all tokens")
            g = c.group("g-0")
            assert (g["preemptions"] > 0) == (g["pages"] == 12) and g["pages_used"] == 0, g
        finally:
            c.close()
    assert given[0] == given[1] and len(given[0]) == 8


@cluster_of("--kv-bytes", FEW)
def test_never_fits(c):
    """what can never fit is refused with the numbers"""
    done = c.lepton("generate", "-p", STORY, "-n", "400", "--ignore-eos")
    assert done.returncode == 1 and "413" in done.stderr, done.stderr
    assert re.search(r"need \d+ KV pages, the group has 12", done.stderr), done.stderr


@cluster_of()
def test_choices(c):
    """choices of one request share its prompt"""
    one = c.generate(STORY, "-n", "12", "--seed", "5")
    many = c.generate(STORY, "-n", "12", "--seed", "5", "--choices", "4")
    tokens = answer(many)
    assert len(tokens) == 4 and tokens[0] == one["tokens"] and tokens[1] != tokens[0], many


def test_types(_):
    """every page type serves and is part of the numeric class; heads without whole blocks are refused by name"""
    model = "/tmp/lepton-test-pages-%d.gguf" % os.getpid()
    shape = ["--layers", "2", "--dim", "128", "--ffn", "256", "--heads", "4", "--kv-heads", "2", "--vocab", "300"]
    subprocess.run([BUILD + "/lepton", "synth", *shape, "--type", "f32", model], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    try:
        for kind in ("f32", "f16", "bf16", "q8_0"):
            c = LocalCluster(model, worker=("--kv-type", kind))
            try:
                first, second = (c.generate("a b c d e f " * 9, "-n", "9", "--seed", "1") for _ in range(2))
                assert first["tokens"] == second["tokens"] and second["cached_tokens"] > 0
                assert c.group("g-0")["kv_type"] == kind
            finally:
                c.close()
    finally:
        os.unlink(model)
    done = subprocess.run([BUILD + "/lepton", "run", small_heads(), "-p", "x", "--", "--kv-type", "q8_0"], timeout=120,
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 1 and "expected a multiple of 32" in done.stderr, done.stderr


def small_heads():
    model = "/tmp/lepton-test-heads-%d.gguf" % os.getpid()
    subprocess.run([BUILD + "/lepton", "synth", "--layers", "1", "--dim", "64", "--ffn", "64", "--heads", "4", "--kv-heads",
                    "2", "--vocab", "300", "--type", "f32", model], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    return model


class NoCluster:
    """For tests that start what they need themselves."""

    def log(self):
        return ""

    def close(self):
        small = "/tmp/lepton-test-heads-%d.gguf" % os.getpid()
        if os.path.exists(small):
            os.unlink(small)


if __name__ == "__main__":
    only = sys.argv[1:]

    def chosen(tests):
        return [t for t in tests if not only or t.__name__ in only]

    code = run(chosen([test_types, test_few_pages]), make=NoCluster)
    code |= run(chosen([test_prefix, test_salt, test_no_cache, test_never_fits, test_choices]),
                make=LocalCluster)
    sys.exit(code)
