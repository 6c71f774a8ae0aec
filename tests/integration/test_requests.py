#!/usr/bin/python3
"""What a request may ask for, through the real programs: choices, log-probabilities, stop strings, biases, salts; and what
is refused, and how."""
import json
import math
import subprocess
import sys
import time

sys.path.insert(0, __file__.rsplit("/", 1)[0])
from coordinator_harness import run  # noqa: E402
from local_cluster import ROOT, LocalCluster  # noqa: E402

PROMPT = "Once upon a time"
GREEDY = ("--temperature", "0", "--ignore-eos")


def greedy(c, count=40, *words):
    return c.generate(PROMPT, "-n", str(count), *GREEDY, *words)


def foreign(c, fields, count=24, prompt=PROMPT, temperature="0", seed="1"):
    """The answer of the Python client, and its error output."""
    done = subprocess.run([sys.executable, ROOT + "/tests/integration/client.py", c.endpoint,
                           c.path("keys/coordinator.pub"), c.path("keys/client.key"), prompt, str(count), temperature, seed,
                           json.dumps(fields)], timeout=120, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None, done.stderr


def test_logprobs(c):
    """log-probabilities are those of the model's own distribution: whatever is done to the draw"""
    plain = greedy(c, 20, "--logprobs", "20")
    assert [t["id"] for t in plain["logprobs"]] == plain["tokens"]
    for token in plain["logprobs"]:
        top = token["top_logprobs"]
        assert len(top) == 20 and len({t["id"] for t in top}) == 20
        assert top[0]["id"] == token["id"] and top[0]["logprob"] == token["logprob"]
        assert all(a["logprob"] >= b["logprob"] for a, b in zip(top, top[1:])) and top[0]["logprob"] <= 0
        assert sum(math.exp(t["logprob"]) for t in top) <= 1 + 1e-5
    assert "".join(t["token"] for t in plain["logprobs"]) == plain["text"]
    third = plain["logprobs"][0]["top_logprobs"][2]
    forced = greedy(c, 1, "--logprobs", "3", "--logit-bias", "%d=100" % third["id"], "--presence-penalty", "1")
    drawn = forced["logprobs"][0]
    assert drawn["id"] == third["id"] and drawn["logprob"] == third["logprob"], (drawn, third)
    assert drawn["top_logprobs"] == plain["logprobs"][0]["top_logprobs"][:3]
    alone = greedy(c, 20, "--logprobs", "0")
    assert all(t["top_logprobs"] == [] for t in alone["logprobs"]) and alone["tokens"] == plain["tokens"]
    assert "logprobs" not in greedy(c, 4)
    lines = c.lepton("generate", "-p", PROMPT, "-n", "3", *GREEDY, "--logprobs", "1").stdout.splitlines()
    assert len(lines) == 4 and lines[1].split()[:2] == ["0", str(plain["tokens"][0])], lines


def test_stop_strings(c):
    """a stop string ends the answer in front of it wherever tokens end, and nothing of it is shown"""
    whole = greedy(c, 40)
    text, count = whole["text"], len(whole["tokens"])
    for begin in range(0, len(text) - 8, 7):
        for size in (1, 3, 8):
            stop = text[begin:begin + size]
            answer = greedy(c, 40, "--stop", stop)
            assert answer["finish_reason"] == "stop", (stop, answer)
            assert answer["text"] == text[:text.index(stop)], (stop, answer["text"])
            got = len(answer["tokens"])
            assert answer["completion_tokens"] == got and whole["tokens"][:got] == answer["tokens"]
            assert got < count or begin + size > len(text) - 12
    last = text[-3:] + "never"  # its beginning is held back, and given at the end
    answer = greedy(c, 40, "--stop", last, "--stop", "\x01")
    assert (answer["text"], answer["finish_reason"]) == (text, "length")
    first = greedy(c, 40, "--stop", text[20:24], "--stop", text[10:14])
    assert first["text"] == text[:min(text.index(text[20:24]), text.index(text[10:14]))]
    streamed = c.lepton("generate", "-p", PROMPT, "-n", "40", *GREEDY, "--stop", text[10:14])
    assert streamed.stdout == text[:text.index(text[10:14])] + "\n", streamed.stdout
    c.until(lambda: c.group("g-0")["running"] == 0, "stopped sequences to leave the batch")


def test_choices(c):
    """n answers: the first is the answer alone, the others are their own; tokens and usage are counted for all"""
    words = ("-n", "24", "--seed", "7", "--ignore-eos")
    alone = c.generate(PROMPT, *words)
    many = c.generate(PROMPT, *words, "--choices", "5", "--logprobs", "1")
    assert [choice["index"] for choice in many["choices"]] == list(range(5))
    assert many["choices"][0]["tokens"] == alone["tokens"] and many["tokens"] == alone["tokens"]
    assert len({tuple(choice["tokens"]) for choice in many["choices"]}) == 5
    assert many["completion_tokens"] == 5 * 24 and many["prompt_tokens"] == alone["prompt_tokens"]
    for choice in many["choices"]:
        assert choice["finish_reason"] == "length" and len(choice["logprobs"]) == 24
    again = c.generate(PROMPT, *words, "--choices", "5")
    assert [x["tokens"] for x in again["choices"]] == [x["tokens"] for x in many["choices"]]
    printed = c.lepton("generate", "-p", PROMPT, *words, "--choices", "2")
    assert "--- choice 0: 24 tokens, length\n%s\n--- choice 1" % alone["text"] in printed.stdout, printed.stdout
    stopped = c.generate(PROMPT, *words, "--choices", "5", "--stop", alone["text"][8:12])
    assert stopped["choices"][0]["finish_reason"] == "stop"
    crowd = c.generate(PROMPT, "-n", "3", "--seed", "7", "--choices", "128")  # more than the group runs at once
    assert len(crowd["choices"]) == 128 and all(x["finish_reason"] for x in crowd["choices"])


def test_choices_are_cancelled(c):
    """a cancelled request ends once for each of its choices, and leaves nothing running"""
    peer = c.client()
    peer.send("generate", request="many", prompt=PROMPT, max_tokens=400, ignore_eos=True, n=6)
    peer.expect("accepted")
    peer.expect("token")
    peer.send("cancel", request="many")
    ends = set()
    while len(ends) < 6:
        message = peer.expect("token", "done")
        if message.name == "done":
            assert message.get("choice", 0) not in ends and message.finish_reason in ("cancelled", "length"), message
            ends.add(message.get("choice", 0))
    c.until(lambda: c.group("g-0")["running"] == 0 and c.group("g-0")["pages_used"] == 0, "free pages")


def test_biases(c):
    """a bias of -100 bans a token, one of 100 forces it"""
    plain = greedy(c, 10)
    banned = greedy(c, 10, "--logit-bias", ",".join("%d=-100" % t for t in set(plain["tokens"])))
    assert not set(banned["tokens"]) & set(plain["tokens"])
    assert greedy(c, 3, "--logit-bias", "300=100,301=-1")["tokens"] == [300] * 3


def test_foreign_client(c):
    """the Python client, written from docs/protocol.md, gets choices, log-probabilities and stops"""
    whole, errors = foreign(c, {"ignore_eos": True})
    assert whole, errors
    stop = whole["text"][9:13]
    answer, errors = foreign(c, {"n": 3, "logprobs": True, "top_logprobs": 2, "stop": [stop, "\n\n"], "ignore_eos": True})
    assert answer, errors
    for choice in answer["choices"]:  # greedy: all alike
        assert choice["text"] == whole["text"][:whole["text"].index(stop)] and choice["finish_reason"] == "stop"
        assert len(choice["logprobs"]) == len(choice["tokens"])
        for token, (logprob, top) in zip(choice["tokens"], choice["logprobs"]):
            assert top[0]["id"] == token and top[0].get("logprob", 0) == logprob <= 0 and len(top) == 2
    biased, errors = foreign(c, {"logit_bias": [{"id": 300, "bias": 100}], "priority": 0, "cache_salt": "x",
                                 "speculation": "off"}, count=2)
    assert biased and biased["tokens"] == [300, 300], (biased, errors)


def test_cache_is_told(c):
    """a prompt that came before is counted as cached, for the same salt alone; --usage shows it"""
    prompt = "Tell me about the %d. time. " % time.monotonic_ns() + "The fox and the crow went out. " * 6
    fresh = c.generate(prompt, "-n", "2", "--temperature", "0")
    again = c.generate(prompt, "-n", "2", "--temperature", "0")
    salted = c.generate(prompt, "-n", "2", "--temperature", "0", "--cache-salt", "mine")
    assert fresh["cached_tokens"] == 0 and salted["cached_tokens"] == 0, (fresh, salted)
    assert again["prompt_tokens"] // 2 < again["cached_tokens"] < again["prompt_tokens"]
    assert fresh["tokens"] == again["tokens"] == salted["tokens"]
    usage = c.lepton("generate", "-p", prompt, "-n", "2", "--temperature", "0", "--usage").stderr.splitlines()
    assert usage[0].split()[:5] == ["prompt", "cached", "completion", "drafted", "accepted"], usage
    assert usage[1].split()[:3] == [str(again["prompt_tokens"]), str(again["cached_tokens"]), "2"], usage


def test_priority_and_speculation_change_no_token(c):
    """priority, speculation and salt change no token"""
    words = ("-n", "30", "--seed", "3")
    plain = c.generate(PROMPT, *words)["tokens"]
    for more in (("--priority", "0"), ("--priority", "1000"), ("--speculation", "off"),
                 ("--speculation", "ngram", "--draft-tokens", "4"), ("--cache-salt", "other")):
        assert c.generate(PROMPT, *words, *more)["tokens"] == plain, more


BAD_FIELDS = [
    (dict(n=0), "n: expected an integer from 1 to 128, found 0"),
    (dict(n=129), "n: expected an integer from 1 to 128"),
    (dict(n=64, max_tokens=2**16), "n x max_tokens x (1 + top_logprobs): 64 x 65536 x 1, expected at most 1048576"),
    (dict(logprobs=True, top_logprobs=20, max_tokens=2**19), "expected at most 1048576"),
    (dict(top_logprobs=3), "top_logprobs: 3, expected 0 without logprobs"),
    (dict(logprobs=1), "logprobs: expected a boolean"),
    (dict(logprobs=True, top_logprobs=21), "top_logprobs: expected an integer from 0 to 20, found 21"),
    (dict(stop="END"), "stop: expected an array, found a string"),
    (dict(stop=[""]), "[0]: expected a string of 1 to 1024 bytes, found 0"),
    (dict(stop=["a" * 1025]), "expected a string of 1 to 1024 bytes, found 1025"),
    (dict(stop=["a"] * 17), "stop: expected 0 to 16 entries, found 17"),
    (dict(logit_bias=[dict(id=1)]), "[0]: bias: missing"),
    (dict(logit_bias=[dict(id=1, bias=101.0)]), "bias: expected a number from -100 to 100, found 101"),
    (dict(logit_bias=[dict(id=7, bias=1.0), dict(id=3, bias=1.0), dict(id=7, bias=2.0)]), "token 7 is named twice"),
    (dict(logit_bias=[dict(id=2**31, bias=1.0)]), "logit_bias: token 2147483648, expected 0 to"),
    (dict(logit_bias=[dict(id=i, bias=1.0) for i in range(1025)]), "logit_bias: expected 0 to 1024 entries"),
    (dict(repetition_penalty=1e-38), "repetition_penalty: expected a number from 0.01 to 10, found 1e-38"),
    (dict(repetition_penalty=float("nan")), "repetition_penalty: expected a finite number"),
    (dict(presence_penalty=-2.5), "presence_penalty: expected a number from -2 to 2"),
    (dict(min_p=1.5), "min_p: expected a number from 0 to 1"),
    (dict(top_p=0.0), "top_p: expected a number above 0 to 1"),
    (dict(temperature=-1.0), "temperature: expected a number from 0 to 100"),
    (dict(priority=1001), "priority: expected an integer from 0 to 1000"),
    (dict(speculation="fast"), "speculation: expected one of ngram|off"),
    (dict(draft_tokens=65), "draft_tokens: expected an integer from 0 to 64"),
    (dict(cache_salt="s" * 257), "cache_salt: expected a string of 0 to 256 bytes"),
    (dict(best_of=2), 'unknown field "best_of"'),
]


def test_bad_fields_are_refused(c):
    """each bad field gets error 400 with what was expected, and nothing runs"""
    for number, (fields, message) in enumerate(BAD_FIELDS):
        peer = c.client()  # one for each: sixteen refused frames close a connection
        peer.send("generate", **dict(dict(request="bad%d" % number, prompt="x", max_tokens=4), **fields))
        answer = peer.expect("error", "accepted")
        if answer.name == "accepted":  # what only the group can know
            answer = peer.expect("error")
        assert answer.code == 400 and message in answer.message, (fields, answer)
        peer.close()


def test_bad_options_are_refused(c):
    """each bad option is a usage error that says what was expected"""
    for words, message in (
            (("--logprobs", "21"), "--logprobs: expected an integer from 0 to 20"),
            (("--logprobs", "some"), "--logprobs: expected an integer from 0 to 20, found \"some\""),
            (("--logit-bias", "7"), "--logit-bias: expected ID=BIAS, found \"7\""),
            (("--logit-bias", "7=101"), "token 7: expected a number from -100 to 100"),
            (("--logit-bias", "7=1;8=2"), "token 7: expected a number"),
            (("--stop", ""), "--stop: expected 1 to 1024 bytes"),
            (("--stop", "a" * 1025), "--stop: expected 1 to 1024 bytes of UTF-8, found 1025"),
            (("--stop", "a") * 17, "--stop: expected at most 16, found 17"),
            (("--choices", "0"), "--choices: expected an integer from 1 to 128"),
            (("--repetition-penalty", "1e-38"), "--repetition-penalty: expected a number from 0.01 to 10"),
            (("--speculation", "fast"), "--speculation: expected one of ngram, off"),
            (("--cache-salt", "s" * 257), "--cache-salt: expected at most 256 bytes")):
        done = c.lepton("generate", "-p", "x", *words)
        assert done.returncode == 2 and message in done.stderr, (words, done.returncode, done.stderr)


TESTS = [test_logprobs, test_stop_strings, test_choices, test_choices_are_cancelled, test_biases, test_foreign_client,
         test_cache_is_told, test_priority_and_speculation_change_no_token, test_bad_fields_are_refused,
         test_bad_options_are_refused]

if __name__ == "__main__":
    only = sys.argv[1:]
    sys.exit(run([t for t in TESTS if not only or t.__name__ in only], make=LocalCluster, stages=2))
