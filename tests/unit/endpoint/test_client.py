"""One call against a real local HTTP server that shows every kind of fault in turn."""

import asyncio
import base64
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.endpoint.body_limit import LARGEST_BODY
from rlhfv_ray.endpoint.client import LONGEST_REASON, LONGEST_WAIT_S, ChatClient, call_once
from rlhfv_ray.endpoint.records import Outcome, Reply, Request, Usage
from tests.openai_server import Fault, OpenAIServer, error, vllm_error
from tests.unit.endpoint.odd_replies import ERRORS, NO_VERDICT, READABLE, body

KEY = "sk-canary-1234"


def call(
    fault: Fault | None, tmp_path: Path, *, request: Request | None = None, **settings: Any
) -> Outcome:
    """Call a server once; it answers with the fault."""
    with OpenAIServer(
        lambda prompt: "Rating: 4", log=tmp_path / "log", script=lambda number, body: fault
    ) as server:
        endpoint = EndpointConfig(
            model="judge",
            base_url=server.url,
            **{"key_env": "MY_KEY", "timeout_s": 30.0, **settings},
        )
        return asyncio.run(call_once(endpoint, request or Request("1", "How good?")))


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)


def test_a_reply(tmp_path: Path) -> None:
    outcome = call(None, tmp_path)
    reply = Reply("ok", "Rating: 4", "judge", "", 2, 10)
    assert outcome == Outcome("reply", reply, usage=Usage(2, 10))


def test_a_refusal_says_that_no_key_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a local server with a key, whose 401 leaves the user to guess why."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    unnamed = {"key_env": "OPENAI_API_KEY"}
    outcome = call(error(401, "invalid_api_key"), tmp_path, **unnamed)
    assert outcome.kind == "rejected"
    assert "no key was sent, as OPENAI_API_KEY is not set" in outcome.reason
    assert call(None, tmp_path, **unnamed).reply.text == "Rating: 4"


def choice(**changes: Any) -> Fault:
    def change(reply: dict[str, Any]) -> dict[str, Any]:
        first = reply["choices"][0]
        return {**reply, "choices": [{**first, **changes}]}

    return Fault(change=change)


def message(content: str | None, **more: Any) -> Fault:
    return choice(message={"role": "assistant", "content": content, **more})


TABLE = {
    "too many": (error(429, "rate_limit_exceeded", retry_after="7"), "rate_limited", "unavailable"),
    "too many, no hint": (error(429, "rate_limit_exceeded"), "rate_limited", "unavailable"),
    "no money": (error(429, "insufficient_quota"), "rejected", "rejected"),
    "wrong key": (
        error(401, "invalid_api_key", f"Incorrect API key provided: {KEY}"),
        "rejected",
        "rejected",
    ),
    "not allowed": (error(403), "rejected", "rejected"),
    "no such model": (error(404, "model_not_found"), "rejected", "rejected"),
    "bad request": (error(400, "unsupported_value"), "rejected", "rejected"),
    "filtered": (error(400, "content_filter"), "reply", "refused"),
    "too long": (error(400, "context_length_exceeded"), "reply", "refused"),
    "too long for vLLM": (vllm_error(400, "maximum context length"), "rejected", "rejected"),
    "too large": (Fault(413, "<html>Too large</html>"), "rejected", "rejected"),
    "not processable": (error(422), "rejected", "rejected"),
    "broken": (error(500), "retryable", "unavailable"),
    "bad gateway": (Fault(502, "<html>Bad gateway</html>"), "retryable", "unavailable"),
    "dropped": (Fault(drop=True), "retryable", "unavailable"),
    "slow": (Fault(sleep=1.0), "retryable", "unavailable"),
    "a page": (Fault(body="<html>Sign in</html>"), "retryable", "bad_payload"),
    "half a reply": (Fault(body='{"id": "x", "choi'), "retryable", "bad_payload"),
    "an empty body": (Fault(body=" "), "retryable", "bad_payload"),
    "another object": (Fault(body='{"hello": 1}'), "retryable", "bad_payload"),
    "no choices": (
        Fault(change=lambda reply: {**reply, "choices": []}),
        "retryable",
        "bad_payload",
    ),
    "no text": (message(None), "reply", "empty"),
    "blank text": (message(" \n"), "reply", "empty"),
    "refused": (message(None, refusal="I will not."), "reply", "refused"),
    "filtered reply": (choice(finish_reason="content_filter"), "reply", "refused"),
    "cut off": (choice(finish_reason="length"), "reply", "truncated"),
}


