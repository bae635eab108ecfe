"""Requests to a model behind an endpoint, and its replies."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

from rlhfv_ray.config import EndpointConfig

# For English, on the low side; the forecast and the pace use it.
CHARACTERS_PER_TOKEN = 3.5
# Upper bounds, in tokens: the largest picture of the model that counts most for one (gpt-4o-mini,
# 2833 + 8 tiles * 5667), and what a server's chat template adds to a prompt.
PICTURE = 50_000
TEMPLATE = 200
Status = Literal[
    "ok", "refused", "empty", "truncated", "other_model",
    "rejected", "unavailable", "bad_payload", "stopped",
]  # fmt: skip


@dataclass(frozen=True)
class Request:
    """A request to a model behind an endpoint.

    Field names and values make the cache key: renaming a field makes every cached reply unfindable.
    """

    id: str  # of the answer or prompt that the request is about; no part of the key
    text: str
    image: str = ""  # data URI
    system: str = ""
    schema: str = ""  # JSON schema of the reply, as text; empty: free text
    vote: int = 0
    whole: bool = True  # a reply that was cut off is of no use
    again: int = 0  # 1: the second request, made because the first reply was not useful

    def key(self, endpoint: EndpointConfig) -> str:
        """Return the digest of everything that the reply depends on."""
        content = {name: value for name, value in asdict(self).items() if name != "id"}
        settings = {
            name: getattr(endpoint, name)
            for name in ("model", "base_url", "temperature", "max_tokens", "seed")
        }
        return hashlib.sha256(json.dumps([content, settings], sort_keys=True).encode()).hexdigest()

    @property
    def tokens(self) -> int:
        """The estimated number of tokens; an image counts as a thousand.

        Example:
            >>> Request("1", "x" * 7, image="data:,").tokens
            1002
        """
        characters = len(self.text) + len(self.system)
        return int(characters / CHARACTERS_PER_TOKEN) + 1000 * bool(self.image)

    @property
    def most_tokens(self) -> int:
        """An upper bound on the number of tokens: no tokenizer makes more than one of a byte.

        Example:
            >>> Request("1", "狗" * 7).most_tokens, Request("1", "x", image="data:,").most_tokens
            (221, 50201)
        """
        texts = self.text + self.system + self.schema
        return len(texts.encode(errors="replace")) + PICTURE * bool(self.image) + TEMPLATE

    def messages(self) -> list[dict[str, Any]]:
        """Return the messages of the chat protocol."""
        picture = [{"type": "image_url", "image_url": {"url": self.image}}]
        content: Any = [*picture, {"type": "text", "text": self.text}] if self.image else self.text
        system = [{"role": "system", "content": self.system}] if self.system else []
        user = [{"role": "user", "content": content}] if content or not system else []
        return [*system, *user]


class Usage(NamedTuple):
    """The tokens that a server counts, and charges for."""

    tokens_in: int
    tokens_out: int


@dataclass(frozen=True)
class Reply:
    """A server's reply to a request, or the reason why it has none."""

    status: Status
    text: str = ""
    model: str = ""  # as the server reports it
    fingerprint: str = ""  # of the server's system, if it reports one
    tokens_in: int = 0
    tokens_out: int = 0

    @property
    def received(self) -> bool:
        """True if the server gave this reply, so that the same request is not sent again."""
        return self.status in ("ok", "refused", "empty", "truncated", "other_model")


class Outcome(NamedTuple):
    """The result of one call."""

    # rate_limited: status 429. retryable: another attempt may succeed. rejected: none would.
    # stopped: no call was made, because the budget stopped all calls.
    kind: Literal["reply", "rate_limited", "retryable", "rejected", "stopped"]
    reply: Reply
    reason: str = ""
    cause: str = ""  # of a rejection; equal for requests that fail in the same way
    retry_after: float = 0.0  # seconds that the server asks to wait
    usage: Usage | None = None  # tokens that the call is charged for; None: the server did not say


def useful(reply: Reply, readable: Callable[[str], bool], request: Request) -> bool:
    """Return True if a reply is as complete as the request needs, and readable.

    Example:
        >>> cut_off = Reply("truncated", "A dog on a")
        >>> useful(cut_off, bool, Request("1", "Describe.", whole=False))
        True
        >>> useful(cut_off, bool, Request("1", "Describe."))
        False
    """
    complete = reply.status == "ok" or (reply.status == "truncated" and not request.whole)
    return complete and readable(reply.text)


def pinned(reply: Reply, endpoint: EndpointConfig) -> Reply:
    """Return a reply, with status `other_model` if it is not the reported model's.

    Example:
        >>> pinned(Reply("ok", "4", "judge-mini"), EndpointConfig(reported_model="judge")).status
        'other_model'
    """
    is_other = reply.received and endpoint.reported_model not in ("", reply.model)
    return replace(reply, status="other_model") if is_other else reply


def digest(request: Request) -> str:
    """Return the digest of a request's wording, the same for every model."""
    wording = [request.system, request.text, request.schema]
    return hashlib.sha256(json.dumps(wording).encode()).hexdigest()[:16]
