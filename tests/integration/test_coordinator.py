#!/usr/bin/python3
"""The coordinator as its peers meet it: clients and worker groups played by this script against the real program."""
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time

import msgpack
import zmq

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from coordinator_harness import Coordinator, Peer, delivered, encode, generate, public_key, run, secret_key, with_options  # noqa: E402


class Bystander:
    """A second client whose stream must come through whatever the others do."""

    def __init__(self, coordinator):
        self.worker = coordinator.worker("g1", "g1").join()
        self.client = coordinator.client("other")
        generate(self.client, "bystander")
        self.assign = self.worker.expect("assign")
        self.index = 0

    def check(self):
        """One more token goes from its group to its client."""
        self.worker.beat()
        self.worker.token(self.assign, self.index)
        token = self.client.expect("token")
        assert (token.request, token.index, token.id) == ("bystander", self.index, 100 + self.index), token
        self.index += 1

    def finish(self):
        self.check()
        self.worker.done(self.assign, self.index)
        assert self.client.expect("done").finish_reason == "length"


def test_happy_path(c):
    """a prompt goes to a group and its tokens come back in order, then done with the group's name"""
    worker, client = c.worker().join(), c.client()
    accepted = generate(client, "q1", seed=42, temperature=0.5)
    assert accepted.seed == 42 and accepted.queued == 0
    assign = worker.expect("assign")
    assert (assign.prompt, assign.max_tokens, assign.seed, assign.temperature) == ("Once", 16, 42, 0.5)
    assert (assign.group, assign.epoch) == ("g0", worker.epoch)
    worker.serve(assign, 4)
    for index in range(4):
        token = client.expect("token")
        assert (token.request, token.index, token.id, token.text) == ("q1", index, 100 + index, "t%d " % index)
        assert "group" not in token.fields
    done = client.expect("done")
    assert (done.request, done.completion_tokens, done.group, done.stages) == ("q1", 4, "g0", 2), done
    assert done.queue_us < 5e6 and done.prefill_us == 10
    status = c.status()
    assert (status.accepted_total, status.completed_total, status.live) == (1, 1, 0)
    assert status.groups[0]["state"] == "ready" and status.groups[0]["stages"][1]["host"] == "node-b"


def test_waits_for_group(c):
    """a request that comes before any group waits for one"""
    client = c.client()
    generate(client)
    worker = c.worker().join()
    worker.serve(worker.expect("assign"), 1)
    client.expect("token")
    client.expect("done")


def test_seed_is_drawn(c):
    """a request without a seed gets one, told to client and group alike"""
    worker, client = c.worker().join(), c.client()
    seeds = [generate(client, "q%d" % i).seed for i in range(2)]
    assert seeds[0] != seeds[1]
    assert sorted(worker.expect("assign").seed for _ in range(2)) == sorted(seeds)


def test_spreads_over_groups(c):
    """requests spread over the groups by their load"""
    a, b = c.worker("g0", "g0").join(sequences=2), c.worker("g1", "g1").join(sequences=2)
    client = c.client()
    for i in range(4):
        generate(client, "q%d" % i)
    assigns = [(worker, worker.expect("assign")) for worker in (a, b, a, b)]  # all, before a place is free again
    for worker, assign in assigns:
        worker.serve(assign, 2)
    outcomes = {}
    while len(outcomes) < 4:
        m = client.expect("token", "done")
        if m.name == "done":
            outcomes[m.request] = m.group
    assert sorted(outcomes.values()) == ["g0", "g0", "g1", "g1"], outcomes


def test_wrong_key(c):
    """a key that is not authorized, and a wrong server key, are refused, counted and logged"""
    bystander = Bystander(c)
    stranger = Peer(c, c.path("keys/stranger.key"))
    stranger.send("status")
    c.until(lambda: c.status().refused_peers_total >= 1, "the refusal to be counted")
    misled = Peer(c, c.path("keys/client.key"), server_public=public_key(c.path("keys/stranger.pub")))
    misled.send("status")
    bystander.check()
    assert stranger.receive(0.3) is None and misled.receive(0.1) is None
    c.logged("refused")
    bystander.finish()


def test_no_key(c):
    """a peer without CURVE, and one that speaks no ZeroMQ, are refused and counted"""
    bystander = Bystander(c)
    before = c.status().refused_peers_total
    bare = Peer(c, None)
    bare.send("status")
    host, port = c.endpoint[6:].rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        c.until(lambda: c.status().refused_peers_total > before, "the refusals to be counted")
        bystander.check()
    assert bare.receive(0.2) is None
    bystander.finish()


def test_garbage(c):
    """garbage frames are answered with 400 and logged; after sixteen the connection is ignored"""
    bystander = Bystander(c)
    client = c.client()
    for i in range(16):
        client.socket.send(b"\xc1garbage%d" % i)
        assert client.expect("error").code == 400
    client.send("status")
    c.logged("audit: the connection of client:client is ignored after 16 bad frames")
    assert client.receive(0.3) is None
    bystander.check()
    status = c.status()  # a new connection of the same key is heard
    assert status.bad_frames_total >= 16
    bystander.finish()


def test_bombs(c):
    """msgpack bombs, deep nests and multipart floods are refused in bounded memory"""
    bystander = Bystander(c)
    bystander.check()
    before = c.memory_kib("VmHWM")
    client = c.client()
    for bomb in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\x91" * 100000,
                 b"\x93\x01\x01\xdd\xff\xff\xff\xff"):
        client.socket.send(bomb)
        assert client.expect("error").code == 400
    client.socket.send_multipart([encode("status")] + [b"x" * 100] * 500)
    assert client.expect("error").code == 400
    client.socket.send(b"")
    assert client.expect("error").code == 400
    client.send("status")
    client.expect("status_reply")
    bystander.check()
    grown = c.memory_kib("VmHWM") - before
    assert grown < 64 * 1024, "%d KiB more" % grown
    c.logged("a message of 501 parts")
    bystander.finish()


