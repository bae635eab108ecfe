"""Leases: a file in a folder names the one driver that may write the folder.

A driver takes over the lease of a dead holder. A process of this machine is seen to be dead.
Another one counts as dead if its lease does not change for `STALE_S`, by the clock of the driver
that watches it. On a disk, every change of the lease happens under a file lock. In a bucket, every
change is conditional on the version that was read. A driver that lost its lease publishes nothing
more. While a lease on a bucket's folder is held, the folder's changed files are published with
each heartbeat.
"""

import contextlib
import errno
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.storage.bucket import BucketFolder
from rlhfv_ray.storage.conditional import Version, read_version, write_over
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import (
    LARGE_DIRS,
    discard,
    display_path,
    fetch,
    make,
    open_folder,
    publish,
)
from rlhfv_ray.storage.holder import is_alive, this_process

logger = logging.getLogger(__name__)

LEASE = "lease.json"
HEARTBEAT_S = float(os.environ.get("RLHFV_HEARTBEAT_S", "10"))
# A lease that cannot be judged otherwise has expired after this long without a heartbeat.
STALE_S = float(os.environ.get("RLHFV_STALE_S", "60"))
ESTALE_TRIES = 3
_held: dict[Path, "Lease"] = {}  # the leases of this process by their folders


@contextlib.contextmanager
def hold_lease(folder: Path) -> Iterator[str]:
    """Create a folder if need be, and hold its lease while the body runs; yield the lease's token.

    Raises:
        StageFailedError: a live driver holds the lease, or took it over while the body ran.
    """
    lease = open_lease(folder, uuid.uuid4().hex[:12])
    make(folder)
    _take(lease)
    released = threading.Event()
    heartbeat = threading.Thread(target=_beat_until, args=(released, lease), daemon=True)
    heartbeat.start()
    _held[folder] = lease
    try:
        fetch(folder, without=LARGE_DIRS)
        yield lease.token
    finally:
        del _held[folder]
        released.set()
        heartbeat.join()
        was_held = _is_held(lease)
        if was_held:
            publish(folder, without=LARGE_DIRS)
            lease.release()
    if not was_held:
        raise _lost(lease)


def held_lease(path: Path) -> "Lease | None":
    """Return the lease that this process holds on a folder, or on the nearest one around it."""
    return next((_held[folder] for folder in (path, *path.parents) if folder in _held), None)


def holds_lease(folder: Path, token: str) -> bool:
    """Return True if `token` still holds the folder's lease; workers ask before they publish."""
    return _is_held(open_lease(folder, token))


