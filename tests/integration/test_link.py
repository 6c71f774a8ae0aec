#!/usr/bin/python3
"""A real group against a coordinator that is a script: leases, epochs, refusals, cancellation, draining."""
import os
import random
import re
import signal
import subprocess
import sys
import time

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from coordinator_harness import BUILD, encode  # noqa: E402
from local_cluster import DEMO  # noqa: E402
from script_coordinator import START_S, Script  # noqa: E402

MARGIN_S = 0.6  # between what is right and what is wrong in the tests about time lies at least twice this


# ---- one group after the other serves all of these ------------------------------------------------------------------

def test_hello(s):
    """hello says who the group is: model, numeric class, capacity and stages"""
    hello = s.hello_fields
    assert hello.group == "g0" and hello.model == "lepton-demo" and hello.get("epoch", 0) == 0
    assert re.fullmatch("[0-9a-f]{16,128}", hello.weights) and hello.kernels and hello.kv_type == "f32"
    assert hello.tensor == 1 and hello.max_sequences == 16 and hello.context == 512
    assert hello.pages >= 16 * 512 // 16 and hello.page_tokens == 16  # kv_bytes decides, not sequences x context
    assert len(hello.stages) == s.stages
    assert hello.stages[0]["first_layer"] == 0 and hello.stages[-1]["last_layer"] == 4
    assert all(a["last_layer"] == b["first_layer"] for a, b in zip(hello.stages, hello.stages[1:]))
    assert all(os.path.exists("/proc/%d" % stage["pid"]) for stage in hello.stages)


def test_heartbeats(s):
    """heartbeats carry the epoch, a sequence that grows by one, and steps that grow with the work"""
    s.outcome(s.assign(max_tokens=30, ignore_eos=True))
    s.settle()
    s.idle(0.3)
    beats = [b for _, b in s.beats]
    assert all(b.epoch == s.epoch for b in beats)
    assert all(b.sequence == a.sequence + 1 for a, b in zip(beats, beats[1:]))
    assert all(b.steps >= a.steps and b.tokens_generated >= a.tokens_generated for a, b in zip(beats, beats[1:]))
    assert beats[-1].steps - beats[0].steps >= 30 and beats[-1].tokens_generated - beats[0].tokens_generated == 30
    assert beats[-1].steps == beats[-2].steps  # idle: no steps


def last_words_s(s, epoch):
    """When the last message under the epoch came."""
    said = [t for t, m in s.inbox + s.beats if m.get("epoch") == epoch and m.name != "hello"]
    return max(said)


def test_lease_from_sent(s):
    """the lease runs from when the answered heartbeat was sent, however late the answer comes"""
    s.join(lease_ms=2000)
    s.assign(max_tokens=1, request="first")
    s.outcome("first")
    s.answer = False
    mark = len(s.beats)
    s.pump(lambda: len(s.beats) > mark)
    sent_s, beat = s.beats[-1]
    s.send("lease", sequence=beat.sequence)
    s.idle(1.5)
    s.send("lease", sequence=beat.sequence)  # late, once more: it must not count from now
    s.hello(10)
    assert last_words_s(s, beat.epoch) < sent_s + 2.0 + MARGIN_S, last_words_s(s, beat.epoch) - sent_s


def test_fences_itself(s):
    """without answers the group stops within its lease, drops its work, says nothing more, then hello with its epoch"""
    s.join(lease_ms=1500)
    old = s.epoch
    s.assign(max_tokens=480, ignore_eos=True, request="cut")
    s.expect("token", "cut")
    s.answer = False
    answered_s = s.beats[-1][0]
    hello = s.hello(10)
    hello_s = s.inbox[-1][0]
    assert hello.epoch == old, hello
    s.idle(0.5)
    assert last_words_s(s, old) < answered_s + 1.5 + MARGIN_S, last_words_s(s, old) - answered_s
    assert last_words_s(s, old) <= hello_s
    s.answer = True
    s.join()  # its pages came back: join waits for that
    assert s.named("token") == [] and s.outcomes("cut") == []


def test_welcome_counts_from_hello(s):
    """the lease that a welcome gives runs from when the hello was sent"""
    s.answer = False
    s.join_without_answer(lease_ms=300)
    s.hello(10)
    hello_s = s.inbox[-1][0]
    s.idle(1.5)
    s.beats.clear()
    s.welcome(lease_ms=2500)
    epoch = s.epoch
    s.pump(lambda: s.beats)
    s.idle(4.0)
    late_s = max(t for t, b in s.beats if b.epoch == epoch) - hello_s
    assert late_s < 2.5 + MARGIN_S, late_s


