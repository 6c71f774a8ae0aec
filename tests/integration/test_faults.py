#!/usr/bin/python3
"""What dies, hangs or is missing on one machine: ranks, launchers, supervisors, `lepton run` itself, ports, directories,
room on the disk. Nothing may survive its parent, and every stream gets its one outcome."""
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from coordinator_harness import BUILD, Skip, run  # noqa: E402
from local_cluster import processes  # noqa: E402
from test_cluster import NoCluster, make_cluster, with_options  # noqa: E402

GONE_S = 30.0


def commands(c):
    """The cluster's processes: {pid: its words}."""
    found = {}
    for pid in processes(c.home):
        try:
            with open("/proc/%d/cmdline" % pid) as f:
                found[pid] = f.read().split("\0")
        except OSError:
            pass
    return found


def pids(c, program):
    return [p for p, words in commands(c).items() if os.path.basename(words[0]) == program]


def supervisor(c):
    return next(p for p, words in commands(c).items() if words[1:2] == ["group"])


def stream(c, request="q", max_tokens=900):
    """A long stream that has begun."""
    client = c.client()
    client.send("generate", request=request, prompt="Once upon a time there was", max_tokens=max_tokens, ignore_eos=True)
    client.expect("accepted")
    client.expect("token", timeout_s=30)
    return client


def whole(client, tokens=900, timeout_s=60):
    """The rest of the stream: every token once, then done; nothing may follow it. Its group was lost."""
    index = 1
    while True:
        m = client.expect("token", "done", timeout_s=timeout_s)
        if m.name == "done":
            break
        assert m.index == index, (m, index)
        index += 1
    assert client.receive(0.5) is None
    assert index == tokens == m.completion_tokens and m.moves >= 1, m


def back(c, epoch):
    """Waits until the group is ready under a later epoch and serves."""
    c.until(lambda: (lambda g: g and g["state"] == "ready" and g["epoch"] > epoch)(c.group("g-0")), "the next epoch",
            within_s=60)
    assert c.generate("Once", "-n", "4", "--ignore-eos")["completion_tokens"] == 4


def gone(c, program, old):
    c.until(lambda: not set(old) & set(pids(c, program)), "the end of %s" % program, GONE_S)


@with_options(model=None, groups=1, stages=2, worker=("--wait-limit-ms", "2000", "--step-limit-ms", "2000"))
def test_frozen_follower(c):
    """a frozen rank is noticed by the watchdog: the group comes back and its stream goes on, each token once"""
    client, group = stream(c), c.group("g-0")
    os.kill(group["stages"][1]["pid"], signal.SIGSTOP)
    whole(client)
    back(c, group["epoch"])
    assert "is stuck in" in c.log()
    gone(c, "lepton-worker", [s["pid"] for s in group["stages"]])


@with_options(model=None, groups=1, stages=2)
def test_killed_leader(c):
    """kill -9 of the leader: the group comes back and its stream goes on, each token once"""
    client, group = stream(c), c.group("g-0")
    os.kill(group["stages"][0]["pid"], signal.SIGKILL)
    whole(client)
    back(c, group["epoch"])
    gone(c, "lepton-worker", [s["pid"] for s in group["stages"]])


@with_options(model=None, groups=1, stages=2)
def test_killed_launcher(c):
    """kill -9 of the launcher: no rank survives it, and the group comes back"""
    client, group = stream(c), c.group("g-0")
    for pid in pids(c, "mpirun"):
        os.kill(pid, signal.SIGKILL)
    gone(c, "lepton-worker", [s["pid"] for s in group["stages"]])
    whole(client)
    back(c, group["epoch"])


@with_options(model=None, groups=1, stages=2)
def test_killed_launcher_of_idle_group(c):
    """kill -9 of the launcher of a sleeping group: no rank survives it either"""
    group = c.group("g-0")
    for pid in pids(c, "mpirun"):
        os.kill(pid, signal.SIGKILL)
    gone(c, "lepton-worker", [s["pid"] for s in group["stages"]])
    back(c, group["epoch"])


@with_options(model=None, groups=1, stages=2)
def test_killed_supervisor(c):
    """kill -9 of lepton group: no launcher and no rank survives it"""
    stream(c)
    workers, launchers = pids(c, "lepton-worker"), pids(c, "mpirun")
    assert len(workers) == 2 and len(launchers) == 1
    os.kill(supervisor(c), signal.SIGKILL)
    gone(c, "mpirun", launchers)
    gone(c, "lepton-worker", workers)


@with_options(model=None, groups=1, stages=1)
def test_alone(c):
    """a group of one rank runs without a launcher: it comes back when it is killed, and goes with its supervisor"""
    client, group = stream(c), c.group("g-0")
    assert pids(c, "mpirun") == []
    os.kill(group["stages"][0]["pid"], signal.SIGKILL)
    whole(client)
    back(c, group["epoch"])
    workers = pids(c, "lepton-worker")
    assert len(workers) == 1 and pids(c, "mpirun") == []
    os.kill(supervisor(c), signal.SIGKILL)
    gone(c, "lepton-worker", workers)


@with_options(model=None, groups=2, stages=2)
def test_killed_run(c):
    """kill -9 of lepton run: nothing survives it, and the next run removes what it left"""
    stream(c)
    c.process.kill()
    c.process.wait()
    c.until(lambda: not processes(c.home), "the end of everything", GONE_S)
    assert os.listdir(c.home)
    done = c.lepton("run", "demo", "-p", "Once", "-n", "2")
    assert done.returncode == 0, done.stderr
    assert os.listdir(c.home) == [], os.listdir(c.home)


