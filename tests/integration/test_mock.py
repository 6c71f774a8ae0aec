#!/usr/bin/python3
"""Mock groups and lepton load: the real coordinator, worker link and client, answers without a model."""
import atexit
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from coordinator_harness import BUILD, run  # noqa: E402

FAST = "base_us = 2000.0; decode_us = 10.0; prefill_us = 5.0; max_sequences = 8; kv_tokens = 20000;"


def groups(c):
    """The groups of the status, as dicts."""
    return c.status().fields.get("groups", [])


class Mocks:
    """One mock group for each name."""

    def __init__(self, c, names=("g0", "g1"), speed=FAST):
        with open(c.path("speed.cfg"), "w") as f:
            f.write(speed)
        self.c = c
        self.processes = {n: self.start(n) for n in names}
        c.until(lambda: len([g for g in groups(c) if g["state"] == "ready"]) == len(names), "the mock groups to be ready")

    def start(self, name):
        process = subprocess.Popen([BUILD + "/lepton-worker", "--mock", self.c.path("speed.cfg"), "--group", name, "--endpoint",
                                 self.c.endpoint, "--server-key", self.c.path("keys/coordinator.pub"), "--key",
                                 self.c.path("keys/%s.key" % name)], stderr=subprocess.DEVNULL)
        atexit.register(process.kill)
        return process

    def stop(self):
        codes = []
        for p in self.processes.values():
            p.send_signal(signal.SIGTERM)
        for p in self.processes.values():
            codes.append(p.wait(10))
        return codes


def load(c, *args, code=0):
    p = subprocess.run([BUILD + "/lepton", "load", "--json", "--endpoint", c.endpoint, "--server-key",
                        c.path("keys/coordinator.pub"), "--key", c.path("keys/client.key"), *map(str, args)],
                       capture_output=True, text=True, timeout=120)
    assert p.returncode == code, (p.returncode, p.stderr)
    return json.loads(p.stdout) if code == 0 else p.stderr


def test_load(c):
    """a load of conversations runs over two mock groups: every answer comes, and prompts that begin alike are cached"""
    mocks = Mocks(c)
    r = load(c, "--rate", 200, "--requests", 300, "--prompt-tokens", 200, "--output-tokens", 20, "--turns", 3, "--think-s", 0.05)
    a = r["all"]
    assert a["requests"] == a["complete"] == 300, a
    assert a["ttft_ms"]["p50"] > 0 and a["e2e_ms"]["max"] >= a["ttft_ms"]["max"]
    assert r["cache_hit"] > 0.1, r["cache_hit"]
    c.until(lambda: sum(g["tokens_generated"] for g in groups(c)) >= a["output_tokens"], "the groups' heartbeats")
    assert all(g["tokens_generated"] > 0 for g in groups(c))
    assert mocks.stop() == [0, 0]


def test_repeats(c):
    """a mock's answer follows from its seed: the same twice, another with another"""
    mocks = Mocks(c, ("g0",))

    def text(seed, n):
        client = c.client()
        client.send("generate", request="q", prompt="Once", max_tokens=n, seed=seed)
        client.expect("accepted")
        pieces = []
        while True:
            m = client.expect("token", "done")
            pieces.append(m.get("text", ""))
            if m.name == "done":
                break
        client.close()
        assert m.completion_tokens == n and m.finish_reason == "length"
        return "".join(pieces)
    assert text(1, 40) == text(1, 40) != text(2, 40)
    assert len(text(3, 25)) == 25
    mocks.stop()


def test_choices(c):
    """a request for several answers takes a place for each: another waits until there is one, and loads of them end"""
    mocks = Mocks(c, ("g0",), FAST.replace("base_us = 2000.0", "base_us = 20000.0"))
    client = c.client()
    client.send("generate", request="five", prompt="Once", max_tokens=1000, n=5)
    client.expect("accepted")
    client.expect("token")
    assert groups(c)[0]["assigned"] == 5
    client.send("generate", request="four", prompt="Once", max_tokens=1000, n=4)
    client.expect("accepted", "token")
    c.until(lambda: c.status().queued == 1, "the second request to wait")
    assert groups(c)[0]["assigned"] == 5
    client.send("cancel", request="five")
    c.until(lambda: groups(c)[0]["assigned"] == 4, "the second request to take its places")
    client.close()
    a = load(c, "--rate", 50, "--requests", 60, "--choices", 4, "--prompt-tokens", 50, "--output-tokens", 4)["all"]
    assert a["complete"] == 60, a
    assert mocks.stop() == [0]


def test_hopeless_length(c):
    """an answer whose known length cannot come before its deadline is refused at once; a mere bound is let in"""
    mocks = Mocks(c, ("g0",), FAST.replace("base_us = 2000.0", "base_us = 20000.0"))
    client = c.client()
    for _ in range(3):  # now it is known how fast the group is
        client.send("generate", request="first", prompt="Once", max_tokens=20, ignore_eos=True)
        while client.expect("accepted", "token", "done").name != "done":
            pass
    client.send("generate", request="long", prompt="Once", max_tokens=10000, ignore_eos=True, timeout_ms=20000)
    refusal = client.expect("accepted", "error")
    assert refusal.name == "error" and refusal.code == 408 and "generation" in refusal.message, refusal
    client.send("generate", request="bound", prompt="Once", max_tokens=10000, timeout_ms=20000)
    client.expect("accepted")
    client.close()
    assert mocks.stop() == [0]


def tune(c, *args, key="client"):
    return subprocess.run([BUILD + "/lepton", "tune", "--endpoint", c.endpoint, "--server-key", c.path("keys/coordinator.pub"), "--key",
                           c.path("keys/%s.key" % key), *args], capture_output=True, text=True, timeout=30)


