#!/usr/bin/python3
"""Everything at once: many streams on mock groups, of which some are cancelled, some readers are slow, some peers send
garbage, and every few seconds something dies or hangs. Each request must have its one outcome, each stream its tokens once,
in order and the right ones, and afterwards the coordinator is as it was.

A tenth of the streams is cancelled, a hundredth is never read on, for every twentieth a malformed frame comes.

SOAK_S, SOAK_STREAMS and SOAK_FAULT_S say how long, how many and how often (600, 1000 and 10 for the long run). From 300 s on
the memory may not grow by more than MOST_SLOPE from the second minute; what is bounded and fills up is filled before."""
import os
import random
import re
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from faults import SLOW, Client, encode, kill, main, note, with_options  # noqa: E402

SECONDS = float(os.environ.get("SOAK_S", 25 * SLOW))
STREAMS = int(os.environ.get("SOAK_STREAMS", 200 if SLOW == 1 else 60))
FAULT_S = float(os.environ.get("SOAK_FAULT_S", 4 * SLOW))
GROUPS = ("g0", "g0-b", "g1", "g1-b")
CONNECTIONS = 20
LONG = SECONDS >= 300
MOST_SLOPE = 102.4  # KiB a minute
OFFENDERS = 1024  # connections that the coordinator remembers to have sent malformed frames
MALFORMED = [b"\xc1", b"\x93\x01\x01\x81\xa6prompt\xa1x", b"\xdd\xff\xff\xff\xff", b"", encode("generate", request="x")[:-3],
             encode("generate", request="x", prompt="p", max_tokens=0), encode("generate", request=7, prompt="p"),
             encode("generate", request="a b", prompt="p"), encode("hello", group="g0"), encode("cancel"),
             b"\x93\x01\x63\x80", encode("generate", request="x", prompt="p", temperature=float("nan"))]
