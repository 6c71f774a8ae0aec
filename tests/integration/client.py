#!/usr/bin/python3
"""A foreign client: generates text through a Lepton coordinator, written from docs/protocol.md alone.

usage: client.py ENDPOINT SERVER.pub OWN.key PROMPT N [TEMPERATURE [SEED [FIELDS]]]
FIELDS is a JSON object of further fields of generate. Prints the text as it comes (of several choices the first one's),
then one line of JSON: tokens, text, finish_reason, seed; and logprobs and choices when they were asked for. Exit 1 on an
error."""
import json
import sys

import msgpack
import zmq
import zmq.auth

GENERATE, ACCEPTED, TOKEN, DONE, ERROR = 1, 10, 11, 12, 13
WAIT_MS = 60000  # a refused key is silence: every wait has a limit


def connect(endpoint, server_pub, own_key):
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.linger = 0
    socket.heartbeat_ivl, socket.heartbeat_ttl, socket.heartbeat_timeout = 1000, 5000, 5000
    socket.curve_serverkey, _ = zmq.auth.load_certificate(server_pub)
    socket.curve_publickey, socket.curve_secretkey = zmq.auth.load_certificate(own_key)
    socket.connect(endpoint)
    return socket


def receive(socket, request):
    """The next message about this request, or about no request at all: its type and fields."""
    while socket.poll(WAIT_MS):
        version, kind, fields = msgpack.unpackb(socket.recv())
        if version == 1 and fields.get("request") in (request, None):
            return kind, fields
    sys.exit(f"client.py: nothing came for {WAIT_MS // 1000} s: is the coordinator there, and this key authorized?")


def generate(socket, prompt, count, options):
    request = "py-1"  # unique among the live requests of this connection
    socket.send(msgpack.packb([1, GENERATE, {"request": request, "prompt": prompt, "max_tokens": count, **options}]))
    answers = [{"tokens": [], "text": "", "finish_reason": None} for _ in range(options.get("n", 1))]
    seed = None
    while not all(answer["finish_reason"] for answer in answers):
        kind, fields = receive(socket, request)
        if kind == ERROR:
            sys.exit(f"client.py: error {fields['code']}: {fields['message']}")
        if kind == ACCEPTED:
            seed = fields["seed"]
            continue
        choice = fields.get("choice", 0)
        answer = answers[choice]
        if kind == TOKEN:
            assert fields["index"] == len(answer["tokens"]), f"token {fields['index']} came, {len(answer['tokens'])} was due"
            answer["tokens"].append(fields["id"])
            if options.get("logprobs"):
                answer.setdefault("logprobs", []).append([fields.get("logprob", 0), fields.get("top_logprobs", [])])
        answer["text"] += fields.get("text", "")
        if choice == 0:
            print(fields.get("text", ""), end="", flush=True)
        if kind == DONE:
            answer["finish_reason"] = fields["finish_reason"]
    return {**answers[0], "seed": seed, **({"choices": answers} if len(answers) > 1 else {})}


if __name__ == "__main__":
    if len(sys.argv) not in (6, 7, 8, 9):
        sys.exit(__doc__)
    given = {"temperature": float(sys.argv[6]) if sys.argv[6:] else 0, **{"seed": int(s) for s in sys.argv[7:8]}}
    given.update(json.loads(sys.argv[8]) if sys.argv[8:] else {})
    answer = generate(connect(*sys.argv[1:4]), sys.argv[4], int(sys.argv[5]), given)
    print("\n" + json.dumps(answer))