def test_oversized_frame(c):
    """a frame beyond the limit costs its sender the connection, nobody else"""
    bystander = Bystander(c)
    client = c.client()
    client.send("status")
    client.expect("status_reply")
    client.socket.send(b"\x93" + b"x" * (17 << 20))
    assert client.receive(0.5) is None
    bystander.finish()


def test_wrong_role(c):
    """a client may not play a worker, nor a worker a client"""
    bystander = Bystander(c)
    client, worker = c.client(), c.worker().join()
    client.send("bye", group="g1", epoch=1)
    error = client.expect("error")
    assert error.code == 403 and "client may not send bye" in error.message
    client.send("welcome", group="g1", epoch=1, lease_ms=1, heartbeat_ms=1)
    assert client.expect("error").code == 403
    worker.send("generate", request="q", prompt="x")
    assert worker.expect("error").code == 403
    worker.send("status")
    assert worker.expect("error").code == 403
    bystander.finish()


def test_wrong_state(c):
    """what a group may not say before hello is refused with 409, and hello still works afterwards"""
    bystander = Bystander(c)
    worker = c.worker()
    for _ in range(20):
        worker.send("token", group="g0", epoch=1, request="r1", index=0, id=1)
        assert worker.expect("error").code == 409
    worker.beat(epoch=1)
    error = worker.expect("error")
    assert error.code == 409 and "say hello first" in error.message and error.group == "g0"
    worker.send("done", request="r1", finish_reason="stop", prompt_tokens=1, completion_tokens=1)
    assert worker.expect("error").code == 400  # no group named
    worker.join()
    bystander.finish()


def test_foreign_group(c):
    """a key speaks for its own groups alone"""
    bystander = Bystander(c)
    thief = c.worker("g1", "g0")
    thief.hello()
    assert thief.expect("error").code == 403
    thief.send("token", group="g1", epoch=bystander.worker.epoch, request=bystander.assign.request, index=0, id=1)
    assert thief.expect("error").code == 403
    c.logged("audit: refused group g1 of worker g0")
    own = c.worker("g0-extra", "g0").join()
    assert own.epoch == 1
    bystander.finish()


def test_stale_epoch(c):
    """messages under an old epoch change nothing"""
    worker, client = c.worker().join(), c.client()
    old = worker.epoch
    worker.join(epoch=old)
    assert worker.epoch == old + 1
    generate(client)
    assign = worker.expect("assign")
    worker.token(assign, 0, text="stale", epoch=old)
    assert worker.expect("error").code == 409
    worker.done(assign, 0, epoch=old)
    assert worker.expect("error").code == 409
    worker.beat(epoch=old)
    assert worker.expect("error").code == 409
    worker.token(assign, 0, text="fresh")
    assert client.expect("token").text == "fresh"
    worker.done(assign, 1)
    client.expect("done")
    c.logged("is in epoch 2, not 1")


def test_new_epoch_goes_on(c):
    """a group that comes back under a new epoch is given its requests again, with what was delivered"""
    worker, client = c.worker().join(), c.client()
    generate(client)
    first = worker.expect("assign")
    for index in range(2):
        worker.token(first, index)
        client.expect("token")
    old = worker.epoch
    worker.join()
    again = worker.expect("assign")
    assert (again.request, again.seed) == (first.request, first.seed) and again.epoch == worker.epoch == old + 1
    assert delivered(again) == {0: [100, 101]} and again.context == 512, again
    worker.token(again, 2, epoch=old)  # of the epoch before: it changes nothing
    assert worker.expect("error").code == 409
    worker.serve(again, 4, begin=2)
    assert [client.expect("token").index for _ in range(2)] == [2, 3]
    done = client.expect("done")
    assert done.moves == 1 and not done.fields.get("mixed") and done.completion_tokens == 4, done


@with_options(lease_ms=1000)
def test_duplicate_group(c):
    """a second job under the name of a live group is refused and audited until the lease ends"""
    first = c.worker().join()
    second = c.worker()
    second.hello()
    error = second.expect("error")
    assert error.code == 409
    c.logged("audit: refused group g0")
    first.beat()
    assert first.expect("lease").sequence == 1
    first.close()
    end = time.monotonic() + 8
    while True:  # as a worker does: ask again until the lease has ended
        second.hello()
        message = second.expect("error", "welcome")
        if message.name == "welcome":
            break
        assert time.monotonic() < end
        time.sleep(0.1)
    assert message.epoch == 2


def test_replayed_heartbeat(c):
    """an old heartbeat is ignored and renews nothing"""
    worker = c.worker().join()
    worker.beat(sequence=5)
    assert worker.expect("lease").sequence == 5
    worker.beat(sequence=5)
    worker.beat(sequence=3)
    worker.beat(sequence=6)
    assert worker.expect("lease").sequence == 6
    c.logged("ignored heartbeat 3 after 5")


def test_client_vanishes(c):
    """a client that vanishes has its request cancelled at the group, and the sequence is free again"""
    bystander = Bystander(c)
    worker, client = c.worker().join(sequences=8), c.client()
    generate(client)
    assign = worker.expect("assign")  # the bystander's group is smaller and busier
    client.close()
    index, cancel = 0, None
    end = time.monotonic() + 5
    while cancel is None and time.monotonic() < end:
        worker.token(assign, index)
        index += 1
        cancel = worker.receive(0.05)
    assert cancel and cancel.name == "cancel" and cancel.request == assign.request, cancel
    worker.done(assign, index, reason="cancelled")
    c.until(lambda: c.status().live == 1, "the request to be forgotten")
    bystander.finish()


