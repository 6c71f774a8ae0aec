#!/usr/bin/python3
"""The coordinator's store on a bad disk: fsync that fails, no room, and the power cut before each synchronisation in turn
(rows 11 to 13 of the faults to survive). tests/faults/disk.c, in front of libc, is that disk."""
import os
import shutil
import subprocess
import sys
import time

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from faults import BUILD, PRELOADED, SLOW, Client, Skip, kill, main, note, with_options  # noqa: E402
from test_resume import generate, restart  # noqa: E402
from test_store import command  # noqa: E402

SHIM = os.path.abspath(BUILD + "/tests/faults/disk.so")


class Disk:
    """The directory of a coordinator's store, which goes bad on demand (disk.c)."""

    def __init__(self, c, **more):
        self.c = c
        self.fault = c.path("fault")
        c.environment.update(LD_PRELOAD=SHIM, DISK_DIR=c.directory, DISK_FAULT=self.fault, ASAN_OPTIONS=PRELOADED, **more)
        self.set("")
        restart(c)

    def set(self, text):
        with open(self.fault + ".new", "w") as f:
            f.write(text)
        os.rename(self.fault + ".new", self.fault)

    def hits(self):
        return os.path.getsize(self.fault + ".hits") if os.path.exists(self.fault + ".hits") else 0


def serve_large(worker, assign, tokens=5):
    """An answer of about 300 KB."""
    for index in range(tokens):
        worker.token(assign, index, text=chr(97 + index) * 60000)
    worker.done(assign, tokens)


@with_options(store="@/state.db")
def test_fsync_fails(c):
    """when fsync fails the coordinator ends, at once and without asking again; what was acknowledged is there (row 12)"""
    disk = Disk(c)
    for file in ("-wal", "state.db"):
        worker, client = c.worker().join(), Client(c.client())
        generate(client, "before" + file, max_tokens=1000)
        serve_large(worker, worker.expect("assign"))
        client.finish()
        hits = disk.hits()
        disk.set("fsync " + file)
        at = time.monotonic()
        for i in range(20):  # until the log is long enough to be written back
            generate(client, "late%d%s" % (i, file), max_tokens=1000)
            serve_large(worker, worker.expect("assign"))
            client.pump(lambda: not client.log.open or c.process.poll() is not None, "an end")
            if c.process.poll() is not None:
                break
        assert c.process.wait(10 * SLOW) == 70 and disk.hits() == hits + 1, (c.process.returncode, disk.hits())
        note("row 12: fsync of %s: ended %.0f ms after it failed first" % (file, 1e3 * (time.monotonic() - at)))
        assert "fatal" in c.log() and "acknowledged" in c.log()
        client.pump(lambda: not (m := client.peer.receive(0.2)) or client.log.take(m), "what was on the way")
        code, says = start_refused(c)
        assert code in (1, 70), (code, says)  # the disk is still bad: it does not come up
        disk.set("")
        c.launch()
        seen = [q for q in client.log.events if client.log.over(q)]
        again = Client(c.client())
        for q in seen:
            generate(again, q, max_tokens=1000)
        again.finish()
        assert len(seen) >= 1 and again.log.check({q: client.log.ids(q) for q in seen}) == len(seen)
        assert c.status().accepted_total == 0


def start_refused(c):
    """Starts a coordinator that should not come up: its exit code and what it says."""
    process = subprocess.run([*c.command, "--endpoint", c.endpoint], stderr=subprocess.PIPE, text=True, timeout=20 * SLOW, env=c.environment)
    return process.returncode, process.stderr


@with_options(store="@/state.db")
def test_disk_full(c):
    """a full disk: idempotent requests are refused with 507, the rest goes on, old answers stay, room is noticed (row 11)"""
    disk = Disk(c)
    worker, client = c.worker().join(), Client(c.client())
    generate(client, "old", max_tokens=3)
    worker.serve(worker.expect("assign"), 3)
    client.finish()
    generate(client, "running", max_tokens=3)
    assign = worker.expect("assign")
    disk.set("full")
    worker.serve(assign, 3)
    client.finish()
    assert client.log.error("running").code == 507 and "no room" in client.log.error("running").message
    assert len(client.log.ids("running")) == 3  # the tokens had come
    at = time.monotonic()
    generate(client, "new", max_tokens=3)
    client.finish()
    error = client.log.error("new")
    assert error.code == 507 and error.retry_after_ms > 0 and "accepted" not in client.log.kinds("new")
    note("row 11: refused %.1f ms after it was asked" % (1e3 * (time.monotonic() - at)))
    client.generate("plain", max_tokens=3)
    worker.serve(worker.expect("assign"), 3)
    client.finish()
    again = Client(c.client())
    generate(again, "old", max_tokens=3)
    again.finish()
    assert again.log.check() == 1 and client.log.kinds("plain")[-1] == "done"
    code, says = command("backup", "--store", c.path("state.db"), c.path("backup.db"), **{k: c.environment[k] for k in (
        "LD_PRELOAD", "DISK_DIR", "DISK_FAULT", "ASAN_OPTIONS")})
    assert code == 1 and "full" in says and not [f for f in os.listdir(c.directory) if "backup" in f], says
    disk.set("")
    c.logged("there is room again")
    generate(client, "later", max_tokens=3)
    worker.serve(worker.expect("assign"), 3)
    client.finish()
    assert client.log.kinds("later")[-1] == "done"
    restart(c)
    last = Client(c.client())
    for q in ("old", "later"):
        generate(last, q, max_tokens=3)
    last.finish()
    assert last.log.check() == 2 and c.status().accepted_total == 0


