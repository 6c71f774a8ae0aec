#!/usr/bin/python3
"""lepton gateway as HTTP clients meet it: routes, fields, answers, errors, keys, limits, and bytes that are no good HTTP. The
clients are Python's own and curl; behind it are a coordinator and mock groups, and once a real model."""
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../faults"))
from faults import BUILD, SLOW, Skip, main, within  # noqa: E402
from gateway_harness import Gateway, bare  # noqa: E402
from local_cluster import LocalCluster  # noqa: E402


def error(answer, status, code=None, param=None, words=""):
    """The answer is this error, in OpenAI's form."""
    assert answer.status == status, (answer.status, answer.text)
    assert answer.getheader("Content-Type") == "application/json", answer.headers
    e = json.loads(answer.text)["error"]
    assert set(e) == {"message", "type", "param", "code"} and words in e["message"], e
    assert (code is None or e["code"] == code) and (param is None or e["param"] == param), e
    return e


def test_answers(c):
    """completions and conversations, whole and streamed, with choices, usage and log-probabilities, say the same"""
    c.mock()
    g = Gateway(c, chat_template="chatml").ready()
    ask = dict(prompt="Once upon", seed=3, max_tokens=12, n=2)
    whole = g.complete(**ask)
    assert whole["object"] == "text_completion" and whole["model"] == "mock" and whole["id"].startswith("cmpl-")
    assert [x["finish_reason"] for x in whole["choices"]] == ["length"] * 2 and len(whole["choices"][0]["text"]) == 12
    usage = whole["usage"]
    assert usage["completion_tokens"] == 24 and usage["total_tokens"] == 24 + usage["prompt_tokens"], usage
    s = g.stream(**ask).read()
    assert s.whole() and [s.text(i) for i in range(2)] == [x["text"] for x in whole["choices"]]
    assert all("usage" not in e for e in s.objects()) and s.answer.getheader("Content-Type") == "text/event-stream"
    s = g.stream(stream_options=dict(include_usage=True), **ask).read()
    assert s.objects()[-1]["choices"] == [] and s.objects()[-1]["usage"]["completion_tokens"] == 24
    assert all(e["usage"] is None for e in s.objects()[:-1])
    talk = dict(messages=[dict(role="user", content="Hello")], seed=3, max_tokens=12, logprobs=True, top_logprobs=2)
    answer = g.post("/v1/chat/completions", talk)
    chat = json.loads(answer.text)
    message = chat["choices"][0]["message"]
    assert chat["object"] == "chat.completion" and message["role"] == "assistant" and len(message["content"]) == 12
    entries = chat["choices"][0]["logprobs"]["content"]
    assert "".join(e["token"] for e in entries) == message["content"] and entries[0]["bytes"] == list(entries[0]["token"].encode())
    s = g.stream("/v1/chat/completions", **talk).read()
    assert s.whole() and s.text() == message["content"] and s.choices()[0]["delta"]["role"] == "assistant"
    assert [e for ch in s.choices() if ch["logprobs"] for e in ch["logprobs"]["content"]] == entries
    first = g.complete(seed=3, max_tokens=12)["choices"][0]["text"]
    stopped = g.complete(seed=3, max_tokens=12, stop=first[4])
    assert stopped["choices"][0]["text"] == first[:first.index(first[4])] and stopped["choices"][0]["finish_reason"] == "stop"


def test_names_the_model(c):
    """who names no model is told which it was, also where the group came after the question"""
    g = Gateway(c)  # it has heard of no group when it is asked
    ask = dict(prompt="Once", seed=1, max_tokens=3, request_id="early")
    early = [g.stream(prompt="x", max_tokens=2), g.stream(**ask)]
    c.mock()
    for s in early:
        s.read()
        assert s.whole() and all(e["model"] == "mock" for e in s.objects()), s.objects()
    again = g.post("/v1/completions", dict(ask, model=""))
    assert json.loads(again.text)["model"] == "mock", again.text
    assert g.complete(prompt="x", max_tokens=1)["model"] == "mock"


