"""Addresses of a bucket, and the folder on each node that holds the copy of an address: its mirror.

`s3://bucket/runs` has the mirror `<temporary folder>/rlhfv-ray-mirror-<user>/s3/bucket/runs` on
every node. The address follows from the path alone, so processes hand each other plain paths.
"""

import os
import re
import tempfile
from pathlib import Path

from rlhfv_ray.errors import ConfigError

_ROOT = re.compile(r"rlhfv-ray-mirror-\d+")


def mirror_path(address: str) -> Path:
    """Return this node's folder for an address such as s3://bucket/runs.

    Example:
        >>> mirror_path("s3://bucket/runs/").parts[-3:]
        ('s3', 'bucket', 'runs')
        >>> address_of(mirror_path("s3://bucket/runs/"))
        's3://bucket/runs'

    Raises:
        ConfigError: the address names no bucket, leads out of one, or has a character that
            fsspec reads as a pattern for many names.
    """
    protocol, _, key = address.partition("://")
    parts = [part for part in key.split("/") if part]
    if not protocol or not parts or {".", ".."} & set(parts):
        raise ConfigError(
            f"{address!r} is no address of a folder: give one such as s3://bucket/runs."
        )
    if set("*?[") & set(key):
        raise ConfigError(
            f"{address!r} has one of the characters * ? [, which would stand for many names: give "
            "an address without them."
        )
    return Path(tempfile.gettempdir(), f"rlhfv-ray-mirror-{os.getuid()}", protocol, *parts)


def mirror_root(path: Path) -> Path | None:
    """Return the folder of all mirrors that a path is in; None for a path outside of mirrors."""
    outermost_first = reversed(path.parents)  # a name inside a mirror cannot open another one
    return next((parent for parent in outermost_first if _ROOT.fullmatch(parent.name)), None)


def address_of(path: Path) -> str | None:
    """Return the address whose mirror a path is in; None for a path outside of mirrors."""
    root = mirror_root(path)
    protocol, *key = path.relative_to(root).parts if root else ("",)
    return f"{protocol}://{'/'.join(key)}" if key else None