@with_options(lease_ms=1000)
def test_worker_vanishes(c):
    """what a group that vanishes held goes on elsewhere within the lease, and each token comes once"""
    worker, client, other = c.worker().join(sequences=1), c.client(), c.client("other")
    generate(client)
    assign = worker.expect("assign")
    worker.token(assign, 0)
    assert client.expect("token").index == 0
    second = c.worker("g1", "g1").join()
    generate(other)
    elsewhere = second.expect("assign")
    second.token(elsewhere, 0)
    other.expect("token")
    start = time.monotonic()
    worker.close()
    moved = None
    while moved is None:
        second.beat()
        message = second.receive(0.1)
        assert time.monotonic() - start < 3
        moved = message if message and message.name == "assign" else None
    assert delivered(moved) == {0: [100]}, moved
    second.serve(moved, 3, begin=1)
    assert [client.expect("token").index for _ in range(2)] == [1, 2]
    done = client.expect("done")
    assert done.moves == 1 and done.group == "g1", done
    states = {g["group"]: g["state"] for g in c.status().groups}
    assert states == {"g0": "lost", "g1": "ready"}, states
    second.serve(elsewhere, 2, begin=1)
    assert other.expect("token").index == 1
    assert other.expect("done").completion_tokens == 2


def test_bye(c):
    """a group that says bye is gone at once, and its requests wait for another"""
    worker, client = c.worker().join(), c.client()
    generate(client)
    worker.expect("assign")
    worker.send("bye", group="g0", epoch=worker.epoch, reason="maintenance")
    c.logged("it said bye: maintenance")
    second = c.worker("g1", "g1").join()
    again = second.expect("assign")
    assert delivered(again) == {}  # nothing had come: it begins there
    second.serve(again, 1)
    client.expect("token")
    assert client.expect("done").moves == 1


def test_other_numeric_class(c):
    """a stream goes on in its own numeric class, or where none is left in another, and its end says so"""
    first, client = c.worker().join(sequences=1), c.client()
    generate(client, "q1")
    q1 = first.expect("assign")
    first.token(q1, 0)
    client.expect("token")
    same = c.worker("g1", "g1").join(sequences=1)
    generate(client, "q2")
    q2 = same.expect("assign")
    other = c.worker("g1-b", "g1").join(sequences=4, kernels="other")
    first.send("bye", group="g0", epoch=first.epoch)
    c.logged("it said bye")
    assert other.receive(0.3) is None  # it waits for a place in its class
    same.serve(q2, 1)
    again = same.expect("assign")
    assert again.request == q1.request and delivered(again) == {0: [100]}, again
    same.token(again, 1)
    same.send("bye", group="g1", epoch=same.epoch)
    last = other.expect("assign")
    assert delivered(last) == {0: [100, 101]}, last
    other.serve(last, 3, begin=2)
    done = None
    while done is None or done.request != "q1":
        done = client.expect("token", "done")
        done = done if done.name == "done" else None
    assert done.moves == 2 and done.mixed, done


def test_choices_that_ended_stay_ended(c):
    """of several choices only those that have not ended go on elsewhere"""
    worker, client = c.worker().join(), c.client()
    generate(client, n=3)
    assign = worker.expect("assign")
    say = dict(group="g0", epoch=worker.epoch, request=assign.request)
    worker.send("token", choice=1, index=0, id=7, text="a", **say)
    worker.send("done", choice=1, finish_reason="stop", prompt_tokens=3, completion_tokens=2, **say)
    worker.send("token", choice=2, index=0, id=9, text="b", **say)
    for name in ("token", "done", "token"):
        client.expect(name)
    worker.join()
    again = worker.expect("assign")
    assert delivered(again) == {1: None, 2: [9]}, again
    say = dict(group="g0", epoch=worker.epoch, request=assign.request)
    worker.send("token", choice=2, index=1, id=9, text="b", **say)
    for choice, count in ((0, 0), (2, 2)):
        worker.send("done", choice=choice, finish_reason="stop", prompt_tokens=3, completion_tokens=count, **say)
    got = [client.expect("token", "done") for _ in range(3)]
    assert sorted((m.name, m.fields.get("choice", 0)) for m in got) == [("done", 0), ("done", 2), ("token", 2)], got
    c.until(lambda: c.status().live == 0, "its end")


def test_cancelled_between_groups(c):
    """a client may cancel while no group has its request: done says what came until then"""
    worker, client = c.worker().join(), c.client()
    generate(client)
    assign = worker.expect("assign")
    worker.token(assign, 0)
    client.expect("token")
    worker.send("bye", group="g0", epoch=worker.epoch)
    c.logged("it said bye")
    client.send("cancel", request="q")
    done = client.expect("done")
    assert done.finish_reason == "cancelled" and done.completion_tokens == 1, done


@with_options(queue_requests=3)
def test_queue_full(c):
    """a full queue answers 429 at once and what was accepted is served"""
    worker, client = c.worker().join(sequences=1), c.client()
    generate(client, "running")
    assign = worker.expect("assign")
    for i in range(3):
        assert generate(client, "w%d" % i).queued == i
    client.send("generate", request="over", prompt="x")
    error = client.expect("error", timeout_s=1)
    assert (error.request, error.code) == ("over", 429)
    assert 100 <= error.retry_after_ms <= 60000, error
    for _ in range(4):
        worker.serve(assign, 1)
        client.expect("token")
        client.expect("done")
        assign = worker.receive(0.5)
    assert c.status().rejected_total == 1


@with_options(queue_bytes=1000000)
def test_prompt_bytes(c):
    """prompts are bounded in bytes: 413 for one that never fits, 429 while there is no room"""
    client = c.client()
    client.send("generate", request="huge", prompt="x" * 1000001)
    assert client.expect("error").code == 413
    generate(client, "a", prompt="x" * 900000)
    client.send("generate", request="b", prompt="x" * 200000)
    assert client.expect("error").code == 429


def test_duplicate_request(c):
    """a live request id is refused with 409; another client may use the same"""
    worker, client, other = c.worker().join(), c.client(), c.client("other")
    generate(client)
    client.send("generate", request="q", prompt="x")
    assert client.expect("error").code == 409
    generate(other)
    for _ in range(2):
        worker.serve(worker.expect("assign"), 1)
    for peer in (client, other):
        peer.expect("token")
        peer.expect("done")
    generate(client)  # the id is free again