def test_routes(c):
    """each route, its methods, and what is none; ids are echoed; what was ignored is listed"""
    c.mock()
    g = Gateway(c, chat_template=["other=chatml"]).ready()
    assert json.loads(g.get("/health").text) == {"status": "ok"} and json.loads(g.get("/ready").text)["groups"] == 1
    assert json.loads(g.get("/version").text)["version"]
    models = json.loads(g.get("/v1/models").text)
    assert models["object"] == "list" and [m["id"] for m in models["data"]] == ["mock"]
    assert json.loads(g.get("/v1/models/mock").text) == models["data"][0] and models["data"][0]["max_model_len"] > 0
    error(g.get("/v1/models/none"), 404, "model_not_found", "model")
    error(g.get("/v1/models/"), 404)
    error(g.get("/v1/nothing"), 404, "not_found")
    error(g.get("/../etc/passwd"), 404)
    answer = g.get("/v1/completions")
    error(answer, 405, "method_not_allowed")
    assert answer.getheader("Allow") == "POST"
    error(g.request("DELETE", "/v1/models"), 405)
    error(g.request("OPTIONS", "/v1/completions"), 405)
    assert g.request("HEAD", "/health").status == 200
    body = dict(prompt="x", max_tokens=1, user="me", metadata={"a": 1})
    answer = g.post("/v1/completions", body, headers={"X-Request-Id": "my-id.7"})
    assert answer.status == 200 and answer.getheader("X-Request-Id") == "my-id.7"
    assert answer.getheader("X-Lepton-Ignored") == "user, metadata"
    answer = g.post("/v1/completions", body, headers={"X-Request-Id": "x" * 200})
    assert answer.getheader("X-Request-Id").startswith("req-")
    error(g.post("/v1/chat/completions", dict(messages=[dict(role="user", content="x")])), 404, words="no chat template")
    error(g.post("/v1/completions", dict(prompt="x", model="none")), 404, "model_not_found", "model")


def test_bad_requests(c):
    """what is malformed, out of range, unknown or too large is refused with its own status, and the next is served"""
    c.mock()
    g = Gateway(c, max_body_bytes=100000, max_bodies_bytes=1048576).ready()
    for body, words in (("{", "line 1"), ('{"prompt":NaN}', "invalid token"), ('{"prompt":"\\ud800"}', "D800"),
                        ('{"prompt":"x","temperature":1e400}', "overflow"), ('{"prompt":"x","n":-1}', "n: expected"),
                        ("[" * 5000, "nesting"), ('{"prompt":"x","frobnicate":1}', "frobnicate: is not known"), ("", "empty"),
                        (b"\xff\xfe", "no JSON"), (json.dumps(dict(prompt="x", n=128, max_tokens=1048576)), "n x max_tokens"),
                        (json.dumps(dict(prompt="x", logit_bias={"1": 1, "01": 2})), "expected a token id")):
        error(g.post("/v1/completions", body), 400, words=words)
    error(g.post("/v1/completions", dict(prompt="x" * 100001)), 413)
    error(g.post("/v1/completions", '{"prompt":"x"}', headers={"Content-Type": "text/plain"}), 415)
    error(g.post("/v1/completions", '{"prompt":"x"}', headers={"Content-Type": "application/jsonp"}), 415)
    assert g.post("/v1/completions", '{"prompt":"x","max_tokens":1}', headers={"Content-Type": "Application/JSON; charset=utf-8"}).status == 200
    assert g.complete(max_tokens=2)["usage"]["completion_tokens"] == 2
    assert g.process.poll() is None


def exchange(g, data, close=False):
    """Bytes to the gateway; the status of each answer that came, and whether the connection was closed."""
    s = g.socket(timeout_s=3)
    got = b""
    try:
        s.sendall(data)
        if close:
            s.shutdown(socket.SHUT_WR)
        while True:
            part = s.recv(65536)
            if not part:
                break
            got += part
    except (TimeoutError, socket.timeout):
        return statuses(got), False
    except OSError:  # it was closed
        pass
    finally:
        s.close()
    return statuses(got), True


