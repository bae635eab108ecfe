"""A server on 127.0.0.1 that speaks OpenAI's chat protocol and shows faults on demand.

It gives clients real HTTP. Every request is a line of its log, so that tests see repeated ones.
"""

import contextlib
import gzip
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Completion = dict[str, Any]
Script = Callable[[int, dict[str, Any]], "Fault | None"]  # number of the request, its body


@dataclass(frozen=True)
class Fault:
    """A fault in the response to one request; without any field set the response is regular."""

    status: int = 200
    body: str = ""  # in place of the completion's JSON
    headers: tuple[tuple[str, str], ...] = ()
    drop: bool = False  # close the connection without a response
    sleep: float = 0.0  # seconds before the response
    drip: float = 0.0  # seconds before each byte of the body
    compress: bool = False  # by gzip, whatever the client accepts
    change: Callable[[Completion], Completion] | None = None


def error(status: int, code: str = "", message: str = "no", **headers: str) -> Fault:
    """Return an error in OpenAI's format; `retry_after` becomes the header `retry-after`."""
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Fault(
        status, json.dumps({"error": {"message": message, "code": code, "type": code}}), named
    )


def vllm_error(status: int, message: str) -> Fault:
    """Return an error in vLLM's format: its code is the status, a number."""
    body = {"object": "error", "message": message, "type": "BadRequestError", "code": status}
    return Fault(status, json.dumps(body))


class OpenAIServer:
    """A context manager: the server listens until the context ends."""

    def __init__(
        self,
        judge: Callable[[str], str],
        *,
        log: Path,
        script: Script = lambda number, body: None,
        latency: tuple[float, float] = (0.0, 0.0),  # median in seconds, sigma of its logarithm
        per_minute: float = 0.0,  # its own limit: requests above it get 429; 0: none
        seed: int = 0,
        paths: list[str] | None = None,  # gets the path and query of every request
    ) -> None:
        self.paths = [] if paths is None else paths
        self.judge = judge
        self.script = script
        self.log = log
        self.per_minute = per_minute
        self.median, self.sigma = latency
        self.draw = random.Random(seed)
        self.lock = threading.Lock()
        self.count = 0
        self.level = per_minute / 60 * 10  # of a token bucket with a burst of ten seconds
        self.updated_at = time.monotonic()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body are two packets. With Nagle's algorithm, the second one waits 40 ms for
            # the client's delayed acknowledgement of the first.
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                outer.serve(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> "OpenAIServer":
        poll_s = 0.02  # a shutdown takes this long at most
        threading.Thread(target=self.server.serve_forever, args=(poll_s,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def requests(self) -> list[dict[str, Any]]:
        """Return the log: time, prompt, status and key of every request."""
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self.lock:
            self.paths.append(handler.path)
            number = self.count
            self.count += 1
            wait = self.draw.lognormvariate(0, self.sigma) * self.median
            fault = self.over_limit() or self.script(number, body) or Fault()
        content = body["messages"][-1]["content"]
        prompt = content if isinstance(content, str) else content[-1]["text"]
        time.sleep(fault.sleep or (wait if fault.status == 200 else 0))
        ok = fault.status == 200 and not fault.body and not fault.drop
        text = fault.body or json.dumps(self.completion(body, prompt, fault))
        with self.lock, self.log.open("a") as stream:
            entry = {"at": time.monotonic(), "prompt": prompt, "ok": ok, "status": fault.status}
            stream.write(json.dumps({**entry, "key": handler.headers.get("authorization")}) + "\n")
        if fault.drop:
            handler.close_connection = True
            return
        data = gzip.compress(text.encode()) if fault.compress else text.encode()
        handler.send_response(fault.status)
        kind = "text/html" if text.startswith("<") else "application/json"
        for name, value in (
            ("content-type", kind),
            ("content-length", str(len(data))),
            *([("content-encoding", "gzip")] if fault.compress else []),
            *fault.headers,
        ):
            handler.send_header(name, value)
        handler.end_headers()
        with contextlib.suppress(ConnectionError):  # the client has left
            for start in range(0, len(data), 1 if fault.drip else len(data)):
                time.sleep(fault.drip)
                handler.wfile.write(data[start : start + 1] if fault.drip else data)

    def completion(self, body: dict[str, Any], prompt: str, fault: Fault) -> Completion:
        message = {"role": "assistant", "content": self.judge(prompt)}
        completion: Completion = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {
                "prompt_tokens": len(prompt) // 4,
                "completion_tokens": 10,
                "total_tokens": len(prompt) // 4 + 10,
            },
        }
        return fault.change(completion) if fault.change else completion

    def over_limit(self) -> Fault | None:
        if not self.per_minute:
            return None
        now = time.monotonic()
        rate = self.per_minute / 60
        self.level = min(rate * 10, self.level + (now - self.updated_at) * rate)
        self.updated_at = now
        if self.level < 1:
            return error(429, "rate_limit_exceeded", retry_after="1")
        self.level -= 1
        return None
