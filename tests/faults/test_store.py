#!/usr/bin/python3
"""What the coordinator keeps on a disk: replayed after kill -9 at every commit point, refused when it is damaged, and never
in the way of a token (rows 2 and 26 of the faults to survive). Mock groups, scripted groups and real clients."""
import os
import signal
import sqlite3
import subprocess
import sys
import time

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from faults import BUILD, SLOW, Client, kill, main, note, with_options  # noqa: E402
from test_resume import Streams, generate, restart, tokens  # noqa: E402

FAILING = BUILD + "/tests/faults/lepton-coordinator"
# Where the writer thread and the loop may be when they are killed; each is reached by requests that end.
POINTS = ("store.queued", "store.begin", "store.written", "store.commit", "store.committed", "store.given", "store.told")


def rows(c, sql):
    """What another process reads while the coordinator runs."""
    db = sqlite3.connect("file:%s?mode=ro" % c.path("state.db"), uri=True)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


def start_refused(c):
    """Starts a coordinator that should not come up: its exit code and what it says."""
    process = subprocess.run([*c.command, "--endpoint", c.endpoint], stderr=subprocess.PIPE, text=True, timeout=20 * SLOW)
    return process.returncode, process.stderr


@with_options(store="@/state.db")
def test_replayed_after_kill(c):
    """an answer that was complete is replayed after kill -9, without a group; to its key and its content alone"""
    worker = c.worker().join()
    first = Client(c.client())
    generate(first, max_tokens=3)
    worker.serve(worker.expect("assign"), 3)
    first.finish()
    restart(c)
    again = Client(c.client())
    generate(again, max_tokens=3)
    again.finish()
    assert again.log.check(dict(q=first.log.ids("q"))) == 1 and again.log.text("q") == first.log.text("q")
    assert c.status().accepted_total == 0
    other = Client(c.client("other"))
    generate(other, max_tokens=3)
    other.pump(lambda: other.log.events["q"], "an answer")
    changed = Client(c.client())
    generate(changed, max_tokens=2)
    changed.pump(lambda: changed.log.events["q"], "an answer")
    assert other.log.kinds("q") == changed.log.kinds("q") == ["accepted"]  # they wait for a group
    assert c.status().accepted_total == 2


@with_options(store="@/state.db")
def test_everything_of_an_answer(c):
    """choices, log-probabilities, texts, numbers: all of an answer is replayed as it was"""
    worker = c.worker().join()
    first = Client(c.client())
    asked = dict(max_tokens=2, n=2, logprobs=True, top_logprobs=2, seed=77)
    generate(first, **asked)
    assign = worker.expect("assign")
    for choice in (1, 0):
        for index in range(2):
            worker.send("token", group="g0", epoch=worker.epoch, request=assign.request, choice=choice, index=index, id=7 + index,
                        text="é%d" % index if index else "", logprob=-0.5 * index - choice, piece="p%d" % index,
                        top_logprobs=[dict(id=9, logprob=-0.25, piece="x"), dict(id=10, logprob=-3.0, piece="")])
        worker.send("done", group="g0", epoch=worker.epoch, request=assign.request, choice=choice, finish_reason="stop",
                    text="tail%d" % choice, prompt_tokens=3, completion_tokens=3, prefill_us=10, decode_us=20)
    first.finish()
    restart(c)
    again = Client(c.client())
    generate(again, **asked)
    again.finish()

    def said(client):
        return sorted((m.name, m.get("choice", 0), m.get("index", -1), repr(sorted(m.fields.items())))
                      for _, m in client.log.events["q"])
    assert said(again) == said(first)


@with_options(store="@/state.db", lease_ms=1500)
def test_killed_at_commit_points(c):
    """kill -9 at every commit point: native streams complete, none differs; who saw an end is replayed it (row 2)"""
    mock = c.mock()
    want = [tokens(Streams(c, 3, n).finish()) for n in (40, 60)]
    for point in POINTS:
        for at in (2, 3):  # the first row says that a run began, before anybody can connect
            c.command[0], c.environment["LEPTON_FAILPOINT"] = FAILING, "%s:%d" % (point, at)
            restart(c)
            mock.send_signal(signal.SIGSTOP)  # nothing ends before all are there: who finds nobody at first looks no further
            streams = [Streams(c, 3, n) for n in (40, 60)]
            c.until(lambda: c.status().live == 6, "the streams")
            mock.send_signal(signal.SIGCONT)
            c.until(lambda: c.process.poll() is not None, "the end at " + point)
            assert c.process.returncode == -9, (point, c.process.returncode)
            del c.environment["LEPTON_FAILPOINT"]
            c.launch()
            assert [tokens(s.finish()) for s in streams] == want, point
            assert rows(c, "PRAGMA integrity_check") == [("ok",)]
    note("row 2: killed at %d commit points, twice each" % len(POINTS))


