#!/usr/bin/python3
"""The audit log of a coordinator: what is in it, that it outlives everything, and that a change of it shows (rows 15 and 31 of
the faults to survive: refused and audited)."""
import os
import sqlite3
import sys
import time

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from faults import SLOW, Client, Peer, kill, main, note, with_options  # noqa: E402
from test_resume import generate, restart  # noqa: E402
from test_store import FAILING, POINTS, command  # noqa: E402

SECRET = "nobody may read this"


def audit(c, path="state.db", *words):
    """(exit code, rows as [kind, who, what], everything that was said)."""
    code, says = command("audit", "--store", c.path(path), *words)
    return code, [line.split("\t")[2:] for line in says.splitlines() if line.count("\t") == 4], says


def audited(c, kind, who, part):
    return any(k == kind and w == who and part in what for k, w, what in audit(c)[1])


@with_options(store="@/state.db", admins="client", stall_timeout_ms=500)
def test_what_is_audited(c):
    """refused peers and groups, admins, revoked keys and the coordinator's own life are in the log, no prompt is; the chain is whole"""
    first = c.worker("g0", "g0").join()
    second = c.worker("g0", "g0")
    second.hello()
    assert second.expect("error").code == 409
    thief = c.worker("g1", "g0")
    thief.hello()
    assert thief.expect("error").code == 403
    stranger = Peer(c, c.path("keys/stranger.key"))
    stranger.send("status")
    c.logged("refused")
    assert c.lepton("tune", "prefix_weight=300").wait(20 * SLOW) == 0
    assert c.lepton("tune", "prefix_weight=300", key="other").wait(20 * SLOW) == 1
    assert c.lepton("drain", "g0").wait(20 * SLOW) == 0
    assert c.lepton("undrain", "g0").wait(20 * SLOW) == 0
    client = Client(c.client())
    client.generate("q", prompt=SECRET, max_tokens=2)
    first.serve(first.expect("assign"), 2)
    client.finish()
    want = [("begin", "coordinator", "run 1"), ("refused", "g0", "group g0: 409"), ("refused", "g0", "group g1: 403"),
            ("refused", "unknown peers", "handshakes"), ("tune", "client", "prefix_weight to 300: done"),
            ("tune", "other", "may not tune"), ("drain", "client", "group g0: done"), ("undrain", "client", "group g0: done")]
    for row in want:
        c.until(lambda row=row: audited(c, *row), "%r in the audit log" % (row,))
    restart(c)
    for row in want:
        assert audited(c, *row), row
    assert c.stop() == 0
    assert audited(c, "drain", "coordinator", "told to end") and audited(c, "begin", "coordinator", "run 2")
    assert audit(c)[0] == 0
    for name in os.listdir(c.directory):
        if name.startswith("state.db"):
            with open(c.path(name), "rb") as f:
                assert SECRET.encode() not in f.read(), name


@with_options(store="@/state.db")
def test_changes_show(c):
    """a row that was changed, taken out or added by hand shows; the database itself refuses to do so"""
    for run in range(1, 5):
        c.until(lambda run=run: audited(c, "begin", "coordinator", "run %d" % run), "its first line in the audit log")
        restart(c)
    assert c.stop() == 0
    code, rows, _ = audit(c)
    assert code == 0 and len(rows) > 5
    number, last = audit(c, "state.db", "--last")[2].split()
    assert int(number) == len(rows) and len(last) == 64
    whole = open(c.path("state.db"), "rb").read()
    db = sqlite3.connect(c.path("state.db"))
    for sql in ("UPDATE audit SET who = 'nobody'", "DELETE FROM audit WHERE seq = 3"):
        try:
            db.execute(sql)
            assert False, sql
        except sqlite3.IntegrityError as refused:
            assert "append-only" in str(refused)
    db.close()
    for sql, row in (("UPDATE audit SET what = 'nothing' WHERE seq = 3", 3), ("UPDATE audit SET at_ms = at_ms + 1 WHERE seq = 2", 2),
                     ("DELETE FROM audit WHERE seq = 3", 4),
                     ("INSERT INTO audit SELECT max(seq) + 1, 5, 'tune', 'eve', 'x', zeroblob(32) FROM audit", len(rows) + 1)):
        with open(c.path("changed.db"), "wb") as f:
            f.write(whole)
        db = sqlite3.connect(c.path("changed.db"))
        db.executescript("DROP TRIGGER audit_stays; DROP TRIGGER audit_is_kept; " + sql)
        db.close()
        code, _, says = audit(c, "changed.db")
        assert code == 1 and "row %d does not follow" % row in says, (sql, says[-200:])


