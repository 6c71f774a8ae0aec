#!/usr/bin/python3
"""The registry as a user meets it: names instead of paths, damage found by real workers, an `add` that is killed, and
several models behind one coordinator."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from coordinator_harness import BUILD, run  # noqa: E402
from local_cluster import DEMO, LocalCluster  # noqa: E402

LEPTON = BUILD + "/lepton"


class Registry:
    """A directory of models of one's own."""

    def __init__(self):
        self.root = tempfile.mkdtemp(prefix="lepton-test-")
        self.models = os.path.join(self.root, "models")
        self.environment = dict(os.environ, LEPTON_HOME=self.root)

    def lepton(self, *words):
        return subprocess.run([LEPTON, *words], env=self.environment, timeout=120, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)

    def must(self, *words):
        done = self.lepton(*words)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def names(self):
        return [entry["name"] for entry in json.loads(self.must("models", "list", "--json"))]

    def file(self, name):
        return os.path.join(self.models, name, "model.gguf")

    def synth(self, name, layers=2, dim=256):
        path = os.path.join(self.root, name)
        self.must("synth", "--layers", str(layers), "--dim", str(dim), "--ffn", str(2 * dim), "--heads", "8", "--kv-heads",
                  "4", "--vocab", "1000", "--context", "256", "--type", "f16", path)
        return path

    def flip(self, name, offset):
        os.chmod(self.file(name), 0o644)
        with open(self.file(name), "r+b") as f:
            f.seek(offset)
            byte = f.read(1)[0] ^ 0x10
            f.seek(offset)
            f.write(bytes([byte]))

    def log(self):
        return ""

    def close(self):
        shutil.rmtree(self.root, ignore_errors=True)