def unless_gone(c, worker, name):
    """The next message of this name, or None when the coordinator died before."""
    while c.process.poll() is None:
        m = worker.receive(0.05)
        if m and m.name == name:
            return m
    return None


@with_options(store="@/state.db", lease_ms=1500)
def test_seen_is_durable(c):
    """whoever saw the last done before a kill -9 at any commit point gets the same again, and nothing runs twice"""
    ends = 0
    for point in POINTS:
        c.command[0], c.environment["LEPTON_FAILPOINT"] = FAILING, point + ":3"
        restart(c)
        worker = c.worker(incarnation=7)  # one job: it lives through all of this
        worker.hello(sequences=8)
        welcome = unless_gone(c, worker, "welcome")
        worker.epoch = welcome.epoch if welcome else 0
        client = Client(c.client())
        for i in range(4):
            generate(client, "%s-%d" % (point, i), max_tokens=2)
        for i in range(4):
            assign = unless_gone(c, worker, "assign")
            if assign:
                worker.serve(assign, 2)
            client.pump(lambda: len(client.log.open) < 4 - i or c.process.poll() is not None, "an end, or the coordinator's")
            if c.process.poll() is not None:
                break
        assert c.process.wait(10 * SLOW) == -9, point
        client.pump(lambda: not (m := client.peer.receive(0.2)) or client.log.take(m), "what was on the way")
        client.peer.close()  # what it could not say must not reach the next one
        seen = [q for q in client.log.events if client.log.over(q)]
        ends += len(seen)
        del c.environment["LEPTON_FAILPOINT"]
        c.launch()
        again = Client(c.client())
        for q in seen:
            generate(again, q, max_tokens=2)
        again.finish()
        assert not seen or again.log.check({q: client.log.ids(q) for q in seen}) == len(seen)
        assert c.status().accepted_total == 0, point
    assert ends > 0


def answer_large(c, worker, request):
    """Runs one idempotent request with an answer of about 300 KB; its ids, or None when the coordinator died before its end."""
    client = Client(c.client())
    generate(client, request, max_tokens=1000)
    assign = unless_gone(c, worker, "assign")
    for index in range(5 if assign else 0):
        worker.token(assign, index, text=chr(97 + index) * 60000)
    if assign:
        worker.done(assign, 5)
    client.pump(lambda: client.log.over(request) or c.process.poll() is not None, "its end, or the coordinator's")
    client.pump(lambda: client.log.over(request) or not client.peer.socket.poll(100), "what was on the way")
    client.peer.close()
    assert not client.log.error(request), client.log.error(request)
    return client.log.text(request) if client.log.over(request) else None


@with_options(store="@/state.db", lease_ms=1500)
def test_killed_while_the_log_is_written_back(c):
    """kill -9 before, while and after the log goes into the database: whoever saw an end gets the same again (row 2)"""
    for point in ("store.checkpoint", "store.checkpointed"):
        c.command[0], c.environment["LEPTON_FAILPOINT"] = FAILING, point
        restart(c)
        del c.environment["LEPTON_FAILPOINT"]
        worker, seen = c.worker(incarnation=7).join(), {}
        for i in range(60):
            text = answer_large(c, worker, "%s-%d" % (point, i))
            if text is None or c.process.poll() is not None:
                break
            seen["%s-%d" % (point, i)] = text
        assert c.process.wait(10) == -9 and len(seen) > 5, (point, len(seen))
        c.launch()
        assert rows(c, "PRAGMA integrity_check") == [("ok",)]
        again = Client(c.client())
        for q in seen:
            generate(again, q, max_tokens=1000)
        again.finish()
        assert {q: again.log.text(q) for q in seen} == seen and c.status().accepted_total == 0


@with_options(store="@/state.db")
def test_killed_while_it_opens(c):
    """kill -9 while the store is made, brought up to date or opened: the next start goes on"""
    for point in ("store.migrated", "store.run", "store.run.committed"):
        kill(c.process)
        os.path.exists(c.path("state.db")) and point == "store.migrated" and os.unlink(c.path("state.db"))
        environment = dict(c.environment, LEPTON_FAILPOINT=point)
        process = subprocess.run([FAILING, *c.command[1:], "--endpoint", c.endpoint], env=environment, timeout=20 * SLOW)
        assert process.returncode == -9, (point, process.returncode)
        c.launch()
        assert rows(c, "PRAGMA integrity_check") == [("ok",)]


