"""How close judging comes to the pace that a server allows, against a server on this machine that misbehaves.

    python benchmarks/judging.py

Two runs at 500 requests a minute: 300 and 96 items, latency log-normal about 1.5 s, 5 % of the calls answered by 429, 3 % by garbage. The
floor is items / pace; the serial loop is the release's, 8 s an item with its sleeps. Needs no network and no key.
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

PER_MINUTE, SERIAL_S = 500.0, 8.0


def main() -> None:
    """Print one line for each number of items."""
    os.environ["BENCHMARK_KEY"] = "sk-none"
    connect()
    for count in (300, 96):
        with tempfile.TemporaryDirectory() as folder:
            print(measure(count, Path(folder)))


def measure(count: int, folder: Path) -> str:
    """Judge so many items; how long it took, as text."""
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
        check_endpoint(
            endpoint, folder / "cache"
        )  # as an evaluation does before it generates answers
        started = time.monotonic()
        verdicts, ledger = ask(
            requests,
            endpoint,
            folder / "cache",
            readable=readable,
            title=f"{count} items",
            console=Console(),
        )
        wall = time.monotonic() - started
        first, last = (pick(entry["at"] for entry in server.requests()) for pick in (min, max))
    floor = count / PER_MINUTE * 60
    judged = sum(verdict.status == "ok" for verdict in verdicts)
    return (
        f"{count} items, {judged} judged by {ledger.calls} calls in {wall:.1f} s ({last - first:.1f} s from the first reply to the last): "
        f"{wall / floor:.2f} of the floor of {floor:.1f} s, {count * SERIAL_S / wall:.0f} x the serial loop"
    )


def readable(text: str) -> bool:
    """Whether it holds a rating."""
    return read_rating(text) is not None


def faults() -> Any:
    """5 % of the calls are too many, 3 % are answered by a page, half a reply or no choice."""
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
