"""A whole cluster on this machine as a user starts it: `lepton run` with real groups of real stages, and what a test needs
to look at it: its clients, its processes, its processor time."""
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time

import zmq

from coordinator_harness import BUILD, SLOW, Peer, Skip  # noqa: F401

ROOT = os.getcwd()
DEMO = os.path.join(ROOT, "tools/demo/lepton-demo.gguf")
START_S = 60.0 * SLOW


def shared(path):
    """A file of the shared test data; a test that needs it is skipped where it is not there."""
    full = os.path.join(os.environ.get("LEPTON_SHARED", "../shared"), path)
    if not os.path.exists(full):
        raise Skip("shared data %s is not here" % path)
    return full


def processes(directory):
    """Pids of all processes whose command line names the directory: everything that a cluster started."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/cmdline" % pid, "rb") as f:
                if directory.encode() in f.read():
                    found.append(int(pid))
        except OSError:
            pass
    return found


def cpu_s(pid):
    with open("/proc/%d/stat" % pid) as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class LocalCluster:
    def __init__(self, model="demo", groups=1, stages=1, threads=1, worker=(), environment=None, program=BUILD + "/lepton", **options):
        self.home = tempfile.mkdtemp(prefix="lepton-test-")
        self.context = zmq.Context()
        self.environment = dict(os.environ, LEPTON_HOME=self.home, **(environment or {}))
        models = [model] if isinstance(model, str) else model
        command = [program, "run", *models, "--groups", str(groups), "--stages", str(stages), "--threads",
                   str(threads)]
        for name, value in options.items():
            command += ["--" + name.replace("_", "-"), str(value)]
        command += ["--", *worker]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                        env=self.environment)
        self.directory = os.path.join(self.home, "run-%d" % self.process.pid)
        line = self.process.stdout.readline()  # lepton run bounds its own start
        assert line.startswith("serving on "), line + self.process.stdout.read()
        self.endpoint = line.split()[2].rstrip(";")

    def path(self, name):
        return os.path.join(self.directory, name)

    def client(self):
        return Peer(self, self.path("keys/client.key"))

    def lepton(self, *words, timeout_s=60):
        return subprocess.run([BUILD + "/lepton", *words], env=self.environment, timeout=timeout_s * SLOW, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def generate(self, prompt, *words):
        """The result of one request as the command line prints it."""
        done = self.lepton("generate", "-p", prompt, "--json", *words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def status(self):
        done = self.lepton("status", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def group(self, name):
        return next((g for g in self.status()["groups"] if g["group"] == name), None)

    def log(self):
        text = ""
        for name in sorted(os.listdir(self.directory)) if os.path.isdir(self.directory) else []:
            if name.endswith(".log"):
                with open(self.path(name), errors="replace") as f:
                    text += f.read()
        return text

    def until(self, condition, what, within_s=10.0):
        end = time.monotonic() + within_s * SLOW
        while not condition():
            assert time.monotonic() < end, "waited in vain for %s" % what
            time.sleep(0.02)

    def stop(self, number=signal.SIGINT):
        """Ends the cluster as Ctrl-C does; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(START_S)

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(START_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        for pid in processes(self.home):
            os.kill(pid, signal.SIGKILL)
        self.context.destroy(linger=0)
        shutil.rmtree(self.home, ignore_errors=True)