def test_cancel(c):
    """cancel ends a waiting request at once and a running one through its group"""
    worker, client = c.worker().join(sequences=1), c.client()
    generate(client, "running")
    generate(client, "waiting")
    assign = worker.expect("assign")
    client.send("cancel", request="waiting")
    done = client.expect("done")
    assert (done.request, done.finish_reason, done.completion_tokens) == ("waiting", "cancelled", 0)
    worker.token(assign, 0)
    client.expect("token")
    client.send("cancel", request="running")
    client.send("cancel", request="running")
    cancel = worker.expect("cancel")
    assert (cancel.request, cancel.group, cancel.epoch) == (assign.request, "g0", worker.epoch)
    assert worker.receive(0.2) is None  # the group is told once
    worker.done(assign, 1, reason="cancelled")
    done = client.expect("done")
    assert (done.request, done.finish_reason, done.completion_tokens) == ("running", "cancelled", 1)
    client.send("cancel", request="running")
    client.send("cancel", request="never")
    assert client.receive(0.2) is None
    assert c.status().cancelled_total == 2


def test_timeouts(c):
    """a deadline that passes gives 408, in the queue as well as in a group, which is told to cancel"""
    worker, client = c.worker().join(sequences=1), c.client()
    generate(client, "running", timeout_ms=400)
    assign = worker.expect("assign")
    generate(client, "waiting", timeout_ms=100)
    error = client.expect("error")
    assert (error.request, error.code) == ("waiting", 408)
    error = client.expect("error")
    assert (error.request, error.code) == ("running", 408)
    assert worker.expect("cancel").request == assign.request
    worker.token(assign, 0)  # late: dropped
    worker.done(assign, 1, reason="cancelled")
    assert client.receive(0.2) is None
    c.until(lambda: c.status().live == 0, "the sequence to be free")


@with_options(group_wait_ms=200)
def test_no_group(c):
    """a request for which no group comes gets 503; an unknown model gets 404"""
    client = c.client()
    generate(client)
    assert client.expect("error").code == 503
    c.worker().join()
    client.send("generate", request="q2", prompt="x", model="no-such")
    error = client.expect("error")
    assert error.code == 404 and "no-such" in error.message


def test_stream_is_checked(c):
    """duplicate tokens are dropped; a gap or a false count ends the group's epoch, and the stream goes on behind what came"""
    worker, client = c.worker().join(), c.client()
    generate(client, "a")
    assign = worker.expect("assign")
    for index in (0, 1, 1, 0, 2):
        worker.token(assign, index)
    assert [client.expect("token").index for _ in range(3)] == [0, 1, 2]
    worker.token(assign, 5)
    error = worker.expect("error")
    assert error.code == 409 and error.epoch == worker.epoch and "token 5 where 3 was due" in error.message
    assert worker.join().epoch == error.epoch + 1
    again = worker.expect("assign")
    assert delivered(again) == {0: [100, 101, 102]}
    worker.token(again, 3)
    assert client.expect("token").index == 3
    worker.done(again, 9)
    error = worker.expect("error")
    assert error.code == 409 and "it says it generated 9 tokens, 4 came" in error.message
    worker.join()
    again = worker.expect("assign")
    worker.done(again, 5)  # it ran to its max_tokens: each of them was sent
    assert "5 tokens, 4 came" in worker.expect("error").message
    worker.join()
    again = worker.expect("assign")
    worker.serve(again, 5, begin=4)
    assert client.expect("token").index == 4
    assert client.expect("done").moves == 3


def test_tokens_together(c):
    """tokens of one step come in one message and go so to a client of several; what is wrong in it hurts its request alone"""
    worker, client, other = c.worker().join(), c.client(), c.client("other")
    assigns = []
    for who, request in ((client, "a"), (client, "b"), (other, "c"), (client, "d")):
        generate(who, request)
        assigns.append(worker.expect("assign"))

    def item(n, index):
        return [assigns[n].request, index, 7, "%d.%d" % (n, index)]
    worker.send("tokens", group=worker.group, epoch=worker.epoch, items=[item(n, 0) for n in range(3)])
    for who, request in ((client, "a"), (client, "b"), (other, "c")):
        first = who.expect("token")  # alone: it says more than those behind it
        assert first.request == request and first.numeric and first.model == "tiny", first
    worker.send("tokens", group=worker.group, epoch=worker.epoch, items=[
        item(0, 1), item(1, 1), item(0, 2), item(2, 1), ["r1", 0, 7, ""], item(3, 0) + [4]])
    assert client.socket.poll(5000)
    error = client.expect("error", "token")
    while error.name == "token":  # the broken one ends at once, the others' tokens need not wait for it
        error = client.expect("error", "token")
    assert error.code == 500 and error.request == "d" and "a token of choice 4" in error.message
    frames = []
    while sum(len(f.get("items", [f])) for f in frames) < 3:
        assert client.socket.poll(5000)
        version, number, fields = msgpack.unpackb(client.socket.recv())
        frames.append(fields)
    assert [(i[0], i[3]) for i in frames[0]["items"]] == [("a", "0.1"), ("b", "1.1")], frames
    assert (frames[1]["request"], frames[1]["text"]) == ("a", "0.2")
    assert other.expect("token").text == "2.1"
    worker.send("tokens", group=worker.group, epoch=worker.epoch + 1, items=[item(1, 2)])
    assert worker.expect("cancel").request == assigns[3].request
    assert worker.expect("error").code == 409
    for n, count in ((0, 3), (1, 2), (2, 2)):
        worker.done(assigns[n], count)
    assert {client.expect("done").request for _ in range(2)} == {"a", "b"}
    assert other.expect("done").request == "c"


