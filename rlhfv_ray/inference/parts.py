"""Work on many rows, fanned out over actors in resumable parts.

A job over many rows is cut into numbered tasks. Each task becomes one file `part-00012.parquet`, published by a rename.
A part depends on its task alone, so a part that a fault left behind is done, and the result is the same.
"""

import functools
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.exceptions import RayError

from rlhfv_ray.cluster import PREPARE_CPUS, configure_data, unwrap
from rlhfv_ray.config import ScaleConfig
from rlhfv_ray.console import progress_bar
from rlhfv_ray.errors import RlhfvError, StageFailedError
from rlhfv_ray.storage.folder import display_path, fetch, make, publish


class PartActor(Protocol):
    """What `map_parts` runs: called with one prepared part at a time."""

    def __call__(self, rows: Any, part: int) -> pa.Table:
        """Turn prepared rows into the part's table."""
        ...


def map_parts(
    tasks: Sequence[Any],
    folder: Path,
    *,
    actor: Callable[[], PartActor],
    scale: ScaleConfig,
    title: str,
    prepare: Callable[[Any], Any] | None = None,
) -> None:
    """Compute every part that is not there yet: prepare its rows in a task, where they need it, then hand them to an actor.

    Args:
        tasks: rows, or what `prepare` turns into rows; task i becomes part i.
        folder: of the parts.
        prepare: runs in Ray tasks, on CPUs; each is a process more, which imports what it needs.
        actor: made once in each of `scale.actors` actors, on GPUs where `scale.gpu`.
        scale: how many actors, and their CPUs and GPUs.
        title: of the progress bar.

    Raises:
        RlhfvError: as raised by `prepare` or the actor.
        StageFailedError: the pipeline ended with parts missing.
    """
    missing = [number for number in range(len(tasks)) if not part_path(folder, number).exists()]
    if not missing:
        return
    configure_data()
    rows = ({"part": number, "rows": pickle.dumps(tasks[number])} for number in missing)
    parts = ray.data.from_items(list(rows), override_num_blocks=len(missing))
    actors = min(scale.actors, len(missing))
    if prepare is not None:
        # As many at a time as the actors leave CPUs for: every process more imports torch and transformers anew.
        tasks_at_once = max(1, int(ray.cluster_resources().get("CPU", 1) - actors * scale.cpus))
        parts = parts.map_batches(
            functools.partial(_prepare, prepare=prepare),
            batch_size=1,
            num_cpus=PREPARE_CPUS,
            compute=ray.data.TaskPoolStrategy(size=tasks_at_once),
        )
    parts = parts.map_batches(
        _Compute,
        fn_constructor_args=(actor, str(folder)),
        batch_size=1,
        num_cpus=scale.cpus,
        num_gpus=1 if scale.gpu else None,
        compute=ray.data.ActorPoolStrategy(size=actors),
    )
    there = len(tasks) - len(missing)
    with progress_bar(title, len(tasks), done=there) as counter:
        try:
            for done, _ in enumerate(parts.iter_batches(batch_size=1), start=there + 1):
                counter.advance(done)
        except (RayError, RlhfvError) as error:
            raise unwrap(error) from error
    fetch(folder)  # what other nodes made
    lost = [number for number in missing if not part_path(folder, number).exists()]
    if lost:
        raise StageFailedError(
            f"{len(lost)} of {len(tasks)} parts of {display_path(folder)} were not made (first: {lost[0]}); run it again."
        )


def part_path(folder: Path, number: int) -> Path:
    """File of one part."""
    return folder / f"part-{number:05d}.parquet"


def write_part(table: pa.Table, folder: Path, number: int) -> None:
    """Publish one part by a rename."""
    path = part_path(folder, number)
    make(folder)  # a mirror's is not on every node yet
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, temporary)
    temporary.replace(path)
    publish(path)


def read_parts(folder: Path) -> pa.Table:
    """All parts of a folder, in order."""
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))


def _prepare(batch: Any, *, prepare: Callable[[Any], Any]) -> Any:
    """Prepare one part's rows; pickled on the way, because they are whatever the actor wants."""
    return {"part": batch["part"], "rows": [pickle.dumps(prepare(pickle.loads(batch["rows"][0])))]}


class _Compute:
    """Makes a part's table and publishes its file by a rename."""

    def __init__(self, actor: Callable[[], PartActor], folder: str) -> None:
        self.actor, self.folder = actor(), Path(folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        number = int(batch["part"][0])
        write_part(self.actor(pickle.loads(batch["rows"][0]), number), self.folder, number)
        return {"part": [number]}
