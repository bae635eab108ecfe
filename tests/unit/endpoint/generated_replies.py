"""Replies that hypothesis makes up, and what they must never do to a run or its budget."""

import asyncio
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import wait_none

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.endpoint import client, run
from rlhfv_ray.endpoint.budget import CallBudget
from rlhfv_ray.endpoint.cache import ReplyCache
from rlhfv_ray.endpoint.records import Request
from tests.openai_server import Fault, OpenAIServer, error
from tests.unit.endpoint.odd_replies import ERRORS, NO_VERDICT, READABLE, VERDICT, body, choice

MICRO = 1e-6  # USD, the price of a token
LONGEST = 10  # tokens of a reply


class Handle:
    """A budget in this process, called as Ray calls an actor."""

    def __init__(self, budget: CallBudget) -> None:
        self.budget = budget

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.budget, name))


@dataclass(frozen=True)
class Sent:
    """A response, and the tokens that its server charges; None: the most, as it states none."""

    fault: Fault
    tokens: int | None


def stated(prompt_tokens: int, completion_tokens: int, content: str, reason: str) -> Sent:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    regular = body(
        usage=usage,
        choices=[{"message": {**VERDICT, "content": content}, "finish_reason": reason}],
    )
    return Sent(regular, prompt_tokens + completion_tokens)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
VERDICTS = st.sampled_from(["Rating: 4", "", "hm"]) | st.text()
REASONS = st.sampled_from(["stop", "length", "content_filter", "tool_calls"])
REGULAR = st.builds(stated, st.integers(0, 200), st.integers(0, LONGEST), VERDICTS, REASONS)
WITHOUT_USAGE = st.one_of(
    st.sampled_from([*NO_VERDICT.values(), *READABLE.values(), Fault(drop=True)]),
    JSON.map(lambda value: Fault(body=json.dumps(value) or " ")),
    st.text(min_size=1).map(lambda text: Fault(body=text)),
    JSON.map(lambda value: body(choices=value, usage=None)),
    JSON.map(lambda value: choice(message=value)).map(
        lambda fault: Fault(body=fault.body.replace("prompt_tokens", "tokens"))
    ),
).map(lambda fault: Sent(fault, None))
FREE = st.one_of(
    st.sampled_from([*ERRORS.values(), error(429), error(500), error(400, "content_filter")]),
    st.builds(
        error, st.sampled_from([400, 401, 404, 413, 422, 429, 500, 503]), st.text(), st.text()
    ),
).map(lambda fault: Sent(fault, 0))


@given(
    sent=st.lists(st.one_of(REGULAR, WITHOUT_USAGE, FREE), min_size=1, max_size=6),
    requests=st.integers(1, 6),
    limit=st.sampled_from([0, 300, 500, 1000]),
)
def every_reply_settles(sent: list[Sent], requests: int, limit: int) -> None:
    """Check one run: every request settles, and the ledger holds what the server charges."""
    charged: list[int] = []  # tokens

    def script(number: int, content: dict[str, Any]) -> Fault:
        response = sent[number % len(sent)]
        prompt = content["messages"][-1]["content"]
        most = len(prompt.encode()) + 200 + content["max_tokens"]
        charged.append(most if response.tokens is None else response.tokens)
        return response.fault

    asked = [Request(str(number), f"Answer {number}") for number in range(requests)]
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        OpenAIServer(lambda prompt: "", log=Path(folder) / "log", script=script) as server,
    ):
        patch.setattr(run, "retry_wait", wait_none())
        patch.setattr(client, "LONGEST_WAIT_S", 0.01)  # the shared pace waits, too
        patch.setenv("MY_KEY", "sk-canary-1234")
        endpoint = EndpointConfig(
            model="judge",
            base_url=server.url,
            key_env="MY_KEY",
            max_tokens=LONGEST,
            price_in=1.0,
            price_out=1.0,
            max_cost=limit * MICRO,
            requests_per_minute=1e6,
            attempts=2,
        )
        cache = Path(folder) / "cache"
        budget = CallBudget(endpoint, cache)
        actor = run.CallActor(endpoint, str(cache), lambda text: "4" in text, Handle(budget))
        failed = dict(asyncio.run(actor.settle_all(asked)))
        ledger = asyncio.run(budget.close())
        for request in asked:
            settled = ReplyCache(cache).settle(request, endpoint, lambda text: "4" in text)
            assert (settled.ask is None) != (request in failed)
        spending = [json.loads(file.read_text()) for file in cache.glob("spending/*.json")]
    assert budget.done == requests
    assert ledger.calls == len(charged) == sum(ledger.outcomes.values())
    assert math.isclose(ledger.cost, sum(charged) * MICRO, abs_tol=1e-12)
    assert math.isclose(sum(file["settled"] for file in spending), ledger.cost, abs_tol=1e-12)
    assert not limit or sum(charged) <= limit
