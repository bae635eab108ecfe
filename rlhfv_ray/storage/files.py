"""JSON files that exist whole or not at all, and the digest of a file."""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from rlhfv_ray.storage.folder import publish


def write_json(path: Path, value: Any) -> None:
    """Write and publish a JSON file; no reader ever sees half of it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with temporary.open("w") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    publish(path)


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
