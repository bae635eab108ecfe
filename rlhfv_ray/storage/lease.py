"""Leases: a file in a folder names the one driver that may write the folder.

A driver takes over the lease of a dead holder. A process of this machine is seen to be dead.
Another one counts as dead if its lease does not change for `STALE_S`, by the clock of the driver
that watches it. A driver that lost its lease publishes nothing more. While a lease on a bucket's
folder is held, the folder's changed files are published with each heartbeat.
"""

import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.storage.conditional import Version
from rlhfv_ray.storage.folder import LARGE_DIRS, display_path, fetch, make, publish
from rlhfv_ray.storage.holder import is_alive, this_process
from rlhfv_ray.storage.lease_file import (
    Lease,
    holder_of,
    is_held,
    open_lease,
    require_held,
)

logger = logging.getLogger(__name__)

HEARTBEAT_S = float(os.environ.get("RLHFV_HEARTBEAT_S", "10"))
# A lease that cannot be judged otherwise has expired after this long without a heartbeat.
STALE_S = float(os.environ.get("RLHFV_STALE_S", "60"))
_held: dict[Path, Lease] = {}  # the leases of this process by their folders


@contextlib.contextmanager
def hold_lease(folder: Path) -> Iterator[str]:
    """Create a folder if need be, and hold its lease while the body runs; yield the lease's token.

    A driver that slept and lost its run to another one takes no further lease: the other one is
    at the same stages.

    Raises:
        StageFailedError: a live driver holds the lease, or took it over while the body ran, or took
            over another lease of this process.
    """
    for held in list(_held.values()):
        require_held(held)
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
        was_held = is_held(lease)
        if was_held:
            publish(folder, without=LARGE_DIRS)
            lease.release()
    if not was_held:
        require_held(lease)


def held_lease(path: Path) -> Lease | None:
    """Return the lease that this process holds on a folder, or on the nearest one around it."""
    return next((_held[folder] for folder in (path, *path.parents) if folder in _held), None)


def holds_lease(folder: Path, token: str) -> bool:
    """Return True if `token` still holds the folder's lease; workers ask before they publish."""
    return is_held(open_lease(folder, token))


def _take(lease: Lease) -> None:
    """Claim a lease that is free, or whose holder is dead; watch a holder that cannot be seen.

    Raises:
        StageFailedError: the holder lives.
    """
    holder = {"token": lease.token, **this_process()}
    current = lease.read()
    since = time.monotonic()
    while True:
        alive = False if current is None else is_alive(holder_of(current))
        if alive:
            raise _in_use(lease, current)
        is_stale = time.monotonic() - since >= STALE_S
        if (alive is False or is_stale) and lease.claim(holder, current):
            return
        time.sleep(min(HEARTBEAT_S, STALE_S) / 100)
        previous = current
        current = lease.read()
        token = holder_of(current).get("token")
        if token == lease.token:  # a request that was repeated had come through the first time
            return
        if current != previous:
            since = time.monotonic()
            if token and token == holder_of(previous).get("token"):
                raise _in_use(lease, current)  # a heartbeat


def _in_use(lease: Lease, seen: Version | None) -> StageFailedError:
    holder = holder_of(seen)
    process, host = holder.get("pid", "?"), holder.get("host", "an unknown host")
    return StageFailedError(
        f"{display_path(lease.path.parent)} is being written by process {process} on {host}. Wait "
        "until it is done, or stop it; what it has finished will be reused."
    )


def holding(lease: Lease | None) -> AbstractContextManager[None]:
    """Return the context to publish something in; without a lease, nothing is checked."""
    return lease.holding() if lease else contextlib.nullcontext()


def _beat_until(released: threading.Event, lease: Lease) -> None:
    """Renew the heartbeat every few seconds until the lease is released."""
    while not released.wait(HEARTBEAT_S):
        try:
            lease.beat()
        except (OSError, StageFailedError) as error:  # the next heartbeat may come through
            logger.warning("a heartbeat of %s failed: %s", display_path(lease.path), error)
