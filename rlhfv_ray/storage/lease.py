"""Leases: a file in a folder names the one driver that may write the folder.

A driver takes over an expired lease: its holder's process is gone (same host), or its heartbeat
stopped (another host). A driver that lost its lease publishes nothing more. While a lease on a
bucket's folder is held, the folder's changed files are published with each heartbeat.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.storage.bucket import BucketFolder
from rlhfv_ray.storage.folder import (
    LARGE_DIRS,
    discard,
    display_path,
    fetch,
    make,
    open_folder,
    publish,
)

LEASE = "lease.json"
HEARTBEAT_S = 10.0
STALE_S = 60.0  # another host's lease has expired after this long without a heartbeat


@contextlib.contextmanager
def hold_lease(folder: Path) -> Iterator[str]:
    """Create a folder if need be, and hold its lease while the body runs; yield the lease's token.

    Raises:
        StageFailedError: a live driver holds the lease.
    """
    token = uuid.uuid4().hex[:12]
    lease = open_lease(folder, token)
    make(folder)
    _take(lease)
    released = threading.Event()
    heartbeat = threading.Thread(target=_beat_until, args=(released, lease), daemon=True)
    heartbeat.start()
    try:
        fetch(folder, without=LARGE_DIRS)
        yield token
    finally:
        released.set()
        heartbeat.join()
        if holds_lease(folder, token):
            publish(folder, without=LARGE_DIRS)
            discard(lease.path)


def holds_lease(folder: Path, token: str) -> bool:
    """Return True if `token` still holds the folder's lease; workers ask before they publish."""
    try:
        text, _ = open_lease(folder, token).read()
    except FileNotFoundError:
        return False
    return json.loads(text)["token"] == token


@dataclass(frozen=True)
class DiskLease:
    """A lease on a disk; the file's time of change is its last heartbeat."""

    path: Path
    token: str  # of this driver

    def read(self) -> tuple[str, float]:
        """Return the lease's text, and its last heartbeat in seconds since 1970."""
        return self.path.read_text(), self.path.stat().st_mtime

    def claim(self, text: str) -> bool:
        """Write the lease unless one exists; a hard link never shows half a file."""
        draft = self.path.with_name(f".{LEASE}.{self.token}")
        draft.write_text(text)
        try:
            os.link(draft, self.path)
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    def evict(self) -> None:
        """Move an expired lease aside; only one of several successors succeeds in that."""
        expired = self.path.with_name(f".{LEASE}.expired-{self.token}")
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(expired)
            expired.unlink()

    def beat(self) -> None:
        """Renew the heartbeat."""
        os.utime(self.path)


@dataclass(frozen=True)
class BucketLease:
    """A lease in a bucket; the object's time of change is its last heartbeat."""

    file: BucketFolder
    token: str  # of this driver

    @property
    def path(self) -> Path:
        """The lease's path in this node's copy, where no such file is ever written."""
        return self.file.path

    def read(self) -> tuple[str, float]:
        """Return the lease's text, and its last heartbeat in seconds since 1970."""
        with self.file.store() as (system, key):
            return system.cat_file(key).decode(), system.modified(key).timestamp()

    def claim(self, text: str) -> bool:
        """Write the lease unless one exists, on S3 by a conditional write; one claimant wins."""
        with self.file.store() as (system, key):
            try:
                system.pipe_file(key, text.encode(), mode="create")
            except FileExistsError:
                return False
            return True

    def evict(self) -> None:
        """Delete an expired lease.

        A bucket knows no rename; so the next claimant holds it, and checks before it publishes.
        """
        self.file.discard()

    def beat(self) -> None:
        """Renew the heartbeat of a lease that is still held, and publish the folder's changes."""
        if not holds_lease(self.path.parent, self.token):
            return
        with self.file.store() as (system, key):
            system.pipe_file(key, system.cat_file(key))
        publish(self.path.parent, without=LARGE_DIRS)


Lease = DiskLease | BucketLease  # the same methods, on a disk and in a bucket


def open_lease(folder: Path, token: str) -> Lease:
    """Return the lease on a folder, as the driver with this token uses it."""
    hidden = open_folder(folder / f".{LEASE}")  # hidden: neither published nor fetched
    return (
        BucketLease(hidden, token)
        if isinstance(hidden, BucketFolder)
        else DiskLease(folder / LEASE, token)
    )


def _take(lease: Lease) -> None:
    process = psutil.Process()
    holder = {
        "token": lease.token,
        "host": socket.gethostname(),
        "pid": process.pid,
        "started": process.create_time(),
    }
    while not lease.claim(json.dumps(holder)):
        _evict_expired(lease)


def _evict_expired(lease: Lease) -> None:
    """Evict an expired lease, if any.

    Raises:
        StageFailedError: its holder lives.
    """
    try:
        text, last_beat = lease.read()
    except FileNotFoundError:
        return
    holder = json.loads(text)
    if _is_alive(holder, time.time() - last_beat):
        raise StageFailedError(
            f"{display_path(lease.path.parent)} is being written by process {holder['pid']} on "
            f"{holder['host']}. Wait until it is done, or stop it; what it has finished will be "
            "reused."
        )
    lease.evict()


def _is_alive(holder: Mapping[str, Any], age: float) -> bool:
    """Return True if a lease's holder lives; `age`: seconds since its last heartbeat."""
    if holder["host"] != socket.gethostname():
        return age < STALE_S
    try:
        return abs(psutil.Process(holder["pid"]).create_time() - holder["started"]) < 1.0
    except psutil.NoSuchProcess:
        return False


def _beat_until(released: threading.Event, lease: Lease) -> None:
    """Renew the heartbeat every few seconds until the lease is released."""
    while not released.wait(HEARTBEAT_S):
        # A storage that does not answer now may answer the next heartbeat.
        with contextlib.suppress(FileNotFoundError, StageFailedError):
            lease.beat()
