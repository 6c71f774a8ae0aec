"""A coordinator that is only a script: a ROUTER with CURVE to which one real group (`lepton group`, MPI ranks and all) says
hello. The test decides what it answers, and when; so everything a leader's link promises can be asked for."""
import os
import shutil
import signal
import subprocess
import tempfile
import time

import msgpack
import zmq

from coordinator_harness import BUILD, NAMES, Message, encode, public_key, secret_key, separate
from local_cluster import DEMO, processes

START_S = 60.0
WAIT_S = 20.0
SAMPLING = dict(temperature=0.0, seed=1)


class Script:
    def __init__(self, stages=1, worker=(), model=DEMO, host="127.0.0.1", endpoint=None, restarts=-1):
        self.directory = tempfile.mkdtemp(prefix="lepton-test-")
        self.context = zmq.Context()
        for name, role in (("coordinator", "coordinator"), ("g0", "worker")):
            subprocess.run([BUILD + "/lepton", "keygen", "--role", role, self.path("keys"), name], check=True,
                           stdout=subprocess.DEVNULL)
        self.host, self.port, self.socket = host, None, None
        self.peer = self.last_peer = self.group = None
        self.epoch = 0          # in force
        self.next_epoch = 100
        self.beats = []         # (time, fields) of every heartbeat
        self.answer = True      # heartbeats get leases
        self.inbox = []         # (time, Message) of everything else
        self.number = 0
        self.open()
        self.command = [BUILD + "/lepton", "group", "--stages", str(stages), "--launcher", "mpirun", "--restarts",
                        str(restarts), "--", "--model", model, "--group", "g0", "--endpoint", endpoint or self.endpoint, "--server-key",
                        self.path("keys/coordinator.pub"), "--key", self.path("keys/g0.key"), *worker]
        self.log_file = open(self.path("log"), "wb")
        self.group = subprocess.Popen(self.command, stderr=self.log_file)

    def path(self, name):
        return os.path.join(self.directory, name)

    def log(self):
        with open(self.path("log"), errors="replace") as f:
            return f.read()

    def open(self):
        s = self.socket = self.context.socket(zmq.ROUTER)
        s.linger = 0
        s.ipv6 = self.host.startswith("[")
        s.curve_server = True
        s.curve_publickey = public_key(self.path("keys/coordinator.key"))
        s.curve_secretkey = secret_key(self.path("keys/coordinator.key"))
        if self.port is None:
            self.port = s.bind_to_random_port("tcp://" + self.host)
        else:
            end = time.monotonic() + WAIT_S
            while True:
                try:
                    s.bind("tcp://%s:%d" % (self.host, self.port))
                    break
                except zmq.ZMQError:
                    assert time.monotonic() < end
                    time.sleep(0.02)
        self.endpoint = "tcp://%s:%d" % (self.host, self.port)

    def shut(self):
        self.socket.close()

    def close(self):
        if self.group and self.group.poll() is None:
            self.group.send_signal(signal.SIGTERM)
            self.group.send_signal(signal.SIGTERM)
            try:
                self.group.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                self.group.kill()
                self.group.wait()
        for pid in processes(self.directory):
            os.kill(pid, signal.SIGKILL)
        self.log_file.close()
        self.context.destroy(linger=0)
        shutil.rmtree(self.directory, ignore_errors=True)

    # ---- talking

    def send(self, name, **fields):
        if name != "error":
            fields.setdefault("group", "g0")
            fields.setdefault("epoch", self.epoch)
        self.raw(encode(name, **fields))

    def raw(self, frame):
        self.socket.send_multipart([self.peer, frame])

    def pump(self, condition, timeout_s=WAIT_S, what="what was expected"):
        """Takes what comes, answering heartbeats, until the condition holds."""
        end = time.monotonic() + timeout_s
        while not condition():
            left = end - time.monotonic()
            assert left > 0, "waited in vain for %s; last: %r" % (what, self.inbox[-3:])
            if self.socket.poll(min(int(left * 1000) + 1, 50)):
                self.take()

    def take(self):
        assert self.socket.poll(int(WAIT_S * 1000)), "nothing came"
        peer, frame = self.socket.recv_multipart()
        version, number, fields = msgpack.unpackb(frame)
        assert version == 1
        messages, now = [Message(*m) for m in separate(NAMES[number], fields)], time.monotonic()
        message = messages[0]
        self.last_peer = peer
        if message.name == "hello":
            self.peer = peer
        if message.name != "heartbeat":
            self.inbox += [(now, m) for m in messages]
            return
        self.beats.append((now, message))
        if self.answer and message.epoch == self.epoch:
            self.send("lease", sequence=message.sequence)

    def idle(self, seconds):
        """Takes what comes for so long."""
        end = time.monotonic() + seconds
        self.pump(lambda: time.monotonic() >= end, seconds + 5)

    def named(self, name, request=None):
        return [m for _, m in self.inbox if m.name == name and (request is None or m.get("request") == request)]

    def expect(self, name, request=None, count=1, timeout_s=WAIT_S):
        self.pump(lambda: len(self.named(name, request)) >= count, timeout_s, "%s %s" % (name, request or ""))
        return self.named(name, request)[count - 1]

    def hello(self, timeout_s=START_S):
        """Waits for a hello that came after what was there before."""
        have = len(self.named("hello"))
        return self.expect("hello", count=have + 1, timeout_s=timeout_s)

    def welcome(self, lease_ms=60000, heartbeat_ms=50, epoch=None):
        self.epoch = self.next_epoch if epoch is None else epoch
        self.next_epoch = max(self.next_epoch, self.epoch) + 1
        self.send("welcome", lease_ms=lease_ms, heartbeat_ms=heartbeat_ms)

    def join(self, **options):
        """A group that serves under a new epoch and has nothing to do."""
        if not self.peer:
            self.hello()
        self.welcome(**options)
        self.inbox.clear()
        self.beats.clear()
        self.pump(lambda: any(b.epoch == self.epoch for _, b in self.beats), what="a heartbeat of the new epoch")
        self.settle()
        return self

    def settle(self, timeout_s=WAIT_S):
        """Until nothing runs, nothing waits and no page is used."""
        mark = len(self.beats)

        def empty():
            new = [b for _, b in self.beats[mark:] if b.epoch == self.epoch]
            return new and new[-1].running == 0 and new[-1].waiting == 0 and new[-1].pages_used == 0
        self.pump(empty, timeout_s, "free pages; last %r" % (self.beats[-1:],))

    # ---- requests

    def assign(self, prompt="Once upon a time", request=None, epoch=None, **fields):
        if request is None:
            self.number += 1
            request = "q%d" % self.number
        ask = dict(SAMPLING, max_tokens=8, request=request, prompt=prompt)
        ask.update(fields)
        if epoch is not None:
            ask["epoch"] = epoch
        self.send("assign", **ask)
        return request

    def cancel(self, request, **fields):
        self.send("cancel", request=request, **fields)

    def outcomes(self, request):
        return [m for _, m in self.inbox if m.name in ("done", "error") and m.get("request") == request]

    def outcome(self, request, timeout_s=WAIT_S):
        """The one done or error of the request, its tokens checked: 0, 1, 2, ... and none behind the end."""
        self.pump(lambda: self.outcomes(request), timeout_s, "an outcome of %s" % request)
        return self.check(request)

    def tokens(self, request):
        return self.named("token", request)

    def check(self, request):
        ends = self.outcomes(request)
        assert len(ends) == 1, "%s: %r" % (request, ends)
        order = [m for _, m in self.inbox if m.get("request") == request]
        assert order[-1] is ends[0], "something came behind the end of %s: %r" % (request, order[-3:])
        tokens = self.tokens(request)
        assert [t.index for t in tokens] == list(range(len(tokens))), (request, [t.index for t in tokens])
        if ends[0].name == "done":
            if ends[0].finish_reason == "cancelled":
                assert ends[0].completion_tokens >= len(tokens), ends
            else:
                assert ends[0].completion_tokens == len(tokens), (ends, len(tokens))
        return ends[0]

    def join_without_answer(self, **options):
        self.welcome(**options)
        self.pump(lambda: any(b.epoch == self.epoch for _, b in self.beats), what="a heartbeat of the new epoch")
