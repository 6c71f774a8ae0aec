#!/usr/bin/python3
"""What a coordinator remembers of its earlier runs beside answers: requests that killed groups, groups that die too often or
are held, and settings that were changed (rows 2 and 29 of the faults to survive). Scripted groups."""
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from faults import Client, kill, main, with_options  # noqa: E402
from test_resume import generate, restart  # noqa: E402
from test_store import rows  # noqa: E402

POISON = dict(prompt="the one that kills", max_tokens=3)


def die(c, worker):
    """The group's process ends; the coordinator sees its connection go."""
    worker.close()
    c.until(lambda: c.group(worker.group)["state"] == "lost", "the end of " + worker.group)


def back(c, worker, ended="SIGSEGV"):
    """Its supervisor's next job."""
    return c.worker(worker.group, worker.group).join(ended=ended)


@with_options(store="@/state.db", suspect_wait_ms=60000)
def test_poison_before_and_after(c):
    """a request that killed two groups before the coordinator died is tried alone by the next one, then refused for good"""
    live, dead = c.worker("g0", "g0").join(), None
    client = Client(c.client())
    generate(client, "p", **POISON)
    live.expect("assign")
    dead = c.worker("g1", "g1").join()
    die(c, live)  # the first
    dead.expect("assign")
    live = back(c, live)
    die(c, dead)  # the second; of what is not known yet
    c.logged("is held until it is known")
    c.until(lambda: rows(c, "SELECT count(*) FROM groups WHERE lost") == [(1,)] and
            rows(c, "SELECT length(losses) FROM suspects")[0][0] > 30, "that to be on the disk")
    live.close()
    restart(c)
    live = c.worker(live.group, live.group, incarnation=live.incarnation).join(epoch=live.epoch)  # it lived on
    other = Client(c.client("other"))
    other.generate("innocent", max_tokens=2, prompt="hello")
    first = live.expect("assign")
    client = Client(c.client())
    generate(client, "p", **POISON)  # its client resumes; nothing was delivered
    assert live.receive(0.3) is None  # the other's group is not risked: it is held
    c.logged("groups died under the same before")
    dead = back(c, dead)  # now it is known what the second died of
    c.logged("it is tried alone")
    dead.expect("assign")
    live.serve(first, 2)
    other.finish()
    die(c, dead)
    dead = back(c, dead)
    client.finish()
    error = client.log.error("p")
    assert error.code == 500 and "3 groups died" in error.message and "(alone)" in error.message, error
    c.until(lambda: "3 groups" in rows(c, "SELECT refused FROM suspects")[0][0], "that to be on the disk")
    for _ in range(2):  # and at the door from then on, in this run and in the next
        again = Client(c.client())
        again.generate("q", **POISON)  # any id, idempotent or not
        again.finish()
        assert again.log.error("q").code == 500 and "refused before" in again.log.error("q").message
        assert again.log.kinds("q") == ["error"]
        restart(c)
    theirs = Client(c.client("other"))
    theirs.generate("r", **POISON)  # another key's is another matter
    theirs.pump(lambda: theirs.log.kinds("r") == ["accepted"], "a place in the queue")


@with_options(store="@/state.db")
def test_cleared(c):
    """a request that gets on is suspected of nothing, and stays so after a restart"""
    worker = c.worker("g0", "g0").join()
    client = Client(c.client())
    generate(client, "p", **POISON)
    worker.expect("assign")
    die(c, worker)
    worker = back(c, worker)
    assert len(rows(c, "SELECT owner FROM suspects")) == 1
    worker.serve(worker.expect("assign"), 3)
    client.finish()
    c.until(lambda: not rows(c, "SELECT owner FROM suspects"), "that to be on the disk")
    restart(c)
    c.logged("1 groups and 0 suspects are known")
    assert client.log.check() == 1


@with_options(store="@/state.db", suspect_ms=0)
def test_not_remembered(c):
    """with suspect_ms = 0 nothing is remembered of requests under which groups died"""
    worker = c.worker("g0", "g0").join()
    client = Client(c.client())
    generate(client, "p", **POISON)
    worker.expect("assign")
    die(c, worker)
    restart(c)
    c.logged("1 groups and 0 suspects are known")


@with_options(store="@/state.db")
def test_benched_group(c):
    """a group that was lost again and again rests behind a restart as well, one that lived through it does not"""
    for _ in range(3):
        worker = c.worker("g0", "g0").join()
        die(c, worker)
    steady = c.worker("g1", "g1").join()
    c.until(lambda: rows(c, "SELECT count(*), max(lost_soon) FROM groups") == [(2, 3)], "that to be on the disk")
    restart(c)
    worker = c.worker("g0", "g0").join(ended="SIGSEGV")
    assert c.group("g0")["state"] == "resting", c.group("g0")
    steady = c.worker("g1", "g1", incarnation=steady.incarnation).join(epoch=steady.epoch)
    assert c.group("g1")["state"] == "ready"
    c.until(lambda: c.group("g0")["state"] == "ready", "the end of its rest")
    c.until(lambda: rows(c, "SELECT lost FROM groups WHERE name = 'g0'") == [(0,)], "that to be on the disk")
    kill(c.process)  # it dies while nobody looks: that counts as well
    c.launch()
    assert not c.group("g0")  # nothing is shown before it is heard of
    worker = c.worker("g0", "g0").join(ended="SIGSEGV")
    assert c.group("g0")["state"] == "resting" and worker


@with_options(store="@/state.db", admins="client")
def test_held_group(c):
    """a group that lepton drain holds stays held behind a restart, until lepton undrain"""
    worker = c.worker("g0", "g0").join()
    out = c.lepton("drain", "g0")
    assert out.wait(20) == 0, out.communicate()
    restart(c)
    worker = c.worker("g0", "g0", incarnation=worker.incarnation).join(epoch=worker.epoch)
    assert c.group("g0")["state"] == "held"
    out = c.lepton("undrain", "g0")
    assert out.wait(20) == 0, out.communicate()
    restart(c)
    worker = c.worker("g0", "g0", incarnation=worker.incarnation).join(epoch=worker.epoch)
    assert c.group("g0")["state"] == "ready"


def setting(c, name):
    return next(s for s in c.status().settings if s["name"] == name)


@with_options(store="@/state.db", admins="client")
def test_tuned_settings(c):
    """what lepton tune set is durable when it says so, and gives way to a configuration that was changed later"""
    out = c.lepton("tune", "prefix_weight=400")
    assert out.wait(20) == 0, out.communicate()
    restart(c)
    assert setting(c, "prefix_weight")["value"] == 400 and not setting(c, "prefix_weight").get("automatic")
    assert c.lepton("tune", "prefix_weight=auto").wait(20) == 0
    restart(c)
    assert setting(c, "prefix_weight").get("automatic")
    assert c.lepton("tune", "prefix_weight=300").wait(20) == 0
    c.command += ["--prefix-weight", "120"]
    restart(c)
    assert setting(c, "prefix_weight")["value"] == 120
    c.command = c.command[:-2]
    restart(c)
    assert setting(c, "prefix_weight").get("automatic")  # forgotten, not asleep


if __name__ == "__main__":
    sys.exit(main(globals()))