SEEDS, LONGEST = 10, 120
SPEED = ("base_us = 60000.0; decode_us = 20.0; prefill_us = 5.0; step_tokens = 4096; max_sequences = %d; kv_tokens = 4000000;"
         % max(STREAMS // 3, 16))


class Crowd:
    """Connections that keep so many streams open, and judge each when it is over."""

    def __init__(self, c, reference):
        self.c, self.reference, self.dice = c, reference, random.Random(6)
        self.clients = [Client(c.client("client" if i % 2 else "other")) for i in range(CONNECTIONS)]
        self.cancel_at, self.slow_until, self.again_at = {}, {}, {}
        self.number = 0
        self.counts = dict(complete=0, cancelled=0, failed=0, cut=0, refused=0, malformed=0)
        self.slow, self.vandal, self.due = set(), None, 0.0
        self.worst, self.refusals = 0.0, {}
        self.seeds = {}
        self.open = True

    def begin(self, client):
        name = "s%d" % self.number
        self.number += 1
        seed, tokens = self.dice.randrange(SEEDS), self.dice.randrange(10, LONGEST)
        self.seeds[name] = seed
        more, fate = {}, self.dice.random()
        if fate < 0.01:
            self.slow.add(name)
            more = dict(credit=5)
        elif fate < 0.11:
            self.cancel_at[name] = self.dice.randrange(0, tokens)
        client.generate(name, max_tokens=tokens, seed=seed, timeout_ms=60000 * SLOW, prompt="Once %d" % seed, **more)
        self.due += 0.05

    def over(self, client, name):
        """The stream has its outcome: holds it against the invariants and forgets it."""
        log = client.log
        log.check_one(name)
        ids, error = log.ids(name), log.error(name)
        assert ids == self.reference[self.seeds[name]][:len(ids)], "I7: %s: %r" % (name, ids)
        end = log.events[name][-1][1]
        kind = "cut" if error and error.code == 408 and name in self.slow else "refused" if error and error.code == 429 else "failed" if error else (
            "cancelled" if end.finish_reason == "cancelled" else "complete")
        assert kind != "refused" or not log.kinds(name)[:-1], "%s was accepted, then refused" % name
        if kind == "refused":  # who is told when to come again comes then
            why = re.sub(r"\d+", "N", error.message)
            self.refusals[why] = self.refusals.get(why, 0) + 1
            self.again_at.setdefault(client, []).append(time.monotonic() + error.retry_after_ms / 1e3)
        if kind == "failed":
            note("%s failed: %d %s" % (name, error.code, error.message))
        if kind == "complete":
            assert len(ids) == log.asked[name]["max_tokens"], (name, len(ids), end)
            self.worst = max(self.worst, log.worst_gap(name))
        self.counts[kind] += 1
        assert kind not in ("cut", "complete") or (kind == "cut") == (name in self.slow and log.asked[name]["max_tokens"] > 5), name
        self.slow.discard(name)
        for table in (log.events, log.asked, self.seeds, self.cancel_at):
            table.pop(name, None)

    def turn(self, client, now):
        """Takes what this connection has, unless it is being slow."""
        if self.slow_until.get(client, 0) > now:
            return
        for _ in range(400):
            if not client.peer.socket.poll(0):
                break
            m = client.peer.receive(0)
            name = m.get("request")
            client.log.take(m, now)
            if name in self.cancel_at and m.name == "token" and m.index >= self.cancel_at[name]:
                del self.cancel_at[name]
                client.peer.send("cancel", request=name)
            if name in client.log.events and client.log.over(name):
                self.over(client, name)
        self.again_at[client] = [t for t in self.again_at.get(client, []) if t > now]
        while self.open and len(client.log.events) + len(self.again_at[client]) < STREAMS // CONNECTIONS:
            self.begin(client)

    def garbage(self):
        """The malformed frames that are due, over connections that are given up one after the other."""
        while self.due >= len(MALFORMED):
            if self.vandal:
                self.vandal.socket.close()
            self.vandal = self.c.client("other")
            for frame in MALFORMED:
                self.vandal.socket.send(frame)
            self.due -= len(MALFORMED)
            self.counts["malformed"] += len(MALFORMED)


class Faults:
    """What goes wrong, one after the other."""

    def __init__(self, c, dice):
        self.c, self.dice, self.workers, self.stopped, self.done = c, dice, {}, None, []

    def start(self, name):
        self.workers[name] = self.c.mock_later(name, SPEED)

    def strike(self):
        name = self.dice.choice([g for g in GROUPS])
        worker, kind = self.workers[name], self.dice.choice(["kill", "stop", "term"])
        if self.stopped:
            self.stopped.send_signal(signal.SIGCONT)
            self.stopped = None
        if worker.poll() is None and kind == "stop":
            worker.send_signal(signal.SIGSTOP)
            self.stopped = worker
        elif worker.poll() is None and kind == "kill":
            kill(worker)
        elif worker.poll() is None:
            worker.send_signal(signal.SIGTERM)
        self.revive()
        self.done.append(kind)

    def revive(self):
        for other in GROUPS:
            if self.workers[other].poll() is not None:
                self.start(other)

    def calm(self):
        if self.stopped:
            self.stopped.send_signal(signal.SIGCONT)


def reference(c):
    client = Client(c.client())
    for seed in range(SEEDS):
        client.generate("r%d" % seed, max_tokens=LONGEST, seed=seed, prompt="Once %d" % seed)
    client.finish(60)
    assert client.log.check() == SEEDS
    client.peer.close()
    return [client.log.ids("r%d" % seed) for seed in range(SEEDS)]


def slope(samples):
    """KiB a minute, by least squares."""
    n = len(samples)
    mt, mv = sum(t for t, _ in samples) / n, sum(v for _, v in samples) / n
    return 60 * sum((t - mt) * (v - mv) for t, v in samples) / max(sum((t - mt) ** 2 for t, _ in samples), 1e-9)


@with_options(lease_ms=1500, stall_timeout_ms=2000, log_level="warn")
def test_soak(c):
    """streams with cancels, slow readers, garbage and a fault every few seconds: each has its outcome, nothing leaks"""
    faults = Faults(c, random.Random(7))
    for name in GROUPS:
        faults.start(name)
    c.until(lambda: len([g for g in c.status().fields.get("groups", []) if g["state"] == "ready"]) == 4, "the groups")
    crowd = Crowd(c, reference(c))
    c.until(lambda: c.status().live == 0, "the reference to be over")
    for _ in range(OFFENDERS // 20 + 1 if LONG else 0):
        peers = [c.client("other") for _ in range(20)]
        for peer in peers:
            peer.socket.send(b"\xc1")
        bad = c.status().bad_frames_total
        c.until(lambda: c.status().bad_frames_total >= bad, "the offenders to be remembered")
        for peer in peers:
            peer.socket.close()
    files, threads = c.files_open(), c.threads()
    start = now = time.monotonic()
    next_fault, memory, next_second = start + FAULT_S, [], start
    while now < start + SECONDS or any(client.log.events for client in crowd.clients):
        now = time.monotonic()
        crowd.open = now < start + SECONDS
        assert now < start + SECONDS + 90 * SLOW, [list(x.log.events)[:3] for x in crowd.clients if x.log.events]
        for client in crowd.clients:
            crowd.turn(client, now)
        if now >= next_fault and crowd.open:
            faults.strike()
            next_fault = now + FAULT_S
        if now >= next_second:
            next_second = now + 1
            memory.append((now, c.memory_kib()))
            if crowd.open:
                crowd.garbage()
                crowd.slow_until[crowd.dice.choice(crowd.clients)] = now + 1.0 * crowd.dice.random() / 4
        if not crowd.open:
            faults.calm()
        time.sleep(0.002)
    faults.calm()
    c.until(lambda: c.status().live == 0, "everything to be over")
    for client in crowd.clients + ([Client(crowd.vandal)] if crowd.vandal else []):
        client.peer.close()
    c.until(lambda: c.files_open() <= files + 3 * len(GROUPS), "the descriptors to return")
    assert c.threads() == threads, (c.threads(), threads)
    note("refusals: %r" % crowd.refusals)
    late = [m for m in memory if start + min(120, SECONDS / 2) < m[0] < start + SECONDS]
    note("%d streams in %.0f s: %r; worst gap %.1f s; faults %r; memory %d to %d KiB, slope %.0f KiB/min"
         % (crowd.number, SECONDS, crowd.counts, crowd.worst, faults.done, memory[0][1], memory[-1][1], slope(late)))
    note("memory every 30 s: %s KiB" % " ".join("%d" % kib for _, kib in memory[::30]))
    assert not LONG or slope(late) <= MOST_SLOPE, slope(late)
    c.until(lambda: faults.revive() or [g["running"] + g["waiting"] + g["pages_used"] + g["assigned"] for g in c.status().groups if g["state"] == "ready"]
            == [0] * len(GROUPS), "all groups to be ready and every page to be free")
    assert crowd.counts["complete"] > STREAMS and crowd.counts["cancelled"] > 0, crowd.counts
    assert crowd.counts["cut"] > 0 and crowd.counts["malformed"] > 0.03 * crowd.number, crowd.counts
    assert crowd.counts["failed"] == 0 and crowd.counts["refused"] < crowd.number / 10, crowd.counts
    status = c.status()
    assert status.accepted_total == status.completed_total + status.failed_total + status.cancelled_total, status


if __name__ == "__main__":
    sys.exit(main(globals()))
