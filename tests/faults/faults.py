"""What the fault tests share: a coordinator with keys of its own and mock or real groups behind a fault proxy, clients that
log what they see, and the checker that holds those logs against the design's invariants.

I1  every accepted request has exactly one outcome for each choice, or one error that ends it; nothing comes behind it
I2  the indices of each choice are 0, 1, 2, ... once each, whatever died in between; a delivered token never changes
I5  what comes under an epoch that is over changes nothing: no stream goes backwards, repeats or mixes two answers
I7  equal requests (prompt, sampling, seed) get equal tokens, undisturbed or not"""
import os
import signal
import subprocess
import sys
import threading
import time

import msgpack
import zmq

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../integration"))
from coordinator_harness import BUILD, SLOW, Coordinator, Peer, Skip, encode, public_key, run, secret_key, with_options  # noqa: E402,F401

# With a library in front of libc a sanitizer is not the first one; it need not be for what these do.
PRELOADED = os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0:detect_leaks=0"
# Where a signal is what is wanted: no sanitizer may make a report and an exit of it.
SIGNALS = os.environ.get("ASAN_OPTIONS", "") + ":handle_segv=0:handle_abort=0"
SPEED = "base_us = %d.0; decode_us = 50.0; prefill_us = 20.0; max_sequences = 32; kv_tokens = 200000;" % (5000 * SLOW)


