"""Fingerprinted stages: folders that are made once, by one driver at a time, and found again.

A stage is a folder `<storage>/<name>-<fingerprint>/` with `config.json` (what went into it), its payload, and `SUCCESS`, written
last. The fingerprint covers what changes the result. A folder with `SUCCESS` is never made again; one without is taken up
where it was left. While it is being made, a lease says who does; `SUCCESS` keeps how long it took. Where the storage is an address, the
folder is this node's mirror (`rlhfv_ray.storage.mirror`): fetched when the lease is taken, published while it is held and before `SUCCESS`.
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
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.storage.mirror import LARGE_DIRS, fetch, is_there, publish


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
    around: Callable[[Stage, bool], AbstractContextManager[None]] = lambda stage, skipped: (
        contextlib.nullcontext()
    ),
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
    return is_there(folder / "SUCCESS")


def seconds_of(folder: Path) -> float:
    """How long a finished stage took."""
    return json.loads((folder / "SUCCESS").read_text())["seconds"]


def _run_stage(stage: Stage, folder: Path) -> StageResult:
    if is_done(folder):
        fetch(folder, without=LARGE_DIRS)
        return StageResult(stage, folder, seconds_of(folder), skipped=True)
    with hold_lease(folder) as token:
        write_json(folder / "config.json", dict(stage.inputs))
        started = time.monotonic()
        stage.run(folder, token)
        seconds = round(time.monotonic() - started, 1)
        publish(folder, without=LARGE_DIRS)
        write_json(folder / "SUCCESS", {"seconds": seconds})
    return StageResult(stage, folder, seconds, skipped=False)
