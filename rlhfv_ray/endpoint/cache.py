"""Replies kept on disk, under the digest of everything that the reply depends on.

Each reply is one file, written atomically. Runs share the files, so no reply is paid for twice.
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.endpoint.records import Reply, Request, pinned, useful
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import display_path, fetch


class ReplyCache:
    """Replies by the key of their request; any number of processes read and write it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        fetch(folder)

    def path(self, key: str) -> Path:
        """Return the path of a reply's file, which may not exist yet."""
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> Reply | None:
        """Return the reply, or None if the cache has none that can be read."""
        try:
            return msgspec.json.decode(self.path(key).read_bytes(), type=Reply)
        except (OSError, ValueError, RecursionError):  # none, or a damaged one
            return None

    def put(self, key: str, reply: Reply) -> None:
        """Store a reply."""
        self.path(key).parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path(key), asdict(reply))

    def check_writable(self) -> None:
        """Check that replies can be stored, before any is paid for.

        Raises:
            ConfigError: a folder of the cache cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for folder in (self.folder, *self.folder.glob("??")):
                tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ConfigError(
                f"The cache of replies {display_path(self.folder)!r} cannot be written on this "
                f"machine: {error.strerror}. Mend it, or name another folder: --judge.cache."
            ) from error

    def settle(
        self, request: Request, endpoint: EndpointConfig, readable: Callable[[str], bool]
    ) -> "Settled":
        """Return the best cached reply to a request, and the request still to be sent.

        A reply that is not useful is asked for once more, and only once.
        """
        first = self._pinned(request, endpoint)
        if first is None:
            return Settled(request, None)
        if useful(first, readable, request):
            return Settled(None, first)
        retry = replace(request, again=1)
        second = self._pinned(retry, endpoint)
        if second is None:
            return Settled(retry, first)
        if useful(second, readable, request) or first.status != "ok":
            return Settled(None, second)
        return Settled(None, first)  # unreadable, but its text is there for people to read

    def _pinned(self, request: Request, endpoint: EndpointConfig) -> Reply | None:
        """Return the reply, marked if another model gave it than the endpoint must report."""
        reply = self.get(request.key(endpoint))
        return None if reply is None else pinned(reply, endpoint)


@dataclass(frozen=True)
class Settled:
    """The request still to be sent, if any, and the best reply so far, if any."""

    ask: Request | None
    reply: Reply | None