def test_by_name(registry):
    """a name is a model wherever a command takes one, and a path that exists comes first"""
    registry.must("models", "add", DEMO, "tiny")
    for words in (["tokenize", "%s", "-p", "hello"], ["logits", "%s", "--ids", "1,2,3", "--json"],
                  ["perplexity", "%s", "-f", "README.md", "--bytes", "500"]):
        by_path, by_name = (registry.must(*[w.replace("%s", m) for w in words]) for m in (DEMO, "tiny"))
        assert by_path.replace(DEMO, "tiny") == by_name, (by_path, by_name)
    shown = json.loads(registry.must("inspect", "tiny", "--json"))
    assert shown["file"] == registry.file("tiny"), shown
    answer = json.loads(registry.must("run", "tiny", "-p", "Once", "-n", "8", "--temperature", "0", "--json"))
    direct = json.loads(registry.must("run", DEMO, "-p", "Once", "-n", "8", "--temperature", "0", "--json"))
    assert answer["tokens"] == direct["tokens"]
    done = subprocess.run([LEPTON, "chat", "tiny", "--chat-template", "plain", "-n", "4"], input="hello\n", timeout=120,
                          env=registry.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0 and done.stdout.strip(), done
    done = registry.lepton("inspect", "nobody")
    assert done.returncode == 1 and "no such file, and no model of this name in " + registry.models in done.stderr
    done = registry.lepton("inspect", "tiny", "--models", "/no/such/directory")
    assert done.returncode == 1 and "/no/such/directory" in done.stderr, done.stderr


def test_words(registry):
    """wrong words, options that would do nothing and bad names are refused"""
    for words, code, message in ((["lsit"], 2, '"lsit": expected list, add, verify or rm'),
                                 (["add"], 2, "add: 0 words behind it, expected PATH or PATH NAME"),
                                 (["list", "x"], 2, "expected none"), (["rm", "x", "--json"], 2, "--json: is for list"),
                                 (["verify", "x", "--link"], 2, "--link: is for add"),
                                 (["add", DEMO, "../x"], 1, "expected a name of 1 to 128 of [A-Za-z0-9._-]"),
                                 (["add", DEMO, "n" * 129], 1, "expected a name of 1 to 128"),
                                 (["add", DEMO, "demo"], 1, "that of the model inside"),
                                 (["add", "tools"], 1, "the registry takes GGUF files"),
                                 (["rm", "nobody"], 1, "no model of this name"),
                                 (["verify", "nobody"], 1, "no model of this name")):
        done = registry.lepton("models", *words)
        assert done.returncode == code and message in done.stderr, (words, done)
    assert registry.names() == []


def test_worker_names_damage(registry):
    """a flipped bit is named by the worker that loads it, in any stage, and the group ends with 78"""
    registry.must("models", "add", registry.synth("big.gguf", layers=4, dim=1024), "big")
    tensors = json.loads(registry.must("inspect", "big", "--json", "--tensors"))["tensors"]
    chosen = [t for t in tensors if t["name"] in ("token_embd.weight", "blk.1.ffn_up.weight", "blk.3.attn_norm.weight",
                                                  "output.weight")]
    assert len(chosen) == 4
    for t in chosen:
        at = t["bytes"] - 1
        registry.flip("big", t["offset"] + at)
        done = registry.lepton("run", "big", "--stages", "2", "-p", "x", "-n", "1")
        chunk = at >> 20
        want = "big: tensor %s: chunk %d (bytes %d-%d of the file) does not match its hash" % (
            t["name"], chunk, t["offset"] + (chunk << 20), t["offset"] + at)
        assert done.returncode == 1 and want in done.stderr and "ended with 78" in done.stderr, (want, done.stderr)
        assert registry.lepton("models", "verify", "big").stderr.count("does not match") == 1
        if t["name"] == "output.weight":
            assert chunk >= 1, t  # more than the first chunk is looked at
            registry.must("run", "big", "--stages", "2", "-p", "x", "-n", "1", "--", "--verify", "never")
        registry.flip("big", t["offset"] + at)
    registry.flip("big", 1000)
    done = registry.lepton("run", "big", "-p", "x", "-n", "1")
    assert done.returncode == 1 and "header, metadata and tensor table (bytes 0-" in done.stderr, done.stderr
    registry.flip("big", 1000)
    registry.must("run", "big", "-p", "x", "-n", "1", "--", "--verify", "always")
    assert registry.must("models", "verify", "big").startswith("big is whole, digest ")
    done = registry.lepton("run", DEMO, "-p", "x", "-n", "1", "--", "--verify", "always")
    assert done.returncode == 1 and "has no hashes to verify" in done.stderr, done.stderr


def test_killed_add(registry):
    """an add that is killed at any time leaves a whole model or none, and the next change removes the rest"""
    source = registry.synth("source.gguf", layers=8, dim=512)
    begun = time.monotonic()
    registry.must("models", "add", source, "whole")
    duration = time.monotonic() - begun
    chance = random.Random(7)
    killed = 0
    for i in range(25):
        name = "m%d" % i
        add = subprocess.Popen([LEPTON, "models", "add", source, name], env=registry.environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(duration * chance.random())
        add.send_signal(signal.SIGKILL)
        ended = add.wait(60)
        killed += ended == -signal.SIGKILL
        listed = json.loads(registry.must("models", "list", "--json"))
        assert all("problem" not in entry for entry in listed), listed
        if name in registry.names():
            registry.must("models", "verify", name)
            registry.must("models", "rm", name)
        else:
            assert ended == -signal.SIGKILL
    assert killed > 0
    registry.must("models", "rm", "whole")
    assert os.listdir(registry.models) == [], os.listdir(registry.models)


def test_interrupted_add(registry):
    """Ctrl-C during an add exits 130 and leaves nothing"""
    source = registry.synth("source.gguf", layers=40, dim=1024)
    add = subprocess.Popen([LEPTON, "models", "add", "--threads", "1", source, "m"], env=registry.environment,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while add.poll() is None and not (os.path.isdir(registry.models) and os.listdir(registry.models)):
        time.sleep(0.001)
    add.send_signal(signal.SIGINT)
    _, errors = add.communicate(timeout=60)
    assert add.returncode in (0, 130), (add.returncode, errors)  # 0: it was done before the signal came
    assert os.listdir(registry.models) == (["m"] if add.returncode == 0 else []), errors


def test_several_models(registry):
    """two models behind one coordinator: a name chooses, no name and an unknown one are refused, both are shown"""
    registry.must("models", "add", registry.synth("noise.gguf"), "noise")
    alone = json.loads(registry.must("run", "noise", "-p", "abc", "-n", "8", "--temperature", "0", "--json"))
    cluster = LocalCluster(model=("demo", "noise"), groups=2, models=registry.models)
    try:
        groups = {g["group"]: g["model"] for g in cluster.status()["groups"]}
        assert groups == {"g-0": "lepton-demo", "g-1": "lepton-demo", "g-2": "noise", "g-3": "noise"}, groups
        shown = cluster.lepton("status").stdout
        assert "lepton-demo" in shown and "noise" in shown, shown
        for _ in range(4):
            story = cluster.generate("Once upon a time", "--model", "lepton-demo", "-n", "8", "--temperature", "0")
            noise = cluster.generate("abc", "-m", "noise", "-n", "8", "--temperature", "0")
            assert groups[story["group"]] == "lepton-demo" and groups[noise["group"]] == "noise"
            assert noise["tokens"] == alone["tokens"] and story["tokens"] != noise["tokens"]
        done = cluster.lepton("generate", "-p", "x", "-n", "1")
        assert done.returncode == 1 and "several models are served: name one of them" in done.stderr, done.stderr
        done = cluster.lepton("generate", "-p", "x", "-n", "1", "--json", "-m", "nobody")
        error = json.loads(done.stdout.splitlines()[-1])["error"]
        assert done.returncode == 1 and error["code"] == 404, (done.stdout, done.stderr)
        assert 'no group serves model "nobody"' in error["message"], error
        assert cluster.stop() == 0
    finally:
        cluster.close()


def test_several_refused(registry):
    """models of one name, and a prompt that names none of several, are refused before anything starts"""
    shutil.copy(DEMO, os.path.join(registry.root, "lepton-demo.gguf"))
    done = registry.lepton("run", "demo", os.path.join(registry.root, "lepton-demo.gguf"))
    assert done.returncode == 1 and "two models are called lepton-demo" in done.stderr, done.stderr
    for words, message in ((["-p", "x"], "--model: expected the name of one of the 2 models"),
                           (["--", "--model-name", "x"], "--model-name: would call 2 models the same")):
        done = registry.lepton("run", "demo", DEMO, *words)
        assert done.returncode == 2 and message in done.stderr, done.stderr


def test_removed_in_use(registry):
    """a model that is served can be removed: its group goes on"""
    registry.must("models", "add", DEMO, "tiny")
    cluster = LocalCluster(model="tiny", models=registry.models)
    try:
        before = cluster.generate("Once", "-n", "8", "--temperature", "0")
        registry.must("models", "rm", "tiny")
        assert cluster.generate("Once", "-n", "8", "--temperature", "0")["tokens"] == before["tokens"]
    finally:
        cluster.close()


if __name__ == "__main__":
    tests = [test_by_name, test_words, test_worker_names_damage, test_killed_add, test_interrupted_add,
             test_several_models, test_several_refused, test_removed_in_use]
    sys.exit(run([t for t in tests if not sys.argv[1:] or t.__name__ in sys.argv[1:]], make=Registry))