def test_stale_epoch(s):
    """assign, cancel, drain and lease under another epoch or for another group change nothing"""
    s.assign(max_tokens=200, ignore_eos=True, request="runs")
    s.expect("token", "runs")
    for fields in (dict(epoch=s.epoch - 1), dict(epoch=s.epoch + 1), dict(epoch=0), dict(group="g1"), dict(group="g")):
        s.assign(request="stale", **fields)
        s.cancel("runs", **fields)
        s.send("drain", **fields)
        s.send("lease", sequence=s.beats[-1][1].sequence, **fields)
    done = s.outcome("runs")
    assert done.name == "done" and done.finish_reason == "length" and done.completion_tokens == 200, done
    assert s.outcome(s.assign()).name == "done"  # it does not drain
    assert s.outcomes("stale") == [] and s.tokens("stale") == []


def test_second_welcome(s):
    """a second welcome ends the work of the first: nothing more of it comes, and its pages are free"""
    for i in range(20):  # some run, some wait
        s.assign(max_tokens=450, ignore_eos=True, request="old%d" % i)
    s.expect("token", "old3")
    old = s.epoch
    s.welcome()
    s.pump(lambda: any(b.epoch == s.epoch for _, b in s.beats), what="a heartbeat of the new epoch")
    s.inbox.clear()
    again = s.outcome(s.assign(request="old3", max_tokens=20, ignore_eos=True))
    assert again.finish_reason == "length", again
    s.settle()
    assert all(m.epoch == s.epoch != old and m.request == "old3" for _, m in s.inbox), s.inbox[:3]


def test_stale_welcome(s):
    """a welcome or a refusal from a past epoch changes nothing"""
    s.assign(max_tokens=300, ignore_eos=True, request="runs")
    s.expect("token", "runs")
    current = s.epoch
    s.send("welcome", epoch=current - 1, lease_ms=60000, heartbeat_ms=50)
    s.send("welcome", epoch=current, lease_ms=60000, heartbeat_ms=50)
    s.send("error", code=409, message="that is over", group="g0", epoch=current - 1)
    done = s.outcome("runs")
    assert done.epoch == current and done.completion_tokens == 300, done
    assert s.named("hello") == []


def test_refused_epoch(s):
    """an error 409 about the epoch in force makes the group drop its work and say hello"""
    s.assign(max_tokens=450, ignore_eos=True, request="runs")
    s.expect("token", "runs")
    s.send("error", code=409, message="who are you?", group="g0", epoch=s.epoch)
    assert s.hello(10).epoch == s.epoch
    s.join()
    assert s.outcomes("runs") == []


def test_twice(s):
    """the same request assigned twice is refused with 409, and the first one runs to its end"""
    s.assign(max_tokens=200, ignore_eos=True, request="twice")
    s.assign(request="twice")  # right behind it: a small model is soon through with 200 tokens
    error = s.expect("error", "twice")
    assert error.code == 409, error
    s.expect("done", "twice")
    assert [t.index for t in s.tokens("twice")] == list(range(200))
    assert s.outcome(s.assign(request="once")).name == "done"  # and the name is free again
    s.inbox.clear()
    assert s.outcome(s.assign(request="twice")).name == "done"


def test_capacity(s):
    """what comes over the batch waits and is served in order; far over it is refused with 429"""
    names = [s.assign(max_tokens=60, ignore_eos=True) for _ in range(40)]
    ends = [s.outcome(name) for name in names]
    refused = [n for n, e in zip(names, ends) if e.name == "error"]
    assert refused == names[32:] and all(e.code == 429 for e in ends[32:]), ends[30:]
    firsts = [m.request for _, m in s.inbox if m.name == "token" and m.index == 0]
    assert firsts == names[:32], firsts
    s.settle()


def test_prompts(s):
    """a prompt that is too long or gives no token is refused with the reason; NUL bytes are text"""
    error = s.outcome(s.assign("word " * 600))
    assert error.code == 413 and "512" in error.message and re.search("[0-9]{3,} tokens", error.message), error
    error = s.outcome(s.assign("word " * 1600000))
    assert error.code == 413 and "8000000" in error.message and "512" in error.message, error
    error = s.outcome(s.assign("", no_bos=True))
    assert error.code == 400 and "prompt" in error.message, error
    assert s.outcome(s.assign("")).prompt_tokens == 1
    nul = s.outcome(s.assign("a\0b\0"))
    assert nul.name == "done" and nul.prompt_tokens >= 4, nul
    assert s.outcome(s.assign("\u00e9\u4e16\U0001f600")).name == "done"
    s.settle()


