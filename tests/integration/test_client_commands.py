#!/usr/bin/python3
"""lepton generate and lepton status against the real coordinator, with a group played by this script."""
import json
import os
import signal
import subprocess
import sys

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from coordinator_harness import BUILD, run  # noqa: E402


def start(c, *arguments, connect=True, **popen):
    command = [BUILD + "/lepton", *arguments]
    if connect:
        command += ["--endpoint", c.endpoint, "--server-key", c.path("keys/coordinator.pub"), "--key",
                    c.path("keys/client.key")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)


def finish(process, code, given=None):
    try:
        out, err = process.communicate(given, timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError("the command hangs: %r" % (process.communicate(),))
    assert process.returncode == code, (process.returncode, out, err)
    return out, err


def test_streams_text(c):
    """generate writes the text as it comes"""
    worker = c.worker().join()
    process = start(c, "generate", "-p", "Once", "-n", "3", "--temperature", "0")
    assign = worker.expect("assign")
    assert (assign.prompt, assign.max_tokens, assign.get("temperature", 1)) == ("Once", 3, 0)
    worker.token(assign, 0, text="upon ")
    assert process.stdout.read(5) == "upon "  # before the others exist
    worker.token(assign, 1, text="a ")
    worker.token(assign, 2, text="")
    worker.send("done", group="g0", epoch=worker.epoch, request=assign.request, finish_reason="length",
                prompt_tokens=2, completion_tokens=3, text="time")
    out, err = finish(process, 0)
    assert out == "a time\n" and err == "", (out, err)


def test_chat_stops(c):
    """chat asks for the end of the template's turns as a stop string, beside those that were given"""
    worker = c.worker().join()
    for words, stops in (((), ["<|im_end|>"]), (("--stop", "User:"), ["User:", "<|im_end|>"]), (("--ignore-eos",), [])):
        process = start(c, "chat", "--chat-template", "chatml", "-n", "2", *words, stdin=subprocess.PIPE)
        process.stdin.write("Hello\n")
        process.stdin.flush()
        assign = worker.expect("assign")
        assert assign.get("stop", []) == stops, assign
        assert assign.get("tenant") == "client", assign
        worker.serve(assign, 2)
        finish(process, 0)


def test_json(c):
    """generate --json ends with one object: tokens, text, seed, group, stages, timings"""
    worker = c.worker().join()
    process = start(c, "generate", "-f", "-", "--json", "--seed", "7", "--top-k", "40", "--min-p", "0.1",
                    stdin=subprocess.PIPE)
    process.stdin.write("Grüße\n")
    process.stdin.close()
    process.stdin = None
    assign = worker.expect("assign")
    assert (assign.prompt, assign.seed, assign.top_k, assign.min_p) == ("Grüße\n", 7, 40, 0.1)
    worker.serve(assign, 3)
    result = json.loads(finish(process, 0)[0].splitlines()[-1])
    assert result["tokens"] == [100, 101, 102] and result["text"] == "t0 t1 t2 "
    assert (result["finish_reason"], result["prompt_tokens"], result["completion_tokens"]) == ("length", 3, 3)
    assert (result["seed"], result["group"], result["stages"]) == (7, "g0", 2)
    assert set(result["timings"]) == {"queue_ms", "ttft_ms", "total_ms", "tokens_per_second"}
    assert 0 < result["timings"]["ttft_ms"] <= result["timings"]["total_ms"]


def test_interrupt(c):
    """Ctrl-C cancels the request at its group; exit code 130"""
    worker = c.worker().join()
    process = start(c, "generate", "-p", "x", "--json")
    assign = worker.expect("assign")
    worker.token(assign, 0)
    process.send_signal(signal.SIGINT)
    assert worker.expect("cancel").request == assign.request
    worker.done(assign, 1, reason="cancelled")
    result = json.loads(finish(process, 130)[0].splitlines()[-1])
    assert result["finish_reason"] == "cancelled" and result["tokens"] == [100]


def test_failures(c):
    """what fails says why: a lost group 3, a failed request 1, wrong usage 2"""
    worker = c.worker().join()
    process = start(c, "generate", "-p", "x")
    worker.expect("assign")
    worker.send("bye", group="g0", epoch=worker.epoch)
    assert "503: " in finish(process, 3)[1]  # no group came that could go on with it
    worker.join()
    process = start(c, "generate", "-p", "x", "--json")
    assign = worker.expect("assign")
    worker.send("error", group="g0", epoch=worker.epoch, request=assign.request, code=500, message="NaN in logits")
    out, err = finish(process, 1)
    assert "500: NaN in logits" in err and json.loads(out)["error"]["code"] == 500
    assert "either -p TEXT or -f FILE" in finish(start(c, "generate"), 2)[1]
    assert "--seed" in finish(start(c, "generate", "-p", "x", "--seed", "-1"), 2)[1]
    assert "UTF-8" in finish(start(c, "generate", "-p", b"\xff"), 2)[1]


test_failures.options = dict(group_wait_ms=300)


def test_unreachable(c):
    """nobody there, a wrong key and a coordinator that dies and stays away are exit code 3, never a hang"""
    keys = ["--server-key", c.path("keys/coordinator.pub")]
    process = start(c, "generate", "-p", "x", "--endpoint", "tcp://127.0.0.1:9", *keys, "--key",
                    c.path("keys/client.key"), connect=False)
    assert "nothing listens there" in finish(process, 3)[1]
    process = start(c, "status", "--endpoint", c.endpoint, *keys, "--key", c.path("keys/stranger.key"), connect=False)
    assert "refused our key" in finish(process, 3)[1]
    process = start(c, "status", "--endpoint", c.endpoint, "--server-key", c.path("keys/other.pub"), "--key",
                    c.path("keys/client.key"), connect=False)
    finish(process, 3)
    worker = c.worker().join()
    for retry_ms, reason in ((0, "lost"), (500, "nothing listens there")):
        process = start(c, "generate", "-p", "x", "--retry-ms", str(retry_ms))
        worker.token(worker.expect("assign"), 0)
        assert process.stdout.read(2) == "t0"
        c.process.kill()
        assert reason in finish(process, 3)[1]
        c.launch()
        worker = c.worker().join()


def test_status(c):
    """status shows totals, groups, stages and hosts, as a table and as JSON"""
    assert "no groups" in finish(start(c, "status"), 0)[0]
    worker = c.worker().join()
    worker.beat(running=2)
    worker.expect("lease")
    table = finish(start(c, "status"), 0)[0]
    for part in ("g0", "ready", "tiny", "layers 3-5 on node-b, pid 12", "0/4"):
        assert part in table, table
    status = json.loads(finish(start(c, "status", "--json"), 0)[0])
    group = status["groups"][0]
    assert (group["group"], group["epoch"], group["running"], group["stages"][0]["host"]) == ("g0", 1, 2, "node-a")
    assert status["queue_limit"] == 1024 and status["draining"] is False


def test_home(c):
    """client.cfg is found in $LEPTON_HOME, which must be closed to others"""
    home = c.path("home")
    environment = dict(os.environ, LEPTON_HOME=home)
    assert "lepton run" in finish(start(c, "status", connect=False, env=environment), 1)[1]
    os.mkdir(home, 0o700)
    with open(home + "/client.cfg", "w") as f:
        f.write('endpoint = "%s";\nserver_key = "%s";\nkey = "%s";\n' %
                (c.endpoint, c.path("keys/coordinator.pub"), c.path("keys/client.key")))
    finish(start(c, "status", connect=False, env=environment), 0)
    finish(start(c, "status", "--config", home + "/client.cfg", connect=False), 0)
    os.chmod(home, 0o755)
    assert "mode 0700" in finish(start(c, "status", connect=False, env=environment), 1)[1]


TESTS = [value for name, value in list(globals().items()) if name.startswith("test_")]

if __name__ == "__main__":
    sys.exit(run([t for t in TESTS if not sys.argv[1:] or t.__name__ in sys.argv[1:]]))
