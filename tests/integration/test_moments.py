#!/usr/bin/python3
"""Messages that reach the coordinator at an unusual moment: between two others that belong together, or after what they are
about has changed. Clients and worker groups are played by this script against the real program."""
import struct
import sys
import time

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from coordinator_harness import Coordinator, SLOW, delivered, generate, run, with_options  # noqa: E402


def arrived(client):
    """Waits until the coordinator has handled all that the client sent."""
    client.send("status")
    client.expect("status_reply")


def heard(worker):
    """The same of a worker."""
    worker.beat()
    worker.expect("lease")


def end_choice(worker, assign, choice, count=0, reason="cancelled"):
    worker.send("done", group=worker.group, epoch=worker.epoch, request=assign.request, choice=choice, finish_reason=reason,
                prompt_tokens=3, completion_tokens=count)


def test_choices_cancelled_while_they_yield(c):
    """several choices give way one after the other, and a cancel between two of them ends them all"""
    worker, client = c.worker().join(sequences=2), c.client()
    generate(client, "slow", n=2, **{"class": "batch"})
    slow = worker.expect("assign")
    generate(client, "now", **{"class": "realtime"})
    worker.expect("cancel")
    end_choice(worker, slow, 0)
    heard(worker)
    client.send("cancel", request="slow")
    ends = [client.expect("done")]
    end_choice(worker, slow, 1)
    ends.append(client.expect("done"))
    assert [(d.request, d.get("choice", 0), d.finish_reason) for d in ends] == [("slow", 0, "cancelled"), ("slow", 1, "cancelled")], ends
    worker.serve(worker.expect("assign"), 1)
    client.expect("token")
    assert client.expect("done").request == "now"
    assert c.status().live == 0


def test_refused_while_it_yields_and_is_cancelled(c):
    """a request that its draining group never took, that was to go elsewhere and that its client cancels, ends"""
    first, client = c.worker().join(), c.client()
    generate(client)
    assign = first.expect("assign")
    second = c.worker("g1", "g1").join()
    first.beat(draining=True)
    assert first.expect("cancel").request == assign.request  # it is handed over
    client.send("cancel", request="q")
    arrived(client)
    first.send("error", group="g0", epoch=first.epoch, request=assign.request, code=503, message="group is draining")
    assert client.expect("done").finish_reason == "cancelled"
    generate(client, "next")
    second.serve(second.expect("assign"), 1)
    client.expect("token")
    assert client.expect("done").request == "next"
    assert c.status().live == 0


@with_options(suspect_wait_ms=300)
def test_two_deaths_hold_for_a_moment(c):
    """a stream whose groups both died waits a moment for the news of what of, and goes on; with a third death it waits for it"""
    client, groups = c.client(), {}
    generate(client, max_tokens=4)
    for name in ("g0", "g0-b", "g0-c"):
        groups[name] = c.worker(name).join()
        assign = groups[name].expect("assign")
        groups[name].send("bye", group=name, epoch=groups[name].epoch)
    last = c.worker("g1", "g1").join()
    assert last.receive(1) is None
    for worker in groups.values():
        worker.incarnation += 1
        worker.join(ended="SIGKILL", sequences=1, kernels="other")
    again = [m for m in (w.receive(0.3) for w in (last, *groups.values())) if m]
    assert [m.request for m in again] == [assign.request], again
    assert "alone" not in c.log() and c.log().count("is held until it is known why") == 2


