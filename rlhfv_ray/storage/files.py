"""JSON files that exist whole or not at all, digests of files, and seals of JSON objects."""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhfv_ray.storage.folder import publish
from rlhfv_ray.storage.transfers import State, state_of

SEAL = "seal"
# Two changes of a file this close may leave it with one and the same time of change.
SETTLED_NS = 2 * 10**9
_known: dict[Path, tuple[State, str]] = {}  # digests of this process, each with its file's state


def write_json(path: Path, value: Any) -> None:
    """Write and publish a JSON file; no reader ever sees half of it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with temporary.open("w") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    publish(path)


def apply_umask(folder: Path) -> None:
    """Give all files below a folder the mode of new files. Some libraries write theirs as 600."""
    mask = os.umask(0o077)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_digest(path: Path) -> str:
    """Return the sha256 of a file's content; a process reads a file once until it changes.

    Its time of change, inode and size show a change. What may miss a change by another program, as
    on a damaged disk, must be told by `file_digest`.
    """
    state = state_of(path)
    known_state, digest = _known.get(path, (None, ""))
    if known_state != state:
        is_settled = time.time_ns() - state[0] > SETTLED_NS
        digest = file_digest(path)
        if is_settled:
            _known[path] = state, digest
    return digest


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with a digest of its content, for `unsealed`."""
    return {**value, SEAL: _seal(value)}


def unsealed(text: str, *, required: bool = False) -> dict[str, Any]:
    """Return the object that `sealed` was given, from its JSON text.

    Args:
        text: of one JSON object.
        required: refuse an object without a seal, which an earlier version may have written.

    Raises:
        ValueError: the text is no JSON object, or its content is not what was sealed.

    Example:
        >>> unsealed(json.dumps(sealed({"step": 1})))
        {'step': 1}
        >>> unsealed(json.dumps(sealed({"step": 1})).replace("1", "2", 1))
        Traceback (most recent call last):
        ValueError: the content is not what was sealed
    """
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    seal = value.pop(SEAL, None)
    if (required or seal is not None) and seal != _seal(value):
        raise ValueError("the content is not what was sealed")
    return value


def _seal(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
