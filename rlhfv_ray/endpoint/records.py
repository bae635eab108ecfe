"""Requests to a model behind an endpoint, and its replies."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rlhfv_ray.config import EndpointConfig

CHARACTERS_PER_TOKEN = 3.5  # of English, on the safe side: estimates alone are made with it
Status = Literal[
    "ok", "refused", "empty", "truncated", "unavailable", "bad_payload", "other_model", "stopped"
]


@dataclass(frozen=True)
class Request:
    """One thing to ask of a model behind an endpoint."""

    id: str  # of the answer it is about
    text: str
    image: str = ""  # data URI
    system: str = ""
    schema: str = ""  # JSON schema of the reply, as text; empty: free text
    vote: int = 0
    whole: bool = True  # a reply that was cut off is of no use
    again: int = (
        0  # 1: asked anew, because the first reply was cut off, empty, refused or without a verdict
    )

    def key(self, endpoint: EndpointConfig) -> str:
        """Digest of all that the reply depends on."""
        asked = {name: value for name, value in asdict(self).items() if name != "id"}
        settings = {
            name: getattr(endpoint, name)
            for name in ("model", "base_url", "temperature", "max_tokens", "seed")
        }
        return hashlib.sha256(json.dumps([asked, settings], sort_keys=True).encode()).hexdigest()

    @property
    def tokens(self) -> int:
        """About how many tokens it is, an image counted as a thousand."""
        return int((len(self.text) + len(self.system)) / CHARACTERS_PER_TOKEN) + 1000 * bool(
            self.image
        )

    def messages(self) -> list[dict[str, Any]]:
        """As the chat protocol has it."""
        picture = [{"type": "image_url", "image_url": {"url": self.image}}]
        content: Any = [*picture, {"type": "text", "text": self.text}] if self.image else self.text
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": content}]


@dataclass(frozen=True)
class Verdict:
    """What became of a request: a reply, or why there is none."""

    status: Status
    text: str = ""
    model: str = ""  # as the server reports it
    fingerprint: str = ""  # of the server's system, where it tells
    tokens_in: int = 0
    tokens_out: int = 0

    @property
    def kept(self) -> bool:
        """Whether the server gave it, so that it need not be asked for again."""
        return self.status in ("ok", "refused", "empty", "truncated", "other_model")


def useful(verdict: Verdict, readable: Callable[[str], bool], request: Request) -> bool:
    """Whether a reply is as whole as it must be, and holds what was asked for."""
    there = verdict.status == "ok" or (verdict.status == "truncated" and not request.whole)
    return there and readable(verdict.text)


def digest(request: Request) -> str:
    """Of what is asked, whoever is asked."""
    return hashlib.sha256(
        json.dumps([request.system, request.text, request.schema]).encode()
    ).hexdigest()[:16]
