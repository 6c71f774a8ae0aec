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
from faults import BUILD, SLOW, Client, main, note, with_options  # noqa: E402

SPEED = "base_us = 20000.0; decode_us = 50.0; prefill_us = 20.0; max_sequences = 8; kv_tokens = 200000;"
STREAMS = 4
TOKENS = 500
LEASE_MS = 1500


def behind_proxy(c, between=None):
    """g0 directly, g1 through a proxy; the log of g1's process."""
    proxy = between or c.proxy()
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


@with_options(lease_ms=LEASE_MS, heartbeat_ms=200)
def test_routed_away(c):
    """a group behind a link that has become slow gets no work while another has room, and gets it again when it is fast (row 9)"""
    proxy = behind_proxy(c)
    epoch = c.group("g1")["epoch"]
    proxy.delay(300)
    start = time.monotonic()
    c.until(lambda: c.group("g1").get("round_trip_us", 0) >= 500000, "the slow link to be measured")
    took = time.monotonic() - start

    def served(name):  # so few at once that neither group is ever full
        client = Client(c.client())
        for i in range(5):
            client.generate("%s%d" % (name, i), max_tokens=3, seed=i)
        client.finish()
        assert client.log.check() == 5
        return [m.group for r in client.log.events for _, m in client.log.events[r] if m.name == "done"]
    assert served("far") == ["g0"] * 5
    crowd = Client(c.client())
    for i in range(12):  # more than g0 has places: what it has no room for is served behind the slow link
        crowd.generate("crowd%d" % i, max_tokens=40, seed=i)
    crowd.finish()
    assert crowd.log.check() == 12
    groups = [m.group for r in crowd.log.events for _, m in crowd.log.events[r] if m.name == "done"]
    assert groups.count("g0") >= 8 and "g1" in groups, groups
    proxy.let()
    c.until(lambda: c.group("g1").get("round_trip_us", 10**9) < 20000, "the fast link to be measured")
    assert "g1" in served("near")
    assert c.group("g1")["epoch"] == epoch and "is gone" not in c.log(), "a false death"
    note("row 9: 300 ms each way: measured after %.1f s, routed away; no lease ended" % took)


def every_stream(c, between, change, seconds):
    """Streams on both groups while `change` is in force."""
    behind_proxy(c, between)
    reference, client = undisturbed(c), streams(c)
    epoch = c.group("g1")["epoch"]
    between.heartbeats = change
    end = time.monotonic() + seconds
    client.pump(lambda: time.monotonic() > end, "time to pass", seconds + 5)
    between.heartbeats = "pass"
    client.finish(60)
    assert client.log.check(reference) == STREAMS
    assert c.group("g1")["epoch"] == epoch and "is gone" not in c.log(), [line for line in c.log().splitlines() if "g1" in line]


# What is tested here needs no lease to end, and a machine that has no time for anybody must not end one.
@with_options(lease_ms=60000, heartbeat_ms=100)
def test_replayed_heartbeats(c):
    """real heartbeats that come again and again are ignored by their number, and disturb nothing (row 17)"""
    every_stream(c, c.middleman(), "replay", 3)
    assert re.search(r"group g1: ignored heartbeat \d+ after \d+", c.log())


@with_options(lease_ms=60000, heartbeat_ms=100)
def test_swapped_heartbeats(c):
    """real heartbeats that change places are taken or ignored by their number, and disturb nothing (row 17)"""
    every_stream(c, c.middleman(), "swap", 3)
    found = re.findall(r"group g1: ignored heartbeat (\d+) after (\d+)", c.log())
    assert found and all(int(a) == int(b) - 1 for a, b in found), found


@with_options(lease_ms=LEASE_MS, heartbeat_ms=100)
def test_old_heartbeats_keep_nothing_alive(c):
    """a group of which only old heartbeats come is given up when its lease ends, though they come all the time (row 17)"""
    between = c.middleman()
    behind_proxy(c, between)
    reference, client = undisturbed(c), streams(c)
    epoch, start = c.group("g1")["epoch"], time.monotonic()
    between.heartbeats = "old"
    client.pump(lambda: "group g1 (epoch %d" % epoch in c.log() and "its lease has ended" in c.log(), "the end of its lease")
    took = time.monotonic() - start
    between.heartbeats = "pass"
    client.finish(60)
    assert client.log.check(reference) == STREAMS
    assert when(read(c.path("g1.log")), "fences itself") <= when(c.log(), r"group g1 \(epoch \d+, .* is gone")
    c.until(lambda: c.group("g1")["state"] == "ready" and c.group("g1")["epoch"] > epoch, "its return")
    note("row 17: old heartbeats alone: given up after %.2f s (lease %.1f s)" % (took, LEASE_MS / 1e3))


@with_options(lease_ms=500, heartbeat_ms=100)
def test_lost_in_silence_again(c):
    """a stream that loses one group after another in silence goes on as soon as each lease has ended: nobody knows of a death"""
    workers = [c.worker(name, name[:2]).join() for name in ("g0", "g1", "g1-b", "g0-b")]
    beating, silent, client = list(workers), [], Client(c.client())
    client.generate("q", max_tokens=3)
    while len(silent) < 4:
        start = time.monotonic()
        while True:
            assert time.monotonic() < start + 2 * SLOW, "%d groups were lost, and nobody got the request then" % len(silent)
            for worker in beating:
                worker.beat()
            got = [(worker, m) for worker in beating for m in iter(lambda w=worker: w.receive(0.01), None) if m.name == "assign"]
            if got:
                break
        beating.remove(got[0][0])  # it says nothing more; its connection stays
        silent.append(time.monotonic() - start)
    got[0][0].serve(got[0][1], 3)
    client.finish()
    assert client.log.check() == 1 and c.log().count("its lease has ended") == 3
    note("row 7: three groups lost in silence, one after the other: %.2f s at most each (lease %.1f s)" % (max(silent[1:]), 0.5 * SLOW))


@with_options(lease_ms=LEASE_MS, heartbeat_ms=200)
def test_stream_of_bytes(c):
    """bytes that come twice, or in another order, cost a group its connection, and its streams nothing but time (row 17)"""
    proxy = behind_proxy(c)
    reference, client = undisturbed(c), streams(c)
    gaps = []
    for fault, way in (("again", "up"), ("swap", "up"), ("again", "down"), ("swap", "down")):
        c.until(lambda: c.group("g1")["state"] == "ready", "g1 to be ready")
        epoch, start = c.group("g1")["epoch"], time.monotonic()
        proxy.command(fault, way)
        client.pump(lambda: c.group("g1")["epoch"] > epoch, "the next epoch of g1")
        gaps.append(time.monotonic() - start)
    client.finish(60)
    assert client.log.check(reference) == STREAMS
    note("row 17: bytes of the connection again or swapped: back under a new epoch after at most %.2f s" % max(gaps))


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
