#!/usr/bin/python3
"""Words that are valid, at any moment, with any number in them (rows 16 to 19): scripted groups and clients say them by chance,
connections come and go, and the coordinator must live, end all that it accepted, and stay in order under the sanitizers.

ANY_S and ANY_SEED say for how long and with which dice; what one seed does is not the same twice, for the peers race."""
import os
import random
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from faults import SLOW, main, note, with_options  # noqa: E402

SECONDS = float(os.environ.get("ANY_S", 5 * SLOW))
SEED = int(os.environ.get("ANY_SEED", 1))
MOST = 2 ** 63 - 1
ENDINGS = ("", "SIGSEGV", "SIGKILL", "out of memory")


class Group:
    def __init__(self, c, dice, name):
        self.c, self.dice, self.key, self.lives = c, dice, name, 0
        self.connect()

    def connect(self):
        """Under a new name: who comes back again and again would rest."""
        self.lives += 1
        self.name = "%s-%d" % (self.key, self.lives)
        self.peer, self.epoch, self.sequence, self.held = self.c.worker(self.name, self.key[:2]), 0, 0, {}

    def number(self):
        return self.dice.choice((0, 1, 3, 16, MOST, MOST - 1, MOST // 2))

    def say(self, word, **fields):
        self.peer.send(word, group=self.name, epoch=self.epoch, **fields)

    def hear(self):
        while True:
            m = self.peer.receive(0)
            if not m:
                return
            if m.name == "welcome":
                self.epoch, self.sequence, self.held = m.epoch, 0, {}
            elif m.name == "assign":
                had = m.get("delivered", [])
                self.held[m.request] = dict(n=m.get("n", 1), most=m.max_tokens, at={d["choice"]: len(d.get("ids", b"")) // 4 for d in had},
                                            over={d["choice"] for d in had if d.get("ended")}, cancelled=False)
            elif m.name == "cancel" and m.request in self.held:
                self.held[m.request]["cancelled"] = True
            elif m.name == "error" and m.code == 409 and not m.get("request"):
                self.epoch, self.held = 0, {}

    def turn(self):
        self.hear()
        chance = self.dice.random()
        if not self.epoch:
            if chance < 0.02:
                self.peer.incarnation += self.dice.choice((0, 0, 0, 1))
                self.peer.hello(sequences=self.dice.choice((1, 2, 4)), kernels=self.dice.choice(("portable", "other")),
                                pages=self.number(), page_tokens=16, ended=self.dice.choice(ENDINGS), load_ms=self.number())
        elif chance < 0.15:
            self.beat()
        elif chance < 0.152:
            self.say("bye")
        elif chance < 0.155:
            self.peer.close()
            self.connect()
        elif self.held:
            self.serve(self.dice.choice(list(self.held)))

    def beat(self):
        self.sequence += 1
        n = self.number
        self.say("heartbeat", sequence=self.sequence, steps=n(), running=n(), waiting=n(), pages_used=n(), tokens_generated=n(),
                 round_trip_us=n(), times=[dict(busy_us=n(), bubble_us=n(), wait_us=n(), processor_us=n()) for _ in range(self.dice.randrange(4))],
                 draining=self.dice.random() < 0.01, stuck_ms=self.dice.choice([0] * 200 + [10 ** 7]), stuck="rank 0")

    def serve(self, request):
        q, chance = self.held[request], self.dice.random()
        choice = self.dice.choice([c for c in range(q["n"]) if c not in q["over"]] or [0])
        at = q["at"].get(choice, 0)
        if self.dice.random() < 0.02:  # not the one that is due
            at = self.dice.choice((0, at + 1, 2 ** 32 - 3))
        if at >= q["most"] and self.dice.random() < 0.95:  # it has all it may have
            chance = 0.7
        if chance < 0.35:
            self.say("token", request=request, choice=choice, index=at, id=self.dice.choice((7, 2 ** 32 - 1)), text="a")
            q["at"][choice] = at + 1
        elif chance < 0.6:
            self.say("tokens", items=[[request, at, 5, "t", choice], [request, at + 1, 6, "u", choice]])
            q["at"][choice] = at + 2
        elif chance < 0.82 or q["cancelled"]:
            self.say("done", request=request, choice=choice, finish_reason="cancelled" if q["cancelled"] else self.dice.choice(("stop", "length")),
                     prompt_tokens=self.number(), completion_tokens=at if self.dice.random() < 0.9 else self.number(),
                     cached_tokens=self.number(), prefill_us=self.number(), decode_us=self.number(), queue_us=self.number())
            q["over"].add(choice)
            if len(q["over"]) >= q["n"]:
                del self.held[request]
        elif chance < 0.86:
            self.say("error", request=request, code=self.dice.choice((500, 503, 413, 429, 409)), message="m")
            del self.held[request]


class Caller:
    def __init__(self, c, dice, key):
        self.c, self.dice, self.key, self.peer, self.had = c, dice, key, c.client(key), {}

    def hear(self):
        while True:
            m = self.peer.receive(0)
            if not m:
                return
            request = m.get("request")
            if m.name == "accepted":
                self.had.setdefault(request, dict(ids={}, ended=set(), numeric=0))["seed"] = m.seed
            elif m.name == "token" and request in self.had:
                self.had[request]["ids"].setdefault(m.get("choice", 0), []).append(m.id)
                self.had[request]["numeric"] = self.had[request]["numeric"] or m.get("numeric", 0)
            elif m.name == "done" and request in self.had:
                self.had[request]["ended"].add(m.get("choice", 0))
            elif m.name == "error":
                self.had.pop(request, None)

    def ask(self, request):
        fields = dict(request=request, prompt="p%d" % self.dice.randrange(10 ** 6), max_tokens=self.dice.choice((1, 4, 16)),
                      n=self.dice.choice((1, 1, 2, 3)), idempotent=self.dice.random() < 0.6,
                      credit=self.dice.choice((0, 0, 1, 5)), timeout_ms=self.dice.choice((0, 0, 50, 86400000)))
        fields["class"] = self.dice.choice(("realtime", "interactive", "batch"))
        had = self.had.pop(request, None)
        if had and self.dice.random() < 0.5:  # it is brought back
            begun = [n for n in range(fields["n"]) if n in had["ids"] or n in had["ended"]]
            fields.update(seed=had["seed"], numeric=had["numeric"],
                          delivered=[dict(choice=n, ended=n in had["ended"],
                                          ids=struct.pack("<%dI" % len(had["ids"].get(n, [])), *had["ids"].get(n, []))) for n in begun])
        self.peer.send("generate", **fields)

    def turn(self):
        if self.dice.random() < 0.9:
            self.hear()
        chance, request = self.dice.random(), "q%d" % self.dice.randrange(12)
        if chance < 0.15:
            self.ask(request)
        elif chance < 0.26:
            self.peer.send("cancel", request=request)
        elif chance < 0.40:
            self.peer.send("credit", request=request, tokens=self.dice.choice((1, 3, 2 ** 20)))
        elif chance < 0.43:
            self.peer.send("status", verbose=self.dice.random() < 0.5)
        elif chance < 0.45:
            self.peer.send("hold", group=self.dice.choice(("g0-1", "g1-1", "g0-2", "none")), release=self.dice.random() < 0.7)
        elif chance < 0.46:
            self.peer.send("tune", name="prefix_weight", value=self.dice.randrange(20000), automatic=self.dice.random() < 0.5)
        elif chance < 0.462:
            self.peer.close()
            self.peer = self.c.client(self.key)


@with_options(admins="client", log_level="warn", lease_ms=500, group_wait_ms=300, suspect_wait_ms=50, suspect_ms=400, stall_timeout_ms=300,
              queue_requests=6, live_requests=24, max_groups=5, store="@/state.db")
def test_any_moment(c):
    """valid words at any moment, with any numbers: the coordinator lives, and whatever it accepted ends"""
    dice = random.Random(SEED)
    groups = [Group(c, dice, name) for name in ("g0", "g1", "g0-b", "g1-b")]
    callers = [Caller(c, dice, key) for key in ("client", "client", "other")]
    end, turns = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        for one in groups + callers:
            if dice.random() < 0.6:
                one.turn()
        turns += 1
        time.sleep(0.001)
        assert turns % 50 or c.process.poll() is None, "the coordinator ended: " + c.log()[-2000:]
    for group in groups:
        group.peer.close()

    def over():
        for caller in callers:
            caller.hear()
        return c.status().live == 0
    c.until(over, "everything to be over")
    s = c.status()
    assert s.accepted_total == s.completed_total + s.failed_total + s.cancelled_total, s
    assert s.accepted_total > 100 and s.completed_total > 3 and s.failed_total > 3 and s.cancelled_total > 3, s
    note("%d requests, %d complete, %d failed, %d cancelled, %d refused"
         % (s.accepted_total, s.completed_total, s.failed_total, s.cancelled_total, s.rejected_total))


if __name__ == "__main__":
    sys.exit(main(globals()))
