#!/usr/bin/python3
"""Exactness as a user meets it (design I7): the same 64 requests, sent through the real coordinator to real groups of MPI
ranks, give the same token ids however the group is cut into stages, threads, batches and chunks. The engine alone is held
against the whole matrix by tests/unit/worker/infer/test_exact.c; here the network, the tokenizer and MPI take part."""
import subprocess
import sys
import tempfile
import os

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from coordinator_harness import BUILD, run  # noqa: E402
from local_cluster import DEMO, LocalCluster, shared  # noqa: E402

REQUESTS = 64
SAMPLING = [dict(temperature=0.0), dict(temperature=1.0), dict(temperature=0.8, top_k=40), dict(temperature=1.2, top_p=0.9),
            dict(temperature=1.0, min_p=0.05), dict(temperature=0.0, repetition_penalty=1.3),
            dict(temperature=0.7, top_k=20, top_p=0.95, presence_penalty=0.5, frequency_penalty=0.3),
            dict(temperature=1.0, min_p=0.02, repetition_penalty=1.1, ignore_eos=True)]
WORDS = "Once upon a time there was a little fox who liked to run through the tall grass and find a big red ball .".split()

# How the group is set up: each line is a way of running that may not show. The first is what the others are held against.
CELLS = [dict(stages=1, threads=1, max_sequences=1, step_tokens=512),
         dict(stages=1, threads=2, max_sequences=32, step_tokens=128),
         dict(stages=2, threads=1, max_sequences=8, step_tokens=16),
         dict(stages=3, threads=2, max_sequences=2, step_tokens=128),
         dict(stages=3, threads=1, max_sequences=32, step_tokens=512, page_tokens=7),
         dict(stages=2, threads=1, max_sequences=16, step_tokens=64, kv_bytes=1 << 20)]


def requests():
    """Prompts of one word to far over a page, many of which begin alike; a seed each."""
    for i in range(REQUESTS):
        length = 1 + i * 7 % 90
        words = [WORDS[(t if i % 3 == 0 else t * (i % 5 + 1) + i) % len(WORDS)] for t in range(length)]
        yield dict(request="r%d" % i, prompt=" ".join(words), max_tokens=1 if i % 16 == 9 else 8 + i * 5 % 25, seed=1000 + i,
                   **SAMPLING[(i + i // 8) % len(SAMPLING)])


def answers(cluster):
    """{request: (ids, finish reason)} of all requests, sent at once."""
    client, ids, ends = cluster.client(), {}, {}
    for fields in requests():
        client.send("generate", **fields)
    while len(ends) < REQUESTS:
        m = client.expect("accepted", "token", "done", timeout_s=60)
        if m.name == "token":
            assert m.index == len(ids.setdefault(m.request, [])), m
            ids[m.request].append(m.id)
        elif m.name == "done":
            ends[m.request] = m.finish_reason
    client.close()
    return {r: (ids.get(r, []), ends[r]) for r in ends}


def compare(model, cell, want, got):
    for request in sorted(want, key=lambda r: int(r[1:])):
        if want[request] == got[request]:
            continue
        ours, alone = got[request][0], want[request][0]
        at = next((t for t, (a, b) in enumerate(zip(ours, alone)) if a != b), min(len(ours), len(alone)))
        raise AssertionError("%s %s: %s, index %d: %s %s, alone %s %s" % (model, cell, request, at, ours[at:at + 1],
                                                                        got[request][1], alone[at:at + 1], want[request][1]))


def matrix(model, cells):
    want = None
    for cell in cells:
        worker = [w for name in sorted(cell) if name not in ("stages", "threads")
                  for w in ("--" + name.replace("_", "-"), str(cell[name]))]
        cluster = LocalCluster(model=model, groups=1, stages=cell["stages"], threads=cell["threads"],
                               worker=["--context", "512", *worker])
        try:
            got = answers(cluster)
        finally:
            cluster.close()
        if want is None:
            want = got
            assert len({tuple(ids) for ids, _ in want.values()}) > REQUESTS * 3 // 4
        compare(model, cell, want, got)


def test_demo(_):
    """64 requests to the demo model give the same tokens with every number of stages, threads, sequences and rows"""
    matrix(DEMO, CELLS)


def test_stories(_):
    """64 requests to stories260K give the same tokens with every number of stages, threads, sequences and rows"""
    matrix(shared("data/lm/stories260K/stories260K.gguf"), CELLS[:1] + CELLS[3:4])


def test_q4_k(_):
    """64 requests to a random model in Q4_K give the same tokens with every number of stages, threads, sequences and rows"""
    with tempfile.TemporaryDirectory(prefix="lepton-test-") as home:
        model = os.path.join(home, "q4_k.gguf")
        subprocess.run([BUILD + "/lepton", "synth", "--layers", "3", "--dim", "256", "--ffn", "512", "--heads", "4", "--kv-heads",
                        "2", "--vocab", "500", "--context", "512", "--type", "q4_k", "--pure", model], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        matrix(model, CELLS[:1] + CELLS[2:3])


class Nothing:
    def log(self):
        return ""

    def close(self):
        pass


if __name__ == "__main__":
    only = sys.argv[1:]
    sys.exit(run([t for t in (test_demo, test_stories, test_q4_k) if not only or t.__name__ in only], make=Nothing))