def statuses(got):
    return [int(part[:3]) for part in got.decode(errors="replace").split("HTTP/1.1 ")[1:]]


GOOD = '{"prompt":"x","max_tokens":1}'


def test_smuggling(c):
    """requests that two programs in a row could read in two ways are refused, and the connection ends with them"""
    c.mock()
    g = Gateway(c, stall_timeout_ms=2000).ready()
    begin = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunked = "%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)
    cases = {
        "a length and chunks": "Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n%s" % (len(GOOD), chunked),
        "chunks and a length": "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + chunked,
        "two lengths": "Content-Length: %d\r\nContent-Length: 5\r\n\r\n%s" % (len(GOOD), GOOD),
        "the same length twice": "Content-Length: %d\r\nContent-Length: %d\r\n\r\n%s" % (len(GOOD), len(GOOD), GOOD),
        "a list of lengths": "Content-Length: %d, %d\r\n\r\n%s" % (len(GOOD), len(GOOD), GOOD),
        "a signed length": "Content-Length: +%d\r\n\r\n%s" % (len(GOOD), GOOD),
        "a negative length": "Content-Length: -1\r\n\r\n" + GOOD,
        "a hexadecimal length": "Content-Length: 0x1d\r\n\r\n" + GOOD,
        "a length with spaces in it": "Content-Length: 2 9\r\n\r\n" + GOOD,
        "a length that no number holds": "Content-Length: 99999999999999999999999\r\n\r\n" + GOOD,
        "an unknown coding": "Transfer-Encoding: xchunked\r\n\r\n" + chunked,
        "codings": "Transfer-Encoding: gzip, chunked\r\n\r\n" + chunked,
        "two codings": "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + chunked,
        "a chunk without a size": "Transfer-Encoding: chunked\r\n\r\nzz\r\n%s\r\n0\r\n\r\n" % GOOD,
        "a negative chunk": "Transfer-Encoding: chunked\r\n\r\n-1\r\n%s\r\n0\r\n\r\n" % GOOD,
        "a chunk larger than numbers": "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n%s\r\n0\r\n\r\n" % GOOD,
        "a chunk that is longer than it says": "Transfer-Encoding: chunked\r\n\r\n3\r\n%s\r\n0\r\n\r\n" % GOOD,
        "two hosts": "Host: elsewhere\r\nContent-Length: %d\r\n\r\n%s" % (len(GOOD), GOOD),
        "two keys": "Authorization: Bearer a\r\nAuthorization: Bearer b\r\nContent-Length: %d\r\n\r\n%s" % (len(GOOD), GOOD),
    }
    behind = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for name, rest in cases.items():
        got, closed = exchange(g, (begin + rest + behind).encode())
        # libmicrohttpd 0.9.75 writes the head of a refusal of its own twice; nothing behind it is read
        assert got and all(s in (400, 413) for s in got) and closed, (name, got, closed)
    got, _ = exchange(g, (begin + "Transfer-Encoding: chunked\r\n\r\n" + chunked).encode(), True)
    assert got[:1] in ([200], []), got  # whoever shuts its side down at once is gone
    got, _ = exchange(g, (begin + "Transfer-Encoding: chunked\r\n\r\n" + chunked + behind).encode())
    assert got == [200, 200], got  # in order, each its own answer
    for junk in (b"\x00" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01",
                 b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 100000 + b"\r\n\r\n",
                 b"GET /" + b"x" * 100000 + b" HTTP/1.1\r\n\r\n", b"GET /health HTTP/1.1\r\n\r\n",
                 b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 20000 + b"\r\n"):
        got, _ = exchange(g, junk, True)
        assert all(s >= 400 for s in got), (junk[:40], got)
    assert g.complete(max_tokens=2)["usage"]["completion_tokens"] == 2


