#!/usr/bin/python3
"""What dies, hangs or leaves behind the coordinator, with real groups of real stages (faults.md 1, 5, 6, 14, 25, 28, 29): the clients'
logs must read as if nothing had happened. Every test prints how long the loss took to be noticed and the worst pause."""
import ctypes
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from faults import BUILD, PRELOADED, SIGNALS, SLOW, Client, Skip, note, run, with_options  # noqa: E402
import gguf_file  # noqa: E402
from local_cluster import processes  # noqa: E402
from test_cluster import make_cluster  # noqa: E402

STREAMS = 8
TOKENS = 150
SHORT = "Once upon a time there was"
LONG = "Once upon a time there was a little tower by the sea. " * 12  # some hundred tokens


def ask(client, name, prompt, tokens, **more):
    for i in range(STREAMS):
        client.generate("%s%d" % (name, i), prompt=prompt, max_tokens=tokens, seed=i, ignore_eos=True, temperature=1, **more)


def undisturbed(c, prompt=SHORT, tokens=TOKENS, **more):
    """What the same requests bring when nothing happens: their ids by number."""
    client = Client(c.client())
    ask(client, "u", prompt, tokens, **more)
    client.finish(120)
    assert client.log.check() == STREAMS
    return [client.log.ids("u%d" % i) for i in range(STREAMS)]


class Watch:
    """The groups as status shows them, over a connection of its own."""

    def __init__(self, c):
        self.peer = c.client()

    def group(self, name):
        self.peer.send("status", verbose=True)
        groups = self.peer.expect("status_reply", timeout_s=10).fields.get("groups", [])
        return next((g for g in groups if g["group"] == name), None)

    def until(self, name, condition, what, limit_s=60):
        start = time.monotonic()
        while True:
            group = self.group(name)
            if group and condition(group):
                return time.monotonic() - start
            assert time.monotonic() < start + limit_s * SLOW, "waited in vain for %s: %r" % (what, group)
            time.sleep(0.02)

    def back(self, name, epoch):
        return self.until(name, lambda g: g["state"] == "ready" and g["epoch"] > epoch, "the next epoch of " + name)


def finish(client, watch, name, reference, lost, limit_s=60):
    """Pumps the streams to their ends and holds them against the reference; how long the loss took to be seen."""
    start, seen = time.monotonic(), None
    while not all(client.log.over(r) for r in client.log.events):
        assert time.monotonic() < start + limit_s * SLOW, "the streams do not end"
        message = client.peer.receive(0.02)
        if message:
            client.log.take(message)
        if seen is None and lost(watch.group(name)):
            seen = time.monotonic() - start
    requests = list(client.log.events)
    assert not any(map(client.log.error, requests)), list(filter(None, map(client.log.error, requests)))
    assert client.log.check({r: reference[i] for i, r in enumerate(requests)}) == STREAMS
    ends = [m for r in requests for _, m in client.log.events[r] if m.name == "done"]
    assert not any(m.get("mixed") for m in ends), ends
    moved = [r for r, m in zip(requests, ends) if m.get("moves", 0)]
    assert moved, "nothing had to move"
    return seen, max(client.log.worst_gap(r) for r in requests), len(moved)


def pid_of(group, stage):
    return group["stages"][stage]["pid"]


def ranks(c, name):
    """Pids of a group's ranks, the leader first; pids grow in the order of their start."""
    found = workers(c, name)
    leader = next(g for g in c.status()["groups"] if g["group"] == name)["stages"][0]["pid"]
    return sorted(found, key=lambda pid: (pid != leader, pid))


def prefill_s(c, prompt):
    """How long it takes to read all prompts anew, and what was generated of them: no page is cached of these."""
    client = Client(c.client())
    start = time.monotonic()
    for i in range(STREAMS):
        client.generate("p%d" % i, prompt="%d %s %s" % (i, prompt, "word " * TOKENS), max_tokens=1)
    client.finish(60)
    return time.monotonic() - start


