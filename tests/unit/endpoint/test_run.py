"""Retries, replay and estimates; `tests/ray/test_judging.py` has the fan-out over actors."""

import asyncio
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from rich.console import Console
from tenacity import RetryCallState

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.endpoint import client
from rlhfv_ray.endpoint.budget import CallBudget, Ledger
from rlhfv_ray.endpoint.cache import ReplyCache
from rlhfv_ray.endpoint.records import Outcome, Reply, Request
from rlhfv_ray.endpoint.run import (
    PROBE,
    CallActor,
    ask,
    check_endpoint,
    estimate,
    retry_wait,
    retrying,
)
from rlhfv_ray.errors import ConfigError, JudgeError
from tests.openai_server import Fault, OpenAIServer, vllm_error
from tests.unit.endpoint.generated_replies import Handle, every_reply_settles
from tests.unit.endpoint.odd_replies import ERRORS, NO_VERDICT, READABLE

REPLY = Outcome("reply", Reply("ok", "Rating: 4"))
RETRYABLE = Outcome("retryable", Reply("bad_payload"), "half a reply", retry_after=0.001)
RATE_LIMITED = Outcome("rate_limited", Reply("unavailable"), "429", retry_after=0.001)
REJECTED = Outcome("rejected", Reply("rejected"), "401")


@pytest.mark.parametrize(
    ("outcomes", "calls"),
    [
        ([REPLY], 1),
        ([RETRYABLE, RATE_LIMITED, REPLY], 3),
        ([RETRYABLE, REJECTED, REPLY], 2),  # no further call for a rejected request
        ([RATE_LIMITED, RETRYABLE, RETRYABLE, REPLY], 3),  # three attempts, the last one's outcome
    ],
)
def test_failed_calls_are_repeated_up_to_the_limit(outcomes: list[Outcome], calls: int) -> None:
    """Catches: endless retries, retries that cannot help, an exception for the last failure."""
    history: list[Outcome] = []

    async def call() -> Outcome:
        history.append(outcomes[len(history)])
        return history[-1]

    assert asyncio.run(retrying(3)(call)) == outcomes[calls - 1]
    assert len(history) == calls


def test_an_exception_ends_the_retries() -> None:
    """Catches: a lost budget actor called again and again."""
    calls: list[int] = []

    async def call() -> Outcome:
        calls.append(1)
        raise ValueError("gone")

    with pytest.raises(ValueError, match="gone"):
        asyncio.run(retrying(3)(call))
    assert len(calls) == 1


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 0.5), (2, 1.0), (4, 4.0), (5, 8.0), (9, 8.0)])
def test_waits_double_up_to_a_limit_unless_the_server_names_one(
    attempt: int, seconds: float
) -> None:
    """Catches: retries in lockstep, waits without a limit, a Retry-After that is ignored."""
    state = RetryCallState(retrying(6), fn=None, args=(), kwargs={})
    state.attempt_number = attempt
    state.set_result(Outcome("retryable", Reply("unavailable")))
    waits = [retry_wait(state) for _ in range(50)]
    assert 0.75 * seconds <= min(waits) < max(waits) <= 1.25 * seconds
    state.set_result(Outcome("rate_limited", Reply("unavailable"), retry_after=30.0))
    assert retry_wait(state) == 30.0


def test_a_replay_calls_no_server(tmp_path: Path) -> None:
    """Catches: a replay that needs a key, a running Ray or a server, or that prints an estimate."""
    console = Console(file=io.StringIO())
    requests = [Request("1", "a"), Request("1", "a", vote=1), Request("2", "b")]
    replies, ledger = ask(
        requests,
        EndpointConfig(model="judge", key_file=str(tmp_path / "none")),
        lambda request: Reply("ok", f"{request.text}{request.vote}"),
        readable=bool,
        title="Replies",
        console=console,
    )
    assert [reply.text for reply in replies] == ["a0", "a1", "b0"]
    assert ledger == Ledger(requests=2)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


@pytest.mark.slow
def test_generated_replies_settle_and_are_paid_as_the_server_counts() -> None:
    """Catches: a reply that no one thought of, which ends the actor or passes the limit."""
    settings(max_examples=100, deadline=None)(every_reply_settles)()


