#!/usr/bin/python3
"""Gateways in processes of their own (rows 2, 3, 4 and 21 of the faults to survive, over HTTP): the coordinator dies under
their clients, they die under the coordinator, their clients leave, trickle, or do not read. Mock groups and real programs."""
import json
import os
import signal
import socket
import struct
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from faults import SLOW, Client, kill, main, note, with_options, within  # noqa: E402
from gateway_harness import Gateway, bare  # noqa: E402
from test_store import FAILING, POINTS  # noqa: E402


def restart(c, pause_s=0.0):
    kill(c.process)
    time.sleep(pause_s)
    c.launch()


def read_all(streams):
    """Each by a thread of its own, to its end."""
    threads = [threading.Thread(target=s.read) for s in streams]
    for t in threads:
        t.start()
    return threads


def join(threads, timeout_s=60):
    for t in threads:
        t.join(timeout_s * SLOW)
        assert not t.is_alive(), "a stream does not end"


@with_options(lease_ms=1500)
def test_killed_coordinator(c):
    """kill -9 of the coordinator under HTTP streams, and a new one: every stream goes on and is as undisturbed (row 2)"""
    c.mock()
    g = Gateway(c).ready()
    asks = [dict(prompt="Once %d" % i, seed=100 + i, max_tokens=150) for i in range(6)]
    want = [s.read() for s in [g.stream(**ask) for ask in asks]]
    assert all(s.whole() and len(s.text()) == 150 for s in want), want[0].events[-2:]
    streams = [g.stream(**ask) for ask in asks]
    whole = []
    plain = threading.Thread(target=lambda: whole.append(g.complete(**asks[0])))
    plain.start()
    threads = read_all(streams)
    c.until(lambda: all(len(s.events) > 10 for s in streams), "events of each")
    for pause_s in (0.0, 0.5):
        seen = [len(s.events) for s in streams]
        restart(c, pause_s)
        c.until(lambda: all(len(s.events) > n + 10 or not t.is_alive() for s, n, t in zip(streams, seen, threads)), "them to go on")
    join(threads)
    plain.join(60 * SLOW)
    assert all(s.whole() for s in streams), [s.events[-2:] for s in streams]
    assert [s.text() for s in streams] == [s.text() for s in want]
    assert [s.finish() for s in streams] == [["length"]] * 6
    assert whole[0]["choices"][0]["text"] == want[0].text() and whole[0]["usage"]["completion_tokens"] == 150
    note("row 2: HTTP streams over two restarts of the coordinator, 0.0 and 0.5 s apart: worst gap %.2f s, undisturbed %.2f s"
         % (max(s.worst_gap() for s in streams), max(s.worst_gap() for s in want)))


@with_options(lease_ms=1500)
def test_choices_and_logprobs_resume(c):
    """several answers to one prompt, with usage, go on each where it was behind a restarted coordinator (row 2)"""
    c.mock()
    g = Gateway(c).ready()
    ask = dict(seed=7, n=4, max_tokens=100, logprobs=0, stream_options={"include_usage": True})
    want = g.stream(**ask).read()
    s = g.stream(**ask)
    threads = read_all([s])
    c.until(lambda: len(s.events) > 100, "events")
    restart(c)
    join(threads)
    assert s.whole() and [s.text(i) for i in range(4)] == [want.text(i) for i in range(4)]
    tokens = ["".join(t for ch in x.choices() if ch["index"] == 1 and ch["logprobs"] for t in ch["logprobs"]["tokens"]) for x in (s, want)]
    assert tokens[0] == tokens[1] == s.text(1), tokens
    assert s.objects()[-1]["usage"]["completion_tokens"] == 400


@with_options(lease_ms=1500)
def test_coordinator_stays_away(c):
    """a coordinator that stays away: streams end with an error event, whole answers with 503, within retry_ms (row 2)"""
    c.mock()
    g = Gateway(c, retry_ms=1000, ping_ms=300).ready()
    s, answers = g.stream(max_tokens=5000, ignore_eos=True), []
    threads = read_all([s])
    plain = threading.Thread(target=lambda: answers.append(g.post("/v1/completions", dict(prompt="x", max_tokens=5000, ignore_eos=True))))
    plain.start()
    c.until(lambda: len(s.events) > 10 and c.status().live == 2, "both to run")
    kill(c.process)
    start = time.monotonic()
    within(5, lambda: g.get("/ready").status == 503, "/ready to say no")
    noticed = time.monotonic() - start
    join(threads)
    took = time.monotonic() - start
    plain.join(20 * SLOW)
    assert s.error() and s.error()["code"] == "unavailable" and "not reachable" in s.error()["message"], s.events[-2:]
    assert s.events[-1][1] == {"error": s.error()} and not s.cut, s.events[-2:]
    assert ": ping" in [e for _, e in s.events], "a client that waits hears that it is not forgotten"
    assert 0.9 < took < 4 * SLOW, took
    assert answers[0].status == 503 and answers[0].getheader("Retry-After") == "1", answers[0].text
    late = g.post("/v1/completions", dict(prompt="x"))
    assert late.status == 503 and "not reachable" in late.text, late.text
    assert g.get("/health").status == 200
    note("row 2: /ready said no after %.2f s; the error event came after %.2f s (retry_ms 1000)" % (noticed, took))
    c.launch()
    c.until(lambda: g.get("/ready").status == 200, "it to be ready again")
    assert g.complete(max_tokens=4)["usage"]["completion_tokens"] == 4


