"""One call to a server that speaks OpenAI's chat protocol, and what its result means.

The client's own retries are off: every attempt is counted, paced and paid in one place (`rlhfv_ray.endpoint.run`). Errors are told apart by what
helps against them, not by their class: being slower, trying again, or nothing.
"""

import email.utils
import json
import time
from typing import Any, Literal, NamedTuple, Self

import openai
from openai.types.chat import ChatCompletion

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.endpoint.key import read_key
from rlhfv_ray.endpoint.records import Request, Status, Verdict

QUOTA = "insufficient_quota"
OF_ONE_REQUEST = (
    "content_filter",
    "content_policy_violation",
    "context_length_exceeded",
    "string_above_max_length",
)


class Outcome(NamedTuple):
    """What came of one call."""

    kind: Literal[
        "reply", "rate_limited", "retryable", "fatal"
    ]  # rate_limited: 429; retryable: worth another try; fatal: for every request
    verdict: Verdict
    reason: str = ""
    retry_after: float = 0.0  # seconds, as the server asks


class ChatClient:
    """Holds a client and its key while it is entered; lives where the calls are made, and does not travel."""

    def __init__(self, endpoint: EndpointConfig) -> None:
        self.endpoint, self.key = endpoint, read_key(endpoint)
        self.client = openai.AsyncOpenAI(
            api_key=self.key.value,
            base_url=endpoint.base_url,
            timeout=endpoint.timeout_s,
            max_retries=0,
        )
        self.limit = "max_tokens"  # OpenAI's newer models know only max_completion_tokens

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def call(self, request: Request) -> Outcome:
        """Ask once."""
        try:
            reply: Any = await self.client.chat.completions.create(**self.settings(request))
        except openai.APIStatusError as error:
            if self.limit == "max_tokens" and "max_completion_tokens" in str(error):
                self.limit = "max_completion_tokens"
                return await self.call(request)
            return self.failed(error)
        except openai.APIResponseValidationError as error:
            return Outcome("retryable", Verdict("bad_payload"), self.key.hidden_in(str(error)))
        except openai.APIError as error:  # no connection, time-out
            return Outcome(
                "retryable",
                Verdict("unavailable"),
                self.key.hidden_in(f"{type(error).__name__}: {error}"),
            )
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            return Outcome("retryable", Verdict("bad_payload"), self.key.hidden_in(str(error)))
        return read_reply(reply, self.endpoint.reported_model)

    def settings(self, request: Request) -> dict[str, Any]:
        """The arguments of the call."""
        endpoint = self.endpoint
        settings: dict[str, Any] = {
            "model": endpoint.model,
            "messages": request.messages(),
            "temperature": endpoint.temperature,
            self.limit: endpoint.max_tokens * (1 + request.again),
        }
        if endpoint.seed is not None:
            settings["seed"] = endpoint.seed + request.vote
        if request.schema:
            schema = {"name": "verdict", "strict": True, "schema": json.loads(request.schema)}
            settings["response_format"] = {"type": "json_schema", "json_schema": schema}
        return settings

    def failed(self, error: openai.APIStatusError) -> Outcome:
        """What an HTTP error means."""
        reason, status = (
            self.key.hidden_in(f"{error.status_code}: {error.message}"),
            error.status_code,
        )
        code = str(error.code or "")
        if status == 429 and code != QUOTA:
            return Outcome(
                "rate_limited", Verdict("unavailable"), reason, retry_after(error.response.headers)
            )
        if status >= 500 or status in (408, 409):
            return Outcome(
                "retryable", Verdict("unavailable"), reason, retry_after(error.response.headers)
            )
        if code in OF_ONE_REQUEST:
            return Outcome("reply", Verdict("refused", reason))
        return Outcome("fatal", Verdict("unavailable"), reason)


async def call_once(endpoint: EndpointConfig, request: Request) -> Outcome:
    """One call by a client of its own."""
    async with ChatClient(endpoint) as caller:
        return await caller.call(request)


def read_reply(reply: Any, wanted: str) -> Outcome:
    """What a reply holds: the client hands through whatever came with status 200."""
    if (
        not isinstance(reply, ChatCompletion)
        or not reply.choices
        or reply.choices[0].message is None
    ):
        return Outcome(
            "retryable", Verdict("bad_payload"), f"no chat completion: {str(reply)[:80]!r}"
        )
    choice = reply.choices[0]
    text = choice.message.content or ""
    status: Status = "ok"
    if wanted and reply.model != wanted:
        status = "other_model"
    elif choice.message.refusal or choice.finish_reason == "content_filter":
        status, text = "refused", choice.message.refusal or text
    elif choice.finish_reason == "length":
        status = "truncated"
    elif not text.strip():
        status = "empty"
    usage = reply.usage
    tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    return Outcome(
        "reply", Verdict(status, text, reply.model or "", reply.system_fingerprint or "", *tokens)
    )


def retry_after(headers: Any) -> float:
    """Seconds that a server asks to wait; 0 where it does not.

    Example:
        >>> retry_after({"retry-after": "2"}), retry_after({"retry-after-ms": "250"}), retry_after({"retry-after": "soon"})
        (2.0, 0.25, 0.0)
    """
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * scale)
        except (KeyError, ValueError):
            continue
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else 0.0
