#!/usr/bin/python3
"""A foreign client: generates text through a Lepton coordinator, written from docs/protocol.md alone.

usage: client.py ENDPOINT SERVER.pub OWN.key PROMPT N [TEMPERATURE [SEED]]
Prints the text as it comes, then one line of JSON: tokens, text, finish_reason, seed. Exit 1 on an error."""
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
    tokens, text, seed = [], "", None
    while True:
        kind, fields = receive(socket, request)
        if kind == ERROR:
            sys.exit(f"client.py: error {fields['code']}: {fields['message']}")
        if kind == ACCEPTED:
            seed = fields["seed"]
        if kind == TOKEN:
            assert fields["index"] == len(tokens), f"token {fields['index']} came, {len(tokens)} was due"
            tokens.append(fields["id"])
        if kind in (TOKEN, DONE):
            text += fields.get("text", "")
            print(fields.get("text", ""), end="", flush=True)
        if kind == DONE:
            return {"tokens": tokens, "text": text, "finish_reason": fields["finish_reason"], "seed": seed}


if __name__ == "__main__":
    if len(sys.argv) not in (6, 7, 8):
        sys.exit(__doc__)
    given = {"temperature": float(sys.argv[6]) if sys.argv[6:] else 0, **{"seed": int(s) for s in sys.argv[7:]}}
    answer = generate(connect(*sys.argv[1:4]), sys.argv[4], int(sys.argv[5]), given)
    print("\n" + json.dumps(answer))
