#!/usr/bin/python3
"""The same request again: while it runs, after it is over, at once from many connections, and behind a connection or a
coordinator that was lost (rows 2, 30 and 31 of the faults to survive). Mock groups and real clients."""
import json
import os
import sys
import time

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from faults import SLOW, Client, kill, main, note, with_options, within  # noqa: E402


def generate(client, request="q", **fields):
    client.generate(request, idempotent=True, **fields)


def test_concurrent_duplicates(c):
    """eight connections that ask for the same under one id get one execution, each of them all of it (row 30)"""
    c.mock()
    clients = [Client(c.client()) for _ in range(8)]
    for client in clients:
        generate(client, max_tokens=40)
    for client in clients:
        client.finish()
        assert client.log.check() == 1
    assert len({tuple(client.log.ids("q")) for client in clients}) == 1
    assert len({client.log.text("q") for client in clients}) == 1 and len(clients[0].log.text("q")) == 40
    status = c.status()
    assert status.accepted_total == 1 and status.groups[0]["tokens_generated"] <= 41, status


def test_joins_in_mid_stream(c):
    """a connection that joins in mid-stream gets it from its beginning; one that leaves takes nothing with it (row 30)"""
    c.mock()
    first, second = Client(c.client()), Client(c.client())
    generate(first, max_tokens=100)
    first.pump(lambda: len(first.log.ids("q")) >= 20, "tokens")
    generate(second, max_tokens=100)
    second.pump(lambda: len(second.log.ids("q")) >= 10, "tokens from the beginning")
    first.peer.close()
    second.finish()
    assert second.log.check() == 1 and len(second.log.ids("q")) == 100
    assert second.log.ids("q")[:20] == first.log.ids("q")[:20]
    assert c.status().cancelled_total == 0


def test_replay(c):
    """what is complete is replayed to who asks again, without a group; what asks for something else is new (row 30)"""
    worker = c.worker().join()
    first = Client(c.client())
    generate(first, max_tokens=3)
    worker.serve(worker.expect("assign"), 3)
    first.finish()
    again = Client(c.client())
    generate(again, max_tokens=3)
    again.finish()
    assert again.log.check(dict(q=first.log.ids("q"))) == 1 and again.log.text("q") == first.log.text("q")
    assert worker.receive(0.2) is None
    other = Client(c.client("other"))  # another key: another request
    generate(other, max_tokens=3)
    worker.serve(worker.expect("assign"), 3)
    other.finish()
    changed = Client(c.client())
    generate(changed, max_tokens=2)
    worker.serve(worker.expect("assign"), 2)
    changed.finish()
    assert len(changed.log.ids("q")) == 2


def test_conflict(c):
    """one id for two live requests is refused with 409, and harms neither"""
    worker = c.worker().join()
    first, second = Client(c.client()), Client(c.client())
    generate(first, max_tokens=3)
    assign = worker.expect("assign")
    generate(second, max_tokens=4)
    second.finish()
    assert second.log.error("q").code == 409 and "something else" in second.log.error("q").message
    worker.serve(assign, 3)
    first.finish()
    assert first.log.check() == 1


def test_failure_is_tried_again(c):
    """what failed is not replayed: the same id again is tried anew"""
    worker = c.worker().join()
    client = Client(c.client())
    generate(client, max_tokens=3)
    assign = worker.expect("assign")
    worker.send("error", group="g0", epoch=worker.epoch, request=assign.request, code=500, message="NaN")
    client.finish()
    assert client.log.error("q").code == 500
    again = Client(c.client())
    generate(again, max_tokens=3)
    worker.serve(worker.expect("assign"), 3)
    again.finish()
    assert again.log.check() == 1


class Streams:
    """Native clients, each a process of `lepton generate`, and what they printed."""

    def __init__(self, c, count, tokens, *words, key="client", endpoint=None):
        self.processes = [c.lepton("generate", "-p", "Once %d" % i, "-n", tokens, "--seed", 100 + i, "--ignore-eos", "--json",
                                   *words, key=key, endpoint=endpoint) for i in range(count)]

    def finish(self, timeout_s=60):
        results = []
        for process in self.processes:
            out, err = process.communicate(timeout=timeout_s * SLOW)
            assert process.returncode == 0, (process.returncode, err)
            results.append(json.loads(out.splitlines()[-1]))
        return results


def tokens(results):
    return [r["tokens"] for r in results]


def restart(c, pause_s=0.0):
    """kill -9, a pause, and a new one at the same endpoint; how long that one took until it listens."""
    kill(c.process)
    time.sleep(pause_s)
    start = time.monotonic()
    c.launch()
    return time.monotonic() - start