@pytest.mark.parametrize("name", TABLE)
def test_what_a_fault_means(name: str, tmp_path: Path) -> None:
    """Catches: paid retries that cannot help, errors taken for replies, the key in an error.

    Also: an exception that ends a whole run.
    """
    fault, kind, status = TABLE[name]
    outcome = call(fault, tmp_path, timeout_s=0.5 if name == "slow" else 30.0)
    assert (outcome.kind, outcome.reply.status) == (kind, status)
    assert outcome.kind == "reply" or outcome.reason
    assert KEY not in repr(outcome)
    # An HTTP error costs nothing. What a dropped or odd reply costs is not known.
    is_charged = name in ("dropped", "slow") or outcome.reply.status == "bad_payload"
    usage = None if is_charged else Usage(2, 10) if fault.status == 200 else Usage(0, 0)
    assert outcome.usage == usage
    assert outcome.retry_after == (7.0 if name == "too many" else 0.0)


def test_odd_replies_are_bad_payloads_or_verdicts(tmp_path: Path) -> None:
    """Catches: a shape that no code expects, which ends the process with all calls under way."""
    odd = {**NO_VERDICT, **READABLE, **ERRORS}
    faults = iter(odd.values())
    with OpenAIServer(
        lambda prompt: "", log=tmp_path / "log", script=lambda number, body: next(faults)
    ) as server:
        endpoint = EndpointConfig(model="judge", base_url=server.url, key_env="MY_KEY")

        async def all_calls() -> dict[str, Outcome]:
            async with ChatClient(endpoint) as client:
                return {name: await client.call(Request("1", name)) for name in odd}

        outcomes = asyncio.run(all_calls())
    statuses = {name: outcome.reply.status for name, outcome in outcomes.items()}
    expected = [(NO_VERDICT, "bad_payload"), (READABLE, "ok"), (ERRORS, "unavailable")]
    for group, status in expected:
        assert {name: statuses[name] for name in group} == dict.fromkeys(group, status)
    assert {outcomes[name].reply.text for name in READABLE} == {"Rating: 4"}
    assert len(odd) == 57


PASSWORD, TOKEN = "pass word/5678", "token-91011"
BASIC = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
SECRETS = {
    "key": KEY,
    "password": PASSWORD,
    "password in an address": quote(PASSWORD, safe=""),
    "password and user as a header": BASIC,
    "key in the query": TOKEN,
    "an address": f"http://me:{quote(PASSWORD)}@host/v1?api-key={TOKEN}",
}


def echoes(secret: str) -> list[Fault]:
    """Return responses that hold a secret in every place that a client reads."""
    page = f"<html>{'.' * 60}{secret}{'.' * 200}{secret}</html>"
    pages = [Fault(status, page) for status in (200, 400, 401, 413, 429, 500)]
    errors = [error(status, secret, secret) for status in (400, 401, 429, 503)]
    return [
        *pages,
        *errors,
        error(400, "content_filter", f"I will not show {secret}"),
        Fault(401, page + "x" * 10_000),
        body(choices=[{"message": {"content": f"{secret} Rating: 4", "refusal": secret}}]),
        message(f"{secret} Rating: 4"),
        body(model=secret, system_fingerprint=secret),
        body(model=["Bearer " + secret] * 9),
    ]


@pytest.mark.parametrize("name", SECRETS)
def test_no_text_of_a_server_brings_a_secret_back(name: str, tmp_path: Path) -> None:
    """Catches: a page that echoes the request's headers, shown in an error or kept in the cache.

    Also: half a key at the place where an error is cut.
    """
    faults = echoes(SECRETS[name])
    paths: list[str] = []

    def script(number: int, content: dict[str, Any]) -> Fault:
        return faults[number]

    with OpenAIServer(
        lambda prompt: "", log=tmp_path / "log", script=script, paths=paths
    ) as server:
        address = server.url.replace("://", f"://me:{quote(PASSWORD, safe='')}@")
        endpoint = EndpointConfig(
            model="judge", base_url=f"{address}?v=2&api-key={TOKEN}", key_env="MY_KEY"
        )

        async def all_calls() -> list[Outcome]:
            async with ChatClient(endpoint) as client:
                return [await client.call(Request("1", "?")) for _ in faults]

        outcomes = asyncio.run(all_calls())
    assert paths == [f"/v1/chat/completions?v=2&api-key={TOKEN}"] * len(faults)
    parts = [KEY, PASSWORD, quote(PASSWORD), quote(PASSWORD, safe=""), BASIC, TOKEN]
    assert sum("***" in repr(outcome) for outcome in outcomes) >= 9
    for outcome in outcomes:
        for secret in parts:
            assert secret[:8] not in repr(outcome)
        assert len(outcome.reason) <= LONGEST_REASON + 4
    assert "Rating: 4" in outcomes[-3].reply.text


