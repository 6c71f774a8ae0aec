#!/usr/bin/python3
"""Partitions and old words (faults.md 7, 8, 9, 15, 16, 17): a group that is cut off stops before its work is given away, what it
says late changes nothing, and a slow link is no death. Mock groups behind a fault proxy; the link and its lease are the real
ones."""
import os
import re
import sys
import time
from datetime import datetime

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from faults import BUILD, Client, main, note, with_options  # noqa: E402

SPEED = "base_us = 20000.0; decode_us = 50.0; prefill_us = 20.0; max_sequences = 8; kv_tokens = 200000;"
STREAMS = 4
TOKENS = 500
LEASE_MS = 1500


def behind_proxy(c):
    """g0 directly, g1 through a proxy; the log of g1's process."""
    proxy = c.proxy()
    c.mock("g0", SPEED)
    command = [BUILD + "/lepton-worker", "--mock", c.path("speed.cfg"), "--group", "g1", "--endpoint", proxy.endpoint, "--server-key",
               c.path("keys/coordinator.pub"), "--key", c.path("keys/g1.key")]
    with open(c.path("g1.log"), "wb") as log:
        c.start(command, stderr=log)
    c.until(lambda: c.group("g1") and c.group("g1")["state"] == "ready", "g1 to be ready")
    return proxy


def when(text, words):
    """The time of the first line with these words, in seconds."""
    line = next((line for line in text.splitlines() if re.search(words, line)), None)
    return line and datetime.strptime(line.split()[0].rstrip("Z"), "%Y-%m-%dT%H:%M:%S.%f").timestamp()


def read(path):
    with open(path, errors="replace") as f:
        return f.read()


def streams(c):
    """Streams that have begun, on both groups."""
    client = Client(c.client())
    for i in range(STREAMS):
        client.generate("q%d" % i, max_tokens=TOKENS, seed=i)
    client.pump(lambda: all(len(client.log.ids(r)) >= 5 for r in client.log.events), "five tokens of each")
    assert c.group("g1")["assigned"] > 0
    return client


def undisturbed(c):
    client = Client(c.client())
    for i in range(STREAMS):
        client.generate("u%d" % i, max_tokens=TOKENS, seed=i)
    client.finish(60)
    return {"q%d" % i: client.log.ids("u%d" % i) for i in range(STREAMS)}


def cut_off(c, way, row):
    proxy = behind_proxy(c)
    reference, client = undisturbed(c), streams(c)
    epoch = c.group("g1")["epoch"]
    proxy.hold(way)
    start = time.monotonic()
    client.pump(lambda: "group g1 (epoch %d" % epoch in c.log() and "is gone" in c.log(), "the loss")
    noticed = time.monotonic() - start
    c.until(lambda: "fences itself" in read(c.path("g1.log")), "the group to fence itself")
    proxy.let()  # what was held comes now: words of an epoch that is over
    client.finish(60)
    assert client.log.check(reference) == STREAMS
    fenced = when(read(c.path("g1.log")), "fences itself")
    gone = when(c.log(), r"group g1 \(epoch \d+, .* is gone")
    assert fenced <= gone, (fenced, gone)
    c.until(lambda: c.group("g1")["state"] == "ready" and c.group("g1")["epoch"] > epoch, "its return")
    note("row %s: cut off (%s): noticed after %.2f s; the group had fenced itself %.2f s before that; worst gap %.2f s"
         % (row, way, noticed, gone - fenced, max(client.log.worst_gap(r) for r in client.log.events)))


@with_options(lease_ms=LEASE_MS, heartbeat_ms=200)
def test_symmetric_partition(c):
    """a group cut off both ways fences itself before its work is given away, and what it said late changes nothing (row 7)"""
    cut_off(c, "both", "7")


@with_options(lease_ms=LEASE_MS, heartbeat_ms=200)
def test_one_way_down(c):
    """a group that is heard and hears nothing fences itself, and its work goes on elsewhere (row 8)"""
    proxy = behind_proxy(c)
    reference, client = undisturbed(c), streams(c)
    epoch = c.group("g1")["epoch"]
    proxy.hold("down")  # heartbeats and tokens arrive, no lease comes back
    c.until(lambda: "fences itself" in read(c.path("g1.log")), "the group to fence itself")
    proxy.let()
    client.finish(60)
    assert client.log.check(reference) == STREAMS
    c.until(lambda: c.group("g1")["state"] == "ready" and c.group("g1")["epoch"] > epoch, "its return")
    note("row 8: nothing comes down: fenced, worst gap %.2f s" % max(client.log.worst_gap(r) for r in client.log.events))


@with_options(lease_ms=LEASE_MS, heartbeat_ms=200)
def test_one_way_up(c):
    """a group that hears and is not heard fences itself before its work is given away (row 8)"""
    cut_off(c, "up", "8")


@with_options(lease_ms=LEASE_MS, heartbeat_ms=200)
def test_slow_link(c):
    """a link that takes 400 ms each way ends no lease: no false death, and every stream is whole (row 9)"""
    proxy = behind_proxy(c)
    reference, client = undisturbed(c), streams(c)
    epoch = c.group("g1")["epoch"]
    proxy.delay(400)
    client.finish(90)
    assert client.log.check(reference) == STREAMS
    assert c.group("g1")["epoch"] == epoch and "is gone" not in c.log() and "fences itself" not in read(c.path("g1.log"))
    note("row 9: 400 ms each way: no lease ended, worst gap %.2f s" % max(client.log.worst_gap(r) for r in client.log.events))


@with_options(lease_ms=LEASE_MS)
def test_duplicate_identity(c):
    """a second job under the name of a live group is refused and audited, again and again, and disturbs nothing (row 15)"""
    c.mock("g0", SPEED)
    client = Client(c.client())
    client.generate("q", max_tokens=150, seed=1)
    client.pump(lambda: len(client.log.ids("q")) >= 5, "five tokens")
    epoch = c.group("g0")["epoch"]
    second = c.start([BUILD + "/lepton-worker", "--mock", c.path("speed.cfg"), "--group", "g0", "--endpoint", c.endpoint, "--server-key",
                      c.path("keys/coordinator.pub"), "--key", c.path("keys/g0.key")])
    client.finish(60)
    assert client.log.check() == 1 and c.group("g0")["epoch"] == epoch
    assert "audit: refused group g0" in c.log()
    second.kill()
    second.wait()


@with_options(lease_ms=60000)
def test_old_words(c):
    """heartbeats that come again or out of order, and tokens of an old epoch, change nothing (rows 16, 17)"""
    worker, client = c.worker().join(), c.client()
    for sequence in (3, 1, 2, 3, 4):
        worker.beat(sequence=sequence)
    assert [worker.expect("lease").sequence for _ in range(2)] == [3, 4]
    client.send("generate", request="q", prompt="Once", max_tokens=8)
    client.expect("accepted")
    assign = worker.expect("assign")
    worker.token(assign, 0)
    client.expect("token")
    old = worker.epoch
    worker.join()
    again = worker.expect("assign")
    for index in (1, 2):  # what the epoch before still had to say
        worker.token(again, index, text="late", epoch=old)
        assert worker.expect("error").code == 409
    worker.beat(sequence=9, epoch=old)
    assert worker.expect("error").code == 409
    worker.serve(again, 3, begin=1)
    assert [client.expect("token").text for _ in range(2)] == ["t1 ", "t2 "]
    assert client.expect("done").moves == 1


if __name__ == "__main__":
    sys.exit(main(globals()))
