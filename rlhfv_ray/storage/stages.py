"""Fingerprinted stages: folders that one driver at a time makes once, and later runs reuse.

A stage is a folder `<storage>/<name>-<fingerprint>/` with `config.json` (its inputs), its payload,
and `SUCCESS`, written last, with the seconds it took, its driver's token and the digests of all
files. The fingerprint covers what changes the result. A folder with `SUCCESS` is never made again,
and its files are checked before they are used; one without is continued. While a stage runs, its
driver holds the folder's lease.
"""

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfv_ray.config import fingerprint
from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.storage.digests import check_payload, payload_digests
from rlhfv_ray.storage.files import sealed, unsealed, write_json
from rlhfv_ray.storage.folder import (
    LARGE_DIRS,
    discard,
    display_path,
    fetch,
    is_there,
    publish,
)
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.storage.lease_file import open_lease


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline."""

    name: str
    inputs: Mapping[str, Any]  # what changes the result, JSON-ready
    run: Callable[[Path, str], None]  # fills the folder, given the lease's token
    title: str  # shown to users

    def folder(self, storage: Path) -> Path:
        """Return the folder that holds the stage's result once it is done."""
        return storage / f"{self.name}-{fingerprint(self.inputs)}"


@dataclass(frozen=True)
class StageResult:
    """The outcome of one stage."""

    stage: Stage
    folder: Path
    seconds: float  # of the run that finished it, also when skipped now
    skipped: bool


def run_stages(
    stages: Sequence[Stage],
    storage: Path,
    *,
    around: Callable[[Stage, bool], AbstractContextManager[None]] = lambda stage, skipped: (
        contextlib.nullcontext()
    ),
) -> list[StageResult]:
    """Run stages in order; skip those that are done.

    Args:
        stages: each may use the results of those before it.
        storage: the folder that holds all stages.
        around: returns a context to enter around a stage; its second argument is True for a
            stage that is skipped.

    Raises:
        StageFailedError: another live driver is making one of the stages, or has taken it over; or
            a file of a finished stage is missing or damaged.
    """
    results = []
    for stage in stages:
        folder = stage.folder(storage)
        with around(stage, is_done(folder)):
            results.append(_run_stage(stage, folder))
    return results


def is_done(folder: Path) -> bool:
    """Return True if a stage's folder is complete."""
    return is_there(folder / "SUCCESS")


def seconds_of(folder: Path) -> float:
    """Return the seconds that a finished stage took.

    Raises:
        StageFailedError: `SUCCESS` is damaged.
    """
    return _read_success(folder)["seconds"]


def check_stage(folder: Path) -> None:
    """Check the files of a finished stage.

    Raises:
        StageFailedError: a file is missing or has another content, or `SUCCESS` is damaged.
    """
    check_payload(folder, _read_success(folder)["files"])


def _read_success(folder: Path) -> dict[str, Any]:
    path = folder / "SUCCESS"
    fetch(path)
    try:
        success = unsealed(path.read_text())
        missing = {"seconds", "files"} - success.keys()
        if missing:
            raise ValueError(f"without {', '.join(sorted(missing))}")
    except ValueError as error:
        raise StageFailedError(
            f"{display_path(path)} is damaged ({error}). Delete it, and run the command that made "
            "its folder: it completes the stage from the files that are there."
        ) from error
    return success


def _run_stage(stage: Stage, folder: Path) -> StageResult:
    if is_done(folder):
        return _earlier_result(stage, folder)
    with hold_lease(folder) as token:
        if is_done(folder):  # since the lease became free
            return _earlier_result(stage, folder)
        write_json(folder / "config.json", dict(stage.inputs))
        started = time.monotonic()
        stage.run(folder, token)
        seconds = round(time.monotonic() - started, 1)
        _finish(folder, seconds=seconds, token=token)
    return StageResult(stage, folder, seconds, skipped=False)


def _earlier_result(stage: Stage, folder: Path) -> StageResult:
    fetch(folder, without=LARGE_DIRS)
    check_stage(folder)
    return StageResult(stage, folder, seconds_of(folder), skipped=True)


def _finish(folder: Path, *, seconds: float, token: str) -> None:
    """Publish the payload, then `SUCCESS`.

    Raises:
        StageFailedError: another driver has taken the folder over.
    """
    lease, success = open_lease(folder, token), folder / "SUCCESS"
    with lease.holding():
        publish(folder, without=LARGE_DIRS)
    files = payload_digests(folder)
    try:
        with lease.holding():
            write_json(success, sealed({"seconds": seconds, "token": token, "files": files}))
    except StageFailedError:
        _withdraw(success, token)
        raise


def _withdraw(success: Path, token: str) -> None:
    """Delete a `SUCCESS` that this driver wrote in the moment in which it lost its lease."""
    fetch(success)
    if success.exists() and json.loads(success.read_text()).get("token") == token:
        discard(success)
