"""The file of a lease, on a disk and in a bucket: read, claimed, renewed and released.

On a disk, every change of the lease happens under a file lock. In a bucket, every change is
conditional on the version that was read.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.storage.bucket import BucketFolder
from rlhfv_ray.storage.conditional import Version, read_version, write_over
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import LARGE_DIRS, display_path, open_folder, publish
from rlhfv_ray.storage.holder import NOBODY

LEASE = "lease.json"
LOCK_S = 60.0  # a lock is held for the time of a rename
ESTALE_TRIES = 3


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
            if is_held(self):
                os.utime(self.path)

    def release(self) -> None:
        """Delete the lease if it is still held."""
        with self.locked():
            if is_held(self):
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
            lock.acquire(timeout=LOCK_S)
        except Timeout as error:
            raise StageFailedError(
                f"{lock.lock_file} has been locked by another process for {LOCK_S:g} s. Is a "
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
        current = self.read()
        holder = holder_of(current)
        if holder.get("token") != self.token:
            return
        if self.claim({**holder, "beats": holder.get("beats", 0) + 1}, current):
            publish(self.path.parent, without=LARGE_DIRS)

    def release(self) -> None:
        """Write that nobody holds the lease, if it is still held: a deletion has no condition."""
        current = self.read()
        if holder_of(current).get("token") == self.token:
            self.claim(NOBODY, current)

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


def holder_of(seen: Version | None) -> dict[str, Any]:
    """Return what a lease says; nothing if there is no lease, or if it cannot be read."""
    try:
        holder = json.loads(seen.text) if seen else {}
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def is_held(lease: Lease) -> bool:
    """Return True if the lease has the token of this driver."""
    return holder_of(lease.read()).get("token") == lease.token


def require_held(lease: Lease) -> None:
    """Do nothing if the lease is held.

    Raises:
        StageFailedError: another driver took it over.
    """
    if not is_held(lease):
        raise StageFailedError(
            f"{display_path(lease.path.parent)} was taken over by another driver; this one stops."
        )
