"""A small object of a bucket that several processes rewrite, each only over the version it saw.

On S3 a write is conditional on the object's ETag: of several writers over one version, one
succeeds. Other stores get a deletion, a write that must be the first, and, after a while, a look
at what is there.
"""

import contextlib
import time
from typing import Any, NamedTuple

SETTLE_S = 2.0  # longer than a rival takes from its last look at the object to its own write


class Version(NamedTuple):
    """One version of a file or an object."""

    text: str
    mark: str  # tells it from every other version, also of equal text


def version_of(info: dict[str, Any]) -> str:
    """Return the mark of an object's version from fsspec's description of the object."""
    keys = ("ETag", "etag", "generation", "LastModified", "last_modified", "updated", "mtime")
    marks = [str(info[key]) for key in keys if info.get(key)]
    return marks[0] if marks else ""


def read_version(system: Any, key: str) -> Version | None:
    """Return the object's version; None if it does not exist."""
    try:
        # The mark comes first. If the text is that of a later version, a write over it fails.
        mark = version_of(system.info(key))
        return Version(system.cat_file(key).decode(errors="replace"), mark)
    except FileNotFoundError:
        return None


def write_over(system: Any, key: str, text: str, seen: Version | None) -> bool:
    """Write the object if its version is still `seen`, or if it still does not exist.

    Returns:
        False if another process was first.
    """
    if seen is None:
        return _create(system, key, text)
    if "s3" in system.protocol:
        return _write_if_match(system, key, text, seen.mark)
    if read_version(system, key) != seen:
        return False
    with contextlib.suppress(FileNotFoundError):  # a rival deleted it
        system.rm_file(key)
    if not _create(system, key, text):
        return False
    time.sleep(SETTLE_S)
    written = read_version(system, key)
    return written is not None and written.text == text


def _create(system: Any, key: str, text: str) -> bool:
    try:
        system.pipe_file(key, text.encode(), mode="create")
    except FileExistsError:
        return False
    return True


def _write_if_match(system: Any, key: str, text: str, etag: str) -> bool:
    bucket, name, _ = system.split_path(key)
    try:
        system.call_s3("put_object", Bucket=bucket, Key=name, Body=text.encode(), IfMatch=etag)
    except FileNotFoundError:  # deleted meanwhile
        return False
    except OSError as error:
        response = getattr(error.__cause__, "response", {})
        if response.get("Error", {}).get("Code") in _LOST_RACE:
            return False
        raise
    return True


_LOST_RACE = ("PreconditionFailed", "ConditionalRequestConflict")
