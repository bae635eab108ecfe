"""Many calls by Ray Data actors to a real local server with rate limits, faults and nonsense."""

import base64
import contextlib
import io
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from eval.benchmarks.mmhal_bench import read_rating
from eval.config import JudgeConfig
from eval.inputs.endpoint_answers import endpoint_answers
from eval.judge.records import verdict_rows
from eval.judge.run import judge_answers, shortfall
from rlhfv_ray.config import EndpointConfig, GenerationConfig
from rlhfv_ray.endpoint.cache import ReplyCache
from rlhfv_ray.endpoint.records import Reply, Request
from rlhfv_ray.endpoint.run import ask, check_endpoint
from rlhfv_ray.errors import ConfigError, JudgeError
from rlhfv_ray.records import Answer, Prompt
from rlhfv_ray.shapes.world import write_benchmark
from tests.conftest import wait_for
from tests.openai_server import Fault, OpenAIServer, error

ROOT = Path(__file__).parents[2]
KEY = "sk-canary-2f6b"
pytestmark = pytest.mark.ray


def readable(text: str) -> bool:
    return read_rating(text) is not None


def requests(count: int) -> list[Request]:
    return [Request(str(number), f"Answer number {number}") for number in range(count)]


def faults(share_busy: float, share_malformed: float, seed: int = 0) -> Any:
    """Return a script that draws faults at random, the same ones for the same seed."""
    draw = random.Random(seed)
    malformed = [
        Fault(body="<html>"),
        Fault(body='{"choi'),
        Fault(change=lambda reply: {**reply, "choices": []}),
    ]

    def script(number: int, body: dict[str, Any]) -> Fault | None:
        lot = draw.random()
        if lot < share_busy:
            return error(
                429, "rate_limit_exceeded", **({"retry_after": "0.3"} if number % 2 else {})
            )
        return draw.choice(malformed) if lot < share_busy + share_malformed else None

    return script


def judge(prompt: str) -> str:
    return f"Rating: {len(prompt) % 7}"


def settings(server: OpenAIServer, **changes: Any) -> dict[str, Any]:
    key = server.log.with_name("key")
    key.write_text(KEY)
    key.chmod(0o600)
    return {
        "model": "judge",
        "base_url": server.url,
        "key_file": str(key),
        "requests_per_minute": 6000,
        **changes,
    }


@pytest.fixture(scope="module", autouse=True)
def _cluster(cluster):
    """Ray runs before the key exists, so its workers read the key from a file."""


def run(
    server: OpenAIServer, cache: Path, count: int, **changes: Any
) -> tuple[list[Reply], Any, str]:
    console = Console(file=io.StringIO(), width=200)
    endpoint = EndpointConfig(**settings(server, **changes))
    replies, ledger = ask(
        requests(count), endpoint, cache, readable=readable, title="Verdicts", console=console
    )
    return replies, ledger, console.file.getvalue()  # type: ignore[attr-defined]


def test_all_are_judged_in_spite_of_faults_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    """Catches: replies lost, mixed up, or paid for again by a second run; the key in the cache."""
    with OpenAIServer(
        judge, log=tmp_path / "log", script=faults(0.1, 0.1), latency=(0.05, 0.5)
    ) as server:
        # Faults are drawn in the order of arrival: a request may get several, one after another.
        replies, ledger, printed = run(server, tmp_path / "cache", 120, actors=2, attempts=20)
        assert [reply.text for reply in replies] == [
            judge(request.text) for request in requests(120)
        ]
        served = server.requests()
        assert Counter(entry["ok"] for entry in served)[True] >= 120
        assert ledger.calls == len(served) == sum(ledger.outcomes.values())
        assert (
            ledger.outcomes["rate_limited"] > 3
            and ledger.outcomes["retryable"] > 3
            and ledger.outcomes["ok"] == 120
        )
        assert "120 calls for 120 replies" in printed
        assert f"{len(served)} calls" in printed
        second, ledger, _ = run(server, tmp_path / "cache", 120, actors=2)
        assert second == replies and len(server.requests()) == len(served)
        assert (ledger.calls, ledger.known) == (0, 120)
    assert all(entry["key"] == f"Bearer {KEY}" for entry in served)
    assert not [path for path in (tmp_path / "cache").rglob("*.json") if KEY in path.read_text()]


