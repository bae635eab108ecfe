"""JSON files that are there whole or not at all."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from rlhfv_ray.storage.mirror import publish


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that it is there whole or not at all; in a mirror it is published."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with temporary.open("w") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    publish(path)
