"""Speed of judging relative to the pace that a server allows, against a faulty local server.

    python benchmarks/judging.py

Two runs at 500 requests a minute, with 300 and 96 items. Latency is log-normal with a median of
1.5 s; 5 % of the calls get a 429, 3 % get garbage. The floor is items / pace. The serial loop is
the release's: 8 s an item with its sleeps. Needs no network and no key.
"""

import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.benchmarks.mmhal_bench import read_rating
from rlhfv_ray.cluster import connect
from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.endpoint.records import Request
from rlhfv_ray.endpoint.run import ask, check_endpoint
from tests.openai_server import Fault, OpenAIServer, error

PER_MINUTE = 500.0  # requests
SERIAL_S = 8.0  # seconds an item in the release's loop


def main() -> None:
    """Print one line for each number of items."""
    os.environ["BENCHMARK_KEY"] = "sk-none"
    connect()
    for count in (300, 96):
        with tempfile.TemporaryDirectory() as folder:
            print(measure(count, Path(folder)))


def measure(count: int, folder: Path) -> str:
    """Judge `count` items and return a line with the time it took."""
    requests = [Request(str(number), f"Item {number} of {count}") for number in range(count)]
    with OpenAIServer(
        lambda prompt: "Rating: 4",
        log=folder / "log",
        script=faults(),
        latency=(1.5, 0.4),
        per_minute=PER_MINUTE,
    ) as server:
        endpoint = EndpointConfig(
            model="judge",
            base_url=server.url,
            key_env="BENCHMARK_KEY",
            requests_per_minute=PER_MINUTE,
        )
        # An evaluation does the same before it generates answers.
        check_endpoint(endpoint, folder / "cache")
        started = time.monotonic()
        replies, ledger = ask(
            requests,
            endpoint,
            folder / "cache",
            readable=readable,
            title=f"{count} items",
            console=Console(),
        )
        wall = time.monotonic() - started
        times = [entry["at"] for entry in server.requests()]
    floor = count / PER_MINUTE * 60
    judged = sum(reply.status == "ok" for reply in replies)
    return (
        f"{count} items, {judged} judged by {ledger.calls} calls in {wall:.1f} s "
        f"({max(times) - min(times):.1f} s from the first reply to the last): "
        f"{wall / floor:.2f} of the floor of {floor:.1f} s, "
        f"{count * SERIAL_S / wall:.0f} x the serial loop"
    )


def readable(text: str) -> bool:
    """Return True if a reply holds a rating."""
    return read_rating(text) is not None


def faults() -> Any:
    """Return a script: 5 % of the calls get a 429, 3 % a web page, half a reply, or no choices."""
    draw = random.Random(0)
    malformed = [
        Fault(body="<html>"),
        Fault(body='{"choi'),
        Fault(change=lambda reply: {**reply, "choices": []}),
    ]

    def script(number: int, body: dict[str, Any]) -> Fault | None:
        lot = draw.random()
        if lot < 0.05:
            return error(429, "rate_limit_exceeded", retry_after="1")
        return draw.choice(malformed) if lot < 0.08 else None

    return script


if __name__ == "__main__":
    main()