def test_chunked_body_is_bounded(c):
    """a body in chunks, which tells no length, is refused with 413 when it is too large, and cut when it goes on for ever"""
    c.mock()
    g = Gateway(c, max_body_bytes=100000, max_bodies_bytes=1048576).ready()
    begin = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"2710\r\n" + b"x" * 10000 + b"\r\n"
    got, _ = exchange(g, begin + 11 * chunk + b"0\r\n\r\n")
    assert got == [413], got
    s = g.socket()
    try:
        s.sendall(begin + 1000 * chunk)
        s.settimeout(5 * SLOW)
        while s.recv(65536):
            pass
    except ConnectionError:
        pass
    g.logged("/v1/completions 499")


def test_bodies_are_bounded_together(c):
    """many large bodies at once: those without room are refused with 503 and Retry-After, and memory stays"""
    c.mock()
    g = Gateway(c, max_body_bytes=1000000, max_bodies_bytes=2000000).ready()
    held = [g.socket() for _ in range(4)]
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 900000\r\n\r\n"
    got = []
    for s in held:
        s.sendall(head + b"x" * 1000)
    for s in held:
        s.settimeout(1)
        try:
            got.append(s.recv(400).decode())
        except (TimeoutError, socket.timeout):
            got.append("")
    assert sorted(x[9:12] for x in got) == ["", "", "503", "503"], got
    assert all("Retry-After: 1" in x for x in got if x)
    for s in held:
        s.close()
    c.until(lambda: g.post("/v1/completions", dict(prompt="x" * 900000)).status != 503, "room again")


def test_keys(c):
    """no key, no answer, on every route but /health; a key made is taken at once, one removed is refused at once"""
    c.mock()
    path = c.path("api-keys")

    def new(name):
        made = subprocess.run([BUILD + "/lepton", "gateway", "--api-keys", path, "--new-key", name], text=True, capture_output=True)
        return made.returncode, made.stdout.strip(), made.stderr
    code, alice, _ = new("alice")
    assert code == 0 and alice.startswith("lep-") and alice not in open(path).read() and os.stat(path).st_mode & 0o777 == 0o600
    g = Gateway(c, api_keys=path)
    g.key = alice
    g.ready()
    for how in (dict(), dict(key="lep-" + "A" * 43), dict(key=""), dict(key="alice"), dict(headers={"Authorization": "Basic YTpi"}),
                dict(headers={"Authorization": alice}), dict(key=alice + "x"), dict(key=alice[:-1])):
        for route in ("/v1/models", "/ready", "/version", "/nothing"):
            answer = g.get(route, **how)
            error(answer, 401, "invalid_api_key")
            assert answer.getheader("WWW-Authenticate") == "Bearer"
        error(g.post("/v1/completions", dict(prompt="x"), **how), 401)
    assert g.get("/health").status == 200
    assert g.post("/v1/completions", dict(prompt="x", max_tokens=1), key=alice).status == 200
    assert g.get("/v1/models", headers={"authorization": "bearer " + alice}).status == 200
    assert new("alice")[0] == 1
    bob = new("bob")[1]
    assert g.get("/v1/models", key=bob).status == 200
    s = g.stream(key=alice, max_tokens=100)
    s.read(5)
    lines = [line for line in open(path) if not line.startswith("alice ")]
    with open(path, "w") as f:
        f.writelines(lines)
    error(g.get("/v1/models", key=alice), 401)
    assert s.read().whole() and len(s.text()) == 100, "what a revoked key began runs to its end"
    os.chmod(path, 0o644)
    with open(path, "a") as f:
        f.write("\n")
    error(g.get("/v1/models", key=bob), 401)
    os.chmod(path, 0o600)
    assert g.get("/v1/models", key=bob).status == 200
    assert alice not in g.log() and bob not in g.log() and "key=bob" in g.log()