def test_what_cannot_be_judged_is_missing_with_its_reason(tmp_path: Path) -> None:
    """Catches: a refusal, garbage or a silent judge scored as a number; endless calls."""
    texts = {3: "no idea", 5: "Rating: 1 or Rating: 5"}

    def script(number: int, body: dict[str, Any]) -> Fault | None:
        answer = int(body["messages"][-1]["content"].split()[-1])
        return {0: error(500), 1: Fault(body="<html>"), 2: error(400, "content_filter")}.get(answer)

    with OpenAIServer(
        lambda prompt: texts.get(int(prompt.split()[-1]), "Rating: 2"),
        log=tmp_path / "log",
        script=script,
    ) as server:
        verdicts, _, _ = run(server, tmp_path / "cache", 8, attempts=2)
        assert [v.status for v in verdicts] == [
            "unavailable",
            "bad_payload",
            "refused",
            *["ok"] * 5,
        ]
        assert [v.text for v in verdicts[3:6]] == ["no idea", "Rating: 2", "Rating: 1 or Rating: 5"]
        calls = Counter(int(entry["prompt"].split()[-1]) for entry in server.requests())
        assert calls == {0: 2, 1: 2, 2: 2, 3: 2, 4: 1, 5: 2, 6: 1, 7: 1}
    rows = verdict_rows(
        requests(8), {request.id: [v] for request, v in zip(requests(8), verdicts, strict=True)}
    )
    (tmp_path / "verdicts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    replay = JudgeConfig(kind="replay", verdicts=str(tmp_path / "verdicts.jsonl"), max_missing=0.5)
    given = {"readable": readable, "oracle": None, "console": Console(file=io.StringIO())}
    replayed, _ = judge_answers(requests(8), replay, tmp_path / "cache", **given)
    assert replayed == {str(n): [v] for n, v in enumerate(verdicts)}
    told = shortfall(requests(8), replayed, 0.5, readable)
    assert told.startswith("5 of 8 answers have no readable verdict (0, 1, 2, 3, 5)")
    assert shortfall(requests(8), replayed, 0.7, readable) == ""


@pytest.mark.parametrize(
    "fault",
    [error(401, "invalid_api_key", f"Incorrect API key: {KEY}"), error(429, "insufficient_quota")],
)
def test_a_hopeless_error_comes_once_and_stops_all(fault: Fault, tmp_path: Path) -> None:
    """Catches: 300 errors for one wrong key; work lost that was paid for; the key in the error."""

    def script(number: int, body: dict[str, Any]) -> Fault | None:
        return fault if number >= 20 else None

    with OpenAIServer(judge, log=tmp_path / "log", script=script, latency=(0.02, 0.1)) as server:
        with pytest.raises(
            JudgeError, match=r"2\d of 300 replies are kept|1\d of 300|20 of 300"
        ) as caught:
            run(server, tmp_path / "cache", 300, concurrency=8)
        assert KEY not in str(caught.value) and len(server.requests()) < 40
        assert len(list((tmp_path / "cache").rglob("*.json"))) == 20
        server.script = lambda number, body: fault
        with pytest.raises(JudgeError, match="cannot be used"):
            check_endpoint(EndpointConfig(**settings(server, model="other")), tmp_path / "cache")


def test_cost_stops_before_it_is_too_much(tmp_path: Path) -> None:
    """Catches: a cap noticed after it is passed; a stop that loses replies already paid for."""
    with OpenAIServer(judge, log=tmp_path / "log", latency=(0.01, 0.1)) as server:
        # A reply has 10 tokens of at most 100: a call reserves 100 micro-USD and costs 10.
        price = {"price_in": 0.0, "price_out": 1.0, "max_tokens": 100}
        with pytest.raises(JudgeError, match="max_cost"):
            run(server, tmp_path / "cache", 100, max_cost=0.0005, **price)
        spent = 10e-6 * len(server.requests())
        assert 0.0004 - 10e-6 <= spent <= 0.0005
        verdicts, ledger, _ = run(server, tmp_path / "cache", 100, **price)
        assert len(server.requests()) == 100 == len(verdicts)
        assert ledger.cost == pytest.approx(1e-3 - spent)


def test_missing_key_is_one_error_before_any_call(tmp_path: Path) -> None:
    with OpenAIServer(judge, log=tmp_path / "log") as server:
        public = {"base_url": "https://judge.example.com/v1"}  # a local server may need no key
        keyless = settings(server, key_env="NOT_SET", key_file="", **public)
        endpoint = EndpointConfig(**keyless)
        with pytest.raises(ConfigError, match="environment variable NOT_SET is empty or not set"):
            check_endpoint(endpoint, tmp_path / "cache")
        with pytest.raises(ConfigError, match=r"judge\.model is not set"):
            check_endpoint(EndpointConfig(base_url=server.url), tmp_path / "cache")
        assert server.requests() == []
        check_endpoint(EndpointConfig(**settings(server)), tmp_path / "cache")
        check_endpoint(EndpointConfig(**settings(server)), tmp_path / "cache")
        assert len(server.requests()) == 1
        with pytest.raises(JudgeError, match="it answers as 'judge', not 'judge-2'"):
            check_endpoint(
                EndpointConfig(**settings(server, seed=1, reported_model="judge-2")),
                tmp_path / "cache",
            )


def test_a_model_behind_an_endpoint_answers(tmp_path: Path) -> None:
    """Catches: an image that does not arrive, an answer cut at its length asked for again.

    Also: a refusal taken for silence.
    """
    bodies: list[dict[str, Any]] = []

    def script(number: int, body: dict[str, Any]) -> Fault | None:
        bodies.append(body)
        return None if "0" in body["messages"][-1]["content"][-1]["text"] else Fault(change=cut)

    def cut(reply: dict[str, Any]) -> dict[str, Any]:
        return {**reply, "choices": [{**reply["choices"][0], "finish_reason": "length"}]}

    write_benchmark(tmp_path, count=2, seed=0)
    pictures = [path.read_bytes() for path in sorted(tmp_path.rglob("*.png"))]
    prompts = [
        Prompt(str(number), picture, f"Question {number}?")
        for number, picture in enumerate(pictures)
    ]
    with OpenAIServer(
        lambda prompt: f" About {prompt}", log=tmp_path / "log", script=script
    ) as server:
        endpoint = EndpointConfig(**settings(server))
        generation = GenerationConfig(max_new_tokens=33, temperature=0.5)
        console = Console(file=io.StringIO())
        answers = endpoint_answers(
            prompts, endpoint, generation, tmp_path / "cache", console=console
        )
    assert answers == [Answer(p.id, p.question, f"About {p.question}") for p in prompts]
    assert [(body["max_tokens"], body["temperature"]) for body in bodies] == [(33, 0.5)] * 2
    sent = {body["messages"][-1]["content"][0]["image_url"]["url"].split(",")[1] for body in bodies}
    assert sent == {base64.b64encode(picture).decode() for picture in pictures}


DRIVER = """
import sys
from pathlib import Path
from rich.console import Console
from eval.inputs.endpoint_answers import endpoint_answers
from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.endpoint.run import ask
import ray
from rlhfv_ray.endpoint.records import Request
from eval.benchmarks.mmhal_bench import MMHalBench
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
requests = [Request(str(number), f"Answer number {number}") for number in range(200)]
endpoint = EndpointConfig(
    model="judge",
    base_url=sys.argv[1],
    key_file=sys.argv[3],
    requests_per_minute=600,
    actors=2,
    concurrency=8,
)
readable = MMHalBench.readable
ask(requests, endpoint, Path(sys.argv[2]), readable=readable, title="Verdicts", console=Console())
print("all there")
"""


def test_kill_9_in_the_middle_repeats_no_call_that_was_answered(tmp_path: Path) -> None:
    """Catches: replies paid for twice. Only calls under way at the kill may be repeated."""
    log, cache = tmp_path / "log", tmp_path / "cache"
    with OpenAIServer(judge, log=log, script=faults(0.05, 0.03), latency=(0.2, 0.5)) as server:
        command = [
            sys.executable,
            "-c",
            DRIVER,
            server.url,
            str(cache),
            settings(server)["key_file"],
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        driver = subprocess.Popen(
            command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL
        )
        wait_for(lambda: len(list(cache.rglob("*.json"))) >= 100, 120)
        family = psutil.Process(driver.pid).children(recursive=True)
        for process in (*family, driver):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        driver.wait()
        psutil.wait_procs(family, 30)
        time.sleep(2.0)  # the server finishes the calls under way
        endpoint = EndpointConfig(**settings(server, concurrency=8))
        cached = {
            request.text
            for request in requests(200)
            if ReplyCache(cache).get(request.key(endpoint)) is not None
        }
        answered = {entry["prompt"] for entry in server.requests() if entry["ok"]}
        before = len(server.requests())
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "all there" in done.stdout
        later = [entry["prompt"] for entry in server.requests()[before:]]
    assert 100 <= len(cached) < 200
    assert cached.isdisjoint(later)
    assert len(answered - cached) <= endpoint.concurrency  # under way at the kill
    assert len(list(cache.rglob("*.json"))) == 200