def test_many_tokens_go_in_halves(c):
    """many tokens of one step go on in two messages, each token once and in order, the first half first"""
    worker, client = c.worker().join(sequences=64), c.client()
    assigns = []
    for n in range(33):
        generate(client, f"q{n}")
        assigns.append(worker.expect("assign"))
    for index in range(3):
        worker.send("tokens", group=worker.group, epoch=worker.epoch, items=[
            [a.request, index, 7, f"{n}.{index}"] for n, a in enumerate(assigns)])
        if index == 0:  # the first ones say more, and go alone
            assert [client.expect("token").request for _ in assigns] == [f"q{n}" for n in range(33)]
            continue
        came = []
        while sum(map(len, came)) < 33:
            assert client.socket.poll(5000)
            came.append(msgpack.unpackb(client.socket.recv())[2]["items"])
        assert [len(items) for items in came] == [16, 17]
        assert sum(came, []) == [[f"q{n}", index, 7, f"{n}.{index}"] for n in range(33)]
    for a in assigns:
        worker.done(a, 3)
    assert len({client.expect("done").request for _ in range(33)}) == 33


def processors_of(c):
    """where each thread of the coordinator may run"""
    return [tuple(sorted(os.sched_getaffinity(int(t)))) for t in os.listdir(f"/proc/{c.process.pid}/task")]


@with_options(processor=min(os.sched_getaffinity(0)))
def test_one_processor(c):
    """with processor every thread of the coordinator runs there alone"""
    c.worker().join()
    one = min(os.sched_getaffinity(0))
    assert len(processors_of(c)) > 1 and set(processors_of(c)) == {(one,)}
    assert c.status().processor == str(one)


@with_options(processor="off")
def test_any_processor(c):
    """with processor off no thread of the coordinator is bound"""
    c.worker().join()
    assert set(processors_of(c)) == {tuple(sorted(os.sched_getaffinity(0)))}
    assert c.status().processor == "any"


def test_automatic_processor(c):
    """by itself the coordinator keeps its threads on one processor or on any, and status says which"""
    c.worker().join()
    everywhere = tuple(sorted(os.sched_getaffinity(0)))

    def told():  # it may change its mind in between, then ask again
        how, where = c.status().processor.split(": ")
        return how == "auto" and set(processors_of(c)) == {everywhere if where == "any" else (int(where),)}
    for _ in range(5):
        c.until(told, "threads where status says they are")


def test_group_error(c):
    """an error of the group goes to the client with its code"""
    worker, client = c.worker().join(), c.client()
    generate(client)
    assign = worker.expect("assign")
    worker.send("error", group="g0", epoch=worker.epoch, request=assign.request, code=500, message="NaN in logits")
    error = client.expect("error")
    assert (error.request, error.code, error.message) == ("q", 500, "NaN in logits")
    assert "group" not in error.fields


def test_foreign_request(c):
    """a group cannot speak for a request that another group holds"""
    bystander = Bystander(c)
    worker = c.worker().join()
    worker.token(bystander.assign, 0, text="forged")
    worker.done(bystander.assign, 0)
    worker.send("error", group="g0", epoch=worker.epoch, request=bystander.assign.request, code=500, message="x")
    worker.send("token", group="g0", epoch=worker.epoch, request="r1", index=0, id=1)
    worker.beat()
    worker.expect("lease")  # all of them were read, none was a strike
    c.logged("ignored a token of request %s, which it does not hold" % bystander.assign.request)
    bystander.finish()


@with_options(stall_timeout_ms=500)
def test_slow_reader(c):
    """a client that does not read is paused in bounded memory, then cut; others go on"""
    bystander = Bystander(c)
    worker = c.worker().join()
    client = c.context.socket(zmq.DEALER)
    client.linger = 0
    client.rcvhwm = 1
    client.setsockopt(zmq.RCVBUF, 4096)
    client.curve_serverkey = public_key(c.path("keys/coordinator.pub"))
    slow = Peer.__new__(Peer)
    client.curve_publickey = public_key(c.path("keys/client.key"))
    client.curve_secretkey = secret_key(c.path("keys/client.key"))
    client.connect(c.endpoint)
    slow.socket = client
    generate(slow, max_tokens=100000)
    assign = worker.expect("assign")
    before = c.memory_kib()
    text, index, cancel = "x" * 4096, 0, None
    end = time.monotonic() + 20
    while cancel is None and time.monotonic() < end:
        if index < 8000:
            for _ in range(50):
                worker.token(assign, index, text=text)
                index += 1
        if index % 1000 == 0:
            worker.beat()
            bystander.check()
        message = worker.receive(0 if index < 8000 else 0.1)
        cancel = message if message and message.name == "cancel" else None
    assert cancel, "not cut after %d tokens" % index
    assert c.memory_kib() - before < 100 * 1024
    c.logged("the client does not read")
    bystander.finish()


def test_accepted_waits_its_turn(c):
    """a client that is behind with one stream is still told that its next request was taken"""
    worker = c.worker().join()
    slow = Peer.__new__(Peer)
    slow.socket = c.context.socket(zmq.DEALER)
    slow.socket.linger = 0
    slow.socket.rcvhwm = 1
    slow.socket.setsockopt(zmq.RCVBUF, 4096)
    slow.socket.curve_serverkey = public_key(c.path("keys/coordinator.pub"))
    slow.socket.curve_publickey = public_key(c.path("keys/client.key"))
    slow.socket.curve_secretkey = secret_key(c.path("keys/client.key"))
    slow.socket.connect(c.endpoint)
    slow.send("generate", request="first", prompt="Once", max_tokens=100000)
    assign = worker.expect("assign")
    for index in range(4000):  # 16 MB: more than sockets and queues hold
        worker.token(assign, index, text="x" * 4096)
        if index % 500 == 0:
            worker.beat()
    slow.send("generate", request="second", prompt="Once")
    while worker.expect("assign", "cancel").name == "cancel":  # the first one is cut, sooner or later
        pass
    end = time.monotonic() + 20
    while time.monotonic() < end:
        m = slow.receive(1)
        if m and m.name == "accepted" and m.request == "second":
            return
    raise AssertionError("the second request was never heard of")


