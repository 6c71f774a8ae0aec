#!/usr/bin/python3
"""What whoever runs the cluster does to it while it serves: groups taken out of service and put back (lepton drain, lepton
undrain), keys revoked (row 31 of the faults to survive). Mock groups and real clients."""
import os
import shutil
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from faults import BUILD, SLOW, Client, main, note, with_options, within  # noqa: E402

SPEED = "base_us = 10000.0; decode_us = 50.0; prefill_us = 20.0; max_sequences = 8; kv_tokens = 200000;"


def command(c, *words, key="client"):
    process = c.lepton(*words, key=key)
    out, err = process.communicate(timeout=30 * SLOW)
    return process.returncode, out, err


def streams(c, count, tokens, name="q"):
    client = Client(c.client("other"))
    for i in range(count):
        client.generate("%s%d" % (name, i), max_tokens=tokens, seed=i)
    client.pump(lambda: all(len(client.log.ids(r)) >= 3 for r in client.log.events), "three tokens of each")
    return client


def undisturbed(c, count, tokens):
    client = streams(c, count, tokens, "u")
    client.finish()
    return {"q%d" % i: client.log.ids("u%d" % i) for i in range(count)}


@with_options(admins="client")
def test_drained(c):
    """lepton drain moves what a group runs and keeps new work from it; it stays up, and lepton undrain gives it work again"""
    c.mock("g0", SPEED)
    c.mock("g1", SPEED)
    reference, client = undisturbed(c, 6, 300), streams(c, 6, 300)
    before = c.group("g1")
    assert before["assigned"] > 0 and c.group("g0")["assigned"] > 0
    start = time.monotonic()
    code, _, err = command(c, "drain", "--wait-ms", 10000, "g1")
    took = time.monotonic() - start
    assert code == 0, err
    group = c.group("g1")
    assert group["state"] == "held" and group["assigned"] == 0 and group["epoch"] == before["epoch"], group
    assert " held " in command(c, "status")[1]
    client.finish(60)
    assert client.log.check(reference) == 6
    ends = [m for r in client.log.events for _, m in client.log.events[r] if m.name == "done"]
    assert sum(m.get("moves", 0) for m in ends) == before["assigned"] and not any(m.get("mixed") for m in ends), ends
    generated = c.group("g1")["tokens_generated"]
    late = streams(c, 8, 10, "late")
    late.finish()
    assert c.group("g1")["tokens_generated"] == generated and late.log.check() == 8
    assert command(c, "undrain", "g1")[0] == 0 and c.group("g1")["state"] == "ready"
    again = streams(c, 8, 10, "again")
    again.finish()
    assert again.log.check() == 8 and c.group("g1")["tokens_generated"] > generated
    assert "audit: client client: drain group g1: done" in c.log() and "client: undrain group g1: done" in c.log()
    note("lepton drain: %d streams moved, empty after %.2f s, worst gap %.2f s"
         % (before["assigned"], took, max(client.log.worst_gap(r) for r in client.log.events)))


@with_options(admins="client")
def test_drained_alone(c):
    """the only group of a model ends what it runs when it is drained, and who comes then waits until it is put back"""
    c.mock("g0", SPEED)
    client = streams(c, 2, 100)
    assert command(c, "drain", "g0")[0] == 0
    late = Client(c.client("other"))
    late.generate("late", max_tokens=4)
    late.pump(lambda: late.log.kinds("late"), "acceptance")
    client.finish()
    assert client.log.check() == 2 and late.log.kinds("late") == ["accepted"] and c.status().queued == 1
    assert command(c, "undrain", "g0")[0] == 0
    late.finish()
    assert late.log.check() == 1


@with_options(admins="client", lease_ms=1000)
def test_held_through_restarts(c):
    """a group that was drained and starts again gets no work either; its name is what is held"""
    worker = c.mock("g0", SPEED)
    c.mock("g1", SPEED)
    assert command(c, "drain", "g0")[0] == 0
    worker.kill()
    worker.wait()
    c.until(lambda: c.group("g0")["state"] == "lost", "its loss")
    c.mock_later("g0", SPEED)
    c.until(lambda: c.group("g0")["state"] == "held" and c.group("g0")["epoch"] == 2, "its return")
    client = streams(c, 4, 20)
    client.finish()
    assert c.group("g0")["tokens_generated"] == 0
    assert command(c, "drain", "g0", "g1", "nobody")[0] == 1  # in order, up to the one that is not known
    assert c.group("g1")["state"] == "held"
    assert command(c, "undrain", "g0", "g1")[0] == 0
    assert {c.group(g)["state"] for g in ("g0", "g1")} == {"ready"}