@with_options(store="@/state.db")
def test_epochs_never_repeat(c):
    """an epoch that was given is never given again, though the group and the coordinator forgot it"""
    given = set()
    for _ in range(3):
        for _ in range(3):
            worker = c.worker().join()
            assert worker.epoch not in given, (worker.epoch, given)
            given.add(worker.epoch)
            worker.send("bye", group="g0", epoch=worker.epoch, reason="test")
            worker.close()
        restart(c)
    worker = c.worker()
    worker.hello(epoch=5000)  # it knows better: a store that was lost
    assert worker.expect("error").code == 409  # and must first be stored
    c.until(lambda: rows(c, "SELECT value FROM state WHERE name = 'epoch_ceiling'")[0][0] > 5001, "more epochs")
    assert worker.join(epoch=5000).epoch == 5001
    assert c.worker("g1", "g1").join(epoch=1 << 40).epoch == (1 << 40) + 1  # no store ever gave that: it takes nothing along
    assert rows(c, "SELECT value FROM state WHERE name = 'epoch_ceiling'")[0][0] < 10000
    assert rows(c, "SELECT value FROM state WHERE name = 'runs'") == [(4,)]


@with_options(store="@/state.db", replay_ms=700)
def test_forgotten_in_time(c):
    """what was kept for replay_ms is gone from the disk, before and after a restart"""
    worker = c.worker().join()
    client = Client(c.client())
    for i in range(3):
        generate(client, "q%d" % i, max_tokens=2)
        worker.serve(worker.expect("assign"), 2)
        client.finish()
        if i < 2:
            assert rows(c, "SELECT request FROM answers")[-1:] == [("q%d" % i,)]
            c.until(lambda: rows(c, "SELECT count(*) FROM answers") == [(0,)], "the answer to be forgotten")
    kill(c.process)
    time.sleep(0.8)
    c.launch()
    c.until(lambda: rows(c, "SELECT count(*) FROM answers") == [(0,)], "the answer to be forgotten")


@with_options(store="@/state.db")
def test_refuses_to_start(c):
    """a store that is damaged, busy or in use is refused, with a way to go on; exit code 1 (row 26)"""
    code, says = start_refused(c)
    assert code == 1 and "in use by another coordinator" in says, (code, says)
    kill(c.process)
    db = sqlite3.connect(c.path("state.db"))
    db.execute("BEGIN IMMEDIATE")
    code, says = start_refused(c)
    assert code == 1 and "another process writes to it" in says, (code, says)
    db.close()
    for suffix in ("-wal", "-shm"):
        if os.path.exists(c.path("state.db" + suffix)):
            os.unlink(c.path("state.db" + suffix))
    with open(c.path("state.db"), "r+b") as f:
        f.seek(4096)
        f.write(b"\x5a" * 512)
    code, says = start_refused(c)
    assert code == 1 and "damaged" in says and "lepton restore" in says, (code, says)


@with_options(store="@/state.db")
def test_a_slow_disk_delays_ends_alone(c):
    """tokens do not wait for the disk: an end that cannot be stored yet holds nobody else up"""
    worker = c.worker().join()
    db = sqlite3.connect(c.path("state.db"), isolation_level=None)
    db.execute("BEGIN IMMEDIATE")  # the writer waits for this
    first, second = Client(c.client()), Client(c.client("other"))
    generate(first, max_tokens=3)
    worker.serve(worker.expect("assign"), 3)
    first.pump(lambda: len(first.log.ids("q")) == 3, "the tokens")
    second.generate("p", max_tokens=3)  # promises nothing: needs no disk
    worker.serve(worker.expect("assign"), 3)
    second.finish()
    assert not first.log.over("q") and first.peer.receive(0.2) is None
    db.execute("ROLLBACK")
    first.finish()
    assert first.log.check() == 1 and second.log.check() == 1


