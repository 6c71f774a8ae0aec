"""A real lepton gateway in front of a real coordinator, and HTTP clients of Python's own: whole answers, streams read event
by event, and bare sockets for those who do it wrong. Every wait is bounded."""
import http.client
import json
import os
import signal
import socket
import subprocess
import time

from coordinator_harness import BUILD, SLOW


class Gateway:
    """One gateway process; its client key is `key`. Without API keys unless `api_keys` names their file."""

    def __init__(self, c, key="client", api_keys=None, endpoint=None, **options):
        c.gateways = getattr(c, "gateways", 0) + 1
        self.c, self.where, self.log_path = c, c.path("gateway%d" % c.gateways), c.path("gateway%d.log" % c.gateways)
        command = [BUILD + "/lepton", "gateway", "--endpoint", endpoint or c.endpoint, "--server-key",
                   c.path("keys/coordinator.pub"), "--key", c.path("keys/%s.key" % key), "--listen", "127.0.0.1:0",
                   "--listen-file", self.where, *(["--api-keys", api_keys] if api_keys else ["--no-keys"])]
        for name, value in options.items():
            for each in value if isinstance(value, (list, tuple)) else [value]:
                command += ["--" + name.replace("_", "-"), str(each)]
        with open(self.log_path, "ab") as log:
            self.process = c.start(command, stderr=log) if hasattr(c, "start") else subprocess.Popen(command, stderr=log)
        c.until(lambda: os.path.exists(self.where) or self.process.poll() is not None, "the gateway to listen")
        assert self.process.poll() is None, self.log()
        with open(self.where) as f:
            self.host, port = f.read().strip().rsplit(":", 1)
        self.port = int(port)

    def ready(self):
        self.c.until(lambda: self.get("/ready", key=getattr(self, "key", None)).status == 200, "the gateway to be ready")
        return self

    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def logged(self, text):
        self.c.until(lambda: text in self.log(), "\"%s\" in the gateway's log" % text)

    def request(self, method, path, body=None, key=None, headers=None, timeout_s=30):
        """A whole answer: status, headers, text."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s * SLOW)
        all = {"Content-Type": "application/json"} if body is not None else {}
        if key:
            all["Authorization"] = "Bearer " + key
        all.update(headers or {})
        if body is not None and not isinstance(body, (str, bytes)):
            body = json.dumps(body)
        connection.request(method, path, body=body.encode() if isinstance(body, str) else body, headers=all)
        answer = connection.getresponse()
        answer.text = answer.read().decode()
        connection.close()
        return answer

    def get(self, path, **more):
        return self.request("GET", path, **more)

    def post(self, path, body, **more):
        return self.request("POST", path, body, **more)

    def complete(self, **fields):
        """A completion that must go well."""
        answer = self.post("/v1/completions", dict(dict(prompt="Once upon a time", max_tokens=16), **fields))
        assert answer.status == 200, (answer.status, answer.text)
        return json.loads(answer.text)

    def stream(self, path="/v1/completions", key=None, **fields):
        ask = dict(max_tokens=16, stream=True)
        ask.update(dict(prompt="Once upon a time") if path == "/v1/completions" else {})
        return Stream(self, path, dict(ask, **fields), key)

    def socket(self, receive_bytes=None, timeout_s=30):
        s = socket.socket()
        if receive_bytes:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        s.settimeout(timeout_s * SLOW)
        s.connect((self.host, self.port))
        return s

    def files_open(self):
        return len(os.listdir("/proc/%d/fd" % self.process.pid))

    def stop(self):
        """The exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20 * SLOW)


def bare(path, body, *headers):
    """A request as bytes."""
    text = body if isinstance(body, str) else json.dumps(body)
    lines = ["POST %s HTTP/1.1" % path, "Host: localhost", "Content-Type: application/json",
             "Content-Length: %d" % len(text.encode()), *headers]
    return "\r\n".join(lines + ["", text]).encode()


class Stream:
    """A stream of server-sent events: (time, object) of each, "[DONE]" and ": ping" among them."""

    def __init__(self, gateway, path, ask, key=None, timeout_s=60):
        self.connection = http.client.HTTPConnection(gateway.host, gateway.port, timeout=timeout_s * SLOW)
        headers = {"Content-Type": "application/json", **({"Authorization": "Bearer " + key} if key else {})}
        self.connection.request("POST", path, json.dumps(ask), headers)
        self.events, self.cut, self.answer = [], False, None

    def start(self):
        if not self.answer:
            self.answer = self.connection.getresponse()
            assert self.answer.status == 200, (self.answer.status, self.answer.read())
        return self

    def next(self):
        """The next event, or None at the end; a connection that breaks sets `cut`."""
        try:
            self.start()
            line = self.answer.readline()
            if not line:
                return None
            assert self.answer.readline() in (b"\n", b""), line
        except (http.client.HTTPException, ConnectionError):
            self.cut = True
            return None
        text = line.decode().rstrip("\n")
        event = json.loads(text[6:]) if text.startswith("data: {") else text[6:] if text.startswith("data: ") else text
        self.events.append((time.monotonic(), event))
        return event

    def read(self, count=None):
        """Reads so many events, or all there are."""
        while (count is None or len(self.events) < count) and self.next() is not None:
            pass
        return self

    def objects(self):
        return [e for _, e in self.events if isinstance(e, dict)]

    def choices(self):
        return [c for e in self.objects() for c in e.get("choices", [])]

    def text(self, index=0):
        return "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in self.choices()
                       if c["index"] == index)

    def finish(self, index=0):
        return [c["finish_reason"] for c in self.choices() if c["index"] == index and c["finish_reason"]]

    def error(self):
        return next((e["error"] for e in self.objects() if "error" in e), None)

    def whole(self):
        """It ended as one should: [DONE] last and once, no error."""
        words = [e for _, e in self.events if isinstance(e, str) and e != ": ping"]
        return words == ["[DONE]"] and self.events[-1][1] == "[DONE]" and not self.error() and not self.cut

    def worst_gap(self):
        times = [t for t, e in self.events if isinstance(e, dict)]
        return max((b - a for a, b in zip(times, times[1:])), default=0.0)

    def close(self):
        self.connection.close()
        if self.answer:
            self.answer.close()
