#!/usr/bin/python3
"""client.py against a coordinator of twenty lines that plays a script: what it sends, and what it makes of the answers."""
import json
import os
import subprocess
import sys
import tempfile

try:
    import msgpack
    import zmq
    import zmq.auth
except ImportError as missing:
    print(f"skip - the foreign client: {missing}")
    sys.exit(0)

here = os.path.dirname(os.path.abspath(__file__))
failed = 0


def check(sentence, good, seen=""):
    global failed
    failed += not good
    print(f"{'ok' if good else 'not ok'} - {sentence}" + ("" if good else f": {seen}"))


def play(folder, script, *arguments):
    """Answers one generate with the script's messages; returns what was asked, the exit code and the output."""
    socket = zmq.Context.instance().socket(zmq.ROUTER)
    socket.linger = 0
    socket.curve_server = True
    socket.curve_publickey, socket.curve_secretkey = zmq.auth.load_certificate(f"{folder}/coordinator.key_secret")
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    client = subprocess.Popen(
        [sys.executable, f"{here}/client.py", f"tcp://127.0.0.1:{port}", f"{folder}/coordinator.key",
         f"{folder}/alice.key_secret", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    frames = socket.recv_multipart() if socket.poll(60000) else [b"", b"\xc0"]
    asked = msgpack.unpackb(frames[1])
    for kind, fields in script:
        message = {"request": asked[2]["request"], **fields} if asked else fields
        socket.send_multipart([frames[0], msgpack.packb([1, kind, message])])
    out, errors = client.communicate(timeout=120)
    socket.close()
    return len(frames), asked, client.returncode, out, errors


with tempfile.TemporaryDirectory() as folder:
    zmq.auth.create_certificates(folder, "coordinator")
    zmq.auth.create_certificates(folder, "alice")

    story = [(10, {"seed": 7, "queued": 0}), (11, {"index": 0, "id": 11, "text": "h\u00e9"}),
             (11, {"index": 1, "id": 12}), (11, {"request": "other", "index": 0, "id": 99, "text": "no"}),
             (11, {"index": 2, "id": 13, "text": " du"}),
             (12, {"finish_reason": "length", "text": "!", "prompt_tokens": 2, "completion_tokens": 3})]
    parts, asked, code, out, errors = play(folder, story, "Once", "3")
    check("the client sends one frame, a generate of version 1", parts == 2 and asked[:2] == [1, 1], asked)
    check("it asks for what its arguments say",
          asked[2].get("prompt") == "Once" and asked[2].get("max_tokens") == 3 and asked[2].get("temperature") == 0, asked)
    lines = out.splitlines()
    check("it prints the text as it comes", code == 0 and lines[0] == "h\u00e9 du!", (code, out, errors))
    check("its last line is the answer as JSON",
          code == 0 and json.loads(lines[-1]) == {"tokens": [11, 12, 13], "text": "h\u00e9 du!", "finish_reason": "length",
                                                  "seed": 7}, out)

    parts, asked, code, out, errors = play(
        folder, [(13, {"code": 429, "message": "the queue is full"})], "x", "1", "0.5", "9")
    check("temperature and seed are sent when given", asked[2].get("temperature") == 0.5 and asked[2].get("seed") == 9, asked)
    check("an error ends it with its code and message", code == 1 and "error 429: the queue is full" in errors, errors)

    parts, asked, code, out, errors = play(folder, [(10, {"seed": 7, "queued": 0}), (11, {"index": 1, "id": 5})], "x", "2")
    check("a gap in the tokens is noticed", code == 1 and "token 1 came, 0 was due" in errors, errors)
sys.exit(failed != 0)