@with_options(store="@/state.db", lease_ms=1500)
def test_killed_at_commit_points(c):
    """kill -9 of the coordinator at every commit point: HTTP answers, streamed and whole, complete, and none differs (row 2)"""
    mock = c.mock()
    g = Gateway(c).ready()
    asks = [dict(prompt="Once %d" % i, seed=100 + i, max_tokens=40 + 20 * (i % 2)) for i in range(6)]
    want = [g.complete(**ask)["choices"][0]["text"] for ask in asks]
    worst = 0.0
    for k, point in enumerate(POINTS):
        at = 2 + k % 2
        c.command[0], c.environment["LEPTON_FAILPOINT"] = FAILING, "%s:%d" % (point, at)
        restart(c)
        mock.send_signal(signal.SIGSTOP)  # nothing ends before all are there
        streams, whole = [g.stream(**ask) for ask in asks[:4]], {}
        plain = [threading.Thread(target=lambda i=i: whole.update({i: g.complete(**asks[i])})) for i in (4, 5)]
        for t in plain:
            t.start()
        threads = read_all(streams) + plain
        c.until(lambda: c.status().live == 6, "all to be there")
        mock.send_signal(signal.SIGCONT)
        c.until(lambda: c.process.poll() is not None, "the end at " + point)
        assert c.process.returncode == -9, (point, c.process.returncode)
        del c.environment["LEPTON_FAILPOINT"]
        c.launch()
        join(threads)
        assert all(s.whole() for s in streams), (point, [s.events[-1:] for s in streams])
        assert [s.text() for s in streams] + [whole[i]["choices"][0]["text"] for i in (4, 5)] == want, point
        worst = max(worst, *(s.worst_gap() for s in streams))
    note("row 2: killed at %d commit points: %d HTTP answers whole and as undisturbed, worst gap %.2f s"
         % (len(POINTS), 6 * len(POINTS), worst))


@with_options(lease_ms=1500)
def test_groups_come_back_later(c):
    """a restarted coordinator: who asks before the groups of a model are back waits for them; no such model is still 404 (row 2)"""
    group = c.mock()
    g = Gateway(c).ready()
    kill(group)
    restart(c)
    c.until(lambda: g.log().count("connected to") == 2, "the gateway to be back")
    other, answers = c.worker("g1", "g1").join(model="other"), []
    asking = [threading.Thread(target=lambda m=m: answers.append((m, g.post("/v1/completions", dict(prompt="x", max_tokens=4, model=m)))))
              for m in ("mock", "none")]
    for t in asking:
        t.start()
    time.sleep(0.5)
    assert not answers, [(m, a.text) for m, a in answers]
    c.mock()
    join(asking)
    other.close()
    assert {m: a.status for m, a in answers} == dict(mock=200, none=404), [(m, a.status, a.text[-200:]) for m, a in answers]