@with_options(admins="operator")
def test_drain_refused(c):
    """draining takes a client that admins names, a group that is known, and names that can be"""
    c.mock("g0", SPEED)
    for words, expected in ((("drain", "g0"), (1, "client client may not drain: expected one that the coordinator's option admins")),
                            (("undrain", "g0"), (1, "client client may not undrain")),
                            (("drain",), (2, "expected the names of groups")),
                            (("drain", "a b"), (2, '"a b": expected the name of a group'))):
        code, _, err = command(c, *words)
        assert code == expected[0] and expected[1] in err, (words, code, err)
    assert c.group("g0")["state"] == "ready"


@with_options(admins="client")
def test_drain_names(c):
    """a group that nobody knows is refused by name, and work that is left after the wait is counted"""
    c.mock("g0", SPEED)
    code, _, err = command(c, "drain", "gone")
    assert code == 1 and "no group gone: expected one that lepton status shows" in err, err
    client = streams(c, 3, 4000)
    code, _, err = command(c, "drain", "--wait-ms", 300, "g0")
    assert code == 1 and "3 sequences run there still after 300 ms" in err, (code, err)
    client.peer.close()


def test_revoked_key(c):
    """a key revoked in mid-stream: over the open connection its stream ends as it would, and new calls are refused (row 31)"""
    c.mock("g0", SPEED)
    client = Client(c.client())
    client.generate("q", max_tokens=200, seed=1)
    client.pump(lambda: len(client.log.ids("q")) >= 10, "tokens")
    os.unlink(c.path("authorized/client.pub"))
    start, number = time.monotonic(), 0
    while not any(client.log.error(r) for r in client.log.events):
        number += 1
        client.generate("late%d" % number, max_tokens=1)
        client.pump(lambda: client.log.over("late%d" % number), "an outcome")
        assert time.monotonic() < start + 5 * SLOW, "new calls are still taken"
    took = time.monotonic() - start
    error = client.log.error("late%d" % number)
    assert error.code == 401 and "client client is not authorized any more" in error.message, error
    client.peer.send("status")
    client.pump(lambda: client.log.over("q"), "the stream's end")
    client.log.check()
    assert len(client.log.ids("q")) == 200 and client.log.error("q") is None
    assert "audit: refused generate of client client: its key was revoked" in c.log()
    c.logged("audit: refused status of client client")
    other = Client(c.client("other"))
    other.generate("q", max_tokens=4)
    other.finish()
    assert other.log.check() == 1
    note("row 31: a revoked key's new calls were refused after %.0f ms" % (1e3 * took))


def test_replaced_key(c):
    """a key that is replaced by another under the same name is revoked; the new one is let in"""
    c.mock("g0", SPEED)
    client = Client(c.client())
    client.generate("q", max_tokens=3)
    client.finish()
    for half in ("keys/client.key", "keys/client.pub"):
        os.unlink(c.path(half))
    subprocess.run([BUILD + "/lepton", "keygen", "--role", "client", c.path("keys"), "client"], check=True,
                   stdout=subprocess.DEVNULL)
    shutil.copy(c.path("keys/client.pub"), c.path("authorized"))
    time.sleep(0.25)  # what is older than 200 ms counts
    client.generate("late", max_tokens=3)
    client.finish()
    assert client.log.error("late").code == 401
    new = Client(c.client())
    new.generate("q", max_tokens=3)
    new.finish()
    assert new.log.check() == 1


@with_options(lease_ms=1500)
def test_revoked_worker(c):
    """a worker's key revoked under its streams: its epoch ends, they go on elsewhere, and it cannot come back (row 31)"""
    c.mock("g0", SPEED)
    c.mock("g1", SPEED)
    reference, client = undisturbed(c, 6, 200), streams(c, 6, 200)
    assert c.group("g1")["assigned"] > 0
    os.unlink(c.path("authorized/g1.pub"))
    took = within(5, lambda: c.group("g1")["state"] == "lost", "its loss")
    client.finish(60)
    assert client.log.check(reference) == 6
    c.logged("audit: the key of worker g1 was revoked")
    c.until(lambda: "audit: refused group g1" in c.log() or "unknown key" in c.log(), "its return to be refused")
    assert c.group("g1")["state"] == "lost"
    note("row 31: a worker's key revoked: its group was given up after %.2f s, worst gap %.2f s"
         % (took, max(client.log.worst_gap(r) for r in client.log.events)))


if __name__ == "__main__":
    sys.exit(main(globals()))