def test_drain(c):
    """SIGTERM drains: new requests get 503, running ones finish, groups are told, exit code 0"""
    worker, client = c.worker().join(sequences=1), c.client()
    generate(client, "running")
    generate(client, "waiting")
    assign = worker.expect("assign")
    c.process.send_signal(signal.SIGTERM)
    error = client.expect("error")
    assert (error.request, error.code) == ("waiting", 503)
    drain = worker.receive()
    assert drain.name == "drain" and drain.epoch == worker.epoch
    client.send("generate", request="late", prompt="x")
    error = client.expect("error")
    assert (error.request, error.code) == ("late", 503)
    newcomer = c.worker("g1", "g1")
    newcomer.hello()
    error = newcomer.expect("error")
    assert error.code == 409 and "draining" in error.message
    worker.serve(assign, 3)
    for _ in range(3):
        client.expect("token")
    assert client.expect("done").finish_reason == "length"
    assert c.process.wait(5) == 0


@with_options(drain_timeout_ms=300)
def test_drain_deadline(c):
    """a drain does not wait for ever: at its deadline the running requests get 503"""
    worker, client = c.worker().join(), c.client()
    generate(client)
    worker.expect("assign")
    c.process.send_signal(signal.SIGTERM)
    assert client.expect("error").code == 503
    assert c.process.wait(5) == 0


def test_second_signal(c):
    """a second signal ends at once"""
    worker, client = c.worker().join(), c.client()
    generate(client)
    worker.expect("assign")
    c.process.send_signal(signal.SIGTERM)
    c.logged("drain")
    c.process.send_signal(signal.SIGINT)
    assert c.process.wait(5) == 130


def test_revoked_key(c):
    """a key whose file is removed is refused from then on"""
    client = c.client("other")
    client.send("status")
    client.expect("status_reply")
    os.unlink(c.path("authorized/other.pub"))
    again = c.client("other")
    again.send("status")
    assert again.receive(0.5) is None
    assert c.status().refused_peers_total >= 1


