#!/usr/bin/python3
"""The same request again: while it runs, after it is over, at once from many connections, and behind a connection or a
coordinator that was lost (rows 2, 30 and 31 of the faults to survive). Mock groups and real clients."""
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from faults import Client, main  # noqa: E402


def generate(client, request="q", **fields):
    client.generate(request, idempotent=True, **fields)


def test_concurrent_duplicates(c):
    """eight connections that ask for the same under one id get one execution, each of them all of it (row 30)"""
    c.mock()
    clients = [Client(c.client()) for _ in range(8)]
    for client in clients:
        generate(client, max_tokens=40)
    for client in clients:
        client.finish()
        assert client.log.check() == 1
    assert len({tuple(client.log.ids("q")) for client in clients}) == 1
    assert len({client.log.text("q") for client in clients}) == 1 and len(clients[0].log.text("q")) == 40
    status = c.status()
    assert status.accepted_total == 1 and status.groups[0]["tokens_generated"] <= 41, status


def test_joins_in_mid_stream(c):
    """a connection that joins in mid-stream gets it from its beginning; one that leaves takes nothing with it (row 30)"""
    c.mock()
    first, second = Client(c.client()), Client(c.client())
    generate(first, max_tokens=100)
    first.pump(lambda: len(first.log.ids("q")) >= 20, "tokens")
    generate(second, max_tokens=100)
    second.pump(lambda: len(second.log.ids("q")) >= 10, "tokens from the beginning")
    first.peer.close()
    second.finish()
    assert second.log.check() == 1 and len(second.log.ids("q")) == 100
    assert second.log.ids("q")[:20] == first.log.ids("q")[:20]
    assert c.status().cancelled_total == 0


def test_replay(c):
    """what is complete is replayed to who asks again, without a group; what asks for something else is new (row 30)"""
    worker = c.worker().join()
    first = Client(c.client())
    generate(first, max_tokens=3)
    worker.serve(worker.expect("assign"), 3)
    first.finish()
    again = Client(c.client())
    generate(again, max_tokens=3)
    again.finish()
    assert again.log.check(dict(q=first.log.ids("q"))) == 1 and again.log.text("q") == first.log.text("q")
    assert worker.receive(0.2) is None
    other = Client(c.client("other"))  # another key: another request
    generate(other, max_tokens=3)
    worker.serve(worker.expect("assign"), 3)
    other.finish()
    changed = Client(c.client())
    generate(changed, max_tokens=2)
    worker.serve(worker.expect("assign"), 2)
    changed.finish()
    assert len(changed.log.ids("q")) == 2


def test_conflict(c):
    """one id for two live requests is refused with 409, and harms neither"""
    worker = c.worker().join()
    first, second = Client(c.client()), Client(c.client())
    generate(first, max_tokens=3)
    assign = worker.expect("assign")
    generate(second, max_tokens=4)
    second.finish()
    assert second.log.error("q").code == 409 and "something else" in second.log.error("q").message
    worker.serve(assign, 3)
    first.finish()
    assert first.log.check() == 1


def test_failure_is_tried_again(c):
    """what failed is not replayed: the same id again is tried anew"""
    worker = c.worker().join()
    client = Client(c.client())
    generate(client, max_tokens=3)
    assign = worker.expect("assign")
    worker.send("error", group="g0", epoch=worker.epoch, request=assign.request, code=500, message="NaN")
    client.finish()
    assert client.log.error("q").code == 500
    again = Client(c.client())
    generate(again, max_tokens=3)
    worker.serve(worker.expect("assign"), 3)
    again.finish()
    assert again.log.check() == 1


def test_revoked_key(c):
    """a key that is revoked in mid-stream: its stream ends as it would, new calls are refused (row 31)"""
    import os
    c.mock()
    client = Client(c.client())
    generate(client, max_tokens=100)
    client.pump(lambda: len(client.log.ids("q")) >= 10, "tokens")
    os.unlink(c.path("authorized/client.pub"))
    late = Client(c.client())
    generate(late, max_tokens=100)
    client.finish()
    assert client.log.check() == 1 and len(client.log.ids("q")) == 100
    assert late.peer.receive(0.5) is None


if __name__ == "__main__":
    sys.exit(main(globals()))