def run_demo(home, *words, before=(), **more):
    return subprocess.run([*before, BUILD + "/lepton", "run", "demo", *words], timeout=100, text=True,
                          env=dict(os.environ, LEPTON_HOME=home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def with_home(test):
    def wrapped(_):
        home = tempfile.mkdtemp(prefix="lepton-test-")
        try:
            test(home)
        finally:
            shutil.rmtree(home, ignore_errors=True)
    wrapped.__doc__, wrapped.__name__ = test.__doc__, test.__name__
    return wrapped


@with_home
def test_port_in_use(home):
    """a port that is taken is refused by name, and nothing stays behind"""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = "tcp://127.0.0.1:%d" % taken.getsockname()[1]
        done = run_demo(home, "--endpoint", endpoint)
    assert done.returncode == 1 and endpoint in done.stderr and "in use" in done.stderr, done
    assert processes(home) == [] and os.listdir(home) == []


@with_home
def test_bad_home(home):
    """a home that is not there, not a directory or not ours is refused by name"""
    name = home + "/file"
    with open(name, "w"):
        pass
    done = run_demo(name, "-p", "x")
    assert done.returncode == 1 and name in done.stderr, done
    done = run_demo(home + "/no/such", "-p", "x")
    assert done.returncode == 1 and home + "/no/such" in done.stderr, done
    if os.geteuid() != 0:
        return
    os.chown(home, 12345, 12345)
    done = run_demo(home, "-p", "x")
    assert done.returncode == 1 and home in done.stderr and "own" in done.stderr, done


@with_home
def test_ignored_children(home):
    """a parent that ignores the death of its children does not change what we see of ours"""
    done = run_demo(home, "-p", "Once", "-n", "2", before=("sh", "-c", "trap '' CHLD; exec \"$@\"", "sh"))
    assert done.returncode == 0, done
    done = run_demo(home, "-p", "x", "--", "--kv-bytes", "4096", before=("sh", "-c", "trap '' CHLD; exec \"$@\"", "sh"))
    assert done.returncode == 1 and "ended with 78" in done.stderr and "kv_bytes" in done.stderr, done


FULL = re.compile("No space left on device|disk is full")


@with_home
def test_full_at_each_step(home):
    """wherever the disk is full first, of keys, log or store, the file is named and that there is no room for it"""
    for kib in (8, 12, 16, 20, 24, 28, 32, 36, 44, 52, 64, 96):
        if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%dk,mode=700" % kib, "none", home],
                                               stderr=subprocess.DEVNULL).returncode:
            raise Skip("a small file system of our own takes root")
        try:
            done = subprocess.run([BUILD + "/lepton", "run", os.path.abspath("tools/demo/lepton-demo.gguf")], text=True,
                                  env=dict(os.environ, LEPTON_HOME=home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
            assert done.returncode == 1 and home + "/run-" in done.stderr and FULL.search(done.stderr), (kib, done)
            assert processes(home) == [] and os.listdir(home) == []
        finally:
            subprocess.run(["umount", "-l", home])


@with_home
def test_full_disk(home):
    """a full disk is reported by name, or costs only logs; nothing stays behind"""
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", home],
                                           stderr=subprocess.DEVNULL).returncode:
        raise Skip("a small file system of our own takes root")
    try:
        done = run_demo(home, "-p", "x")
        assert done.returncode == 1 and "No space left" in done.stderr and home in done.stderr, done
        assert processes(home) == [] and os.listdir(home) == []
        model = os.path.abspath("tools/demo/lepton-demo.gguf")  # not copied: there is room to begin
        os.makedirs(home + "/fill")
        command = [BUILD + "/lepton", "run", model]
        done = subprocess.run(command, env=dict(os.environ, LEPTON_HOME=home), stdout=subprocess.PIPE, text=True, timeout=60,
                              stderr=subprocess.PIPE)  # its store has no room
        assert done.returncode == 1 and home in done.stderr and "state.db" in done.stderr and FULL.search(done.stderr), done
        assert os.listdir(home) == ["fill"]
        command += ["--store", "none"]
        c = subprocess.Popen(command, env=dict(os.environ, LEPTON_HOME=home), stdout=subprocess.PIPE, text=True,
                             stderr=subprocess.PIPE)
        assert c.stdout.readline().startswith("serving on")
        try:
            with open(home + "/fill/all", "wb", buffering=0) as f:
                while True:
                    f.write(b"x" * 512)
        except OSError:
            pass
        done = subprocess.run([BUILD + "/lepton", "generate", "-p", "Once", "-n", "8", "--ignore-eos"], timeout=60, text=True,
                              env=dict(os.environ, LEPTON_HOME=home), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert done.returncode == 0, done
        c.send_signal(signal.SIGINT)
        assert c.wait(60) == 0, c.stderr.read()
    finally:
        for pid in processes(home):
            os.kill(pid, signal.SIGKILL)
        subprocess.run(["umount", "-l", home])


ALONE = [test_port_in_use, test_bad_home, test_ignored_children, test_full_at_each_step, test_full_disk]
RUNNING = [test_frozen_follower, test_killed_leader, test_killed_launcher, test_killed_launcher_of_idle_group,
           test_killed_supervisor, test_alone, test_killed_run]

if __name__ == "__main__":
    only = sys.argv[1:]
    code = run([t for t in ALONE if not only or t.__name__ in only], make=NoCluster)
    code |= run([t for t in RUNNING if not only or t.__name__ in only], make=make_cluster)
    synth = "/tmp/lepton-test-synth-%d.gguf" % os.getpid()
    if os.path.exists(synth):
        os.unlink(synth)
    sys.exit(code)