def test_sampling_extremes(s):
    """every sampling option is served at its bounds"""
    base = dict(max_tokens=24, ignore_eos=True)
    greedy = s.assign(**base)
    for fields in (dict(temperature=100.0), dict(temperature=1e-30), dict(temperature=100.0, top_k=1),
                   dict(temperature=100.0, top_k=2**31 - 1), dict(temperature=1.0, top_p=1e-30),
                   dict(temperature=100.0, top_p=1e-300), dict(temperature=100.0, min_p=1.0),
                   dict(temperature=1.0, repetition_penalty=10.0), dict(temperature=1.0, repetition_penalty=0.01),
                   dict(temperature=1.0, presence_penalty=2.0, frequency_penalty=2.0),
                   dict(temperature=1.0, presence_penalty=-2.0, frequency_penalty=-2.0),
                   dict(temperature=1.0, seed=2**64 - 1), dict(temperature=1.0, seed=0)):
        name = s.assign(**dict(base, **fields))
        done = s.outcome(name)
        assert done.name == "done" and done.completion_tokens == 24, (fields, done)
        if fields.get("top_k") == 1 or fields.get("top_p", 1) < 1e-9 or fields.get("min_p") == 1:
            assert [t.id for t in s.tokens(name)] == [t.id for t in s.tokens(greedy)], fields
    s.settle()


def test_context_full(s):
    """max_tokens over the context ends with length when the context is full"""
    done = s.outcome(s.assign(max_tokens=2**20, ignore_eos=True))
    assert done.finish_reason == "length" and done.prompt_tokens + done.completion_tokens == 512, done
    s.settle()


def test_ignore_eos(s):
    """the end token ends an answer unless it is to be ignored"""
    ends = [s.assign("Once upon a time", temperature=0.6, seed=seed, max_tokens=480) for seed in range(4)]
    goes_on = s.assign("Once upon a time", temperature=0.6, seed=0, max_tokens=480, ignore_eos=True)
    assert any(s.outcome(name).finish_reason == "stop" for name in ends)
    assert s.outcome(goes_on).completion_tokens == 480


def test_cancel_everywhere(s):
    """a request cancelled before, in and after its work has exactly one outcome, and its pages come back"""
    def cancel_now(name):
        s.cancel(name)
        return s.outcome(name)

    s.cancel("nobody")
    name = s.assign(max_tokens=400, ignore_eos=True)       # at once
    assert cancel_now(name).name == "done"
    fill = [s.assign(max_tokens=100, ignore_eos=True) for _ in range(16)]
    waits = s.assign(max_tokens=400, ignore_eos=True)      # before admission
    assert cancel_now(waits).finish_reason == "cancelled" and s.tokens(waits) == []
    assert all(s.outcome(f).completion_tokens == 100 for f in fill)
    prefill = s.assign("Once upon a time " * 80, max_tokens=50, ignore_eos=True)
    s.idle(0.005)
    assert cancel_now(prefill).name == "done"
    decode = s.assign(max_tokens=450, ignore_eos=True)
    s.expect("token", decode, count=3)
    for _ in range(3):
        s.cancel(decode)
    assert s.outcome(decode).finish_reason == "cancelled"
    over = s.assign(max_tokens=4, ignore_eos=True)
    assert s.outcome(over).finish_reason == "length"
    s.cancel(over)
    s.settle()
    for name in fill + [waits, prefill, decode, over]:
        s.check(name)


def storm(s, seed, count, most_tokens):
    rng = random.Random(seed)
    live, names = [], []
    for _ in range(count):
        running = [n for n in live if not s.outcomes(n)]
        live = running
        if len(running) < 30:
            name = s.assign(rng.choice(["Once", "The little robot", "Anna and Tom " * 30]), seed=rng.randrange(99),
                            temperature=rng.choice([0.0, 1.0]), max_tokens=rng.randint(1, most_tokens),
                            ignore_eos=rng.random() < 0.5)
            names.append(name)
            live.append(name)
        if live and rng.random() < 0.6:
            s.cancel(rng.choice(live))
        s.idle(rng.choice([0.0, 0.0, 0.002, 0.01]))
    for name in names:
        s.outcome(name)
    s.settle()
    reasons = {}
    for name in names:
        end = s.check(name)
        assert end.name == "done", end
        reasons[end.finish_reason] = reasons.get(end.finish_reason, 0) + 1
    assert reasons.get("cancelled", 0) > 0 and len(reasons) > 1, reasons
    return reasons