def killed(c, phase, rank):
    """One kill -9 under eight streams over two groups of two ranks; the group is back afterwards."""
    prompt = LONG if phase == "prefill" else SHORT
    reference, watch, client = undisturbed(c, prompt), Watch(c), Client(c.client())
    read_s, group = prefill_s(c, prompt), watch.group("g-1")
    ask(client, phase, prompt, TOKENS)
    if phase == "decode":
        client.pump(lambda: all(len(client.log.ids(r)) >= 5 for r in client.log.events), "five tokens of each", 60)
    else:
        client.pump(lambda: all(client.log.kinds(r) for r in client.log.events), "all to be accepted")
        watch.until("g-1", lambda g: g["running"] > 0, "the first step")
        assert not all(client.log.ids(r) for r in client.log.events), "nothing is in its prefill any more"
    os.kill(ranks(c, "g-1")[rank], signal.SIGKILL)
    seen, gap, moved = finish(client, watch, "g-1", reference, lambda g: g["epoch"] != group["epoch"] or g["state"] == "lost")
    back = watch.back("g-1", group["epoch"])
    note("row 1: kill -9 of rank %d in %s: noticed after %.2f s, %d of %d streams moved, worst gap %.2f s of at most %.2f (2 + %.2f "
         "+ %.2f of prefill), the group was back %.1f s after their end"
         % (rank, phase, seen, moved, STREAMS, gap, 2 + seen + read_s, seen, read_s, back))
    assert seen <= 5 and gap <= 2 + seen + read_s, (seen, gap, read_s)


@with_options(model=None, groups=2, stages=2)
def test_killed_in_decode(c):
    """kill -9 of each stage while it generates: every stream is whole and as undisturbed"""
    for stage in (0, 1):
        killed(c, "decode", stage)


@with_options(model=None, groups=2, stages=2)
def test_killed_in_prefill(c):
    """kill -9 of each stage while it reads prompts: every stream is whole and as undisturbed"""
    for stage in (1, 0):
        killed(c, "prefill", stage)


@with_options(model=None, groups=2, stages=1, tensor=2)
def test_killed_slot(c):
    """kill -9 of each tensor slot of a stage, while it generates and while it reads prompts: as with stages"""
    for slot in (0, 1):
        killed(c, "decode", slot)
        killed(c, "prefill", slot)


def workers(c, name):
    found = []
    for pid in processes(c.home):
        try:
            with open("/proc/%d/cmdline" % pid) as f:
                words = f.read().split("\0")
        except OSError:
            continue
        if os.path.basename(words[0]) == "lepton-worker" and name in words:
            found.append(pid)
    return sorted(found)


@with_options(model=None, groups=2, stages=2)
def test_killed_while_loading(c):
    """kill -9 of a group, and of each rank of the next while it loads: the other group serves all, and it comes back"""
    reference, watch, client = undisturbed(c), Watch(c), Client(c.client())
    group = watch.group("g-1")
    ask(client, "load", SHORT, TOKENS)
    client.pump(lambda: all(len(client.log.ids(r)) >= 5 for r in client.log.events), "five tokens of each", 60)
    os.kill(pid_of(group, 0), signal.SIGKILL)
    for which in (1, 0):  # the ranks of the job that comes next, before it says hello
        old = workers(c, "g-1")
        client.pump(lambda: len(set(workers(c, "g-1")) - set(old)) == 2 and not set(old) & set(workers(c, "g-1")),
                    "the next job", 60)
        assert watch.group("g-1")["state"] == "lost"
        os.kill(workers(c, "g-1")[which], signal.SIGKILL)
    seen, gap, moved = finish(client, watch, "g-1", reference, lambda g: g["state"] == "lost")
    back = watch.back("g-1", group["epoch"])
    note("row 1: kill -9 while loading: %d of %d streams moved once, worst gap %.2f s, back %.1f s after their end"
         % (moved, STREAMS, gap, back))


@with_options(model=None, groups=2, stages=2)
def test_drained_group(c):
    """a group whose supervisor is told to stop hands its streams over, and leaves"""
    reference, watch, client = undisturbed(c), Watch(c), Client(c.client())
    ask(client, "drain", SHORT, TOKENS)
    client.pump(lambda: all(len(client.log.ids(r)) >= 5 for r in client.log.events), "five tokens of each", 60)
    c.process.send_signal(signal.SIGSTOP)  # lepton run would end the rest when a part of it ends
    try:
        for pid in processes(c.home):
            with open("/proc/%d/cmdline" % pid) as f:
                words = f.read().split("\0")
            if words[1:2] == ["group"] and "g-1" in words:
                os.kill(pid, signal.SIGTERM)
        seen, gap, moved = finish(client, watch, "g-1", reference, lambda g: g["state"] == "lost")
    finally:
        c.process.send_signal(signal.SIGCONT)
    note("row 28: SIGTERM of a supervisor: gone after %.2f s, %d of %d streams moved, worst gap %.2f s"
         % (seen, moved, STREAMS, gap))


