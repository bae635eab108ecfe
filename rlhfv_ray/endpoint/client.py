"""One call to a server that speaks OpenAI's chat protocol, and the meaning of its result.

The OpenAI client's own retries are off, because `rlhfv_ray.endpoint.run` counts, paces and pays for
every attempt. Errors are classified by their remedy, not by their class: slow down, retry, or give
the request up.
"""

import asyncio
import base64
import email.utils
import json
import logging
import time
from dataclasses import replace
from typing import Any, Self

import httpx2
import openai

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.endpoint.body_limit import HEADERS, RefusedBodyError, limit_body
from rlhfv_ray.endpoint.completion import read_completion
from rlhfv_ray.endpoint.key import NO_KEY, read_key
from rlhfv_ray.endpoint.records import Outcome, Reply, Request, Status, Usage
from rlhfv_ray.redaction import redact, secrets_in

LONGEST_WAIT_S = 120.0  # a server that asks for a longer wait is asked again after this one
LONGEST_REASON = 300  # characters of a server's error that are shown
SAID_WAIT_S = 10.0  # waits from this one on are logged
NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
NOTHING = Usage(0, 0)
QUOTA = "insufficient_quota"
# Statuses that speak of the key, the account or the model. Their wording may differ by call.
OF_THE_CALLER = (401, 402, 403, 404, 429)
# OpenAI's codes for a request that it read and refuses; the same request is not sent again.
REFUSALS = (
    "content_filter",
    "content_policy_violation",
    "context_length_exceeded",
    "string_above_max_length",
)

log = logging.getLogger(__name__)


class ChatClient:
    """An async context with an OpenAI client and its key; made where the calls are made."""

    def __init__(self, endpoint: EndpointConfig) -> None:
        self.endpoint = endpoint
        secret = read_key(endpoint)
        key = secret.value
        self.sends_key = secret is not NO_KEY
        url = httpx2.URL(endpoint.base_url)
        self.address = url.netloc.decode()  # without user and password
        user = f"{url.username}:{url.password}"
        basic = base64.b64encode(user.encode()).decode()  # as it is sent
        self.secrets = (key, basic, *secrets_in(endpoint.base_url))
        self.client = openai.AsyncOpenAI(
            api_key=key,
            base_url=url.copy_with(query=None),
            default_query=dict(url.params),
            timeout=endpoint.timeout_s,
            max_retries=0,
            default_headers=HEADERS,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [limit_body]}),
        )
        self.limit = "max_tokens"  # OpenAI's newer models accept only max_completion_tokens

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def call(self, request: Request) -> Outcome:
        """Send a request once and return its outcome, within `timeout_s` seconds."""
        try:
            # The client's own limit starts anew with every byte that arrives.
            async with asyncio.timeout(self.endpoint.timeout_s):
                return self._redacted(await self._call(request))
        except TimeoutError:
            reason = f"no complete reply within {self.endpoint.timeout_s:g} s"
            return Outcome("retryable", Reply("unavailable"), reason)

    def _redacted(self, outcome: Outcome) -> Outcome:
        """Take the secrets out of all texts of an outcome, which a server may have sent back."""
        reply = outcome.reply
        fields = ("text", "model", "fingerprint")
        texts = {name: redact(getattr(reply, name), self.secrets) for name in fields}
        return outcome._replace(
            reply=replace(reply, **texts),
            reason=shorten(redact(outcome.reason, self.secrets)),
            cause=redact(outcome.cause, self.secrets),
        )

    async def _call(self, request: Request) -> Outcome:
        create = self.client.chat.completions.with_raw_response.create
        try:
            response = await create(**self.settings(request))
            reply, usage = read_completion(response.content)
            return Outcome("reply", reply, usage=usage)
        except openai.APIStatusError as error:
            if self.limit == "max_tokens" and "max_completion_tokens" in str(error):
                self.limit = "max_completion_tokens"
                return await self._call(request)
            return self.failed(error)._replace(usage=NOTHING)  # servers charge for no error
        except openai.APIError as error:  # no connection, a time-out, or a body that is refused
            cause = error.__cause__ or error
            reason = f"{type(cause).__name__}: {cause}"
            if isinstance(cause, httpx2.ConnectError):
                reason = f"no server answers at {self.address} ({reason})"
            is_refused = isinstance(cause, RefusedBodyError)
            status: Status = "bad_payload" if is_refused else "unavailable"
            usage = NOTHING if isinstance(cause, NEVER_SENT) else None
            return Outcome("retryable", Reply(status), reason, usage=usage)
        except ValueError as error:
            return Outcome("retryable", Reply("bad_payload"), str(error))

    def settings(self, request: Request) -> dict[str, Any]:
        """Return the arguments of the call."""
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
        """Turn an HTTP error into an outcome."""
        status = error.status_code
        code = str(error.code or "")
        message = redact(f"{status}: {error.message}", self.secrets)
        if status == 401 and not self.sends_key:
            message = f"{message} (no key was sent, as {self.endpoint.key_env} is not set)"
        reason = shorten(message)
        unavailable = Reply("unavailable")
        if status == 429 and code != QUOTA:
            wait = retry_after(error.response.headers)
            return Outcome("rate_limited", unavailable, reason, retry_after=wait)
        if status >= 500 or status in (408, 409):
            wait = retry_after(error.response.headers)
            return Outcome("retryable", unavailable, reason, retry_after=wait)
        if code in REFUSALS:
            return Outcome("reply", Reply("refused", reason))
        cause = str(status) if status in OF_THE_CALLER else message
        return Outcome("rejected", Reply("rejected", reason), reason, cause)


def shorten(reason: str) -> str:
    """Return the beginning of a reason, which may hold a whole page."""
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} ..."


async def call_once(endpoint: EndpointConfig, request: Request) -> Outcome:
    """Make one call with a client of its own."""
    async with ChatClient(endpoint) as client:
        return await client.call(request)


def retry_after(headers: Any) -> float:
    """Return how many seconds to wait for a server: what it asks for, up to `LONGEST_WAIT_S`.

    Example:
        >>> retry_after({"retry-after": "2"}), retry_after({"retry-after-ms": "250"})
        (2.0, 0.25)
        >>> retry_after({"retry-after": "soon"}), retry_after({"retry-after": "86400"})
        (0.0, 120.0)
    """
    requested = _seconds_asked(headers)
    wait = min(requested, LONGEST_WAIT_S)
    if wait >= SAID_WAIT_S:
        log.warning("The server asks to wait %.0f s; this call waits %.0f s.", requested, wait)
    return wait


def _seconds_asked(headers: Any) -> float:
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * scale)
        except (KeyError, ValueError):
            continue
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    try:
        return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else 0.0
    except (ValueError, OverflowError):  # no calendar has this date
        return 0.0