@with_options(store="@/state.db", audit_rows=1000)
def test_bounded(c):
    """the oldest rows go, and what is left is still a chain"""
    c.until(lambda: audit(c)[1], "the row of its start")
    kill(c.process)
    with_many = sqlite3.connect(c.path("state.db"))  # as if 2,000 runs had been: a chain that only we can make
    import hashlib
    (seq, before), = with_many.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
    for seq in range(seq + 1, seq + 2001):
        h = hashlib.blake2b(before, digest_size=32)
        for number in (seq, 1000):
            h.update(number.to_bytes(8, "little"))
        for text in (b"begin", b"coordinator", b"run"):
            h.update(len(text).to_bytes(8, "little") + text)
        before = h.digest()
        with_many.execute("INSERT INTO audit VALUES(?, 1000, 'begin', 'coordinator', 'run', ?)", (seq, before))
    with_many.commit()
    with_many.close()
    assert audit(c)[0] == 0 and len(audit(c)[1]) > 2000
    c.launch()
    client = Client(c.client())
    worker = c.worker().join()
    generate(client, max_tokens=1)
    worker.serve(worker.expect("assign"), 1)
    client.finish()
    c.until(lambda: len(audit(c)[1]) < 1200, "the oldest rows to go")
    assert audit(c)[0] == 0 and len(audit(c)[1]) >= 1000


def until_killed(c, point, at, words):
    """Asks for one thing after the other, 32 under way, until kill -9 hits; how many were answered, and with what."""
    replies, sent = [], 0
    c.command[0], c.environment["LEPTON_FAILPOINT"] = FAILING, "%s:%d" % (point, at)
    restart(c)
    del c.environment["LEPTON_FAILPOINT"]
    admin, worker = c.client(), c.worker("g0", "g0", incarnation=7)
    worker.hello()
    start = time.monotonic()
    while c.process.poll() is None:
        assert time.monotonic() < start + 20 * SLOW, "%s:%d is never reached" % (point, at)
        while sent < min(len(replies) + 32, len(words)):
            admin.send(words[sent][0], **words[sent][1])
            sent += 1
        reply = admin.receive(0.02)
        replies += [reply] if reply else []
    assert c.process.wait(10 * SLOW) == -9, point
    while reply := admin.receive(0.1):  # what was on its way
        replies.append(reply)
    admin.close()
    worker.close()
    c.launch()
    return replies


@with_options(store="@/state.db", admins="client")
def test_answered_is_audited(c):
    """a tune or drain that was answered is in force and in the audit log after kill -9 at any commit point"""
    answers = 0
    for point in POINTS[:-1]:  # the last is about answers to generate
        for at in (3, 6, 12, 24):
            words = [("tune", dict(name="prefix_weight", value=n)) if n % 2 else
                     ("hold", dict(group="g0", release=n % 4 == 0)) for n in range(2000)]
            before = len(audit(c)[1])
            replies, tuned = until_killed(c, point, at, words), None
            code, rows, _ = audit(c)
            rows = rows[before:]
            assert code == 0
            for (kind, fields), reply in zip(words, replies):
                assert reply.name == "status_reply" or kind == "hold" and reply.code == 404, reply
                if kind == "tune":
                    tuned = fields["value"]
                    assert ["tune", "client", "prefix_weight to %d: done" % tuned] in rows, (point, at, tuned, rows)
            held = sum(reply.name == "status_reply" for (kind, _), reply in zip(words, replies) if kind == "hold")
            done = sum(what == "group g0: done" for _, _, what in rows)
            assert done >= held, (point, at, done, held)
            value = next(s for s in c.status().settings if s["name"] == "prefix_weight")["value"]
            assert tuned is None or value >= tuned, (point, at, value, tuned)
            answers += len(replies)
    assert answers > 100, answers
    note("%d answers to tune and drain before %d kills: each in the audit log" % (answers, 4 * len(POINTS[:-1])))


@with_options(store="@/state.db", admins="client")
def test_too_many_wait(c):
    """what could not be waited for is not begun: the 65th that waits for the disk is refused with 503, the others are answered"""
    db = sqlite3.connect(c.path("state.db"), isolation_level=None)
    db.execute("BEGIN IMMEDIATE")  # the writer waits for this
    admin = c.client()
    for n in range(65):
        admin.send("tune", name="prefix_weight", value=200 + n)
    refused = admin.expect("error")
    assert refused.code == 503 and "wait for the disk" in refused.message, refused
    assert admin.receive(0.1) is None
    db.execute("ROLLBACK")
    for n in range(64):
        reply = admin.expect("status_reply")
    assert next(s for s in reply.settings if s["name"] == "prefix_weight")["value"] == 263
    assert audited(c, "tune", "client", "prefix_weight to 263: done") and not audited(c, "tune", "client", "to 264: done")


if __name__ == "__main__":
    sys.exit(main(globals()))