@dataclass(frozen=True)
class DiskLease:
    """A lease on a disk; a heartbeat sets the file's time of change."""

    path: Path
    token: str  # of this driver

    def read(self) -> Version | None:
        """Return the lease's version; None if there is no lease."""
        for attempt in range(ESTALE_TRIES):
            try:
                # Opening the file makes a network file system ask its server.
                with self.path.open(errors="replace") as stream:
                    return Version(stream.read(), str(os.fstat(stream.fileno()).st_mtime_ns))
            except FileNotFoundError:
                return None
            except OSError as error:  # ESTALE: replaced by another host between two calls
                if error.errno != errno.ESTALE or attempt + 1 == ESTALE_TRIES:
                    raise
        return None

    def claim(self, holder: Mapping[str, Any], seen: Version | None) -> bool:
        """Write the lease if it is still as `seen`; return False if it is not."""
        with self.locked():
            if self.read() != seen:
                return False
            write_json(self.path, dict(holder))
            return True

    def beat(self) -> None:
        """Renew the heartbeat of a lease that is still held."""
        with self.locked():
            if _is_held(self):
                os.utime(self.path)

    def release(self) -> None:
        """Delete the lease if it is still held."""
        with self.locked():
            if _is_held(self):
                self.path.unlink()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Run the body, which publishes something, while the lease is held and cannot be lost.

        Raises:
            StageFailedError: another driver took the lease over; the body does not run.
        """
        with self.locked():
            require_held(self)
            yield

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Run the body while no other process can change the lease.

        Raises:
            StageFailedError: another process keeps the lock, or the file system has no locks.
        """
        lock = FileLock(self.path.with_name(f".{LEASE}.lock"), poll_interval=0.01)
        try:
            lock.acquire(timeout=STALE_S)
        except Timeout as error:
            raise StageFailedError(
                f"{lock.lock_file} has been locked by another process for {STALE_S:g} s. Is a "
                "driver of this folder stopped? Continue it or end it, then run the same command."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            raise StageFailedError(
                f"{self.path.parent} is on a file system without file locks (flock: "
                f"{error.strerror}). Mount it with locks, or give another storage."
            ) from error
        try:
            yield
        finally:
            lock.release()


@dataclass(frozen=True)
class BucketLease:
    """A lease in a bucket; a heartbeat counts on."""

    file: BucketFolder
    token: str  # of this driver

    @property
    def path(self) -> Path:
        """The lease's path in this node's copy, where no such file is ever written."""
        return self.file.path

    def read(self) -> Version | None:
        """Return the lease's version; None if there is no lease."""
        with self.file.store() as (system, key):
            return read_version(system, key)

    def claim(self, holder: Mapping[str, Any], seen: Version | None) -> bool:
        """Write the lease if it is still as `seen`; return False if it is not."""
        with self.file.store() as (system, key):
            return write_over(system, key, json.dumps(dict(holder)), seen)

    def beat(self) -> None:
        """Renew the heartbeat of a lease that is still held, and publish the folder's changes."""
        seen = self.read()
        holder = _holder(seen)
        if holder.get("token") != self.token:
            return
        if self.claim({**holder, "beats": holder.get("beats", 0) + 1}, seen):
            publish(self.path.parent, without=LARGE_DIRS)

    def release(self) -> None:
        """Delete the lease if it is still held."""
        if _is_held(self):
            discard(self.path)

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Run the body, which publishes something, while the lease is held.

        Raises:
            StageFailedError: another driver took the lease over; before the body, which then does
                not run, or during it.
        """
        require_held(self)
        yield
        require_held(self)


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
    """Claim a lease that is free, or whose holder is dead; watch a holder that cannot be seen.

    Raises:
        StageFailedError: the holder lives.
    """
    holder = {"token": lease.token, **this_process()}
    seen, since = lease.read(), time.monotonic()
    while True:
        alive = False if seen is None else is_alive(_holder(seen))
        if alive:
            raise _in_use(lease, seen)
        is_stale = time.monotonic() - since >= STALE_S
        if (alive is False or is_stale) and lease.claim(holder, seen):
            return
        time.sleep(min(HEARTBEAT_S, STALE_S) / 100)
        last, seen = seen, lease.read()
        token = _holder(seen).get("token")
        if token == lease.token:  # a request that was repeated had come through the first time
            return
        if seen != last:
            since = time.monotonic()
            if seen and last and token == _holder(last).get("token"):
                raise _in_use(lease, seen)  # a heartbeat


def _in_use(lease: Lease, seen: Version | None) -> StageFailedError:
    holder = _holder(seen)
    process, host = holder.get("pid", "?"), holder.get("host", "an unknown host")
    return StageFailedError(
        f"{display_path(lease.path.parent)} is being written by process {process} on {host}. Wait "
        "until it is done, or stop it; what it has finished will be reused."
    )


def _holder(seen: Version | None) -> dict[str, Any]:
    """Return what a lease says; nothing if there is no lease, or if it cannot be read."""
    try:
        holder = json.loads(seen.text) if seen else {}
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_held(lease: Lease) -> bool:
    return _holder(lease.read()).get("token") == lease.token


def require_held(lease: Lease) -> None:
    """Do nothing if the lease is held.

    Raises:
        StageFailedError: another driver took it over.
    """
    if not _is_held(lease):
        raise _lost(lease)


def holding(lease: Lease | None) -> AbstractContextManager[None]:
    """Return the context to publish something in; without a lease, nothing is checked."""
    return lease.holding() if lease else contextlib.nullcontext()


def _lost(lease: Lease) -> StageFailedError:
    return StageFailedError(
        f"{display_path(lease.path.parent)} was taken over by another driver; this one stops."
    )


def _beat_until(released: threading.Event, lease: Lease) -> None:
    """Renew the heartbeat every few seconds until the lease is released."""
    while not released.wait(HEARTBEAT_S):
        try:
            lease.beat()
        except (OSError, StageFailedError) as error:  # the next heartbeat may come through
            logger.warning("a heartbeat of %s failed: %s", display_path(lease.path), error)
