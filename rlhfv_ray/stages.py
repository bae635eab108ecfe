"""Fingerprinted stages: folders that are made once, by one driver at a time, and found again.

A stage is a folder `<storage>/<name>-<fingerprint>/` with `config.json` (what went into it), its payload, and `SUCCESS`, written
last. The fingerprint covers what changes the result. A folder with `SUCCESS` is never made again; one without is taken up
where it was left. While it is being made, a lease says who does; `SUCCESS` keeps how long it took.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rlhfv_ray.config import fingerprint
from rlhfv_ray.errors import StageFailedError

LEASE = "lease.json"
HEARTBEAT_S = 10.0
STALE_S = 60.0  # a lease of another host with no heartbeat for this long is dead


@dataclass(frozen=True)
class Stage:
    """One step of the line."""

    name: str
    inputs: Mapping[str, Any]  # what changes the result, JSON-ready
    run: Callable[[Path, str], None]  # fills the folder; its second argument is the lease's token
    title: str  # for people

    def folder(self, storage: Path) -> Path:
        """Where this stage's result is, or will be."""
        return storage / f"{self.name}-{fingerprint(self.inputs)}"


@dataclass(frozen=True)
class StageResult:
    """What became of a stage."""

    stage: Stage
    folder: Path
    seconds: float  # of the runs that made it, also when skipped now
    skipped: bool


def run_stages(
    stages: Sequence[Stage],
    storage: Path,
    *,
    around: Callable[[Stage, bool], AbstractContextManager[None]] = lambda stage, skipped: contextlib.nullcontext(),
) -> list[StageResult]:
    """Run stages in order, skipping those that are done.

    Args:
        stages: in the order in which they need each other.
        storage: folder of all stages.
        around: a context entered around each stage; its second argument says whether the stage is skipped.

    Raises:
        StageFailedError: another live driver is making one of the stages.
    """
    results = []
    for stage in stages:
        folder = stage.folder(storage)
        with around(stage, is_done(folder)):
            results.append(_run_stage(stage, folder))
    return results


def is_done(folder: Path) -> bool:
    """Whether a stage's folder is complete."""
    return (folder / "SUCCESS").is_file()


def seconds_of(folder: Path) -> float:
    """How long a finished stage took."""
    return json.loads((folder / "SUCCESS").read_text())["seconds"]


def _run_stage(stage: Stage, folder: Path) -> StageResult:
    if is_done(folder):
        return StageResult(stage, folder, seconds_of(folder), skipped=True)
    folder.mkdir(parents=True, exist_ok=True)
    with hold_lease(folder) as token:
        write_json(folder / "config.json", dict(stage.inputs))
        started = time.monotonic()
        stage.run(folder, token)
        seconds = round(time.monotonic() - started, 1)
        write_json(folder / "SUCCESS", {"seconds": seconds})
    return StageResult(stage, folder, seconds, skipped=False)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with temporary.open("w") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def hold_lease(folder: Path) -> Iterator[str]:
    """Be the one driver that writes a folder; yields the lease's token.

    A lease whose process is gone (same host) or whose heartbeat stopped (another host) is taken over.

    Raises:
        StageFailedError: a live driver holds it.
    """
    token = uuid.uuid4().hex[:12]
    _take(folder / LEASE, token)
    released = threading.Event()
    heart = threading.Thread(target=_beat, args=(folder / LEASE, released), daemon=True)
    heart.start()
    try:
        yield token
    finally:
        released.set()
        heart.join()
        if holds_lease(folder, token):
            (folder / LEASE).unlink()


def holds_lease(folder: Path, token: str) -> bool:
    """Whether `token` still is the folder's lease: what a worker asks before it publishes."""
    try:
        return json.loads((folder / LEASE).read_text())["token"] == token
    except FileNotFoundError:
        return False


def _take(lease: Path, token: str) -> None:
    me = psutil.Process()
    text = json.dumps({"token": token, "host": socket.gethostname(), "pid": me.pid, "started": me.create_time()})
    own = lease.with_name(f".{LEASE}.{token}")
    own.write_text(text)
    try:
        while True:
            try:
                os.link(own, lease)  # fails where there is a lease; never shows half a file
                return
            except FileExistsError:
                _bury_dead(lease, token)
    finally:
        own.unlink()


def _bury_dead(lease: Path, token: str) -> None:
    """Move a dead holder's lease aside; only one of several successors succeeds in that."""
    try:
        holder, age = json.loads(lease.read_text()), time.time() - lease.stat().st_mtime
    except FileNotFoundError:
        return
    if _is_alive(holder, age):
        raise StageFailedError(
            f"{lease.parent} is being written by process {holder['pid']} on {holder['host']}. "
            "Wait until it is done, or stop it; what it has finished will be reused."
        )
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


def _beat(lease: Path, released: threading.Event) -> None:
    while not released.wait(HEARTBEAT_S):
        with contextlib.suppress(FileNotFoundError):
            os.utime(lease)