@with_options(admins="client", suspect_wait_ms=60000)
def test_late_news_of_a_lone_suspect(c):
    """a suspect waits for a group of its own, and news of another of its groups changes nothing of that"""
    client, groups = c.client(), {}
    generate(client, "poison", max_tokens=4)
    for name in ("g0", "g0-b", "g0-c"):
        groups[name] = c.worker(name).join()
        poison = groups[name].expect("assign")
        if name == "g0":  # stuck: nothing says that it died
            groups[name].beat(stuck_ms=10000000, stuck="rank 0")
            groups[name].expect("error")
        else:
            groups[name].send("bye", group=name, epoch=groups[name].epoch)
    c.logged("is held until it is known why")
    client.send("hold", group="g0-c")
    client.expect("status_reply")
    other = c.client("other")
    generate(other, "busy")
    busy, last = groups["g0-b"], groups["g0-c"]
    busy.incarnation += 1
    busy.join(ended="SIGSEGV")
    beside = busy.expect("assign")
    last.incarnation += 1
    last.join(ended="SIGSEGV")
    c.logged("it is tried alone")
    groups["g0"].incarnation += 1
    client.send("hold", group="g0")
    client.expect("status_reply")
    groups["g0"].join(ended="SIGSEGV")
    assert busy.receive(0.3) is None  # somebody else is there
    busy.serve(beside, 1)
    alone = busy.expect("assign")
    assert alone.request == poison.request
    busy.serve(alone, 1)
    client.expect("token")
    assert client.expect("done").request == "poison"


def resumed(client, numeric, ids=(100, 101), **fields):
    generate(client, seed=5, numeric=numeric, delivered=[dict(choice=0, ids=struct.pack("<%dI" % len(ids), *ids))], **fields)


def test_resumes_in_its_class(c):
    """a stream that a client brings back goes on in the numeric class that began it, while a group of that is there"""
    client = c.client()
    own = c.worker("g1", "g1").join(sequences=1)
    generate(client, "first")
    first = own.expect("assign")
    own.token(first, 0)
    numeric = client.expect("token").numeric
    other = c.worker().join(sequences=4, kernels="other")
    resumed(client, numeric, request="q")
    assert other.receive(0.3) is None  # there is room in the other class, and the stream waits for its own
    own.serve(first, 2, begin=1)
    assert client.expect("token").index == 1 and client.expect("done").request == "first"
    again = own.expect("assign")
    assert delivered(again) == {0: [100, 101]}, again
    own.serve(again, 3, begin=2)
    client.expect("token")
    assert not client.expect("done").get("mixed")


def test_class_comes_back(c):
    """behind a restart of the coordinator a stream waits for its numeric class to come back, and not for long"""
    client, own = c.client(), c.worker("g1", "g1").join(context=64)
    generate(client)
    own.token(own.expect("assign"), 0)
    first = client.expect("token")
    assert first.context == 64, first
    own.close()
    c.stop()
    c.launch()
    client, other = c.client(), c.worker().join(kernels="other")
    ids = dict(request="q", prompt="Once", max_tokens=16, seed=5, numeric=first.numeric, context=first.context, delivered=[dict(choice=0, ids=struct.pack("<I", 100))])
    client.send("generate", **ids)
    error = client.expect("error")
    assert error.code == 503 and "numeric class" in error.message, error
    own = c.worker("g1", "g1").join(context=512)
    generate(client, **ids)
    assign = own.expect("assign")
    assert delivered(assign) == {0: [100]} and assign.context == 64, assign  # its end stays where it was
    own.send("bye", group="g1", epoch=own.epoch)
    other.serve(other.expect("assign"), 2, begin=1)
    client.expect("token")
    assert client.expect("done").mixed
    ids["numeric"] += 1
    end = time.monotonic() + 10 * SLOW
    while True:  # who never comes back is not waited for
        client.send("generate", **dict(ids, request="r"))
        if client.expect("accepted", "error").name == "accepted":
            break
        assert time.monotonic() < end, "it still waits"
        time.sleep(0.1)
    assert delivered(other.expect("assign")) == {0: [100]}


