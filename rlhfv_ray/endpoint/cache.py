"""Replies kept on disk by the digest of all that went into them.

Each is a file that is there whole or not at all: runs share what any of them paid for, and none pays twice.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.endpoint.records import Request, Verdict, useful
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import fetch


class VerdictCache:
    """Replies by what was asked, one file each; any number of processes read and write it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        fetch(folder)

    def path(self, key: str) -> Path:
        """Where a reply is, or will be."""
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> Verdict | None:
        """The reply, if there is one."""
        try:
            return Verdict(**json.loads(self.path(key).read_text()))
        except FileNotFoundError:
            return None

    def put(self, key: str, verdict: Verdict) -> None:
        """Keep a reply."""
        self.path(key).parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path(key), asdict(verdict))

    def settle(
        self, request: Request, endpoint: EndpointConfig, readable: Callable[[str], bool]
    ) -> "Settled":
        """What is known about a request, and what is still to be asked: a reply of no use is asked for once more."""
        first = self.get(request.key(endpoint))
        if first is None:
            return Settled(request, None)
        if useful(first, readable, request):
            return Settled(None, first)
        once_more = replace(request, again=1)
        second = self.get(once_more.key(endpoint))
        if second is None:
            return Settled(once_more, first)
        return Settled(
            None, second if useful(second, readable, request) or first.status != "ok" else first
        )


@dataclass(frozen=True)
class Settled:
    """What is left to ask, if anything, and what was said so far."""

    ask: Request | None
    verdict: Verdict | None
