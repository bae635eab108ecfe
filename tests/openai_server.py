"""A server on 127.0.0.1 that speaks OpenAI's chat protocol, judges by the rules it is given, and misbehaves as told.

Real HTTP for tests of what calls it. Every request that arrives is a line of its log, so that what was asked twice can be seen from outside.
"""

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Reply = dict[str, Any]
Script = Callable[[int, dict[str, Any]], "Fault | None"]  # number of the request, its body


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request; the answer is sent only where nothing is set."""

    status: int = 200
    body: str = ""  # in place of the answer's JSON
    headers: tuple[tuple[str, str], ...] = ()
    drop: bool = False  # close the connection without a word
    sleep: float = 0.0
    change: Callable[[Reply], Reply] | None = None


def error(status: int, code: str = "", message: str = "no", **headers: str) -> Fault:
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Fault(
        status, json.dumps({"error": {"message": message, "code": code, "type": code}}), named
    )


class OpenAIServer:
    """As a context: listens until it is left."""

    def __init__(
        self,
        judge: Callable[[str], str],
        *,
        log: Path,
        script: Script = lambda number, body: None,
        latency: tuple[float, float] = (0.0, 0.0),  # median in seconds, sigma of its logarithm
        per_minute: float = 0.0,  # a limit the server really has: requests over it get 429
        seed: int = 0,
    ) -> None:
        self.judge, self.script, self.log, self.per_minute = judge, script, log, per_minute
        self.median, self.sigma = latency
        self.draw, self.lock, self.count = random.Random(seed), threading.Lock(), 0
        self.level, self.seen = per_minute / 60 * 10, time.monotonic()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

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
        threading.Thread(
            target=self.server.serve_forever, args=(0.02,), daemon=True
        ).start()  # looks for its end that often
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def requests(self) -> list[dict[str, Any]]:
        """The log: when, which prompt, what was answered."""
        return (
            [json.loads(line) for line in self.log.read_text().splitlines()]
            if self.log.exists()
            else []
        )

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self.lock:
            number, self.count = self.count, self.count + 1
            wait = self.draw.lognormvariate(0, self.sigma) * self.median
            fault = self.over_limit() or self.script(number, body) or Fault()
        content = body["messages"][-1]["content"]
        prompt = content if isinstance(content, str) else content[-1]["text"]
        time.sleep(fault.sleep or (wait if fault.status == 200 else 0))
        ok = fault.status == 200 and not fault.body and not fault.drop
        text = fault.body or json.dumps(self.reply(body, prompt, fault))
        with self.lock, self.log.open("a") as stream:
            entry = {"at": time.monotonic(), "prompt": prompt, "ok": ok, "status": fault.status}
            stream.write(json.dumps({**entry, "key": handler.headers.get("authorization")}) + "\n")
        if fault.drop:
            handler.close_connection = True
            return
        data = text.encode()
        handler.send_response(fault.status)
        kind = "text/html" if text.startswith("<") else "application/json"
        for name, value in (
            ("content-type", kind),
            ("content-length", str(len(data))),
            *fault.headers,
        ):
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    def reply(self, body: dict[str, Any], prompt: str, fault: Fault) -> Reply:
        said = {"role": "assistant", "content": self.judge(prompt)}
        reply: Reply = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": said}],
            "usage": {
                "prompt_tokens": len(prompt) // 4,
                "completion_tokens": 10,
                "total_tokens": len(prompt) // 4 + 10,
            },
        }
        return fault.change(reply) if fault.change else reply

    def over_limit(self) -> Fault | None:
        if not self.per_minute:
            return None
        now, rate = time.monotonic(), self.per_minute / 60
        self.level, self.seen = min(rate * 10, self.level + (now - self.seen) * rate), now
        if self.level < 1:
            return error(429, "rate_limit_exceeded", retry_after="1")
        self.level -= 1
        return None
