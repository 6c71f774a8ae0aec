"""A real lepton-coordinator on loopback with keys of its own, and peers that speak the protocol of docs/protocol.md
through pyzmq and msgpack: clients, workers, and those who should not be let in. Every wait is bounded."""
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import tempfile
import time

import msgpack
import zmq

BUILD = os.environ.get("LEPTON_BUILD", "build/release")
# Sanitizers make programs slower, and everything of these tests that is about time follows from this factor: waits and
# limits, the leases and stalls of coordinators, the speed of mock groups, the size of models; so the same is asserted.
SLOW = {"debug": 3, "tsan": 3}.get(os.path.basename(os.path.normpath(BUILD)), 1)
WAIT_S = 10.0 * SLOW

TYPES = {
    "generate": 1, "cancel": 2, "status": 3, "tune": 4, "credit": 5, "hold": 6, "accepted": 10, "token": 11, "done": 12, "error": 13, "status_reply": 14, "tokens": 15,
    "hello": 20, "heartbeat": 21, "bye": 22, "welcome": 30, "lease": 31, "assign": 32, "drain": 33,
}
NAMES = {number: name for name, number in TYPES.items()}


def encode(name, /, **fields):
    return msgpack.packb([1, TYPES[name], fields])


def public_key(path):
    with open(path) as f:
        return re.search(r'public-key = "([^"]+)"', f.read()).group(1).encode()


def secret_key(path):
    with open(path) as f:
        return re.search(r'secret-key = "([^"]+)"', f.read()).group(1).encode()


class Message:
    def __init__(self, name, fields):
        self.name, self.fields = name, fields

    def __getattr__(self, field):
        return self.fields[field]

    def get(self, field, other=None):
        return self.fields.get(field, other)

    def __repr__(self):
        return "%s%r" % (self.name, self.fields)


ITEM = ("request", "index", "id", "text", "choice")  # the order of an item's values


def separate(name, fields):
    """(name, fields) of each message that this one stands for: the single tokens of `tokens`."""
    if name != "tokens":
        return [(name, fields)]
    owner = {k: v for k, v in fields.items() if k != "items"}
    return [("token", dict(owner, **dict(zip(ITEM, item)))) for item in fields["items"]]


class Peer:
    """A DEALER that speaks CURVE (key: path of a .key file), or not (key None)."""
    heartbeat_ms = 1000  # as docs/protocol.md asks
    pending = []  # came together with the message before; replaced, never added to

    def __init__(self, coordinator, key, server_public=None):
        self.socket = coordinator.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.heartbeat_ivl, self.socket.heartbeat_ttl = self.heartbeat_ms, 5000
        if key:
            self.socket.curve_serverkey = server_public or public_key(coordinator.path("keys/coordinator.pub"))
            self.socket.curve_publickey = public_key(key)
            self.socket.curve_secretkey = secret_key(key)
        self.socket.connect(coordinator.endpoint)

    def send(self, name, /, **fields):
        self.socket.send(encode(name, **fields))

    def receive(self, timeout_s=WAIT_S):
        """The next message, or None; tokens that come together one by one."""
        if self.pending:
            return self.pending.pop(0)
        if not self.socket.poll(int(timeout_s * 1000)):
            return None
        version, number, fields = msgpack.unpackb(self.socket.recv())
        assert version == 1
        self.pending = [Message(*m) for m in separate(NAMES[number], fields)]
        return self.pending.pop(0)

    def expect(self, *names, timeout_s=10.0):
        """The next message, which must be one of these; leases and drains that come between are passed over."""
        end = time.monotonic() + timeout_s * SLOW
        while True:
            message = self.receive(max(0.0, end - time.monotonic()))
            assert message, "expected %s, nothing came" % (names,)
            if message.name in names:
                return message
            assert message.name in ("lease", "drain"), "expected %s, found %r" % (names, message)

    def close(self):
        self.socket.close()


class Worker(Peer):
    heartbeat_ms = 0  # a worker's are messages

    def __init__(self, coordinator, name="g0", key="worker", incarnation=None):
        super().__init__(coordinator, coordinator.path("keys/%s.key" % key))
        self.group, self.sequence, self.epoch = name, 0, 0
        self.incarnation = incarnation or random.getrandbits(63)

    def hello(self, sequences=4, model="tiny", epoch=0, **other):
        fields = dict(group=self.group, epoch=epoch, incarnation=self.incarnation, model=model, weights="ab12",
                      kernels="portable", kv_type="f32", tensor=1, max_sequences=sequences, context=512, pages=64,
                      page_tokens=16, load_ms=5,
                      stages=[dict(first_layer=0, last_layer=3, tensor=1, pid=11, host="node-a"),
                              dict(first_layer=3, last_layer=5, tensor=1, pid=12, host="node-b")])
        fields.update(other)
        self.send("hello", **fields)

    def join(self, **options):
        self.hello(**options)
        welcome = self.expect("welcome")
        self.epoch = welcome.epoch
        return self

    def beat(self, sequence=None, epoch=None, running=0, **other):
        self.sequence = self.sequence + 1 if sequence is None else sequence
        self.send("heartbeat", group=self.group, epoch=self.epoch if epoch is None else epoch,
                  sequence=self.sequence, steps=self.sequence, running=running, waiting=0, pages_used=1,
                  tokens_generated=0, **other)

    def token(self, assign, index, text=None, epoch=None):
        self.send("token", group=self.group, epoch=self.epoch if epoch is None else epoch, request=assign.request,
                  index=index, id=100 + index, text="t%d " % index if text is None else text)

    def done(self, assign, count, reason="length", epoch=None):
        self.send("done", group=self.group, epoch=self.epoch if epoch is None else epoch, request=assign.request,
                  finish_reason=reason, prompt_tokens=3, completion_tokens=count, prefill_us=10, decode_us=20)

    def serve(self, assign, count=4, begin=0):
        for index in range(begin, count):
            self.token(assign, index)
        self.done(assign, count)