@with_options(model=None, groups=2, stages=2)
def test_stopped_leader(c):
    """SIGSTOP of a leader, then CONT: its streams went on elsewhere, what it says late changes nothing, and it comes back"""
    reference, watch, client = undisturbed(c), Watch(c), Client(c.client())
    group = watch.group("g-1")
    ask(client, "stop", SHORT, TOKENS)
    client.pump(lambda: all(len(client.log.ids(r)) >= 5 for r in client.log.events), "five tokens of each", 60)
    os.kill(pid_of(group, 0), signal.SIGSTOP)
    seen, gap, moved = finish(client, watch, "g-1", reference, lambda g: g["state"] == "lost")
    time.sleep(1)
    os.kill(pid_of(group, 0), signal.SIGCONT)
    back = watch.back("g-1", group["epoch"])
    assert client.peer.receive(0.3) is None
    note("row 5: SIGSTOP of the leader: noticed after %.2f s, %d of %d streams moved, worst gap %.2f s; back %.1f s after CONT"
         % (seen, moved, STREAMS, gap, back))


@with_options(model=None, groups=2, stages=2)
def test_stopped_follower(c):
    """SIGSTOP of a follower: its group is not ready within 10 s, its streams go on, the watchdog names it and ends the group"""
    reference, watch, client = undisturbed(c), Watch(c), Client(c.client())
    group = watch.group("g-1")
    ask(client, "stop", SHORT, TOKENS)
    client.pump(lambda: all(len(client.log.ids(r)) >= 5 for r in client.log.events), "five tokens of each", 60)
    os.kill(pid_of(group, 1), signal.SIGSTOP)
    seen, gap, moved = finish(client, watch, "g-1", reference, lambda g: g["state"] == "lost")
    assert seen < 10 * SLOW, seen
    assert "no progress for" in c.log() and "rank 1 is stuck in" in c.log()
    back = watch.back("g-1", group["epoch"])
    note("row 5: SIGSTOP of a follower: noticed after %.2f s, %d of %d streams moved, worst gap %.2f s; the group was back %.1f s "
         "after their end" % (seen, moved, STREAMS, gap, back))


STOP_S = 60


@with_options(model=None, groups=3, stages=2)
def test_stopped_for_long(c):
    """SIGSTOP of a leader and of another group's follower for a minute, then CONT: nothing is lost, late or told twice"""
    reference, watch, client = undisturbed(c), Watch(c), Client(c.client())
    groups = {name: watch.group(name) for name in ("g-1", "g-2")}
    ask(client, "stop", SHORT, TOKENS)
    client.pump(lambda: all(len(client.log.ids(r)) >= 5 for r in client.log.events), "five tokens of each", 60)
    stopped, start = [ranks(c, "g-1")[0], ranks(c, "g-2")[1]], time.monotonic()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    seen, gap, moved = finish(client, watch, "g-1", reference, lambda g: g["state"] == "lost")
    assert "no progress for" in c.log() and "lease has ended" in c.log()  # the follower's group, the leader's
    assert gap < 15 * SLOW, gap  # a stream that lost both: lease and progress_ms, each with what follows
    time.sleep(max(0, start + STOP_S - time.monotonic()))
    for pid in stopped:
        if os.path.exists("/proc/%d" % pid):  # its launcher may have ended it
            os.kill(pid, signal.SIGCONT)
    for name, group in groups.items():
        watch.back(name, group["epoch"])
    assert client.peer.receive(0.5) is None
    assert undisturbed(c) == reference
    note("row 5: SIGSTOP of a leader and a follower for %d s: %d of %d streams moved, worst gap %.2f s" % (STOP_S, moved, STREAMS, gap))


class Frozen:
    """One thread of a process stands still, the others run: as a debugger does it."""

    def __init__(self, tid):
        self.libc, self.tid = ctypes.CDLL(None, use_errno=True), tid
        if self.trace(0x4206) != 0 or self.trace(0x4207) != 0:  # SEIZE, INTERRUPT
            raise Skip("a thread cannot be frozen here: " + os.strerror(ctypes.get_errno()))
        os.waitpid(tid, 0x40000000)  # __WALL

    def trace(self, what):
        none = ctypes.c_void_p(None)
        return self.libc.ptrace(ctypes.c_long(what), ctypes.c_long(self.tid), none, none)

    def thaw(self):
        if self.trace(17) != 0:  # DETACH; its watchdog has ended it: who traces it must see that first
            os.waitpid(self.tid, 0x40000000)


