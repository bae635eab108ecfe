"""One driver at a time writes a folder: who, and that it still lives, its lease says.

A lease whose process is gone (same host), or whose heart no longer beats (another host), is taken over; who lost it publishes nothing more.
Where the storage is an address (`rlhfv_ray.storage.mirror`) the lease is there, and the folder is this node's mirror: fetched when the lease is
taken, published while it is held.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.storage.mirror import (
    LARGE_DIRS,
    address_of,
    discard,
    display_path,
    fetch,
    file_system,
    make,
    publish,
    storage_errors,
)

LEASE = "lease.json"
HEARTBEAT_S = 10.0
STALE_S = 60.0  # a lease of another host with no heartbeat for this long is dead


@contextlib.contextmanager
def hold_lease(folder: Path) -> Iterator[str]:
    """Be the one driver that writes a folder, which is made if it is not there; yields the lease's token.

    A lease whose process is gone (same host) or whose heartbeat stopped (another host) is taken over.

    Raises:
        StageFailedError: a live driver holds it.
    """
    token = uuid.uuid4().hex[:12]
    lease = _lease(folder)
    make(folder)
    _take(lease, token)
    released = threading.Event()
    heart = threading.Thread(target=_heartbeat, args=(lease, token, released), daemon=True)
    heart.start()
    try:
        fetch(folder, without=LARGE_DIRS)
        yield token
    finally:
        released.set()
        heart.join()
        if holds_lease(folder, token):
            publish(folder, without=LARGE_DIRS)
            discard(lease)


def holds_lease(folder: Path, token: str) -> bool:
    """Whether `token` still is the folder's lease: what a worker asks before it publishes."""
    try:
        return json.loads(_look(_lease(folder))[0])["token"] == token
    except FileNotFoundError:
        return False


def _lease(folder: Path) -> Path:
    return folder / (
        LEASE if address_of(folder) is None else f".{LEASE}"
    )  # a mirror's hidden files are its own


def _look(lease: Path) -> tuple[str, float]:
    """A lease's text, and when its holder's heart last beat."""
    if address_of(lease) is not None:
        return _read_there(lease)
    return lease.read_text(), lease.stat().st_mtime


def _take(lease: Path, token: str) -> None:
    me = psutil.Process()
    text = json.dumps(
        {"token": token, "host": socket.gethostname(), "pid": me.pid, "started": me.create_time()}
    )
    while not (_claim(lease, text) if address_of(lease) else _link(lease, token, text)):
        _evict_expired(lease, token)


def _link(lease: Path, token: str, text: str) -> bool:
    """Write a lease on a disk unless there is one; never shows half a file."""
    own = lease.with_name(f".{LEASE}.{token}")
    own.write_text(text)
    try:
        os.link(own, lease)
    except FileExistsError:
        return False
    finally:
        own.unlink()
    return True


def _evict_expired(lease: Path, token: str) -> None:
    """Move a dead holder's lease aside; only one of several successors succeeds in that."""
    try:
        text, beat = _look(lease)
    except FileNotFoundError:
        return
    holder = json.loads(text)
    if _is_alive(holder, time.time() - beat):
        raise StageFailedError(
            f"{display_path(lease.parent)} is being written by process {holder['pid']} on {holder['host']}. "
            "Wait until it is done, or stop it; what it has finished will be reused."
        )
    if address_of(lease) is not None:
        discard(
            lease
        )  # there is no rename; who claims it next has it, and who publishes asks again
        return
    grave = lease.with_name(f".{LEASE}.dead-{token}")
    with contextlib.suppress(FileNotFoundError):
        lease.rename(grave)
        grave.unlink()


def _is_alive(holder: Mapping[str, Any], age: float) -> bool:
    if holder["host"] != socket.gethostname():
        return age < STALE_S
    try:
        return abs(psutil.Process(holder["pid"]).create_time() - holder["started"]) < 1.0
    except psutil.NoSuchProcess:
        return False


def _heartbeat(lease: Path, token: str, released: threading.Event) -> None:
    """Show every few seconds that the holder lives; what it wrote meanwhile is published."""
    while not released.wait(HEARTBEAT_S):
        with contextlib.suppress(
            FileNotFoundError, StageFailedError
        ):  # a storage that does not answer may do so next time
            if address_of(lease) is None:
                os.utime(lease)
            elif holds_lease(lease.parent, token):
                _rewrite(lease)
                publish(lease.parent, without=LARGE_DIRS)


def _claim(path: Path, text: str) -> bool:
    """Write a file at an address unless it exists; of several who try, one succeeds (on S3, by a conditional write)."""
    with storage_errors(path):
        system, key = file_system(path)
        try:
            system.pipe_file(key, text.encode(), mode="create")
        except FileExistsError:
            return False
        return True


def _read_there(path: Path) -> tuple[str, float]:
    """Text of a file at an address, and when it was written, in seconds since 1970.

    Raises:
        FileNotFoundError: there is none.
    """
    with storage_errors(path):
        system, key = file_system(path)
        return system.cat_file(key).decode(), system.modified(key).timestamp()


def _rewrite(path: Path) -> None:
    """Write a file at an address anew as it is, so that its time is now."""
    with storage_errors(path):
        system, key = file_system(path)
        system.pipe_file(key, system.cat_file(key))