def test_storm(s):
    """200 requests assigned and cancelled at random: one outcome each, every index once, all pages free"""
    print("# %s" % storm(s, 5, 200, 60))


def test_cancel_at_the_end(s):
    """a cancellation that meets the last tokens never hides some of them behind an outcome that counts them"""
    print("# %s" % storm(s, 6, 400, 4))


def test_garbage(s):
    """frames that are not the protocol are survived and change nothing"""
    s.assign(max_tokens=300, ignore_eos=True, request="runs")
    rng = random.Random(3)
    good = encode("assign", group="g0", epoch=s.epoch, request="x", prompt="hi", max_tokens=1, seed=1)
    for i in range(300):
        if i % 3 == 0:
            frame = rng.randbytes(rng.randint(0, 200))
        else:  # a good frame cut or with one byte changed, its epoch made stale so that it cannot be served by chance
            frame = bytearray(good.replace(b"\xa2g0", b"\xa2g9"))
            if i % 3 == 1:
                frame = frame[:rng.randrange(len(frame))]
            else:
                frame[rng.randrange(len(frame) - 12)] ^= 1 << rng.randrange(8)
        s.raw(bytes(frame))
    s.raw(b"\xdd\xff\xff\xff\xff")
    s.raw(encode("status"))
    s.raw(encode("hello", group="g0", incarnation=1, model="m", weights="w", kernels="k", kv_type="f32", tensor=1,
                 max_sequences=1, context=1, pages=1, page_tokens=1, load_ms=1, stages=[]))
    assert s.outcome("runs").completion_tokens == 300
    assert s.outcome(s.assign()).name == "done" and s.named("hello") == []


def test_reopened(s):
    """a coordinator that goes and comes back at the same port gets a hello, and no token of the past"""
    s.assign(max_tokens=480, ignore_eos=True, request="cut")
    s.expect("token", "cut")
    old = s.epoch
    s.shut()
    s.inbox.clear()
    s.open()
    s.answer = False
    beats = len(s.beats)
    while not s.named("hello"):  # the old epoch on the new connection is answered as a coordinator does
        s.take()
        if len(s.beats) > beats:
            beats, s.peer = len(s.beats), s.last_peer
            s.send("error", code=409, message="introduced on another connection", epoch=old)
    assert s.named("hello")[0].epoch == old
    s.answer = True
    s.join()
    assert s.tokens("cut") == [] and s.outcome(s.assign()).name == "done"


# ---- tests that need a group of their own ----------------------------------------------------------------------------

class Alone:
    def log(self):
        return ""

    def close(self):
        pass


def scripted(test):
    """Gives the test a maker of groups that are closed afterwards."""
    def wrapped(_):
        made = []

        def make(**options):
            made.append(Script(**options))
            return made[-1]
        try:
            test(make)
        except Exception:
            for s in made:
                for line in s.log().splitlines()[-12:]:
                    print("# log: " + line)
            raise
        finally:
            for s in made:
                s.close()
    wrapped.__doc__, wrapped.__name__ = test.__doc__, test.__name__
    return wrapped


@scripted
def test_drain(make):
    """a drain lets what runs and what waits finish, refuses more with 503, says bye and leaves with 0"""
    for stages in (1, 2):
        s = make(stages=stages, worker=("--max-sequences", "4"))
        s.join()
        names = [s.assign(max_tokens=300, ignore_eos=True) for _ in range(6)]
        s.expect("token", names[0])
        s.send("drain")
        late = s.assign(request="late")
        assert s.outcome(late).code == 503
        for name in names:
            assert s.outcome(name, 60).completion_tokens == 300
        assert s.expect("bye").epoch == s.epoch
        assert s.group.wait(20) == 0
        for name in names:
            s.check(name)