@with_options(model=None, groups=2, stages=1)
def test_frozen_step_loop(c):
    """a step loop that hangs while its process talks: not ready within 10 s, its streams go on, and it is back when it moves"""
    reference, watch, client = undisturbed(c), Watch(c), Client(c.client())
    group = watch.group("g-1")
    ask(client, "freeze", SHORT, TOKENS)
    client.pump(lambda: all(len(client.log.ids(r)) >= 5 for r in client.log.events), "five tokens of each", 60)
    frozen = Frozen(pid_of(group, 0))  # the main thread runs the steps
    seen, gap, moved = finish(client, watch, "g-1", reference, lambda g: g["state"] == "lost")
    assert seen < 10 * SLOW and "rank 0 is stuck in a step" in c.log(), seen
    frozen.thaw()
    back = watch.back("g-1", group["epoch"])
    note("row 6: a frozen step loop: not ready after %.2f s, %d of %d streams moved, worst gap %.2f s; back %.1f s after it moves"
         % (seen, moved, STREAMS, gap, back))


@with_options(model=None, groups=2, stages=2)
def test_frozen_while_idle(c):
    """a rank that hangs while there is nothing to do is found before work is lost in it"""
    watch = Watch(c)
    first, second = watch.group("g-0"), watch.group("g-1")
    frozen = Frozen(pid_of(first, 0))
    os.kill(pid_of(second, 1), signal.SIGSTOP)
    lost = [watch.until(name, lambda g: g["state"] == "lost", "the loss of " + name, 20) for name in ("g-0", "g-1")]
    assert lost[0] + lost[1] < 10.5 * SLOW, lost
    frozen.thaw()
    back = watch.back("g-0", first["epoch"]) + watch.back("g-1", second["epoch"])
    note("row 6: idle groups, the leader's step loop and a follower frozen: not ready after %.1f s and %.1f s; both back %.1f s later"
         % (lost[0], lost[0] + lost[1], back))


@with_options(model=None, groups=2, stages=1, environment=dict(ASAN_OPTIONS=SIGNALS))
def test_poison(c):
    """a request under which groups crash is tried alone and refused with the reason; after it both groups serve as before"""
    reference, watch, client = undisturbed(c), Watch(c), Client(c.client())
    client.generate("poison", prompt="word " * 320, max_tokens=2, seed=1)
    client.pump(lambda: client.log.kinds("poison"), "accepted")
    start, killed = time.monotonic(), 0
    while not client.log.over("poison"):
        assert time.monotonic() < start + 60 * SLOW, "it neither ends nor is refused"
        for name in ("g-0", "g-1"):
            group = watch.group(name)
            if group["state"] == "ready" and group["assigned"] > 0:
                os.kill(pid_of(group, 0), signal.SIGSEGV)  # what the request would do by itself
                killed += 1
                watch.until(name, lambda g: g["epoch"] != group["epoch"] or g["state"] == "lost", "its loss")
        message = client.peer.receive(0.02)
        if message:
            client.log.take(message)
    error = client.log.error("poison")
    assert 3 <= killed <= 4 and error.code == 500 and "SIGSEGV (alone)" in error.message, (killed, error)
    took = time.monotonic() - start
    for name in ("g-0", "g-1"):
        watch.until(name, lambda g: g["state"] == "ready", name)
    assert undisturbed(c) == reference
    note("row 29: refused after %d groups in %.1f s: %s" % (killed, took, error.message))


def refused(c, **request):
    """Sends a request under which groups die of themselves until it is refused; its error, and how long that took. The first
    losses leave time to start another job: both groups must be ready before the end is judged."""
    watch, client = Watch(c), Client(c.client())
    start = time.monotonic()
    client.generate("poison", prompt=SHORT, max_tokens=2, seed=1, **request)
    client.pump(lambda: client.log.over("poison"), "its refusal", 90)
    took = time.monotonic() - start
    client.log.check()
    for name in ("g-0", "g-1"):
        watch.until(name, lambda g: g["state"] == "ready", name + " to be back", 90)
    return client.log.error("poison"), took


