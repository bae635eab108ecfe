"""The one place that starts or joins Ray, asks whether a job fits, and fans work out over actors.

Parts: a job over many rows is cut into numbered tasks; each becomes one file `part-00012.parquet`, named by its number and published by
a rename. What a part holds depends on its task alone, so a part found after a fault is a part done, and the result is the same.
"""

import functools
import logging
import os
import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.exceptions import RayError

from rlhfv_ray.config import ScaleConfig
from rlhfv_ray.errors import ConfigError, RlhfvError, StageFailedError
from rlhfv_ray.remote import address_of, fetch, file_system, make, publish, shown
from rlhfv_ray.terminal import counting

logger = logging.getLogger(__name__)

PREPARE_CPUS = 0.25  # of a task that reads and encodes while the actors compute
NEVER_RAN = "The actor never ran"  # Ray, of one that nobody is said to need
OBJECT_STORE_BYTES = 512 * 1024**2  # of a Ray started here; a cluster's own setting stands


class PartActor(Protocol):
    """What `map_parts` runs: called with one prepared part at a time."""

    def __call__(self, rows: Any, part: int) -> pa.Table:
        """Turn prepared rows into the part's table."""
        ...


def connect() -> None:
    """Join the Ray cluster there is (RAY_ADDRESS, or one on this machine), else start one here.

    Workers' output stays in Ray's logs: what users need to know the driver says.

    Raises:
        ConfigError: the temporary folder's name is too long for Ray's sockets.
    """
    if ray.is_initialized():
        return
    settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        ray.init("auto", **settings)
    except ConnectionError:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        try:
            ray.init("local", object_store_memory=OBJECT_STORE_BYTES, **settings)
        except OSError as error:
            if "AF_UNIX" not in str(error):
                raise
            place = tempfile.gettempdir()
            raise ConfigError(
                f"TMPDIR = {place!r} has {len(place)} characters, and Ray puts sockets below it, whose names may have 107 in all: give TMPDIR "
                "one of at most 40."
            ) from error


def check_fits(scale: ScaleConfig, *, who: Sequence[str] = ("workers", "actors"), setting: str = "scale") -> None:
    """Check that the cluster can hold the training workers, and the actors, at all.

    Args:
        scale: how many of them, and their CPUs and GPUs.
        who: which of both are needed.
        setting: under which the user gives them.

    Raises:
        ConfigError: it cannot, with what is wanted and what is there.
    """
    there = ray.cluster_resources()
    needs = {"workers": (scale.workers, 0.0), "actors": (scale.actors, PREPARE_CPUS)}
    for what, (count, spare) in ((name, needs[name]) for name in who):
        wanted = {"CPU": count * scale.cpus + spare, "GPU": float(count if scale.gpu else 0)}
        for resource, amount in wanted.items():
            if amount > there.get(resource, 0.0):
                raise ConfigError(
                    f"{setting}.{what} = {count} needs {amount:g} {resource}s but the Ray cluster has {there.get(resource, 0.0):g}. "
                    f"Use fewer {what} (--{setting}.{what}), fewer --{setting}.cpus each, or a larger cluster."
                )


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
    with counting(title, len(tasks), done=there) as counter:
        try:
            for done, _ in enumerate(parts.iter_batches(batch_size=1), start=there + 1):
                counter.advance(done)
        except (RayError, RlhfvError) as error:
            raise unwrap(error) from error
    fetch(folder)  # what other nodes made
    lost = [number for number in missing if not part_path(folder, number).exists()]
    if lost:
        raise StageFailedError(
            f"{len(lost)} of {len(tasks)} parts of {shown(folder)} were not made (first: {lost[0]}); run it again."
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


def ray_storage(folder: Path) -> dict[str, Any]:
    """Where Ray Train or Tune keeps what it needs of its own, as arguments of its RunConfig."""
    if address_of(folder) is None:
        return {"storage_path": str(folder)}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    system, key = file_system(folder)
    return {"storage_path": key, "storage_filesystem": PyFileSystem(FSSpecHandler(system))}


def unwrap(error: BaseException) -> BaseException:
    """The error of ours that a Ray error carries, as it was raised there, or that it means; else the Ray error itself."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RlhfvError) and not isinstance(seen, RayError):  # Ray's copy is both, and says a traceback
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    if NEVER_RAN in str(error):
        mode = os.environ.get("RAY_AUTH_MODE", "not set")
        return StageFailedError(
            f"Ray ended an actor before it ran. Was the cluster started with another RAY_AUTH_MODE than this process has ({mode})? Ray lets "
            "such a process in and then ends its actors: give both the same. Otherwise run the same command again."
        )
    return error


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


def configure_data() -> None:
    """Keep Ray Data's own bars and messages out of the terminal."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours counts parts
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
