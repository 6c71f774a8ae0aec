#!/usr/bin/python3
"""The whole of Lepton as a user meets it: the real coordinator, real groups of MPI ranks, real models."""
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from coordinator_harness import BUILD, Coordinator, SLOW, run, with_options  # noqa: E402
from local_cluster import DEMO, ROOT, LocalCluster, cpu_s, processes, shared  # noqa: E402


class NoCluster:
    """For tests that start what they need themselves."""

    def log(self):
        return ""

    def close(self):
        pass


def once(model, prompt, count, **options):
    """One `lepton run -p`: its exit code, the JSON of its last line, its error output."""
    command = [BUILD + "/lepton", "run", model, "-p", prompt, "-n", str(count), "--json"]
    for name, value in options.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    done = subprocess.run(command, timeout=120, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    lines = done.stdout.splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else None, done.stderr


# ---- one process after the other -----------------------------------------------------------------------------------

def test_trained_model(_):
    """stories260K continues exactly as computed independently, with 1, 2, 3 and 5 stages and 1 and 2 threads"""
    model = shared("data/lm/stories260K/stories260K.gguf")
    with open(shared("data/golden/stories260K.json")) as f:
        golden = json.load(f)["stories260K"]
    want = golden["greedy_ids"][len(golden["prompt_ids"]):][:64]
    for stages in (1, 2, 3, 5):
        for threads in (1, 2):
            code, result, errors = once(model, golden["prompt"], 64, temperature=0, stages=stages, threads=threads)
            assert code == 0, errors
            assert result["tokens"] == want, (stages, threads, result)
            assert result["stages"] == stages and result["prompt_tokens"] == len(golden["prompt_ids"])


def test_demo_model(_):
    """the demo model continues exactly as computed independently, over 1 and 4 stages"""
    with open(os.path.join(ROOT, "tests/golden/lepton-demo.json")) as f:
        golden = json.load(f)
    for case in golden["cases"]:
        for stages in (1, 4):
            code, result, errors = once("demo", case["prompt"], len(case["greedy_ids"]), temperature=0, stages=stages)
            assert code == 0, errors
            assert result["tokens"] == case["greedy_ids"], (case["prompt"], result)


def test_bad_models(_):
    """a model that cannot be served is refused at once with the reason, and nothing stays behind"""
    garbage = "/tmp/lepton-test-garbage-%d.gguf" % os.getpid()
    with open(garbage, "wb") as f:
        f.write(b"GGUF\x03\0\0\0" + b"\xff" * 64)
    for model, stages, words in (("/no/such/model.gguf", 1, "No such file"), (garbage, 1, garbage),
                                 (DEMO, 200, "200 stages for a model of")):
        code, _, errors = once(model, "x", 4, stages=stages)
        assert code == 1 and words in errors, (model, errors)
    os.unlink(garbage)


def test_demo(_):
    """lepton demo streams four prompts over two groups of two stages, says who served them, and leaves no process"""
    home = "/tmp/lepton-test-demo-%d" % os.getpid()
    os.mkdir(home, 0o700)
    done = subprocess.run([BUILD + "/lepton", "demo"], timeout=120, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, env=dict(os.environ, LEPTON_HOME=home))
    assert done.returncode == 0, done.stderr
    for words in ("group g-0", "group g-1", "stage 1 = layers", "TTFT ms", "Once upon a time", "Anna and Tom"):
        assert words in done.stdout, done.stdout
    served = [line.split() for line in done.stdout.splitlines() if line.endswith(("stop", "length"))]
    assert len(served) == 4 and {"g-0", "g-1"} == {w for line in served for w in line if w.startswith("g-")}, served
    assert processes(home) == [] and os.listdir(home) == []
    os.rmdir(home)


# ---- a cluster that runs -------------------------------------------------------------------------------------------

def test_stops(c):
    """Ctrl-C stops everything and leaves no process and no file"""
    assert len(processes(c.home)) >= 6  # run's children: coordinator, two supervisors, two launchers, four ranks
    assert c.generate("Once upon a time", "-n", "8")["finish_reason"] == "length"
    assert c.stop() == 0
    assert processes(c.home) == [] and os.listdir(c.home) == []


def test_foreign_client(c):
    """a foreign client of pyzmq and msgpack generates over CURVE the same text as our own"""
    ours = c.generate("Once upon a time", "-n", "24", "--temperature", "0")
    done = subprocess.run(["/usr/bin/python3", "tests/integration/client.py", c.endpoint,
                           c.path("keys/coordinator.pub"), c.path("keys/client.key"), "Once upon a time", "24", "0"],
                          timeout=60, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert theirs["tokens"] == ours["tokens"] and theirs["text"] == ours["text"], (theirs, ours)


def test_same_seed(c):
    """the same seed gives the same tokens in company and alone, and another seed others"""
    alone = c.generate("The little robot", "-n", "40", "--seed", "7", "--ignore-eos")["tokens"]
    client = c.client()
    for i in range(8):
        client.send("generate", request="q%d" % i, prompt="The little robot" if i == 3 else "In the morning" * i + "x",
                    max_tokens=40, seed=7 if i == 3 else i, ignore_eos=True)
    tokens, over = {}, 0
    while over < 8:
        m = client.expect("accepted", "token", "done", timeout_s=30)
        if m.name == "token":
            tokens.setdefault(m.request, []).append(m.id)
        over += m.name == "done"
    assert tokens["q3"] == alone
    assert c.generate("The little robot", "-n", "40", "--seed", "8", "--ignore-eos")["tokens"] != alone


def test_cancel(c):
    """a cancelled request ends at once and its pages are free"""
    client = c.client()
    client.send("generate", request="long", prompt="Once upon a time", max_tokens=400, ignore_eos=True)
    client.expect("accepted")
    client.expect("token")
    client.send("cancel", request="long")
    while True:
        m = client.expect("token", "done", "error")
        if m.name != "token":
            break
    assert m.name == "done" and m.finish_reason == "cancelled", m
    c.until(lambda: all(g["pages_used"] == 0 and g["running"] == 0 for g in c.status()["groups"]), "free pages")


def test_too_long(c):
    """a prompt that can never fit is refused with the numbers, and others go on"""
    done = c.lepton("generate", "-p", "word " * 3000, "-n", "4")
    assert done.returncode == 1 and "413" in done.stderr and "context" in done.stderr, done.stderr
    assert c.generate("Once", "-n", "4")["completion_tokens"] == 4


@with_options(model=None, groups=2, stages=2)
def test_kill_stage(c):
    """kill -9 of a stage under 8 streams: those of its group go on elsewhere, each token once and as undisturbed, and the
    group is back under a new epoch"""
    client = c.client()

    def ask(name):
        client.send("generate", request=name, prompt="Once upon a time there was", max_tokens=600, seed=int(name[1:]) % 8,
                    ignore_eos=True)

    reference = []
    for i in range(8):  # undisturbed: what the same seed must give again
        ask("q%d" % i)
        reference.append([])
        m = None
        while not m or m.name != "done":
            m = client.expect("accepted", "token", "done", timeout_s=60)
            if m.name == "token":
                reference[i].append(m.id)
    for i in range(8):
        ask("r%d" % i)
    tokens, done, killed, back = {}, {}, None, {}

    def watch_return(epoch, since):
        c.until(lambda: (lambda g: g and g["state"] == "ready" and g["epoch"] > epoch)(c.group("g-1")),
                "the group's next epoch", within_s=60)
        back["after_s"], back["epoch"] = time.monotonic() - since, c.group("g-1")["epoch"]

    while len(done) < 8:
        m = client.expect("accepted", "token", "done", timeout_s=60)
        if m.name == "token":
            assert m.index == len(tokens.setdefault(m.request, [])), m
            tokens[m.request].append(m.id)
        elif m.name == "done":
            assert m.request not in done, m
            done[m.request] = m
        if not killed and len(tokens) == 8 and all(len(t) >= 5 for t in tokens.values()):
            group = c.group("g-1")
            killed = (group["epoch"], time.monotonic())
            os.kill(group["stages"][1]["pid"], signal.SIGKILL)
            watcher = threading.Thread(target=watch_return, args=killed)
            watcher.start()
    assert killed, "the streams were over before anything was killed"
    for i in range(8):
        assert tokens["r%d" % i] == reference[i], (i, tokens["r%d" % i], reference[i])
    moved = [m for m in done.values() if m.fields.get("moves")]
    # How many the group had is the balancer's choice, by what it learnt of both groups in the reference runs.
    assert 1 <= len(moved) <= 7 and not any(m.fields.get("mixed") for m in moved), done
    assert all(m.group == "g-0" for m in moved), done
    watcher.join()
    assert "after_s" in back
    print("# back under epoch %d, %.1f s after the kill" % (back["epoch"], back["after_s"]))


def test_coordinator_restart(c):
    """a killed coordinator is started again at the same endpoint and the groups come back to it"""
    pid = next(p for p in processes(c.home) if "lepton-coordinator" in open("/proc/%d/cmdline" % p).read())
    os.kill(pid, signal.SIGKILL)

    def ready():
        done = c.lepton("status", "--json")
        return done.returncode == 0 and any(g["state"] == "ready" for g in json.loads(done.stdout)["groups"])
    c.until(ready, "the groups at the new coordinator", within_s=20)
    assert c.generate("Once upon a time", "-n", "8")["completion_tokens"] == 8


def idle(c, stages):
    """Every worker and the coordinator, seconds after the last request, take under 1 % of a core each."""
    c.generate("Once upon a time", "-n", "8")
    time.sleep(1)  # the group falls asleep

    def of(program):
        return [p for p in processes(c.home) if open("/proc/%d/cmdline" % p).read().split("\0")[0].endswith(program)]
    workers, coordinators = of("lepton-worker"), of("lepton-coordinator")
    assert len(workers) == stages and len(coordinators) == 1
    before, begun = {p: cpu_s(p) for p in workers + coordinators}, time.monotonic()
    time.sleep(6)
    wall = time.monotonic() - begun
    used = {p: (cpu_s(p) - before[p]) / wall for p in before}
    print("# idle: workers %s, coordinator %.4f cores" % (["%.4f" % used[p] for p in workers], used[coordinators[0]]))
    assert all(u < 0.01 for u in used.values()), used


@with_options(groups=1, stages=2)
def test_idle(c):
    """an idle group of two stages and an idle coordinator take under 1 % of a core each"""
    idle(c, 2)


@with_options(groups=1, stages=1, threads=2, worker=("--kernels", "auto"))
def test_idle_alone(c):
    """an idle group of one rank with two threads and the fastest kernels takes under 1 % of a core"""
    idle(c, 1)


def test_group_drains(_):
    """a group that is told to end finishes its streams, says goodbye and leaves with 0"""
    c = Coordinator(lease_ms=3000)
    group = None
    try:
        group = subprocess.Popen([BUILD + "/lepton", "group", "--stages", "2", "--launcher", "mpirun", "--", "--model", DEMO,
                                  "--group", "g0", "--endpoint", c.endpoint, "--server-key", c.path("keys/coordinator.pub"),
                                  "--key", c.path("keys/g0.key")], stderr=subprocess.DEVNULL)

        def state():
            return [g["state"] for g in c.status().get("groups", []) if g["group"] == "g0"]
        for _wait in range(6):  # each waits 10 s at most: a build with sanitizers starts slowly
            try:
                c.until(lambda: state() == ["ready"], "the group")
                break
            except AssertionError:
                assert group.poll() is None
        client = c.client()
        client.send("generate", request="q", prompt="Once upon a time", max_tokens=300, ignore_eos=True)
        client.expect("accepted")
        client.expect("token", timeout_s=30)
        group.send_signal(signal.SIGTERM)
        tokens = 1
        while True:
            m = client.expect("token", "done", timeout_s=60)
            if m.name == "done":
                break
            tokens += 1
        assert tokens == 300 and m.finish_reason == "length"
        assert group.wait(60) == 0
        c.until(lambda: state() in ([], ["lost"]), "the group's goodbye")
        client.send("generate", request="late", prompt="x", max_tokens=4, timeout_ms=500)
        client.expect("accepted", "error")
    finally:
        if group and group.poll() is None:
            group.kill()
        c.close()


FAKE_NCCL = os.path.join(BUILD, "tests/libfake_nccl.so")


@with_options(groups=1, stages=4, worker=("--comm", "nccl", "--nccl-library", FAKE_NCCL))
def test_pipeline_over_nccl(c):
    """four stages whose rows travel through the NCCL code (over a library of our own) give the ids of one process"""
    over_nccl = c.generate("Tell me a story about a fox.", "-n", "40", "--temperature", "0")
    assert over_nccl["stages"] == 4
    assert over_nccl["tokens"] == once("demo", "Tell me a story about a fox.", 40, temperature=0)[1]["tokens"]


def test_no_nccl(_):
    """NCCL that is not there, or is asked to move host memory, is refused by name"""
    for words, message in ((("--comm", "nccl"), "NCCL moves the memory of GPUs"),
                           (("--comm", "nccl", "--nccl-library", "/no/such/lib.so"), "/no/such/lib.so")):
        done = subprocess.run([BUILD + "/lepton", "run", "demo", "--stages", "2", "-p", "x", "--", *words], timeout=120,
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert done.returncode == 1 and message in done.stderr, done.stderr


def test_load_is_shown(_):
    """how much of the model is loaded is shown on a terminal while it takes long, and stands in the worker's log"""
    with tempfile.TemporaryDirectory() as place:
        for name in ("lepton", "lepton-coordinator"):
            shutil.copy(BUILD + "/" + name, place)
        with open(place + "/lepton-worker", "w") as f:  # one that takes as long as the test wants
            f.write("""#!/bin/sh
before=
for word; do
    if [ "$before" = --load-file ]; then printf ' 42\\n' >"$word.0"; fi
    before=$word
done
while [ ! -e %s/go ]; do sleep 0.1; done
exec %s/lepton-worker "$@"
""" % (place, os.path.abspath(BUILD)))
        os.chmod(place + "/lepton-worker", 0o755)
        pid, fd = pty.fork()
        if pid == 0:
            os.environ["LEPTON_HOME"] = place + "/home"
            os.execv(place + "/lepton", ["lepton", "run", "demo", "-p", "Once", "-n", "3"])
        seen, until = b"", time.monotonic() + 60
        while b" 42 % of the weights loaded" not in seen and time.monotonic() < until:
            if select.select([fd], [], [], 1)[0]:
                seen += os.read(fd, 4096)
        open(place + "/go", "w").close()
        try:
            while select.select([fd], [], [], 60)[0]:
                seen += os.read(fd, 4096)
        except OSError:  # the terminal's other end is closed
            pass
        status = os.waitpid(pid, 0)[1]
        os.close(fd)
        assert b"starting: 0 of 1 groups ready, 42 % of the weights loaded" in seen and status == 0, (status, seen)
        assert b" upon a time" in seen.split(b"\033[K")[-1], seen
    c = LocalCluster(worker=("--load-log-ms", "0"))
    try:
        with open(c.path("g-0.log")) as f:
            log = f.read()
        assert "rank 0: 20 % of its weights loaded" in log and "rank 0: 100 % of its weights loaded" in log, log
    finally:
        c.close()


ALONE = [test_no_nccl, test_load_is_shown, test_group_drains, test_trained_model, test_demo_model, test_bad_models, test_demo]
RUNNING = [test_stops, test_foreign_client, test_same_seed, test_cancel, test_too_long, test_kill_stage,
           test_coordinator_restart, test_idle, test_idle_alone, test_pipeline_over_nccl]


def make_cluster(model="demo", **options):
    if model is None:  # slow enough that a stream can be cut in its middle, on any machine
        model = "/tmp/lepton-test-synth-%d.gguf" % os.getpid()
        if not os.path.exists(model):
            layers, dim, ffn, heads = ("12", "384", "1024", "8") if SLOW == 1 else ("4", "128", "384", "4")
            subprocess.run([BUILD + "/lepton", "synth", "--layers", layers, "--dim", dim, "--ffn", ffn, "--heads", heads,
                            "--kv-heads", "4", "--vocab", "2000", "--context", "1024", "--type", "f16", model],
                           check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return LocalCluster(model=model, **options)


if __name__ == "__main__":
    only = sys.argv[1:]
    chosen = [t for t in RUNNING if not only or t.__name__ in only]
    alone = [t for t in ALONE if not only or t.__name__ in only]
    code = run(alone, make=NoCluster) | run(chosen, make=make_cluster, groups=2, stages=2)
    synth = "/tmp/lepton-test-synth-%d.gguf" % os.getpid()
    if os.path.exists(synth):
        os.unlink(synth)
    sys.exit(code)