@scripted
def test_drain_while_starting(make):
    """a group that is told to end while it still starts leaves with 0, without having served"""
    del make  # no coordinator is needed
    keys = "/tmp/lepton-test-keys-%d" % os.getpid()
    for name, role in (("c", "coordinator"), ("g0", "worker")):
        subprocess.run([BUILD + "/lepton", "keygen", "--role", role, keys, name], check=True, stdout=subprocess.DEVNULL)
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    worker = subprocess.Popen([BUILD + "/lepton-worker", "--model", DEMO, "--server-key", keys + "/c.pub", "--key",
                               keys + "/g0.key", "--endpoint", "tcp://127.0.0.1:9"], env=environment,
                              stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + START_S
        while True:  # until it handles the signal, which is long before it serves
            with open("/proc/%d/status" % worker.pid) as f:
                if int(re.search("SigCgt:\\s+([0-9a-f]+)", f.read()).group(1), 16) & 1 << signal.SIGUSR2 - 1:
                    break
            assert time.monotonic() < end and worker.poll() is None
        worker.send_signal(signal.SIGUSR2)
        assert worker.wait(30) == 0
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait()
        subprocess.run(["rm", "-r", keys], check=True)


@scripted
def test_small_pool(make):
    """with pages for few sequences the others wait, what can never fit is refused with the numbers"""
    s = make(worker=("--kv-bytes", str(20 * 16 * 64 * 2 * 4 * 4)))  # 20 pages
    pages = s.hello().pages
    s.join()
    assert pages == 20, pages
    names = [s.assign(max_tokens=100, ignore_eos=True) for _ in range(12)]
    error = s.outcome(s.assign(max_tokens=400, ignore_eos=True))
    assert error.code == 413 and "20" in error.message and "pages" in error.message, error
    assert all(s.outcome(n).completion_tokens == 100 for n in names)
    assert max(b.pages_used for _, b in s.beats) <= 20
    s.settle()


@scripted
def test_ipv6(make):
    """a coordinator at an IPv6 address is reached"""
    s = make(host="[::1]")
    s.join()
    assert s.outcome(s.assign()).name == "done"


@scripted
def test_bad_endpoint(make):
    """an endpoint that can never work is refused once, not tried again and again"""
    s = make(endpoint="nonsense")
    assert s.group.wait(START_S) == 78 and "nonsense" in s.log(), s.log()


@scripted
def test_lost_words(make):
    """a group that could not say all about its requests gives its epoch up, even where the coordinator would go on"""
    s = make()
    s.join()
    name = s.assign(max_tokens=480, ignore_eos=True)
    s.expect("token", name)
    s.shut()
    time.sleep(0.2)
    s.open()
    s.take()  # the new connection has another name
    s.peer = s.last_peer
    s.pump(lambda: s.named("hello"), 10, "a hello")
    assert s.named("hello")[0].epoch == s.epoch
    assert [t.index for t in s.tokens(name)] == list(range(len(s.tokens(name))))


SHARED = [test_hello, test_heartbeats, test_lease_from_sent, test_fences_itself, test_welcome_counts_from_hello,
          test_stale_epoch, test_second_welcome, test_stale_welcome, test_refused_epoch, test_twice, test_capacity,
          test_prompts, test_sampling_extremes, test_context_full, test_ignore_eos, test_cancel_everywhere, test_storm,
          test_cancel_at_the_end, test_garbage, test_reopened]
ABOUT_TIME = (test_lease_from_sent, test_fences_itself, test_welcome_counts_from_hello)  # of the link alone
ALONE = [test_drain, test_drain_while_starting, test_small_pool, test_ipv6, test_bad_endpoint, test_lost_words]


def run_one(test, argument, log):
    try:
        test(argument)
        print("ok - " + test.__doc__, flush=True)
        return 0
    except Exception:
        import traceback
        for line in traceback.format_exc().splitlines()[-8:] + log().splitlines()[-8:]:
            print("# " + line)
        print("not ok - " + test.__doc__, flush=True)
        return 1


if __name__ == "__main__":
    only, failed = sys.argv[1:], 0
    for stages in (1, 2):
        script = None
        for test in SHARED:
            if (only and test.__name__ not in only) or (stages > 1 and test in ABOUT_TIME):
                continue
            try:
                if script is None:
                    script = Script(stages=stages)
                    script.stages, script.hello_fields = stages, script.hello()
                script.answer = True
                script.join()
            except Exception as why:
                print("not ok - the group of %d stages before %s: %s" % (stages, test.__name__, why))
                failed += 1
                break
            failed += run_one(test, script, script.log)
        if script:
            script.close()
    for test in ALONE:
        if not only or test.__name__ in only:
            failed += run_one(test, None, lambda: "")
    sys.exit(1 if failed else 0)
