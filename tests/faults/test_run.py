#!/usr/bin/python3
"""The coordinator of `lepton run` dies under real groups of two stages (row 2 of the faults to survive): it is started again
with the store that it has by default, and native streams complete as undisturbed."""
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from faults import BUILD, SLOW, Client, note, run, with_options  # noqa: E402
from local_cluster import LocalCluster, processes  # noqa: E402
from test_store import POINTS  # noqa: E402

LENGTHS = (20, 70, 120, 170, 220, 270)  # they end at different times: in commits of their own


def coordinator(c):
    """The pid of the coordinator that runs now; None between two."""
    for pid in processes(c.home):
        try:
            if os.path.basename(os.readlink("/proc/%d/exe" % pid)) == "lepton-coordinator":
                return pid
        except OSError:
            pass
    return None


def another(c, pid):
    """Waits for the next coordinator."""
    c.until(lambda: coordinator(c) not in (None, pid), "the next coordinator")
    c.until(lambda: c.lepton("status").returncode == 0, "its answer")
    return coordinator(c)


class Streams:
    """`lepton generate` of each length."""

    def __init__(self, c):
        self.processes = [subprocess.Popen(
            [BUILD + "/lepton", "generate", "-p", "Once upon a time %d" % i, "-n", str(LENGTHS[i]), "--seed", str(i), "--temperature",
             "1", "--ignore-eos", "--json"], env=c.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for i in range(len(LENGTHS))]

    def finish(self):
        results = []
        for process in self.processes:
            out, err = process.communicate(timeout=60 * SLOW)
            assert process.returncode == 0, (process.returncode, err)
            results.append(json.loads(out.splitlines()[-1]))
        return results


def has_accepted(c, count):
    status = c.lepton("status", "--json")
    return status.returncode == 0 and json.loads(status.stdout)["accepted_total"] >= count


def commit_until(c, armed):
    """One short idempotent request after the other, each a commit of its own, until the coordinator is gone."""
    client, end, number = Client(c.client()), time.monotonic() + 30 * SLOW, 0
    while coordinator(c) == armed:
        assert time.monotonic() < end, "its failpoint is never hit"
        client.generate("f%d" % number, idempotent=True, max_tokens=1)
        number += 1
        while coordinator(c) == armed and client.log.open and time.monotonic() < end:
            message = client.peer.receive(0.05)
            if message:
                client.log.take(message)
    client.peer.close()


def tokens(results):
    return [r["tokens"] for r in results]


def integrity(path):
    db = sqlite3.connect("file:%s?mode=ro" % path, uri=True)
    try:
        return db.execute("PRAGMA integrity_check").fetchall()
    finally:
        db.close()


class Failing(LocalCluster):
    """`lepton run` whose next coordinator dies at the failpoint that `arm` names, once."""

    def __init__(self, **options):
        self.programs = tempfile.mkdtemp(prefix="lepton-test-programs-")
        for name in ("lepton", "lepton-worker"):  # copies: a program finds the others beside its own file
            shutil.copy(BUILD + "/" + name, self.programs)
        self.failpoint = self.programs + "/failpoint"
        wrapper = self.programs + "/lepton-coordinator"
        with open(wrapper, "w") as f:
            f.write("#!/bin/sh\nif [ -e %s ]; then\n    LEPTON_FAILPOINT=$(cat %s)\n    export LEPTON_FAILPOINT\n    rm %s\nfi\n"
                    "exec %s \"$@\"\n" % (3 * (self.failpoint,) + (os.path.abspath(BUILD + "/tests/faults/lepton-coordinator"),)))
        os.chmod(wrapper, 0o755)
        try:
            super().__init__(program=self.programs + "/lepton", **options)
        except BaseException:
            shutil.rmtree(self.programs)
            raise

    def arm(self, point):
        with open(self.failpoint + ".new", "w") as f:
            f.write(point)
        os.rename(self.failpoint + ".new", self.failpoint)

    def close(self):
        super().close()
        shutil.rmtree(self.programs)


@with_options(make=Failing, groups=2, stages=2)
def test_killed_at_commit_points(c):
    """kill -9 of the coordinator at every commit point under real groups: native streams complete, none differs (row 2)"""
    want, resumed, streams = tokens(Streams(c).finish()), 0, 0
    for point in POINTS:
        for at in (1, 2) if point == "store.told" else (4, 5):  # behind the rows that say that it and two groups began
            c.arm("%s:%d" % (point, at))
            before = coordinator(c)
            os.kill(before, signal.SIGKILL)
            armed = another(c, before)
            assert not os.path.exists(c.failpoint)
            running = Streams(c)
            c.until(lambda: coordinator(c) != armed or has_accepted(c, len(LENGTHS)), "the streams to begin", 30)
            commit_until(c, armed)
            results = running.finish()
            assert tokens(results) == want, point
            resumed, streams = resumed + sum(r["resumed"] > 0 for r in results), streams + len(results)
            another(c, armed)  # it was hit
            assert integrity(c.path("state.db")) == [("ok",)]
    assert resumed > 0
    note("row 2: two real groups of two stages: killed at %d commit points, twice each: %d streams, all as undisturbed, %d of them "
         "resumed" % (len(POINTS), streams, resumed))


def asked_twice(c):
    """The clients of the same id before and after kill -9 of the coordinator, both with their answers."""
    clients = []
    for i in range(2):
        client = Client(c.client())
        client.generate("q", idempotent=True, max_tokens=12, seed=3, ignore_eos=True)
        client.finish()
        clients.append(client)
        if i == 0:
            before = coordinator(c)
            os.kill(before, signal.SIGKILL)
            another(c, before)
    return clients


@with_options(groups=1, stages=2)
def test_store_by_default(c):
    """an answer of lepton run is replayed after kill -9 of its coordinator, and nothing of it stays when the run ends"""
    first, again = asked_twice(c)
    assert again.log.check(dict(q=first.log.ids("q"))) == 1 and again.log.text("q") == first.log.text("q")
    assert c.status()["accepted_total"] == 0
    assert os.stat(c.path("state.db")).st_mode & 0o777 == 0o600
    assert c.stop() == 0 and os.listdir(c.home) == []


@with_options(groups=1, stages=1, store="none")
def test_without_store(c):
    """lepton run --store none keeps nothing: the same id after kill -9 of its coordinator runs anew"""
    first, again = asked_twice(c)
    assert again.log.ids("q") == first.log.ids("q") and c.status()["accepted_total"] == 1
    assert not [name for name in os.listdir(c.directory) if name.startswith("state")]


STORE = "/tmp/lepton-test-store-%d.db" % os.getpid()


def remove_store():
    for suffix in ("", "-wal", "-shm", ".lock"):
        if os.path.exists(STORE + suffix):
            os.unlink(STORE + suffix)


@with_options(groups=1, stages=1, store=STORE)
def test_store_outlives_the_run(c):
    """lepton run --store PATH: the next run replays what this one answered"""
    try:
        ask = dict(idempotent=True, max_tokens=12, seed=3, ignore_eos=True)
        first = Client(c.client())
        first.generate("q", **ask)
        first.finish()
        assert c.stop() == 0 and os.path.exists(STORE)
        later = LocalCluster(store=STORE)
        try:
            again = Client(later.client())
            again.generate("q", **ask)
            again.finish()
            assert again.log.check(dict(q=first.log.ids("q"))) == 1 and later.status()["accepted_total"] == 0
        finally:
            later.close()
    finally:
        remove_store()


TESTS = [value for name, value in list(globals().items()) if name.startswith("test_")]

if __name__ == "__main__":
    sys.exit(run([t for t in TESTS if not sys.argv[1:] or t.__name__ in sys.argv[1:]],
                 make=lambda make=LocalCluster, **options: make(**options)))