def test_start(c):
    """a start that cannot be as asked is refused with a reason; an interface name is an endpoint"""
    def start(*arguments):
        command = [c.process.args[0], "--authorized", c.path("authorized"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        return done.returncode, done.stderr
    key = ["--key", c.path("keys/coordinator.key")]
    for endpoint, reason in (("tcp://*:5555", "every interface"), ("tcp://0.0.0.0:5555", "every interface"),
                             ("tcp://[::]:5555", "every interface"), ("inproc://x", "expected tcp://"),
                             ("tcp://127.0.0.1", "expected tcp://"), (c.endpoint, "in use")):
        code, error = start("--endpoint", endpoint, *key)
        assert code == 1 and reason in error, (endpoint, code, error)
    assert "role coordinator" in start("--key", c.path("keys/client.key"))[1]
    code, error = start()
    assert code == 2 and "key: expected" in error
    code, error = start("--lease-ms", "1000", "--heartbeat-ms", "500", *key)
    assert code == 2 and "a third of lease_ms" in error
    code, error = start("--processor", "1023", *key)
    assert code == 2 and "processor: 1023" in error and "may run on" in error
    code, error = start("--processor", "any", *key)
    assert code == 2 and 'processor: "any": expected auto, off, or the number' in error
    command = [c.process.args[0], "--authorized", c.path("authorized"), "--endpoint", "tcp://lo:*",
               "--endpoint-file", c.path("lo"), *key]
    named = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        c.until(lambda: os.path.exists(c.path("lo")), "the endpoint file")
        with open(c.path("lo")) as f:
            assert f.read().startswith("tcp://127.0.0.1:")
    finally:
        named.terminate()
        assert named.wait(5) == 0
    assert not os.path.exists(c.path("lo"))


@with_options(config="cluster-configs/coordinator.cfg")
def test_example_config(c):
    """cluster-configs/coordinator.cfg loads, and shows every option with its default"""
    program = c.process.args[0]
    usage = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    options = set(re.findall(r"--([a-z][a-z-]+)", usage.split("\nsignals:")[0])) - {"config", "help"}
    with open("cluster-configs/coordinator.cfg") as f:
        lines = f.read()
    shown = dict(re.findall(r"^(?:# )?([a-z_]+) = \"?([^\";]*?)L?\"?;", lines, re.M))
    assert {name.replace("_", "-") for name in shown} == options, (shown, options)
    flat = " ".join(usage.split())
    for name, value in shown.items():
        described = flat.split("--%s " % name.replace("_", "-"), 1)[1].split(" --", 1)[0]
        default = re.search(r"default ([^);]+)", described)
        if default and value not in ("true", "false"):
            assert default.group(1).strip() == value, (name, value, described)
    client = c.client()
    client.send("status")
    assert client.expect("status_reply").queue_limit == 1024


def test_idle_cost(c):
    """an idle coordinator with two groups that only beat uses under 1 % of a core"""
    workers = [c.worker(name, name).join() for name in ("g0", "g1")]
    start, cpu = time.monotonic(), c.cpu_s()
    while time.monotonic() - start < 3:
        for worker in workers:
            worker.beat()
            worker.expect("lease")
        time.sleep(0.5)
    used = (c.cpu_s() - cpu) / (time.monotonic() - start)
    assert used < 0.01, "%.3f of a core" % used


@with_options(lease_ms=500, queue_requests=20, live_requests=40, stall_timeout_ms=300, log_level="warn")
def test_storm(c):
    """10000 random messages of every kind in every state: nothing breaks, each accepted request has one outcome"""
    storm = random.Random(4000)
    clients = [c.client("client") for _ in range(3)]
    workers = [c.worker(name, name.split("-")[0]) for name in ("g0", "g0-x", "g1")]
    held = [[] for _ in workers]      # [assign, next index]
    open_requests, outcomes = {}, {}  # by (client, id); only what was accepted

    def listen(timeout_s=0):
        for i, worker in enumerate(workers):
            while (m := worker.receive(timeout_s)) is not None:
                if m.name == "welcome":
                    worker.epoch, worker.sequence, held[i] = m.epoch, 0, []
                elif m.name == "assign":
                    held[i].append([m, 0])
        for i, client in enumerate(clients):
            while (m := client.receive(timeout_s)) is not None:
                key = (i, m.get("request"))
                if m.name == "accepted":
                    assert key not in open_requests
                    open_requests[key] = 0
                elif m.name == "token":
                    assert m.index == open_requests[key], (key, m)
                    open_requests[key] += 1
                elif m.name == "done" or (m.name == "error" and key in open_requests and m.code != 409):
                    del open_requests[key]
                    outcomes[m.name] = outcomes.get(m.name, 0) + 1

    def act():
        i = storm.randrange(3)
        client, worker = clients[i], workers[i]
        what = storm.randrange(14)
        if what < 4:
            client.send("generate", request="q%d" % storm.randrange(8), prompt="x" * storm.randrange(200),
                        max_tokens=storm.randrange(1, 9), timeout_ms=storm.choice([0, 50, 1000]))
        elif what == 4:
            client.send("cancel", request="q%d" % storm.randrange(8))
        elif what == 5 and storm.randrange(8) == 0:
            worker.hello(sequences=storm.randrange(1, 5), epoch=storm.randrange(50))
        elif what == 6 and storm.randrange(12) == 0:
            worker.send("bye", group=worker.group, epoch=worker.epoch)
        elif what == 7:
            worker.beat(epoch=worker.epoch - storm.randrange(10) // 9)
        elif what < 12 and held[i]:
            entry = storm.choice(held[i])
            worker.token(entry[0], entry[1] + storm.choice([0] * 30 + [-1, 1]) if entry[1] else 0)
            entry[1] += 1
        elif what == 12 and held[i]:
            assign, count = held[i].pop(storm.randrange(len(held[i])))
            worker.done(assign, count, reason=storm.choice(["stop", "length", "cancelled"]))
        elif what == 13 and held[i]:
            assign, _ = storm.choice(held[i])
            worker.send("error", group=worker.group, epoch=worker.epoch, request=assign.request, code=500, message="x")
        if storm.randrange(150) == 0:  # a client comes back as another connection: its requests are nobody's
            clients[i].close()
            clients[i] = c.client("client")
            for key in [k for k in open_requests if k[0] == i]:
                del open_requests[key]

    for worker in workers:
        worker.hello()
    watcher = c.client("other")
    for step in range(10000):
        act()
        if step % 8 == 0:  # a round trip: the coordinator keeps up, and the peers see what it answered
            watcher.send("status")
            watcher.expect("status_reply")
            listen()
    for worker in workers:
        worker.beat()
        worker.close()  # their leases end; what they held waits for others, and all of it ends by its deadline or the drain
    workers.clear()
    c.process.send_signal(signal.SIGTERM)
    end = time.monotonic() + 8
    while open_requests and time.monotonic() < end:
        listen(0.02)
    listen(0.1)
    assert not open_requests, open_requests
    assert c.process.wait(8) == 0
    assert outcomes["done"] > 50 and outcomes["error"] > 50, outcomes


def test_realtime_takes_the_place_of_batch(c):
    """a realtime request takes the place of a batch request, whose stream goes on where it was"""
    worker, client = c.worker().join(sequences=1), c.client()
    generate(client, "slow", **{"class": "batch"})
    slow = worker.expect("assign")
    for index in range(3):
        worker.token(slow, index)
        assert client.expect("token").index == index
    generate(client, "now", **{"class": "realtime"})
    assert worker.expect("cancel").request == slow.request
    worker.token(slow, 3)  # it crossed the cancel
    worker.done(slow, 4, reason="cancelled")
    now = worker.expect("assign")
    assert now.priority < slow.priority
    worker.serve(now, 2)
    again = worker.expect("assign")
    assert again.request == slow.request and again.seed == slow.seed
    assert delivered(again) == {0: [100, 101, 102, 103]}, again
    worker.serve(again, 6, begin=4)
    seen = {"slow": [], "now": []}
    for _ in range(2 + 3 + 2):  # slow's 3 to 5, now's 0 and 1, and what ended both
        m = client.expect("token", "done")
        seen[m.request].append(m.index if m.name == "token" else m.finish_reason)
    assert seen == {"slow": [3, 4, 5, "length"], "now": [0, 1, "length"]}, seen


def test_draining_group_hands_over(c):
    """a group that drains hands over its streams as far as others have room, and what it refuses goes elsewhere"""
    first, client = c.worker().join(sequences=2), c.client()
    generate(client, "q1")
    q1 = first.expect("assign")
    first.token(q1, 0)
    client.expect("token")
    generate(client, "q2")
    q2 = first.expect("assign")
    first.beat(draining=True)
    first.expect("lease")
    assert first.receive(0.3) is None  # nobody else is there
    second = c.worker("g1", "g1").join(sequences=1)
    assert first.expect("cancel").request == q1.request
    first.token(q1, 1)  # it crossed the cancel
    first.done(q1, 2, reason="cancelled")
    again = second.expect("assign")
    assert again.request == q1.request and delivered(again) == {0: [100, 101]}, again
    second.serve(again, 3, begin=2)
    first.send("error", group="g0", epoch=first.epoch, request=q2.request, code=503, message="group is draining")
    other = second.expect("assign")
    assert other.request == q2.request and delivered(other) == {}, other
    second.serve(other, 1)
    seen = {"q1": [], "q2": []}
    while not all("length" in s for s in seen.values()):
        m = client.expect("token", "done")
        seen[m.request].append(m.index if m.name == "token" else m.finish_reason)
    assert seen == {"q1": [1, 2, "length"], "q2": [0, "length"]}, seen
    assert [g["state"] for g in c.status().groups if g["group"] == "g0"] == ["draining"]


def dies(worker, ended):
    """The group's job dies and the next one says hello, with how the one before it ended."""
    worker.incarnation += 1
    worker.send("bye", group=worker.group, epoch=worker.epoch)
    return worker.join(sequences=4, ended=ended)


@with_options(suspect_wait_ms=60000)
def test_poison_request(c):
    """a request under which two groups die of themselves is tried alone, then refused; those beside it are served"""
    a, b, client = c.worker().join(), c.worker("g1", "g1").join(), c.client()
    a.send("heartbeat", group="g0", epoch=a.epoch, sequence=1, steps=0, running=0, waiting=0, pages_used=0, tokens_generated=0)
    a.expect("lease")
    generate(client, "poison")
    poison = a.receive(1) or b.receive(1)
    first, second = (a, b) if poison.group == "g0" else (b, a)
    first.token(poison, 0)
    client.expect("token")
    first.send("bye", group=first.group, epoch=first.epoch)  # SIGSEGV; its next job takes a while
    again = second.expect("assign")
    assert again.request == poison.request and delivered(again) == {0: [100]}
    generate(client, "good")
    good = second.expect("assign")
    second.token(good, 0)
    client.expect("token")
    second.send("bye", group=second.group, epoch=second.epoch)
    c.logged("is held until it is known why its groups died")
    first.incarnation += 1
    first.join(sequences=4, ended="SIGSEGV")
    assert first.expect("assign").request == good.request  # one group died under it: it goes on
    second.incarnation += 1
    second.join(sequences=4, ended="SIGABRT")
    alone = second.expect("assign")
    assert alone.request == poison.request
    c.logged("it is tried alone")
    generate(client, "third")
    third = first.expect("assign")  # to the busier group: the other is the suspect's alone
    second.send("bye", group=second.group, epoch=second.epoch)
    second.incarnation += 1
    second.join(sequences=4, ended="SIGSEGV")
    error = client.expect("error")
    assert error.request == "poison" and error.code == 500 and "3 groups died under this request at token 1" in error.message
    assert "SIGSEGV, SIGABRT, SIGSEGV (alone)" in error.message, error
    c.logged("audit: request " + poison.request)
    first.serve(third, 1)
    first.serve(good, 2, begin=1)
    ends = set()
    while len(ends) < 2:
        m = client.expect("token", "done")
        ends |= {m.request} if m.name == "done" else set()


def test_killed_from_outside_accuses_nobody(c):
    """groups that are killed from outside under a request accuse it of nothing: it goes on with others beside it"""
    worker, client = c.worker().join(), c.client()
    generate(client, "q1")
    q1 = worker.expect("assign")
    for _ in range(3):
        dies(worker, "SIGKILL")
        again = worker.expect("assign", timeout_s=6)  # it may rest: it was lost soon after it came
        assert again.request == q1.request
    generate(client, "q2")
    assert worker.expect("assign").request != q1.request
    worker.serve(again, 1)
    client.expect("token")
    assert client.expect("done").moves == 3
    assert "alone" not in c.log()


def test_cleared_suspect(c):
    """a suspect that gets a token further shares its group again"""
    worker, client = c.worker().join(), c.client()
    generate(client, "q1")
    q1 = worker.expect("assign")
    for _ in range(2):
        dies(worker, "SIGSEGV")
        alone = worker.expect("assign")
        assert alone.request == q1.request
    c.logged("it is tried alone")
    generate(client, "q2")
    assert worker.receive(0.3) is None
    worker.token(alone, 0)
    assert worker.expect("assign").request != q1.request


def test_retries_are_bounded(c):
    """a request that loses group after group without a token more ends with a reason"""
    worker, client = c.worker().join(), c.client()
    generate(client)
    worker.expect("assign")
    for n in range(5):
        worker.incarnation += 1
        worker.send("bye", group="g0", epoch=worker.epoch)
        if n == 4:
            break
        worker.join(sequences=4, ended="SIGKILL")
        assert worker.expect("assign", timeout_s=6).name == "assign"
    error = client.expect("error")
    assert error.code == 502 and "again and again" in error.message, error
    assert "rests for 2000 ms" in c.log()  # the fifth in a row that did not last


def test_cancelled_while_it_yields(c):
    """a client may cancel a request that is giving way: it ends, and does not run again"""
    worker, client = c.worker().join(sequences=1), c.client()
    generate(client, "slow", **{"class": "batch"})
    slow = worker.expect("assign")
    generate(client, "now", **{"class": "realtime"})
    worker.expect("cancel")
    client.send("cancel", request="slow")
    c.until(lambda: c.status().live == 2, "the cancel to arrive")
    worker.done(slow, 0, reason="cancelled")
    assert client.expect("done").request == "slow"
    worker.serve(worker.expect("assign"), 1)
    client.expect("token")
    client.expect("done")
    assert c.status().live == 0


def test_prefixes_outlive_the_coordinator(c):
    """what is known of cached prompts outlives the coordinator: a conversation returns to its group"""
    snapshot = c.path("prefixes")
    home = {}
    first = Coordinator(prefix_snapshot=snapshot)
    try:
        groups = {n: first.worker(n, n).join(sequences=8) for n in ("g0", "g1")}
        client = first.client()
        for i in range(4):
            generate(client, "q", prompt="talk %d " % i * 700)
            while i not in home:
                for name, worker in groups.items():
                    assign = worker.receive(0.05)
                    if assign and assign.name == "assign":
                        worker.serve(assign, 1)
                        home[i] = name
            client.expect("token")
            client.expect("done")
        assert set(home.values()) == {"g0", "g1"}, home
        assert first.stop() == 0
    finally:
        first.close()
    second = Coordinator(prefix_snapshot=snapshot)
    try:
        groups = {n: second.worker(n, n).join(sequences=8) for n in ("g1", "g0")}
        client = second.client()
        for i in (3, 1, 0, 2, 2, 0):
            generate(client, "q", prompt="talk %d " % i * 700 + "and more")
            worker = groups[home[i]]
            worker.serve(worker.expect("assign"), 1)
            client.expect("token")
            client.expect("done")
    finally:
        second.close()
    with open(snapshot, "wb") as f:
        f.write(b"no snapshot")
    third = Coordinator(prefix_snapshot=snapshot)
    try:
        third.worker("g0", "g0").join()
        third.logged("prefixes are learned anew")
    finally:
        third.close()


TESTS = [value for name, value in list(globals().items()) if name.startswith("test_")]

if __name__ == "__main__":
    chosen = [t for t in TESTS if not sys.argv[1:] or t.__name__ in sys.argv[1:]]
    sys.exit(run(chosen))