def test_refuses_to_start(c):
    """options that would open the door, and those that cannot be meant, are refused with what was expected"""
    ask = [BUILD + "/lepton", "gateway", "--endpoint", c.endpoint, "--server-key", c.path("keys/coordinator.pub"), "--key",
           c.path("keys/client.key")]
    with open(c.path("open"), "w") as f:
        f.write("a " + "0" * 64 + "\n")
    os.chmod(c.path("open"), 0o644)
    for words, code, expected in (([], 2, "api_keys: expected"), (["--no-keys", "--listen", "0.0.0.0:0"], 1, "loopback"),
                                  (["--no-keys", "--listen", "[::]:0"], 1, "loopback"), (["--no-keys", "--listen", "8080"], 1, "expected HOST:PORT"),
                                  (["--no-keys", "--listen", "127.0.0.1:70000"], 1, "expected HOST:PORT"),
                                  (["--no-keys", "--api-keys", "x"], 2, "without api_keys"), (["--api-keys", c.path("none")], 1, "No such file"),
                                  (["--api-keys", c.path("open")], 1, "mode 0600"), (["--no-keys", "--chat-template", "/none"], 1, "chat_template"),
                                  (["--new-key", "a"], 2, "new_key: expected api_keys"), (["--no-keys", "--max-bodies-bytes", "1048576"], 2, "at least"),
                                  (["--no-keys", "--listen", "127.0.0.1:%s" % c.endpoint.rsplit(":", 1)[1]], 1, "in use")):
        done = subprocess.run([*ask, *words], text=True, capture_output=True, timeout=20 * SLOW)
        assert done.returncode == code and expected in done.stderr, (words, done.returncode, done.stderr)


def test_hosts(c):
    """without keys a Host of elsewhere is refused: a page in a browser could lead here by another name"""
    c.mock()
    g = Gateway(c).ready()
    for host, status in (("localhost", 200), ("127.0.0.1:%d" % g.port, 200), ("LOCALHOST:1", 200), ("evil.example", 403),
                         ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403), ("", 403)):
        answer = g.get("/v1/models", headers={"Host": host})
        assert answer.status == status, (host, answer.status, answer.text)


def two_people(c):
    """A gateway, and the keys of two who may ask it."""
    path = c.path("api-keys")
    keys = [subprocess.run([BUILD + "/lepton", "gateway", "--api-keys", path, "--new-key", n], text=True, capture_output=True).stdout.strip()
            for n in ("alice", "bob")]
    g = Gateway(c, api_keys=path)
    g.key = keys[0]
    return g.ready(), keys


def test_request_id(c):
    """the same request_id again replays the answer; while it runs it is refused; another key's is another request"""
    c.mock()
    g, keys = two_people(c)
    ask = dict(prompt="x", max_tokens=20, request_id="order 66")
    first = json.loads(g.post("/v1/completions", ask, key=keys[0]).text)
    again = json.loads(g.post("/v1/completions", ask, key=keys[0]).text)
    assert again["choices"] == first["choices"] and again["id"] == first["id"]
    assert c.status().accepted_total == 1
    other = json.loads(g.post("/v1/completions", ask, key=keys[1]).text)
    assert other["id"] != first["id"] and c.status().accepted_total == 2
    long = dict(prompt="x", max_tokens=3000, ignore_eos=True, request_id="long")
    s = g.stream(key=keys[0], **long)
    s.read(3)
    error(g.post("/v1/completions", long, key=keys[0]), 409, param="request_id")
    s.close()


def test_salts(c):
    """what is cached for one key is not found for another, nor for another cache_salt of the same"""
    c.mock()
    g, keys = two_people(c)
    worker, salts = c.worker("worker", key="worker").join(model="seen"), []  # sees what groups are given
    for key, salt in ((keys[0], None), (keys[0], None), (keys[1], None), (keys[0], "s"), (keys[1], "s")):
        body = dict(prompt="x", max_tokens=1, model="seen", **({"cache_salt": salt} if salt else {}))
        t = threading.Thread(target=lambda: g.post("/v1/completions", body, key=key))
        t.start()
        assign = worker.expect("assign")
        salts.append(assign.get("cache_salt"))
        worker.serve(assign, 1)
        t.join()
    assert salts[0] == salts[1] and len(set(salts)) == 4 and all(salts), salts