def test_killed_gateway(c):
    """kill -9 of a gateway: its sequences are freed within a second; native clients and another gateway lose nothing (row 3)"""
    c.mock()
    doomed, other = Gateway(c).ready(), Gateway(c, key="other").ready()
    native = Client(c.client())
    native.generate("u", max_tokens=200, seed=5)
    native.finish()
    want = other.stream(max_tokens=200, seed=9).read()
    lost = [doomed.stream(max_tokens=2000, seed=i, ignore_eos=True, deadline_ms=3600000) for i in range(6)]
    threads = read_all(lost)
    native.generate("q", max_tokens=200, seed=5)
    kept = other.stream(max_tokens=200, seed=9)
    threads += read_all([kept])
    native.pump(lambda: len(native.log.ids("q")) >= 20 and all(len(s.events) > 5 for s in lost), "tokens")
    assert c.group("g0")["running"] >= 8
    kill(doomed.process)
    start = time.monotonic()
    c.until(lambda: c.status().live <= 2, "its requests to be gone")
    freed = time.monotonic() - start
    c.until(lambda: c.group("g0")["running"] <= 2 or c.group("g0")["assigned"] == 0, "its sequences to leave the batch")
    left = time.monotonic() - start
    native.finish()
    join(threads)
    assert freed < SLOW and left < SLOW, (freed, left)
    assert native.log.check(dict(q=native.log.ids("u"))) == 2
    assert kept.whole() and kept.text() == want.text()
    assert all(not s.whole() and (s.cut or not s.error()) for s in lost)
    assert native.log.worst_gap("q") < 1.0 * SLOW and kept.worst_gap() < 1.0 * SLOW
    note("row 3: gateway killed: its six requests were cancelled after %.0f ms, out of the batch after %.0f ms; worst gap of a native "
         "stream %.2f s, of another gateway's %.2f s" % (1e3 * freed, 1e3 * left, native.log.worst_gap("q"), kept.worst_gap()))
    again = Gateway(c).ready()  # as its supervisor would
    assert again.complete(max_tokens=4)["usage"]["completion_tokens"] == 4


def leave(s, how):
    """Closes a socket: with a FIN, or with a reset."""
    if how == "reset":
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def test_client_leaves(c):
    """an HTTP client that leaves, streaming or not, at once or in its queue: its sequence is freed within a second (row 4)"""
    c.mock()
    g = Gateway(c).ready()
    files = g.files_open()
    for streaming in (True, False):
        for how in ("closes", "reset"):
            s = g.socket()
            s.sendall(bare("/v1/completions", dict(prompt="x", max_tokens=5000, stream=streaming, ignore_eos=True)))
            c.until(lambda: c.status().live == 1 and c.group("g0")["running"] == 1, "it to run")
            if streaming:
                s.recv(1000)
            leave(s, how)
            start = time.monotonic()
            c.until(lambda: c.group("g0")["running"] == 0, "it to be freed")
            took = time.monotonic() - start
            assert took < SLOW, took
            assert c.status().live == 0 and c.status().cancelled_total >= 1
            note("row 4: an HTTP client, %s, %s: freed after %.0f ms" % ("streaming" if streaming else "not streaming", how, 1e3 * took))
    g.logged(" 499 (client gone)")
    assert c.status().cancelled_total == 4
    c.until(lambda: g.files_open() <= files, "its descriptors to be closed")


def test_client_leaves_the_queue(c):
    """an HTTP client that leaves while its request waits for a group leaves the queue with it (row 4)"""
    worker = c.worker().join(sequences=1)
    g = Gateway(c).ready()
    first, second = g.socket(), g.socket()
    first.sendall(bare("/v1/completions", dict(prompt="x", stream=True)))
    worker.expect("assign")
    second.sendall(bare("/v1/completions", dict(prompt="x", stream=True)))
    c.until(lambda: c.status().queued == 1, "the second to wait")
    leave(second, "closes")
    within(1.0, lambda: c.status().queued == 0, "it to leave the queue")
    assert c.status().live == 1
    first.close()