BIASES = 997  # eight bytes each: a size that nothing else has
FAILPOINT = "/tmp/lepton-test-failpoint-%d" % os.getpid()


def make_failing(**options):
    """A cluster whose workers die of one allocation while FAILPOINT is there."""
    return make_cluster(environment=dict(MEMORY=FAILPOINT, LD_PRELOAD=os.path.abspath(BUILD + "/tests/faults/memory.so"),
                                         ASAN_OPTIONS=PRELOADED + ":handle_segv=0:handle_abort=0"), **options)


def poison_of(c, how, expected):
    """A worker that allocates what the biases of one request take dies there by `how`; that request is named for it."""
    reference = undisturbed(c)
    with open(FAILPOINT, "w") as f:
        f.write("%s %d" % (how, 8 * BIASES))
    try:
        error, took = refused(c, logit_bias=[dict(id=i, bias=0.5) for i in range(BIASES)])
    finally:
        os.unlink(FAILPOINT)
    assert error.code == 500 and expected + " (alone)" in error.message, error
    assert undisturbed(c) == reference
    note("row 29: %s: refused in %.1f s: %s" % (how, took, error.message))


@with_options(model=None, groups=2, stages=1, make=make_failing)
def test_poison_memory(c):
    """a request for which a worker cannot allocate is found out (out of memory), refused alone, and both groups serve on"""
    poison_of(c, "null", "out of memory")


@with_options(model=None, groups=2, stages=1, make=make_failing)
def test_poison_abort(c):
    """a request under which workers abort is found out (SIGABRT), refused alone, and both groups serve on"""
    poison_of(c, "abort", "SIGABRT")


@with_options(model=None, groups=2, stages=2, make=make_failing)
def test_poison_crash(c):
    """a request under which leaders of two stages crash is found out (SIGSEGV) through their launchers, and refused alone"""
    poison_of(c, "segv", "SIGSEGV")


def launchers(c):
    found = []
    for pid in processes(c.home):
        with open("/proc/%d/cmdline" % pid) as f:
            words = f.read().split("\0")
        if os.path.basename(words[0]) in ("mpirun", "orterun", "prterun"):
            found.append(pid)
    return found


def gone(pid):
    try:
        with open("/proc/%d/stat" % pid) as f:
            return f.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@with_options(groups=1, stages=2, environment=dict(ASAN_OPTIONS=SIGNALS))
def test_root_cause(c):
    """of two ranks that are gone at once the supervisor tells what killed the first, not that the other noticed"""
    watch = Watch(c)
    for turn, (stage, number) in enumerate(((0, signal.SIGSEGV), (1, signal.SIGABRT), (1, signal.SIGSEGV), (0, signal.SIGABRT))):
        group, (launcher,) = watch.group("g-0"), launchers(c)
        os.kill(launcher, signal.SIGSTOP)  # it will find both dead, and may believe either
        try:
            os.kill(pid_of(group, stage), number)
            c.until(lambda: gone(pid_of(group, stage)), "its end", 20)
            if stage == 1:
                c.until(lambda: gone(pid_of(group, 0)), "the leader's end", 20)
            else:
                time.sleep(0.3)  # the follower asks the launcher to end the job, and waits for that
        finally:
            os.kill(launcher, signal.SIGCONT)
        watch.back("g-0", group["epoch"])
        ends = [line for line in c.log().splitlines() if "job ended with" in line]
        assert len(ends) == turn + 1 and "(%s)" % number.name in ends[-1], (stage, number, ends)


NAN_TOKEN = 1234


def make_with_nan(**options):
    """A cluster of a model in which one token's embedding is not a number: whoever reads that token gets no logits."""
    model = "/tmp/lepton-test-nan-%d.gguf" % os.getpid()
    run_checked(BUILD + "/lepton", "synth", "--layers", "4", "--dim", "128", "--ffn", "256", "--heads", "4", "--kv-heads", "2",
                "--vocab", "2000", "--context", "1024", "--type", "f16", model)
    kind, shape, at = gguf_file.find(model, "token_embd.weight")
    assert kind == gguf_file.F16 and shape[1] == 128
    with open(model, "r+b") as f:
        f.seek(at + NAN_TOKEN * shape[1] * 2)
        f.write(b"\x00\x7e" * shape[1])
    try:
        return make_cluster(model=model, **options)
    finally:
        os.unlink(model)  # it is open where it is needed