def with_options(**options):
    """The test's coordinator is started with these options."""
    def mark(test):
        test.options = options
        return test
    return mark


def generate(client, request="q", **fields):
    """A request that is accepted."""
    client.send("generate", **dict(dict(request=request, prompt="Once", max_tokens=16), **fields))
    return client.expect("accepted")


def delivered(assign):
    """What another group generated: {choice: ids, or None of one that has ended}."""
    return {d["choice"]: None if d.get("ended") else list(struct.unpack("<%dI" % (len(d["ids"]) // 4), d["ids"]))
            for d in assign.fields.get("delivered", [])}


class Coordinator:
    log_to = None  # a descriptor in the place of the log

    def __init__(self, config=None, **options):
        self.directory = tempfile.mkdtemp(prefix="lepton-test-")
        self.context = zmq.Context()
        os.mkdir(self.path("authorized"))
        for name, role in (("coordinator", "coordinator"), ("worker", "worker"), ("g0", "worker"), ("g1", "worker"),
                           ("client", "client"), ("other", "client"), ("stranger", "client")):
            subprocess.run([BUILD + "/lepton", "keygen", "--role", role, self.path("keys"), name], check=True,
                           stdout=subprocess.DEVNULL)
            if role != "coordinator" and name != "stranger":
                shutil.copy(self.path("keys/%s.pub" % name), self.path("authorized"))
        settings = dict(lease_ms=60000, heartbeat_ms=100, log_level="debug", drain_timeout_ms=5000)
        settings.update(options)
        settings.update({name: settings[name] * SLOW for name in ("lease_ms", "stall_timeout_ms") if name in settings})
        self.command = [BUILD + "/lepton-coordinator", "--key", self.path("keys/coordinator.key"), "--authorized",
                        self.path("authorized"), "--endpoint-file", self.path("endpoint")]
        if config:
            self.command += ["--config", config]
        for name, value in settings.items():
            self.command += ["--" + name.replace("_", "-"), str(value).replace("@/", self.directory + "/")]
        # Under ASan freed memory is kept back; the memory tests must see what the program itself holds.
        self.environment = dict(os.environ, ASAN_OPTIONS="quarantine_size_mb=1:" + os.environ.get("ASAN_OPTIONS", ""))
        self.endpoint, self.files = "tcp://127.0.0.1:*", None
        self.launch()

    def launch(self):
        """Starts the coordinator, the first time and again, at the same endpoint then; `files` bounds its descriptors."""
        if os.path.exists(self.path("endpoint")):
            os.unlink(self.path("endpoint"))

        def limit():
            if self.files:
                resource.setrlimit(resource.RLIMIT_NOFILE, (self.files, self.files))
        with open(self.path("log"), "ab") as log:
            self.process = subprocess.Popen([*self.command, "--endpoint", self.endpoint], stderr=self.log_to or log,
                                            env=self.environment, preexec_fn=limit)
        self.until(lambda: os.path.exists(self.path("endpoint")), "the coordinator to start")
        with open(self.path("endpoint")) as f:
            self.endpoint = f.read().strip()

    def path(self, name):
        return os.path.join(self.directory, name)

    def until(self, condition, what):
        end = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < end, "waited in vain for %s; log:\n%s" % (what, self.log()[-2000:])
            time.sleep(0.01)

    def log(self):
        try:
            with open(self.path("log"), errors="replace") as f:
                return f.read()
        except FileNotFoundError:
            return ""

    def logged(self, text):
        self.until(lambda: text in self.log(), "\"%s\" in the log" % text)

    def client(self, key="client"):
        return Peer(self, self.path("keys/%s.key" % key))

    def worker(self, name="g0", key="g0", **options):
        return Worker(self, name, key, **options)

    def status(self):
        client = self.client()
        client.send("status", verbose=True)
        reply = client.expect("status_reply")
        client.close()
        return reply

    def memory_kib(self, field="VmRSS"):
        with open("/proc/%d/status" % self.process.pid) as f:
            return int(re.search(field + r":\s+(\d+)", f.read()).group(1))

    def cpu_s(self):
        with open("/proc/%d/stat" % self.process.pid) as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        """The exit code; the process is gone afterwards whatever happens."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.context.destroy(linger=0)
        shutil.rmtree(self.directory, ignore_errors=True)


class Skip(Exception):
    """Raised by a test that cannot run here; says why."""


def run(tests, make=Coordinator, **options):
    """Each test is a function of one fresh Coordinator (or what `make` makes); its docstring is its sentence."""
    failed = 0
    for test in tests:
        coordinator = None
        try:
            coordinator = make(**dict(options, **getattr(test, "options", {})))
            test(coordinator)
            print("ok - " + test.__doc__, flush=True)
        except Skip as why:
            print("skip - %s: %s" % (test.__doc__, why), flush=True)
        except Exception:  # a test that dies is a test that failed
            import traceback
            failed += 1
            for line in traceback.format_exc().splitlines()[-8:]:
                print("# " + line)
            if coordinator:
                for line in coordinator.log().splitlines()[-15:]:
                    print("# log: " + line)
            print("not ok - " + test.__doc__, flush=True)
        finally:
            if coordinator:
                coordinator.close()
    return 1 if failed else 0