def test_ends_of_another_run_are_not_made_up(c):
    """of a choice that ended in an earlier run of the coordinator nobody gets an end that was never said"""
    worker, client, late = c.worker().join(), c.client(), c.client()
    ids = struct.pack("<2I", 100, 101)
    asked = dict(n=2, seed=5, idempotent=True)
    generate(client, delivered=[dict(choice=0, ids=ids, ended=True)], **asked)
    assign = worker.expect("assign")
    late.send("generate", request="q", prompt="Once", max_tokens=16, delivered=[dict(choice=0, ids=ids)], **asked)
    error = late.expect("error")
    assert error.code == 409 and "not known any more" in error.message, error
    end_choice(worker, assign, 1, 0, "stop")
    assert client.expect("done").choice == 1
    generate(client, "r", delivered=[dict(choice=0, ids=b"", ended=True)], **asked)
    end_choice(worker, worker.expect("assign"), 1, 0, "stop")
    assert client.expect("done").request == "r"
    generate(late, "r", **asked)  # it was not kept as a whole answer: it runs again
    again = worker.expect("assign")
    assert delivered(again) == {}, again


def test_words_at_the_edge_of_their_bounds(c):
    """what a worker may say, however large, can be said on: to who asks for the status, and to who reads the stream"""
    worker, client = c.worker().join(), c.client()
    most = 2 ** 63 - 1
    worker.beat(times=[dict(busy_us=most, bubble_us=most, wait_us=most, processor_us=most)] * 2)
    worker.expect("lease")
    client.send("status", verbose=True)
    group = client.expect("status_reply").groups[0]
    assert [s["busy_us"] for s in group["stages"]] == [most] * 2 and group["stage_busy_us"] == most, group
    generate(client, logprobs=True, top_logprobs=1)
    assign = worker.expect("assign")
    say = dict(group="g0", epoch=worker.epoch, request=assign.request, text="a", piece="a")
    worker.send("token", index=0, id=7, logprob=-3.4e38, top_logprobs=[dict(id=7, logprob=-3.4e38, piece="a")], **say)
    token = client.expect("token")
    assert token.logprob < -3.39e38 and token.top_logprobs[0]["logprob"] == token.logprob, token
    worker.send("token", index=1, id=7, logprob=-3.45e38, **say)  # a float of 32 bits would be infinite
    error = worker.expect("error")
    assert error.code == 400 and "logprob" in error.message, error
    assert c.status().live == 1


def test_a_lie_costs_no_tenant(c):
    """what a group says a request took counts for its tenant as far as a sequence can have taken it"""
    worker, client, other = c.worker().join(sequences=1), c.client(), c.client("other")
    most = 2 ** 63 - 1
    generate(client, "lied", max_tokens=1)
    lied = worker.expect("assign")
    worker.token(lied, 0)
    worker.send("done", group="g0", epoch=worker.epoch, request=lied.request, finish_reason="stop", prompt_tokens=most, completion_tokens=2,
                cached_tokens=most, prefill_us=most, decode_us=most)
    client.expect("token")
    assert client.expect("done").prompt_tokens == most
    for i in range(40):  # far more than a sequence can take
        other.send("generate", request="other%d" % i, prompt="word " * 20, max_tokens=256)
        other.expect("accepted")
    first = worker.expect("assign")
    generate(client, "next", max_tokens=1)
    served, assign = 0, first
    while assign.prompt != "Once":
        worker.serve(assign, 256)
        served += 1
        assign = worker.expect("assign")
    assert served < 20, served


@with_options(queue_requests=16)
def test_begun_streams_are_not_shed(c):
    """a stream that lost its group keeps its place when the queue is full and its tenant holds most of it: who did not begin goes"""
    worker, client, other = c.worker().join(sequences=1), c.client(), c.client("other")
    generate(client, "begun")
    begun = worker.expect("assign")
    worker.token(begun, 0)
    client.expect("token")
    for i in range(15):
        generate(client, "q%d" % i)
    worker.send("bye", group="g0", epoch=worker.epoch)
    c.until(lambda: c.status().queued == 16, "it to wait again")
    generate(other, "late")
    error = client.expect("error")
    assert error.request == "q14" and error.code == 429, error
    again = c.worker("g1", "g1").join(sequences=1)
    assert again.expect("assign").request == begun.request


TESTS = [value for name, value in list(globals().items()) if name.startswith("test_")]

if __name__ == "__main__":
    chosen = [t for t in TESTS if not sys.argv[1:] or t.__name__ in sys.argv[1:]]
    sys.exit(run(chosen, make=Coordinator))