def test_nobody_listens(tmp_path: Path) -> None:
    """Catches: a connection error that does not say where nobody listens, or says a password."""
    url = "http://me:secret@127.0.0.1:9/v1"
    endpoint = EndpointConfig(model="judge", base_url=url, key_env="MY_KEY")
    outcome = asyncio.run(call_once(endpoint, Request("1", "?")))
    assert (outcome.kind, outcome.usage) == ("retryable", Usage(0, 0))
    assert outcome.reason.startswith("no server answers at 127.0.0.1:9 (ConnectError")


@pytest.mark.parametrize("status", [200, 500])
def test_a_server_that_drips_bytes_is_left(status: int, tmp_path: Path) -> None:
    """Catches: a time limit that every byte starts anew, so that one call lasts for hours."""
    began = time.monotonic()
    outcome = call(Fault(status, body="x" * 100, drip=0.1), tmp_path, timeout_s=0.5)
    assert time.monotonic() - began < 9.0  # with 0.5 s for a reply, 10 s of dripping
    assert (outcome.kind, outcome.reply.status) == ("retryable", "unavailable")
    assert outcome.reason == "no complete reply within 0.5 s"


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("compress", [False, True])
def test_a_body_is_limited_in_bytes(status: int, compress: bool, tmp_path: Path) -> None:
    """Catches: a body that fills the memory, also one that arrives small and is then unpacked."""
    fault = Fault(status, body=" " * (LARGEST_BODY + 1), compress=compress)
    outcome = call(fault, tmp_path)
    assert (outcome.kind, outcome.reply.status) == ("retryable", "bad_payload")
    assert ("compressed" if compress else "more than 4,194,304 bytes") in outcome.reason


@pytest.mark.parametrize(("name", "factor"), [("retry-after", 1), ("retry-after-ms", 1000)])
def test_a_wait_is_limited_and_said(
    name: str, factor: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: a command that sleeps for a day without a word."""
    for seconds in ("5", "86400", "inf"):
        fault = error(429, **{name: str(float(seconds) * factor)})
        wait = call(fault, tmp_path).retry_after
        assert wait == min(float(seconds), LONGEST_WAIT_S)
    waits = ["86400", "inf"]
    said = [f"The server asks to wait {asked} s; this call waits 120 s." for asked in waits]
    assert caplog.messages == said


def test_what_is_sent(tmp_path: Path) -> None:
    """Catches: a setting without effect; newer OpenAI models refused for the old limit's name."""
    bodies: list[dict[str, Any]] = []

    def script(number: int, body: dict[str, Any]) -> Fault | None:
        bodies.append(body)
        return (
            error(400, "unsupported_parameter", "Use 'max_completion_tokens' instead.")
            if "max_tokens" in body
            else None
        )

    request = Request(
        "1", "text", image="data:x", system="sys", schema='{"type": "object"}', vote=2, again=1
    )
    with OpenAIServer(lambda prompt: "ok", log=tmp_path / "log", script=script) as server:
        endpoint = EndpointConfig(
            model="judge",
            base_url=server.url,
            key_env="MY_KEY",
            temperature=0.5,
            max_tokens=9,
            seed=5,
        )

        async def twice() -> list[Outcome]:
            async with ChatClient(endpoint) as caller:
                return [await caller.call(request), await caller.call(replace(request, again=0))]

        assert [outcome.kind for outcome in asyncio.run(twice())] == ["reply", "reply"]
    first, second, third = bodies
    assert (
        first["max_tokens"],
        second["max_completion_tokens"],
        third["max_completion_tokens"],
    ) == (18, 18, 9)
    assert (first["model"], first["temperature"], first["seed"]) == ("judge", 0.5, 7)
    assert first["response_format"]["json_schema"]["schema"] == {"type": "object"}
    picture = {"type": "image_url", "image_url": {"url": "data:x"}}
    user = {"role": "user", "content": [picture, {"type": "text", "text": "text"}]}
    assert first["messages"] == [{"role": "system", "content": "sys"}, user]


def test_a_date_is_a_wait_too(tmp_path: Path) -> None:
    """Catches: a Retry-After that is a date and counts for nothing."""
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 90))
    assert 60 < call(error(429, retry_after=later), tmp_path).retry_after <= 90