def run_checked(*words):
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def beside_nan(c):
    never = dict(logit_bias=[dict(id=NAN_TOKEN, bias=-100.0)])
    reference, watch = undisturbed(c, **never), Watch(c)
    epochs = [watch.group(g)["epoch"] for g in ("g-0", "g-1")]
    for turn in range(3):  # the pages that held what is no number serve others afterwards
        client = Client(c.client())
        ask(client, "q", SHORT, TOKENS, **never)
        for i in range(6):  # the first token they generate is the one without an embedding: the second cannot be computed
            client.generate("nan%d" % i, prompt=LONG if i % 2 else SHORT, max_tokens=20, seed=i,
                            logit_bias=[dict(id=NAN_TOKEN, bias=100.0)])
        client.finish(60)
        assert client.log.check({"q%d" % i: reference[i] for i in range(STREAMS)}) == STREAMS
        for i in range(6):
            error = client.log.error("nan%d" % i)
            assert error and error.code == 500 and "no finite logits at token 1" in error.message, (i, error)
            assert client.log.ids("nan%d" % i) == [NAN_TOKEN]
    assert [watch.group(g)["epoch"] for g in ("g-0", "g-1")] == epochs
    assert undisturbed(c, **never) == reference
    status = c.status()
    assert status["failed_total"] == 18, status


@with_options(groups=2, stages=1, make=make_with_nan)
def test_nan(c):
    """logits that are not finite are an error of that request alone: 500 at its token, its neighbours' tokens are as undisturbed"""
    beside_nan(c)


@with_options(groups=2, stages=2, make=make_with_nan)
def test_nan_in_stages(c):
    """the same when what is no number travels between two stages"""
    beside_nan(c)


CLOCK = "/tmp/lepton-test-clock-%d" % os.getpid()


def jump(seconds):
    with open(CLOCK + ".new", "w") as f:
        f.write(str(seconds))
    os.rename(CLOCK + ".new", CLOCK)


@with_options(model=None, groups=2, stages=2, environment=dict(
    WALLCLOCK=CLOCK, LD_PRELOAD=os.path.abspath(BUILD + "/tests/faults/wallclock.so"),
    ASAN_OPTIONS=PRELOADED))
def test_wall_clock(c):
    """a wall clock that jumps an hour or a year under real groups of two stages ends no lease and no stream (row 14)"""
    reference, watch, client = undisturbed(c), Watch(c), Client(c.client())
    epochs = [watch.group(g)["epoch"] for g in ("g-0", "g-1")]
    year = 365 * 86400
    try:
        ask(client, "q", SHORT, TOKENS)
        for seconds in (3600, -3600, year, -year, 0):
            tokens = sum(len(client.log.ids(r)) for r in client.log.events)
            jump(seconds)
            client.pump(lambda: client.log.over("q0") or sum(len(client.log.ids(r)) for r in client.log.events) > tokens + 40,
                        "tokens after a jump of %d s" % seconds)
            watch.until("g-0", lambda g: g["heartbeat_age_ms"] < 1000, "a heartbeat after the jump")
            assert c.lepton("tune", "prefix_belief=90").returncode == 0  # a line in the log: what time is it there?
        client.finish(60)
    finally:
        if os.path.exists(CLOCK):
            os.unlink(CLOCK)
    assert client.log.check({"q%d" % i: reference[i] for i in range(STREAMS)}) == STREAMS
    assert [watch.group(g)["epoch"] for g in ("g-0", "g-1")] == epochs
    assert all(m.get("moves", 0) == 0 for r in client.log.events for _, m in client.log.events[r] if m.name == "done")
    log = c.log()
    assert "lease has ended" not in log and " is gone" not in log
    assert len({line[:4] for line in log.splitlines() if line[:2] == "20"}) >= 2, "the clock did not jump"


TESTS = [value for name, value in list(globals().items()) if name.startswith("test_")]

if __name__ == "__main__":
    code = run([t for t in TESTS if not sys.argv[1:] or t.__name__ in sys.argv[1:]],
               make=lambda make=make_cluster, **options: make(**options))
    synth = "/tmp/lepton-test-synth-%d.gguf" % os.getpid()
    if os.path.exists(synth):
        os.unlink(synth)
    sys.exit(code)
