#!/usr/bin/python3
"""lepton chat as a person and a script meet it: real clusters over the demo model, from a pipe and at a terminal."""
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..")
LEPTON = os.path.join(os.environ.get("LEPTON_BUILD", os.path.join(ROOT, "build", "release")), "lepton")
HOME = tempfile.mkdtemp(prefix="lepton-test-")
ENVIRONMENT = dict(os.environ, LEPTON_HOME=HOME)
WAIT_S = 60


def chat(lines, *options):
    return subprocess.run([LEPTON, "chat", "demo", "--chat-template", "plain", "--temperature", "0", *options], timeout=WAIT_S,
                          input=lines, env=ENVIRONMENT, capture_output=True, text=True)


def answers(run):
    assert run.returncode == 0, (run.returncode, run.stderr)
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_a_line_is_a_turn_and_the_history_grows():
    first, second, fresh = answers(chat("Hello\nAnd you?\n/reset\nHello\n", "-n", "8", "--json"))
    assert len(first["tokens"]) == 8, first
    assert second["prompt_tokens"] > first["prompt_tokens"] + 8, (first, second)
    assert fresh["tokens"] == first["tokens"], "what /reset leaves is not a new conversation"


def test_the_system_prompt_is_told_and_stays():
    plain = answers(chat("Hello\n", "-n", "4", "--json"))[0]
    first, again = answers(chat("Hello\n/reset\nHello\n", "-n", "4", "--json", "--system", "Tell stories."))
    assert first["prompt_tokens"] > plain["prompt_tokens"], (first, plain)
    assert again["prompt_tokens"] == first["prompt_tokens"], (again, first)


def test_what_is_sent_is_what_lepton_template_prints():
    messages = os.path.join(HOME, "messages.json")
    with open(messages, "w") as f:
        json.dump([{"role": "system", "content": "S"}, {"role": "user", "content": "Hello you"}], f)
    text = subprocess.run([LEPTON, "template", "plain", "-m", messages], capture_output=True, text=True, check=True).stdout
    sent = answers(chat("Hello you\n", "-n", "6", "--json", "--system", "S"))[0]
    run = subprocess.run([LEPTON, "run", "demo", "-p", text, "-n", "6", "--temperature", "0", "--json", "--special"],
                         env=ENVIRONMENT, capture_output=True, text=True, timeout=WAIT_S)
    assert json.loads(run.stdout)["tokens"] == sent["tokens"], (run.stdout, sent)


def test_special_tokens_are_recognised_and_bos_stands_once():
    template = os.path.join(HOME, "bos.jinja")
    with open(template, "w") as f:
        f.write("{{ bos_token }}{{ messages[-1].content }}")
    model = os.path.join(ROOT, "tools", "demo", "lepton-demo.gguf")
    run = subprocess.run([LEPTON, "chat", model, "--chat-template", template, "-n", "4", "--json", "--temperature", "0"],
                         input="Once upon\n", env=ENVIRONMENT, capture_output=True, text=True, timeout=WAIT_S)
    found = answers(run)[0]
    ids = subprocess.run([LEPTON, "tokenize", model, "-p", "Once upon"], capture_output=True, text=True, check=True).stdout
    # BOS and the words: the space prefix may differ behind a special token, the count may not by more than it.
    assert abs(found["prompt_tokens"] - len(ids.split())) <= 1, (found, ids)


def test_a_stop_string_ends_an_answer():
    whole = answers(chat("Once upon a time\n", "-n", "24", "--json", "--ignore-eos"))[0]
    stop = whole["text"][10:14]
    found = answers(chat("Once upon a time\n", "-n", "24", "--json", "--ignore-eos", "--stop", stop, "--stop", "\x01"))[0]
    assert found["text"] == whole["text"][:whole["text"].index(stop)] and found["finish_reason"] == "stop", (whole, found)


def test_what_cannot_work_is_refused_before_a_cluster_starts():
    cases = [(["demo"], 1, "try --chat-template plain"), ([], 2, "expected MODEL, or --chat-template"),
             (["demo", "--chat-template", "nope"], 1, "no built-in template: expected one of chatml"),
             (["/nonexistent.gguf"], 1, "/nonexistent.gguf"), (["demo", "--chat-template", "llama2", "--bad"], 2, "bad")]
    for options, code, words in cases:
        run = subprocess.run([LEPTON, "chat", *options], env=ENVIRONMENT, capture_output=True, text=True, timeout=WAIT_S)
        assert run.returncode == code and words in run.stderr, (options, run.returncode, run.stderr)


def test_a_turn_that_the_template_refuses_is_forgotten():
    template = os.path.join(HOME, "refuses.jinja")
    with open(template, "w") as f:
        f.write("{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('not that') }}{% endif %}"
                "{{ m.content }} {% endfor %}")
    run = subprocess.run([LEPTON, "chat", "demo", "--chat-template", template, "-n", "2", "--json"], input="no\nyes\n",
                         env=ENVIRONMENT, capture_output=True, text=True, timeout=WAIT_S)
    assert run.returncode == 1 and "raise_exception: not that" in run.stderr, run.stderr
    assert len(run.stdout.splitlines()) == 1, run.stdout


class Terminal:
    def __init__(self, *options):
        self.process, self.fd = pty.fork()
        if self.process == 0:
            os.execve(LEPTON, [LEPTON, "chat", "demo", "--chat-template", "plain", *options], ENVIRONMENT)
        self.seen = ""

    def until(self, words):
        end = time.monotonic() + WAIT_S
        while not re.search(words, self.seen):
            assert time.monotonic() < end, "%r did not come: %r" % (words, self.seen)
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.fd, 65536).decode(errors="replace")
                except OSError:
                    assert re.search(words, self.seen), "%r did not come: %r" % (words, self.seen)
        self.seen = ""

    def type(self, text):
        os.write(self.fd, text.encode())

    def code(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def test_ctrl_c_stops_the_answer_and_not_the_program():
    t = Terminal("-n", "400", "--ignore-eos")
    t.until("> ")
    t.type("Once upon a time\r")
    t.until("(?s)time.*[a-z]{2,}.*[a-z]{2,}")  # the echo, then words of the answer
    t.type("\x03")
    t.until("> $")
    t.type("/help\r")
    t.until("/reset  forget")
    t.type("\x04")
    assert t.code() == 0


def test_ctrl_c_twice_leaves():
    t = Terminal()
    t.until("> ")
    t.type("\x03")
    t.until("Ctrl-C again")
    t.type("\x03")
    assert t.code() == 130


def main():
    failed = 0
    try:
        for name, test in [(n, f) for n, f in globals().items() if n.startswith("test_")]:
            try:
                test()
                print("ok - %s" % name[5:].replace("_", " "), flush=True)
            except (AssertionError, subprocess.SubprocessError, ValueError) as e:
                failed = 1
                print("# %s: %s\nnot ok - %s" % (type(e).__name__, e, name[5:].replace("_", " ")), flush=True)
    finally:
        shutil.rmtree(HOME, ignore_errors=True)
    return failed


if __name__ == "__main__":
    signal.alarm(600)
    sys.exit(main())