def test_errors_of_the_coordinator(c):
    """a queue that is full, a deadline that passes, a model that fails: 429 with Retry-After, 408, 500, and events in mid-stream"""
    worker = c.worker().join(sequences=1)
    g = Gateway(c).ready()
    s = g.stream()
    assign = worker.expect("assign")
    worker.token(assign, 0)
    assert s.next()["choices"][0]["text"] == "t0 "
    answer = g.post("/v1/completions", dict(prompt="x", deadline_ms=300))
    error(answer, 408, "deadline_passed") if answer.status == 408 else error(answer, 429)
    worker.send("error", group="g0", epoch=worker.epoch, request=assign.request, code=500, message="the logits are not finite")
    assert s.next()["error"]["code"] == "model_failed" and s.next() is None and not s.cut
    answers = []
    t = threading.Thread(target=lambda: answers.append(g.post("/v1/completions", dict(prompt="x"))))
    t.start()
    assign = worker.expect("assign")
    worker.send("error", group="g0", epoch=worker.epoch, request=assign.request, code=413, message="the prompt has 600 tokens")
    t.join(10 * SLOW)
    error(answers[0], 413, "too_large", words="600 tokens")


def test_full_queue(c):
    """a queue that is full is 429 with Retry-After, at once; what was taken is served"""
    worker = c.worker().join(sequences=1)
    g = Gateway(c).ready()
    streams = [g.stream()]
    assign = worker.expect("assign")
    streams += [g.stream() for _ in range(2)]
    c.until(lambda: c.status().queued == 2, "the queue to fill")
    start = time.monotonic()
    answer = g.post("/v1/completions", dict(prompt="x"))
    took = time.monotonic() - start
    error(answer, 429, "queue_full")
    assert int(answer.getheader("Retry-After")) >= 1 and took < 0.5 * SLOW, took
    worker.serve(assign, 16)
    for _ in range(2):
        worker.serve(worker.expect("assign"), 16)
    assert all(s.read().whole() for s in streams)


test_full_queue.options = dict(queue_requests=2)


def test_readiness(c):
    """/ready follows the groups: no while none is there, yes when one is, no again when it is gone or all drain"""
    g = Gateway(c)
    error(g.get("/ready"), 503, "not_ready", words="")
    within(3, lambda: "no group is ready" in g.get("/ready").text, "the reason")
    group = c.mock()
    within(2, lambda: g.get("/ready").status == 200, "/ready to say yes")
    group.terminate()
    within(5, lambda: g.get("/ready").status == 503, "/ready to say no")
    assert g.get("/health").status == 200


def test_drains(c):
    """SIGTERM lets what runs finish, refuses new connections, and exits with 0"""
    c.mock()
    g = Gateway(c).ready()
    s = g.stream(max_tokens=100)
    s.read(5)
    g.process.terminate()
    g.logged("draining")
    try:
        g.get("/health")
        raise AssertionError("a draining gateway took a connection")
    except ConnectionError:
        pass
    assert s.read().whole() and len(s.text()) == 100
    assert g.process.wait(10 * SLOW) == 0
    g = Gateway(c, drain_timeout_ms=300).ready()
    s = g.stream(max_tokens=5000, ignore_eos=True)
    s.read(5)
    g.process.terminate()
    s.read()
    assert s.error() and "stopping" in s.error()["message"], s.events[-1]
    assert g.process.wait(10 * SLOW) == 0
    c.until(lambda: c.status().live == 0, "its request to be cancelled")


def test_pings(c):
    """a stream that is silent gets comments, so that nobody takes it for dead; a whole answer gets none"""
    worker = c.worker().join()
    g = Gateway(c, ping_ms=200).ready()
    s = g.stream()
    assign = worker.expect("assign")
    assert s.next() == ": ping" and s.next() == ": ping"
    worker.serve(assign, 2)
    s.read()
    assert s.whole() and s.text() == "t0 t1 "
    answers = []
    t = threading.Thread(target=lambda: answers.append(g.post("/v1/completions", dict(prompt="x"))))
    t.start()
    assign = worker.expect("assign")
    time.sleep(0.5)
    worker.serve(assign, 2)
    t.join(10 * SLOW)
    assert json.loads(answers[0].text)["choices"][0]["text"] == "t0 t1 "