@with_options(lease_ms=1500)
def test_killed_coordinator(c):
    """kill -9 of the coordinator while streams wait, begin, run and end: native streams complete, none differs (row 2)"""
    points = ("nobody serves yet", "accepted", "in mid-stream", "near the end")
    first = c.mock()
    want = tokens(Streams(c, 6, 150).finish())
    kill(first)
    c.until(lambda: c.group("g0")["state"] == "lost", "the group to be gone")
    streams = Streams(c, 6, 150)
    for point in points:
        if point == "nobody serves yet":
            c.until(lambda: c.status().queued == 6, "the streams to wait")
        elif point == "accepted":
            c.until(lambda: c.status().queued == 6, "the streams to wait again")
            c.mock_later()
            c.until(lambda: c.status().live == 6 and c.status().queued == 0, "the streams to be assigned")
        else:
            least = 40 * 6 if point == "in mid-stream" else 60 * 6
            c.until(lambda: c.status().live == 6 and (c.group("g0") or {}).get("tokens_generated", 0) > least, "tokens")
        took = restart(c, 0.2)
        assert took < SLOW, took
        note("row 2: killed with %s; the next one listened after %.0f ms" % (point, 1e3 * took))
    results = streams.finish()
    assert tokens(results) == want
    assert all(r["resumed"] >= 4 and r["finish_reason"] == "length" for r in results), [r["resumed"] for r in results]
    assert c.status().completed_total == 6


@with_options(lease_ms=1500)
def test_killed_coordinator_again_and_again(c):
    """a coordinator that is killed ten times under conversations of all lengths: every stream is whole (row 2)"""
    c.mock()
    c.mock("g1")
    want = tokens(Streams(c, 12, 200).finish())
    streams, took = Streams(c, 12, 200), []
    c.until(lambda: c.status().live == 12, "the streams")  # who finds nobody at first looks no further
    for i in range(10):
        time.sleep(0.25 + 0.05 * i)
        took.append(restart(c))
    assert tokens(streams.finish()) == want
    note("row 2: ten restarts, the slowest took %.0f ms until it listened" % (1e3 * max(took)))


def test_choices_resume(c):
    """several answers to one prompt resume each where it was, those that are over stay over"""
    c.mock()
    words = ("--choices", "4", "--temperature", "1")
    want = Streams(c, 2, 120, *words).finish()
    streams = Streams(c, 2, 120, *words)
    c.until(lambda: c.group("g0")["tokens_generated"] > 2 * 4 * 120 + 300, "tokens")
    restart(c)
    got = streams.finish()
    for a, b in zip(want, got):
        assert [x["tokens"] for x in a["choices"]] == [x["tokens"] for x in b["choices"]]
        assert [x["text"] for x in a["choices"]] == [x["text"] for x in b["choices"]]
        assert b["resumed"] >= 1


@with_options(lease_ms=1500)
def test_load_resumes(c):
    """lepton load goes through two restarts: every request completes, every token comes once and in order"""
    c.mock()
    load = c.lepton("load", "--json", "--rate", 40 / SLOW, "--requests", 160, "--output-tokens", 100, "--prompt-tokens", 50)
    for _ in range(2):
        c.until(lambda: c.status().completed_total > 20, "answers")
        restart(c)
    out, err = load.communicate(timeout=60 * SLOW)
    assert load.returncode == 0, err
    all = json.loads(out)["all"]
    assert all["requests"] == all["complete"] == 160, all
    assert "were resumed" in err, err


def test_broken_connection(c):
    """a connection that is reset, or half open, costs a native stream nothing but time (rows 7 to 10)"""
    c.mock()
    want = tokens(Streams(c, 4, 300).finish())
    proxy = c.proxy()
    streams = Streams(c, 4, 300, endpoint=proxy.endpoint)
    for fault in ("close", "hold"):
        before = c.group("g0")["tokens_generated"]
        c.until(lambda: c.group("g0")["tokens_generated"] > before + 150, "tokens")
        if fault == "close":
            proxy.close()
            continue
        proxy.hold("down")  # one-way: what the client says arrives, nothing comes back
        within(15.0, lambda: c.status().live == 0 or c.group("g0")["running"] == 0, "the streams to be given up")
        proxy.let()
    results = streams.finish()
    assert tokens(results) == want
    assert all(r["resumed"] >= 1 for r in results), results


def test_gives_up(c):
    """a coordinator that stays away is given up after --retry-ms, with exit code 3"""
    c.mock()
    process = c.lepton("generate", "-p", "Once", "-n", 5000, "--ignore-eos", "--retry-ms", 700)
    assert process.stdout.read(10)
    kill(c.process)
    start = time.monotonic()
    _, err = process.communicate(timeout=20 * SLOW)
    assert process.returncode == 3 and time.monotonic() - start < 5 * SLOW, (process.returncode, err)


def test_interrupted_while_it_looks(c):
    """Ctrl-C while a lost coordinator is looked for ends the command at once, with exit code 130"""
    import signal
    c.mock()
    process = c.lepton("generate", "-p", "Once", "-n", 5000, "--ignore-eos")
    assert process.stdout.read(10)
    kill(c.process)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5 * SLOW)
    assert process.returncode == 130, process.returncode


def test_revoked_key(c):
    """a key that is revoked in mid-stream: its stream ends as it would, new calls are refused (row 31)"""
    c.mock()
    client = Client(c.client())
    generate(client, max_tokens=100)
    client.pump(lambda: len(client.log.ids("q")) >= 10, "tokens")
    os.unlink(c.path("authorized/client.pub"))
    late = Client(c.client())
    generate(late, max_tokens=100)
    client.finish()
    assert client.log.check() == 1 and len(client.log.ids("q")) == 100
    assert late.peer.receive(0.5) is None


if __name__ == "__main__":
    sys.exit(main(globals()))