@with_options(store="@/state.db")
def test_tiny_file_system(c):
    """a real file system of 1.5 MB that fills up: refused with 507, and what was stored is there after a restart (row 11)"""
    where = c.path("tiny")
    os.mkdir(where)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", where], stderr=subprocess.DEVNULL).returncode != 0:
        raise Skip("mounting needs root")
    try:
        c.command[c.command.index(c.path("state.db"))] = where + "/state.db"
        restart(c)
        worker, client = c.worker().join(), Client(c.client())
        for i in range(6):
            generate(client, "q%d" % i, max_tokens=1000)
            client.pump(lambda: client.log.events["q%d" % i], "an answer")
            if client.log.kinds("q%d" % i) == ["accepted"]:
                serve_large(worker, worker.expect("assign"))
            client.finish()
        full = [q for q in client.log.events if client.log.error(q)]
        assert full and len(full) < 6 and all(client.log.error(q).code == 507 for q in full), full
        restart(c)
        again = Client(c.client())
        for q in set(client.log.events) - set(full):
            generate(again, q, max_tokens=1000)
        again.finish()
        assert again.log.check() == 6 - len(full) and c.status().accepted_total == 0
    finally:
        kill(c.process)
        subprocess.run(["umount", where])


@with_options(store="@/state.db")
def test_power_cut(c):
    """the power fails before each synchronisation in turn: whoever saw an end gets the same again (row 13)"""
    points = seen_at_all = 0
    for torn in (None, 1, 2):
        cut = 0
        while True:
            cut += 1
            survived, seen = one_power_cut(c, cut, torn)
            points, seen_at_all = points + 1, seen_at_all + seen
            if survived:
                break
            assert cut < 80
    note("row 13: %d power cuts, %d ends seen before them, all of them there afterwards" % (points, seen_at_all))
    assert points > 40 and seen_at_all > 100


def unless_cut(c, worker, name):
    """The next message of this name, or None when the power failed before."""
    while c.process.poll() is None:
        m = worker.receive(0.05)
        if m and m.name == name:
            return m
    return None


def one_power_cut(c, cut, torn):
    """One life of a coordinator that ends at this synchronisation, and the next one on what the disk held."""
    directory, image = c.path("run"), c.path("image")
    for d in (directory, image):
        shutil.rmtree(d, ignore_errors=True)
        os.mkdir(d)
    if c.process.poll() is None:
        kill(c.process)
    environment = dict(c.environment, LD_PRELOAD=SHIM, ASAN_OPTIONS=PRELOADED, DISK_DIR=directory,
                       DISK_IMAGE=image, DISK_CUT=str(cut), **(dict(DISK_TORN=str(cut * 1000 + torn)) if torn else {}))
    if os.path.exists(c.path("endpoint")):
        os.unlink(c.path("endpoint"))
    command = [*c.command, "--endpoint", c.endpoint]
    command[command.index("--store") + 1] = directory + "/state.db"
    with open(c.path("log"), "ab") as log:
        c.process = subprocess.Popen(command, stderr=log, env=environment)
    c.until(lambda: os.path.exists(c.path("endpoint")) or c.process.poll() is not None, "a start, or a cut")
    epoch, client = 0, Client(c.client())
    if c.process.poll() is None:
        worker = c.worker()
        worker.hello()
        welcome = unless_cut(c, worker, "welcome")
        epoch = worker.epoch = welcome.epoch if welcome else 0
        for i in range(16):  # enough to have the log written back, and begun anew
            generate(client, "q%d" % i, max_tokens=1000)
            assign = unless_cut(c, worker, "assign")
            if assign:
                serve_large(worker, assign)
            client.pump(lambda: not client.log.open or c.process.poll() is not None, "an end, or a cut")
            if c.process.poll() is not None:
                break
    survived = c.process.poll() is None
    client.pump(lambda: not (m := client.peer.receive(0.05)) or client.log.take(m), "what was on the way")
    client.peer.close()  # what it could not say must not reach the next one
    if survived:
        kill(c.process)
        shutil.rmtree(image)
        os.rename(directory, image)
    assert survived or c.process.returncode == -9
    command[command.index("--store") + 1] = image + "/state.db"
    seen = [q for q in client.log.events if client.log.over(q)]
    client.peer.close()  # what it could not deliver must not reach the next one
    c.command, before = command[:-2], c.command
    c.launch()
    c.command = before
    again = Client(c.client())
    for q in seen:
        generate(again, q, max_tokens=1000)
    again.finish()
    assert not seen or again.log.check({q: client.log.ids(q) for q in seen}) == len(seen), (cut, torn)
    assert all(again.log.text(q) == client.log.text(q) for q in seen) and c.status().accepted_total == 0, (cut, torn)
    assert c.worker("g1", "g1").join().epoch > epoch
    again.peer.close()
    return survived, len(seen)


if __name__ == "__main__":
    sys.exit(main(globals()))