def command(*words, program=BUILD + "/lepton", **environment):
    """A command of ours to its end: its exit code and everything that it says."""
    p = subprocess.run([program, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60 * SLOW,
                       env=dict(os.environ, **environment))
    return p.returncode, p.stdout


def store_one(c, worker, request):
    """Runs one idempotent request to its end."""
    client = Client(c.client())
    generate(client, request, max_tokens=2)
    worker.serve(worker.expect("assign"), 2)
    client.finish()
    client.peer.close()


@with_options(store="@/state.db")
def test_backup_while_it_runs(c):
    """a backup taken under load holds all that was acknowledged before, and is put back in its place"""
    c.mock()
    load = c.lepton("load", "--rate", 60 / SLOW, "--requests", 240, "--output-tokens", 20, "--prompt-tokens", 20)
    c.until(lambda: c.status().completed_total > 60, "answers")
    before = {r for r, in rows(c, "SELECT request FROM answers")}
    code, says = command("backup", "--store", c.path("state.db"), c.path("backup.db"))
    assert code == 0 and "checked" in says, says
    code, again = command("backup", "--store", c.path("state.db"), c.path("backup.db"))
    assert code == 1 and "is there already" in again, again
    assert oct(os.stat(c.path("backup.db")).st_mode & 0o777) == "0o600"
    db = sqlite3.connect(c.path("backup.db"))
    held = {r for r, in db.execute("SELECT request FROM answers")}
    db.close()
    out, err = load.communicate(timeout=60 * SLOW)
    assert load.returncode == 0, err
    after = {r for r, in rows(c, "SELECT request FROM answers")}
    assert before <= held < after and len(after) == 240, (len(before), len(held), len(after))
    epoch = c.group("g0")["epoch"]

    code, says = command("restore", "--store", c.path("state.db"), c.path("backup.db"))
    assert code == 1 and "in use" in says, says  # the coordinator runs
    kill(c.process)
    code, says = command("restore", "--store", c.path("state.db"), c.path("backup.db"))
    assert code == 0, says
    aside = says.split("what was there is ")[1].strip()
    c.launch()
    assert {r for r, in rows(c, "SELECT request FROM answers")} == held
    db = sqlite3.connect(aside)  # kept, with what the log held
    assert {r for r, in db.execute("SELECT request FROM answers")} == after
    db.close()
    assert c.worker().join().epoch > max(epoch, 1000000)


@with_options(store="@/state.db")
def test_restore_over_damage(c):
    """a damaged store is replaced by a backup and kept aside; a damaged backup is refused, and so is what is none"""
    worker = c.worker().join()
    store_one(c, worker, "q")
    assert command("backup", "--store", c.path("state.db"), c.path("backup.db"))[0] == 0
    assert c.stop() == 0  # its log is written back, so that the damage is in the one copy that there is
    with open(c.path("state.db"), "r+b") as f:
        f.seek(4096)
        f.write(b"\x5a" * 512)
    assert start_refused(c)[0] == 1
    code, says = command("backup", "--store", c.path("state.db"), c.path("other.db"))
    assert code == 1 and "damaged" in says and not os.path.exists(c.path("other.db")), says
    whole = open(c.path("backup.db"), "rb").read()
    for wrong in (b"", b"SQLite? no", whole[:len(whole) // 2], whole[:4096] + b"\x5a" * 512 + whole[4608:]):
        with open(c.path("wrong.db"), "wb") as f:
            f.write(wrong)
        code, says = command("restore", "--store", c.path("state.db"), c.path("wrong.db"))
        assert code == 1 and "wrong.db" in says, (len(wrong), code, says)
    assert start_refused(c)[0] == 1  # nothing was put anywhere
    code, says = command("restore", "--store", c.path("state.db"), c.path("backup.db"))
    assert code == 0 and "old-" in says, says
    c.launch()
    client = Client(c.client())
    generate(client, max_tokens=2)
    client.finish()
    assert client.log.check() == 1 and c.status().accepted_total == 0


@with_options(store="@/state.db")
def test_interrupted_restore(c):
    """kill -9 of a restore at each step: no coordinator starts on half of it, and the next restore ends it"""
    worker = c.worker().join()
    store_one(c, worker, "q1")
    assert command("backup", "--store", c.path("state.db"), c.path("backup.db"))[0] == 0
    for point in ("restore.log", "restore.aside", "restore.done"):
        store_one(c, worker, "late-" + point)
        kill(c.process)
        words = ("restore", "--store", c.path("state.db"), c.path("backup.db"))
        assert command(*words, program=BUILD + "/tests/faults/lepton", LEPTON_FAILPOINT=point)[0] == -9, point
        code, says = start_refused(c)
        assert code == 1 and "run it again" in says, (point, code, says)
        code, says = command(*words)
        assert code == 0, says
        aside = says.split("what was there is ")[1].strip()
        db = sqlite3.connect(aside)
        assert ("late-" + point,) in db.execute("SELECT request FROM answers").fetchall(), point
        db.close()
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(aside + suffix):
                os.unlink(aside + suffix)
        c.launch()
        assert rows(c, "SELECT request FROM answers") == [("q1",)], point
        worker = c.worker().join()


if __name__ == "__main__":
    sys.exit(main(globals()))