def test_many_at_once(c):
    """200 streams at once over one connection to the coordinator: each is whole and as it is alone"""
    c.mock(speed="base_us = %d.0; decode_us = 50.0; prefill_us = 20.0; max_sequences = 256; kv_tokens = 200000;" % (5000 * SLOW))
    g = Gateway(c).ready()
    count = 200 // SLOW
    want = [g.complete(prompt="p%d" % i, seed=i, max_tokens=8)["choices"][0]["text"] for i in range(4)]
    streams = [g.stream(prompt="p%d" % (i % 4), seed=i % 4, max_tokens=8) for i in range(count)]
    threads = [threading.Thread(target=s.read) for s in streams]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30 * SLOW)
    assert all(s.whole() for s in streams) and [s.text() for s in streams] == [want[i % 4] for i in range(count)]


def test_real_model(c):
    """beside `lepton run`, with no option but a port: what the model says over HTTP is what `lepton generate` prints"""
    cluster = LocalCluster(stages=2)
    try:
        where = os.path.join(cluster.home, "gateway")
        g = subprocess.Popen([BUILD + "/lepton", "gateway", "--no-keys", "--listen", "127.0.0.1:0", "--listen-file", where, "--chat-template",
                              "plain"], env=cluster.environment, stderr=subprocess.DEVNULL)
        try:
            c.until(lambda: os.path.exists(where), "the gateway to listen")
            url = "http://" + open(where).read().strip()

            def ask(path, **body):
                request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
                return json.load(urllib.request.urlopen(request, timeout=60 * SLOW))

            said = subprocess.run([BUILD + "/lepton", "generate", "-p", "Once upon a time", "-n", "24", "--temperature", "0", "--json"],
                                  env=cluster.environment, text=True, capture_output=True, timeout=60 * SLOW)
            want = json.loads(said.stdout.splitlines()[-1])
            got = ask("/v1/completions", prompt="Once upon a time", max_tokens=24, temperature=0, logprobs=3)
            choice = got["choices"][0]
            assert choice["text"] == want["text"] and choice["finish_reason"] == want["finish_reason"]
            assert got["usage"]["completion_tokens"] == len(want["tokens"]) == len(choice["logprobs"]["tokens"])
            assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
            for token, value, top in zip(*(choice["logprobs"][k] for k in ("tokens", "token_logprobs", "top_logprobs"))):
                assert top[token] == value == max(top.values()) and len(top) <= 3, (token, value, top)
            chat = ask("/v1/chat/completions", messages=[dict(role="user", content="Once")], max_tokens=8)
            assert chat["choices"][0]["message"]["content"] and chat["model"] == got["model"], (chat, got["model"])
        finally:
            g.terminate()
            assert g.wait(20 * SLOW) == 0
    finally:
        cluster.close()


def test_curl(c):
    """curl streams a conversation, and keeps one connection for two requests"""
    if not shutil.which("curl"):
        raise Skip("no curl here")
    c.mock()
    g = Gateway(c, chat_template="chatml").ready()
    url = "http://127.0.0.1:%d" % g.port
    body = json.dumps(dict(messages=[dict(role="user", content="Hello")], max_tokens=6, stream=True))
    done = subprocess.run(["curl", "-sS", "-N", url + "/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body],
                          text=True, capture_output=True, timeout=20 * SLOW)
    assert done.returncode == 0 and done.stdout.endswith("data: [DONE]\n\n"), done
    done = subprocess.run(["curl", "-sS", "-v", url + "/health", url + "/v1/models"], text=True, capture_output=True, timeout=20 * SLOW)
    assert "Re-using existing connection" in done.stderr and '"mock"' in done.stdout, done.stderr
    big = json.dumps(dict(prompt="x" * 100000, max_tokens=1))  # curl asks first: Expect: 100-continue
    done = subprocess.run(["curl", "-sS", url + "/v1/completions", "-H", "Content-Type: application/json", "-H", "Expect: 100-continue",
                           "-d", "@-"], input=big, text=True, capture_output=True, timeout=20 * SLOW)
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 1, done


if __name__ == "__main__":
    sys.exit(main(globals()))
