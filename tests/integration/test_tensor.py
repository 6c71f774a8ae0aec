#!/usr/bin/env python3
"""Tensor slots and pipeline stages in the real programs: `lepton run --tensor T --stages P` continues as one rank does,
the same tokens whatever else is set; what does not divide is refused with the numbers; an idle group of several ranks
burns no processor; a killed rank ends its group, which comes back."""
import json, os, signal, subprocess, sys, tempfile, time

BUILD = os.environ.get("LEPTON_BUILD", "build/release")
LEPTON = os.path.join(BUILD, "lepton")
failed = 0


def check(name, function):
    global failed
    try:
        function()
        print(f"ok - {name}", flush=True)
    except Exception as error:  # noqa: BLE001 - the line must appear whatever went wrong
        failed += 1
        print(f"not ok - {name}\n# {error!r}"[:2000].replace("\n", "\n# "), flush=True)


def generate(home, *arguments):
    run = subprocess.run([LEPTON, "run", "demo", "-p", "Once upon a time", "-n", "24", "--seed", "5", "--json",
                          "--ignore-eos", *arguments], capture_output=True, text=True, timeout=120,
                         env=dict(os.environ, LEPTON_HOME=home))
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])["tokens"]


def stat_ticks(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def workers(parent):
    """Processes called lepton-worker below `parent`."""
    found, children = [], {}
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/stat") as f:
                text = f.read()
            children.setdefault(int(text.rsplit(")", 1)[1].split()[1]), []).append(
                (int(name), text[text.index("(") + 1:text.rindex(")")]))
        except (OSError, ValueError, IndexError):
            pass
    todo = [parent]
    while todo:
        for pid, command in children.get(todo.pop(), []):
            todo.append(pid)
            if command.startswith("lepton-worker"):
                found.append(pid)
    return found


def test_tokens(home):
    one = generate(home, "--temperature", "0")
    assert len(one) == 24
    for layout in (["--tensor", "2"], ["--tensor", "2", "--stages", "2"], ["--stages", "2", "--", "--comm", "mpi"]):
        assert generate(home, "--temperature", "0", *layout) == one, layout
    # A width is a numeric class of its own: its draws are the same over both ways to carry the sums.
    drawn = generate(home, "--tensor", "2", "--temperature", "1")
    assert generate(home, "--temperature", "1", "--tensor", "2", "--stages", "2", "--", "--comm", "mpi") == drawn
    assert generate(home, "--temperature", "1", "--tensor", "2", "--", "--threads", "2", "--comm", "shm") == drawn


def test_refusals(home):
    run = subprocess.run([LEPTON, "run", "demo", "-p", "x", "--tensor", "200"], capture_output=True, text=True,
                         timeout=60, env=dict(os.environ, LEPTON_HOME=home))
    assert run.returncode == 1 and "tensor 200: " in run.stderr and "KV heads" in run.stderr, run.stderr


class Served:
    def __init__(self, home, *arguments):
        self.home = home
        self.process = subprocess.Popen([LEPTON, "run", "demo", *arguments], stdout=subprocess.PIPE, text=True,
                                        env=dict(os.environ, LEPTON_HOME=home))
        line = self.process.stdout.readline()
        assert "serving" in line, line

    def lepton(self, *arguments):
        return subprocess.run([LEPTON, *arguments], capture_output=True, text=True, timeout=60,
                              env=dict(os.environ, LEPTON_HOME=self.home))

    def group(self):
        return json.loads(self.lepton("status", "--json").stdout)["groups"][0]

    def close(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)


def test_served(home):
    s = Served(home, "--tensor", "2", "--stages", "2")
    try:
        group = s.group()
        assert group["tensor"] == 2 and len(group["stages"]) == 2, group
        assert s.lepton("generate", "-p", "One day", "-n", "20", "--ignore-eos").returncode == 0
        until = time.monotonic() + 30  # the next heartbeat tells of the steps
        while (group := s.group())["tokens_generated"] < 20 and time.monotonic() < until:
            time.sleep(0.1)
        # One stream keeps one stage busy at a time, and both know how long they waited.
        assert all(x["busy_us"] > 0 and 0 <= x["bubble_us"] <= x["wait_us"] > 0 for x in group["stages"]), group
        assert 0 <= group["bubble_ratio"] < 1, group
        assert "  bubbles " in s.lepton("status").stdout and ", waits " in s.lepton("status").stdout
        assert "tensor slots" in s.lepton("status").stdout
        ranks = workers(s.process.pid)
        assert len(ranks) == 4, ranks
        before, begun = sum(map(stat_ticks, ranks)), time.monotonic()
        time.sleep(3)
        used = (sum(map(stat_ticks, ranks)) - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - begun)
        assert used < 0.04, f"four idle ranks use {used:.3f} of a processor"
        epoch = group["epoch"]
        os.kill(ranks[-1], signal.SIGKILL)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            group = s.group()
            if group["epoch"] > epoch and group["state"] == "ready":
                break
            time.sleep(0.1)
        else:
            raise AssertionError(f"the group did not come back: {group}")
        assert s.lepton("generate", "-p", "One day", "-n", "5").returncode == 0
    finally:
        s.close()


with tempfile.TemporaryDirectory() as directory:
    check("slots and stages continue as one rank does", lambda: test_tokens(directory))
    check("a width that the model does not divide into is refused", lambda: test_refusals(directory))
    check("four ranks serve, idle without a processor, and come back when one is killed",
          lambda: test_served(directory))
sys.exit(failed != 0)