class Proxy:
    """tests/drivers/proxy in front of a port of 127.0.0.1; its commands are methods: hold("up"), delay(200), close()."""

    def __init__(self, endpoint):
        self.process = subprocess.Popen([BUILD + "/tests/drivers/proxy", endpoint.rsplit(":", 1)[1]], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.endpoint = "tcp://127.0.0.1:" + self.process.stdout.readline().split()[1]

    def command(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer == "ok\n", (words, answer)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *words: self.command({"let": "pass"}.get(name, name), *words)

    def stop(self):
        self.process.kill()
        self.process.wait()


class Middleman:
    """Somebody who holds the keys of both sides between one worker and the coordinator: what CURVE keeps everybody else from.
    `heartbeats` says what becomes of the worker's: "pass"; "replay": each is sent three times, and older ones in between;
    "swap": two change places; "old": nothing of the worker goes on, but its last heartbeat, again and again. All else passes in
    order."""

    def __init__(self, c, key="g1"):
        self.heartbeats, self.kept, self.held, self.over = "pass", [], None, False
        self.context = zmq.Context()
        self.inner, self.outer = self.context.socket(zmq.ROUTER), self.context.socket(zmq.DEALER)
        own, worker = c.path("keys/coordinator.key"), c.path("keys/%s.key" % key)
        self.inner.curve_server, self.inner.curve_secretkey = True, secret_key(own)
        self.outer.curve_serverkey = public_key(own)
        self.outer.curve_publickey, self.outer.curve_secretkey = public_key(worker), secret_key(worker)
        self.endpoint = "tcp://127.0.0.1:%d" % self.inner.bind_to_random_port("tcp://127.0.0.1")
        self.outer.connect(c.endpoint)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        worker, poller = None, zmq.Poller()
        poller.register(self.inner, zmq.POLLIN)
        poller.register(self.outer, zmq.POLLIN)
        while not self.over:
            ready = dict(poller.poll(20))
            if self.inner in ready:
                worker, frame = self.inner.recv_multipart()
                for each in self.changed(frame):
                    self.outer.send(each)
            elif self.heartbeats == "old" and self.kept:
                self.outer.send(self.kept[-1])
            if self.outer in ready:
                frame = self.outer.recv()
                if worker:
                    self.inner.send_multipart([worker, frame])
        self.context.destroy(linger=0)

    def changed(self, frame):
        """What goes on in the place of a frame of the worker."""
        if self.heartbeats == "old":
            return self.kept[-1:]
        if msgpack.unpackb(frame)[1] != 21:
            return [frame]
        self.kept = self.kept[-8:] + [frame]
        if self.heartbeats == "replay":
            return [frame, self.kept[0], frame, self.kept[0], frame]
        if self.heartbeats == "swap":
            self.held, before = (None, [frame, self.held]) if self.held else (frame, [])
            return before
        before, self.held = [self.held] if self.held else [], None
        return before + [frame]

    def stop(self):
        self.over = True
        self.thread.join()


class Faults(Coordinator):
    """A coordinator, and everything that a test starts around it; all of it ends with the test."""

    def __init__(self, **options):
        self.started, self.between = [], []
        super().__init__(**options)

    def start(self, command, **popen):
        process = subprocess.Popen(command, **popen)
        self.started.append(process)
        return process

    def proxy(self):
        proxy = Proxy(self.endpoint)
        self.started.append(proxy.process)
        return proxy

    def middleman(self, key="g1"):
        self.between.append(Middleman(self, key))
        return self.between[-1]

    def mock(self, name="g0", speed=SPEED, endpoint=None, before=(), **popen):
        """A mock group: the real link, protocol and lease, answers without a model."""
        process = self.mock_later(name, speed, endpoint, before, **popen)
        self.until(lambda: self.group(name) and self.group(name)["state"] == "ready", "group %s to be ready" % name)
        return process

    def mock_later(self, name="g0", speed=SPEED, endpoint=None, before=(), **popen):
        """The same, not waited for."""
        with open(self.path("speed.cfg"), "w") as f:
            f.write(speed)
        popen = dict(dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), **popen)
        return self.start([*before, BUILD + "/lepton-worker", "--mock", self.path("speed.cfg"), "--group", name, "--endpoint",
                              endpoint or self.endpoint, "--server-key", self.path("keys/coordinator.pub"), "--key",
                              self.path("keys/%s.key" % name.split("-")[0])], **popen)

    def group(self, name):
        return next((g for g in self.status().fields.get("groups", []) if g["group"] == name), None)

    def lepton(self, *words, key="client", endpoint=None, **popen):
        """A command of ours, started."""
        return self.start([BUILD + "/lepton", *map(str, words), "--endpoint", endpoint or self.endpoint, "--server-key",
                           self.path("keys/coordinator.pub"), "--key", self.path("keys/%s.key" % key)], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, **popen)

    def peer(self, endpoint, key="client"):
        """A client through another endpoint, such as a proxy's."""
        class At:
            pass
        at = At()
        at.context, at.path, at.endpoint = self.context, self.path, endpoint
        return Peer(at, self.path("keys/%s.key" % key))

    def files_open(self):
        return len(os.listdir("/proc/%d/fd" % self.process.pid))

    def threads(self):
        return len(os.listdir("/proc/%d/task" % self.process.pid))

    def close(self):
        for between in self.between:
            between.stop()
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
        super().close()


class Log:
    """What one client saw: an event for every message, in order, by request."""

    def __init__(self):
        self.asked, self.events, self.open = {}, {}, set()

    def ask(self, request, **fields):
        self.asked[request] = fields
        self.events.setdefault(request, [])
        self.open.add(request)

    def take(self, message, now=None):
        if message.get("request") in self.events:
            self.events[message.request].append((now or time.monotonic(), message))
            if message.name in ("done", "error") and self.has_outcome(message.request):
                self.open.discard(message.request)

    def kinds(self, request):
        return [m.name for _, m in self.events[request]]

    def over(self, request):
        return request not in self.open

    def has_outcome(self, request):
        ends = [m for _, m in self.events[request] if m.name in ("done", "error")]
        return any(m.name == "error" for m in ends) or len(ends) == self.asked[request].get("n", 1)

    def ids(self, request, choice=0):
        return [m.id for _, m in self.events[request] if m.name == "token" and m.get("choice", 0) == choice]

    def text(self, request, choice=0):
        return "".join(m.get("text", "") for _, m in self.events[request]
                       if m.name in ("token", "done") and m.get("choice", 0) == choice)

    def error(self, request):
        return next((m for _, m in self.events[request] if m.name == "error"), None)

    def worst_gap(self, request):
        times = [t for t, m in self.events[request] if m.name == "token"]
        return max((b - a for a, b in zip(times, times[1:])), default=0.0)

    def check(self, reference=None):
        """Asserts I1, I2, I5 and, against {request: ids} of an undisturbed run, I7; complete streams are counted."""
        complete = 0
        for request in self.events:
            complete += self.check_one(request)
            if reference is None or request not in reference:
                continue
            ids = self.ids(request)
            want = reference[request][:len(ids)] if self.error(request) else reference[request]
            assert ids == want, "I7: %s: %r, undisturbed %r" % (request, ids, want)
        return complete

    def check_one(self, request):
        messages = [m for _, m in self.events[request]]
        n = self.asked[request].get("n", 1)
        due, ended, failed, accepted = [0] * n, [False] * n, False, False
        for m in messages:
            assert not failed and not all(ended), "I1: %s: %r behind the end" % (request, m)
            if m.name == "accepted":
                assert not accepted or self.asked[request].get("again"), "%s is accepted twice" % request
                accepted = True
            elif m.name == "token":
                c = m.get("choice", 0)
                assert accepted and not ended[c], "I1: %s: %r" % (request, m)
                assert m.index == due[c], "I2: %s: token %d of choice %d, due %d" % (request, m.index, c, due[c])
                due[c] += 1
            elif m.name == "done":
                c = m.get("choice", 0)
                assert accepted and not ended[c], "I1: %s: %r" % (request, m)
                if m.finish_reason != "cancelled":
                    assert due[c] <= m.completion_tokens <= due[c] + 1, "I5: %s: %d came, %r" % (request, due[c], m)
                ended[c] = True
            else:
                failed = True
        assert failed or all(ended), "I1: %s has no outcome: %r" % (request, messages[-2:])
        return not failed


class Client:
    """A connection that logs what it sees."""

    def __init__(self, peer, log=None):
        self.peer, self.log = peer, log or Log()

    def generate(self, request, **fields):
        ask = dict(dict(prompt="Once upon a time", max_tokens=16), **fields)
        self.log.ask(request, **ask)
        self.peer.send("generate", request=request, **ask)

    def pump(self, condition, what, timeout_s=20.0):
        """Takes what comes until the condition holds; the time it took."""
        start = time.monotonic()
        while not condition():
            left = start + timeout_s * SLOW - time.monotonic()
            assert left > 0, "waited in vain for " + what
            message = self.peer.receive(min(left, 0.05))
            if message:
                self.log.take(message)
        return time.monotonic() - start

    def finish(self, timeout_s=30.0):
        self.pump(lambda: not self.log.open, "the outcomes", timeout_s)


def within(limit_s, condition, what):
    """Waits for it; the time it took, which must be below the limit."""
    limit_s *= SLOW
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + limit_s, "%s took more than %.1f s" % (what, limit_s)
        time.sleep(0.01)
    return time.monotonic() - start


def note(text):
    """A measured time, for whoever reads the log."""
    print("# " + text, flush=True)


def main(tests):
    """Runs the functions test_* of a module, or those that the command line names."""
    chosen = [t for name, t in list(tests.items()) if name.startswith("test_") and (not sys.argv[1:] or name in sys.argv[1:])]
    return run(chosen, make=Faults)


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