def test_odd_replies_cost_no_other_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: one odd reply that ends the actor, and with it the paid replies under way."""
    monkeypatch.setattr(client, "LONGEST_WAIT_S", 0.01)
    monkeypatch.setenv("MY_KEY", "sk-1")
    odd = {**NO_VERDICT, **READABLE, **ERRORS}
    slow = {f"slow {number}": Fault(sleep=1.0) for number in range(5)}
    faults = {**slow, **odd}

    def script(number: int, body: dict[str, Any]) -> Fault:
        return faults[body["messages"][-1]["content"]]

    with OpenAIServer(lambda prompt: "Rating: 4", log=tmp_path / "log", script=script) as server:
        endpoint = EndpointConfig(
            model="judge",
            base_url=server.url,
            key_env="MY_KEY",
            attempts=1,
            requests_per_minute=60_000,
        )
        budget = CallBudget(endpoint, tmp_path / "cache")
        actor = CallActor(endpoint, str(tmp_path / "cache"), bool, Handle(budget))
        failed = asyncio.run(actor.settle_all([Request(name, name) for name in faults]))
    assert {request.id for request, _ in failed} == {*NO_VERDICT, *ERRORS}
    cache = ReplyCache(tmp_path / "cache")
    cached = {name: cache.get(Request(name, name).key(endpoint)) for name in (*slow, *READABLE)}
    assert {reply.text for reply in cached.values() if reply} == {"Rating: 4"}
    assert None not in cached.values()
    assert budget.done == budget.ledger.calls == len(faults)


@pytest.mark.parametrize("votes", [1, 3])
def test_prompts_too_long_for_vllm_are_missing_and_the_others_judged(
    votes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: one prompt too long that stops all requests, in this run and in every other."""
    monkeypatch.setenv("MY_KEY", "sk-1")

    def script(number: int, body: dict[str, Any]) -> Fault | None:
        prompt = body["messages"][-1]["content"]
        reason = f"This model's maximum context length is 9 tokens, but {len(prompt)} were sent."
        return vllm_error(400, reason) if len(prompt) > 9 else None

    prompts = ["a" * length for length in (10, 11, 1, 12, 13, 14, 15, 2, 3, 4)]
    requests = [Request(text, text, vote=vote) for text in prompts for vote in range(votes)]
    with OpenAIServer(lambda prompt: "Rating: 4", log=tmp_path / "log", script=script) as server:
        endpoint = EndpointConfig(
            model="judge", base_url=server.url, key_env="MY_KEY", concurrency=1
        )
        handle = Handle(CallBudget(endpoint, tmp_path / "cache"))
        actor = CallActor(endpoint, str(tmp_path / "cache"), bool, handle)
        failed = asyncio.run(actor.settle_all(requests))
        assert len(server.requests()) == len(requests)
    assert {reply.status for _, reply in failed} == {"rejected"}
    missing = [request for request, _ in failed]
    assert missing == [request for request in requests if len(request.text) > 9]


def test_a_cache_that_breaks_stops_all_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: 50 replies paid for that no disk holds."""
    monkeypatch.setenv("MY_KEY", "sk-1")
    with OpenAIServer(lambda prompt: "Rating: 4", log=tmp_path / "log") as server:
        endpoint = EndpointConfig(
            model="judge", base_url=server.url, key_env="MY_KEY", concurrency=1
        )
        budget = CallBudget(endpoint, tmp_path / "cache")
        actor = CallActor(endpoint, str(tmp_path / "cache"), bool, Handle(budget))
        requests = [Request(str(number), f"text {number}") for number in range(50)]
        for request in requests:
            (tmp_path / "cache" / request.key(endpoint)[:2]).touch()  # in the way of its folder
        failed = asyncio.run(actor.settle_all(requests))
        assert len(server.requests()) == 1
    assert [reply for _, reply in failed] == [Reply("stopped")] * 50
    assert budget.ledger.stopped.startswith("the cache of replies failed: ")


def test_an_unwritable_cache_is_found_before_a_call(tmp_path: Path) -> None:
    """Catches: calls that start Ray and a server's work before the folder is looked at."""
    (tmp_path / "cache").touch()
    console = Console(file=io.StringIO())
    endpoint = EndpointConfig(model="judge", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_endpoint(endpoint, tmp_path / "cache")
    with pytest.raises(ConfigError, match="cannot be written"):
        ask(
            [Request("1", "a")],
            endpoint,
            tmp_path / "cache",
            readable=bool,
            title="Replies",
            console=console,
        )


def test_a_probe_of_another_model_is_refused_from_the_cache_too(tmp_path: Path) -> None:
    """Catches: a pinned model that an earlier run's probe waves through."""
    endpoint = EndpointConfig(model="judge", base_url="http://127.0.0.1:9/v1")
    ReplyCache(tmp_path).put(PROBE.key(endpoint), Reply("ok", "ok", model="judge-mini"))
    check_endpoint(endpoint, tmp_path)
    with pytest.raises(JudgeError, match="it answers as 'judge-mini', not 'judge'"):
        check_endpoint(replace(endpoint, reported_model="judge"), tmp_path)


def test_estimates_by_hand() -> None:
    """Catches: an estimate that forgets the token limit, the prompts or the longest replies.

    1000 calls of 10 + 150 tokens: 160,000 tokens at 40,000 a minute take 4 minutes. At 100 and 200
    USD per million tokens: 1 + 30 USD. At most, a prompt of 35 bytes has 35 + 200 tokens and its
    reply 1000: 23.50 + 200 USD.
    """
    endpoint = EndpointConfig(
        model="judge",
        requests_per_minute=1000,
        tokens_per_minute=40_000,
        price_in=100.0,
        price_out=200.0,
        max_tokens=1000,
    )
    assert estimate([Request("1", "x" * 35)] * 1000, 1007, endpoint) == (
        "judge: 1000 calls for 1007 replies, about 10,000 tokens in and 150,000 out, about "
        "31.00 USD and 223.50 at most, 4.0 minutes or more"
    )