def test_tune(c):
    """settings are shown, set by hand and handed back; what is out of bounds, unknown or not allowed is refused and named"""
    def settings():
        return {s["name"]: (s["value"], s.get("automatic", False)) for s in c.status().fields["settings"]}
    assert settings() == {"prefix_weight": (100, True), "prefix_belief": (100, True)}
    p = tune(c, "prefix_weight=250", "prefix_belief=60")
    assert p.returncode == 0 and "prefix_weight 250 (by hand), 50 to 400" in p.stdout, (p.stdout, p.stderr)
    assert settings() == {"prefix_weight": (250, False), "prefix_belief": (60, False)}
    for word, code, expected in (("prefix_weight=401", 1, "prefix_weight: 401, expected 50 to 400, or auto"),
                                 ("prefix_belief=0", 1, "prefix_belief: 0, expected 5 to 100, or auto"),
                                 ("speed=1", 1, "speed: no such setting; expected prefix_weight or prefix_belief"),
                                 ("prefix_weight=fast", 2, '"fast", expected a number or auto'),
                                 ("prefix_weight", 2, "expected NAME=VALUE or NAME=auto")):
        p = tune(c, word)
        assert p.returncode == code and expected in p.stderr, (word, p.returncode, p.stderr)
    p = tune(c, "prefix_weight=60", key="other")
    assert p.returncode == 1 and "client other may not tune" in p.stderr, (p.returncode, p.stderr)
    assert settings() == {"prefix_weight": (250, False), "prefix_belief": (60, False)}
    assert tune(c, "prefix_weight=auto").returncode == 0
    assert settings() == {"prefix_weight": (250, True), "prefix_belief": (60, False)}
    assert "prefix_belief 60 (by hand)" in tune(c).stdout  # looking needs no permission
    assert tune(c, key="other").returncode == 0


test_tune.options = dict(admins="operator,client", prefix_weight_low=50, prefix_weight_high=400)


def test_killed_mock(c):
    """a mock is killed under load: its requests go on at the other, and it comes back"""
    mocks = Mocks(c)
    p = subprocess.Popen([BUILD + "/lepton", "load", "--json", "--endpoint", c.endpoint, "--server-key",
                          c.path("keys/coordinator.pub"), "--key", c.path("keys/client.key"), "--rate", "100", "--requests", "400",
                          "--output-tokens", "100"], stdout=subprocess.PIPE, text=True)
    c.until(lambda: all(g["assigned"] > 2 for g in groups(c)), "both groups to be at work")
    mocks.processes["g0"].kill()
    mocks.processes["g0"].wait()
    mocks.processes["g0"] = mocks.start("g0")
    a = json.loads(p.communicate(timeout=100)[0])["all"]
    assert a["requests"] == a["complete"] == 400, a
    assert sorted(mocks.stop()) == [0, 0]


test_killed_mock.options = dict(lease_ms=1000)


def test_blocked_client(c):
    """a client that nobody reads from outlives its coordinator, and says so once it is read"""
    mocks = Mocks(c, ("g0",), FAST.replace("base_us = 2000.0", "base_us = 100.0").replace("20000", "200000"))
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    p = subprocess.Popen([BUILD + "/lepton", "generate", "--endpoint", c.endpoint, "--server-key", c.path("keys/coordinator.pub"),
                          "--key", c.path("keys/client.key"), "--retry-ms", "0", "--tokens", "60000", "--ignore-eos", "--prompt", "Once"],
                         stdout=write, stderr=subprocess.PIPE, text=True)
    atexit.register(p.kill)
    os.close(write)
    c.until(lambda: groups(c)[0]["tokens_generated"] > 20000, "more tokens than the pipe and a socket's queue hold")
    c.process.kill()
    time.sleep(4)  # its socket sends a heartbeat each second
    assert p.poll() is None, "it ended with %s" % p.returncode
    with os.fdopen(read, "rb") as out:
        while out.read(65536):
            pass
    assert p.wait(20) == 3 and "connection" in p.stderr.read(), p.returncode
    mocks.processes["g0"].kill()


def test_bad_input(c):
    """bad speeds and an unreachable coordinator are named"""
    with open(c.path("bad.cfg"), "w") as f:
        f.write("base_us = -1.0;")
    p = subprocess.run([BUILD + "/lepton-worker", "--mock", c.path("bad.cfg"), "--server-key", c.path("keys/coordinator.pub"),
                        "--key", c.path("keys/g0.key")], capture_output=True, text=True, timeout=20)
    assert p.returncode == 78 and "base_us" in p.stderr, (p.returncode, p.stderr)
    p = subprocess.run([BUILD + "/lepton-worker", "--mock", c.path("none.cfg"), "--server-key", c.path("keys/coordinator.pub"),
                        "--key", c.path("keys/g0.key")], capture_output=True, text=True, timeout=20)
    assert p.returncode == 78 and "none.cfg" in p.stderr, (p.returncode, p.stderr)
    p = subprocess.run([BUILD + "/lepton", "load", "--endpoint", "tcp://127.0.0.1:1", "--server-key",
                        c.path("keys/coordinator.pub"), "--key", c.path("keys/client.key")], capture_output=True, text=True, timeout=60)
    assert p.returncode == 3 and "nothing listens" in p.stderr, (p.returncode, p.stderr)

TESTS = [value for name, value in list(globals().items()) if name.startswith("test_")]

if __name__ == "__main__":
    sys.exit(run([t for t in TESTS if not sys.argv[1:] or t.__name__ in sys.argv[1:]]))