@with_options(queue_requests=8)
def test_flood(c):
    """more HTTP requests than the queue holds: each is answered whole or refused with 429 and Retry-After, none is lost (row 20)"""
    c.mock(speed="base_us = %d.0; decode_us = 50.0; prefill_us = 20.0; max_sequences = 4; kv_tokens = 200000;" % (5000 * SLOW))
    g = Gateway(c).ready()
    answers = []

    def ask(number):
        for i in range(20):
            start = time.monotonic()
            answer = g.post("/v1/completions", dict(prompt="x", seed=number, max_tokens=16))
            answers.append((answer.status, time.monotonic() - start, answer))
    threads = [threading.Thread(target=ask, args=(n,)) for n in range(20)]
    for t in threads:
        t.start()
    join(threads)
    served, refused = [a for s, _, a in answers if s == 200], [(t, a) for s, t, a in answers if s == 429]
    assert len(served) + len(refused) == 400 and len(served) >= 20 and len(refused) >= 20, [s for s, _, _ in answers]
    assert all(int(a.getheader("Retry-After")) >= 1 and json.loads(a.text)["error"]["code"] == "queue_full" for _, a in refused)
    assert all(json.loads(a.text)["usage"]["completion_tokens"] == 16 for a in served)
    c.until(lambda: c.status().live == 0, "nothing to be left")
    times = sorted(t for t, _ in refused)
    note("row 20: a flood over HTTP: %d served, %d refused with 429, median %.1f ms, most %.1f ms"
         % (len(served), len(refused), 1e3 * times[len(times) // 2], 1e3 * times[-1]))


@with_options(stall_timeout_ms=60000)
def test_slow_reader(c):
    """an HTTP client that does not read: its stream alone is paused, then cut; memory stays, neighbours lose nothing (row 21)"""
    c.mock(speed="base_us = %d.0; decode_us = 5.0; prefill_us = 20.0; max_sequences = 64; kv_tokens = 4000000;" % (500 * SLOW))
    g = Gateway(c, stall_timeout_ms=3000 * SLOW).ready()
    g.complete(max_tokens=64)

    def memory_kib():
        with open("/proc/%d/status" % g.process.pid) as f:
            return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))
    slow = [g.socket(receive_bytes=4096) for _ in range(20)]
    for i, s in enumerate(slow):
        s.sendall(bare("/v1/completions", dict(prompt="x%d" % i, max_tokens=20000, ignore_eos=True, stream=True,
                                                       deadline_ms=3600000)))
    c.until(lambda: c.group("g0")["running"] == 20, "all to run")
    c.until(lambda: c.group("g0")["tokens_generated"] > 20 * 2500, "more tokens than sockets hold")
    before, neighbour = memory_kib(), g.stream(max_tokens=400, seed=3).read()
    assert neighbour.whole() and neighbour.worst_gap() < SLOW
    start = time.monotonic()
    c.until(lambda: c.status().live == 0, "them to be cut")
    cut = time.monotonic() - start
    after = memory_kib()
    assert after - before < 4096, (before, after)
    for s in slow:
        s.close()
    g.logged("499")
    note("row 21: 20 HTTP clients that do not read: cut %.1f s later (stall_timeout_ms %d), memory %d KiB, then %d; a neighbour's worst "
         "gap %.2f s" % (cut, 3000 * SLOW, before, after, neighbour.worst_gap()))


def test_paused_reader(c):
    """an HTTP client that pauses and reads on gets its whole stream (row 21)"""
    c.mock(speed="base_us = %d.0; decode_us = 5.0; prefill_us = 20.0; max_sequences = 64; kv_tokens = 2000000;" % (500 * SLOW))
    g = Gateway(c).ready()
    ask = dict(prompt="x", max_tokens=4000, ignore_eos=True, stream=True, seed=1)
    want = g.stream(**{k: v for k, v in ask.items() if k != "stream"}).read()
    s = g.socket(receive_bytes=4096)
    s.sendall(bare("/v1/completions", ask))
    c.until(lambda: (c.group("g0") or {}).get("tokens_generated", 0) > 6000, "tokens")
    time.sleep(1.5)
    got = b""
    while b"[DONE]" not in got:
        part = s.recv(65536)
        assert part, "it was cut"
        got += part
    text = "".join(json.loads(line[6:])["choices"][0]["text"] for line in got.decode().split("\n") if line.startswith("data: {"))
    assert text == want.text()


def test_slowloris(c):
    """clients that send a request byte by byte are closed after receive_timeout_ms; others are served meanwhile (row 21)"""
    c.mock()
    g = Gateway(c, receive_timeout_ms=2000).ready()
    slow = [g.socket() for _ in range(50)]
    begin, closed = time.monotonic(), {}
    body = bare("/v1/completions", dict(prompt="x" * 400))
    for i in range(400):
        for s in slow:
            if s in closed:
                continue
            try:
                s.sendall(body[i:i + 1])
                s.setblocking(False)
                if s.recv(1) == b"":
                    closed[s] = time.monotonic() - begin
            except BlockingIOError:
                pass
            except OSError:
                closed[s] = time.monotonic() - begin
            s.settimeout(10)
        if i == 5:
            assert g.complete(max_tokens=4)["usage"]["completion_tokens"] == 4
        if len(closed) == 50:
            break
        time.sleep(0.1)
    assert len(closed) == 50 and max(closed.values()) < 4 * SLOW and min(closed.values()) > 1.5, sorted(closed.values())
    note("row 21: 50 HTTP requests byte by byte: closed after %.1f s" % max(closed.values()))


def test_connections_are_bounded(c):
    """more connections than max_connections are closed at once, and the others are served (row 32)"""
    c.mock()
    g = Gateway(c, max_connections=20, threads=1).ready()
    held = [g.socket() for _ in range(40)]
    closed = 0
    for s in held:
        s.settimeout(1)
        try:
            closed += s.recv(1) == b""
        except (TimeoutError, socket.timeout):
            pass
        except ConnectionError:
            closed += 1
    assert closed >= 20, closed
    for s in held:
        s.close()
    c.until(lambda: g.get("/ready").status == 200, "it to be served again")


if __name__ == "__main__":
    sys.exit(main(globals()))
