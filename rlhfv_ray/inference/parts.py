"""Work on many rows, fanned out over actors: a shard in, a part out.

The rows are cut into numbered shards. Each shard becomes one file `part-00012.parquet`, published
by a rename while the driver holds its lease. `digest-00012.sha256` holds its digest, as the program
`sha256sum` writes it. A part depends on its shard alone. After a fault, parts that have their
digests are kept, and the others are computed with the same result: `parts.json` holds the sizes
that the first run cut and batched by, and every later run keeps to them.
"""

import functools
import hashlib
import logging
import os
import pickle
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.exceptions import RayError

from rlhfv_ray.cluster import configure_data, is_private, prepare_cpus, unwrap, wait_for_resources
from rlhfv_ray.config import ScaleConfig
from rlhfv_ray.console import progress_bar
from rlhfv_ray.crew.crew import Crew, keeps_crew, with_crew
from rlhfv_ray.errors import RlhfvError, StageFailedError
from rlhfv_ray.inference.kept import Kept
from rlhfv_ray.storage.files import file_digest, sealed, unsealed, write_json
from rlhfv_ray.storage.folder import discard, display_path, fetch, make, publish
from rlhfv_ray.storage.lease import held_lease, holding
from rlhfv_ray.storage.lease_file import Lease

logger = logging.getLogger(__name__)

SIZES = "parts.json"
# Ray gives tasks processes of their own environment alone: those that have the imports.
MODEL_PROCESSES = {"env_vars": {"RLHFV_PROCESSES": "models"}}
_kept = Kept()


class PartActor(Protocol):
    """Holds a model, and runs the computation of `map_parts` on one prepared shard per call."""

    def __call__(self, rows: Any) -> pa.Table:
        """Return the part's table from its prepared rows."""
        ...


def begun_scale(folder: Path, scale: ScaleConfig) -> ScaleConfig:
    """Return the scale with the `rows` and `inference_batch` that the folder's parts began with.

    Part 3 holds other rows if the cut is another one, and other roundings if the batch is.

    Args:
        folder: of the parts; it may be new.
        scale: what the user asks for; it decides for a new folder.
    """
    make(folder)
    path = folder / SIZES
    sizes = {"rows": scale.rows, "inference_batch": scale.inference_batch}
    begun = _read_sizes(path)
    if begun is None:
        for part in folder.glob("part-*.parquet"):
            discard(part)  # nobody knows what it was made of
        write_json(path, sealed(sizes))
        begun = sizes
    if begun != sizes:
        logger.warning(
            "%s was begun with scale.rows %d and scale.inference_batch %d, and goes on with them.",
            *(display_path(folder), begun["rows"], begun["inference_batch"]),
        )
    return replace(scale, **begun)


def _read_sizes(path: Path) -> dict[str, int] | None:
    """Return the sizes of a folder's parts; None if the file does not exist or is damaged."""
    try:
        return unsealed(path.read_text(), required=True)
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("%s is damaged (%s): the parts are made again", display_path(path), error)
        return None


def map_parts(
    shards: Sequence[Any],
    folder: Path,
    *,
    actor: Callable[[], PartActor],
    scale: ScaleConfig,
    title: str,
    prepare: Callable[[Any], Any] | None = None,
) -> None:
    """Compute every missing part from its prepared shard, in actors.

    On the CPUs of a Ray that one command has for itself, tasks compute: they leave their processes
    to the next stage, with all imports. On a cluster, idle processes would take others' memory.
    In a trial's process, its crew computes.

    Args:
        shards: rows, or what `prepare` turns into rows; shard i becomes part i.
        folder: of the parts.
        actor: called once in each of `scale.actors` processes, on GPUs if `scale.gpu`.
        scale: number of actors, and their CPUs and GPUs.
        title: of the progress bar.
        prepare: runs in Ray tasks beside actors on GPUs, which must not wait for it. On CPUs, it
            runs where the part is computed: another process would have its own imports.

    Raises:
        RlhfvError: as raised by `prepare` or the actor.
        StageFailedError: parts are missing after all, or the lease was lost.
    """
    missing = [number for number in range(len(shards)) if not has_part(folder, number)]
    if not missing:
        return
    if keeps_crew(scale):
        make = functools.partial(_Compute, actor, prepare, str(folder), held_lease(folder))
        with_crew(scale, title, functools.partial(_by_crew, shards, folder, make, scale.actors))
    else:
        preparing = [] if prepare is None or not scale.gpu else [{"CPU": prepare_cpus(scale)}]
        bundles = [scale.resources, *preparing]  # of one actor
        wait_for_resources(title, bundles, timeout=scale.start_timeout)
        fitting = replace(scale, actors=min(scale.actors, len(missing)))
        mapped = functools.partial(
            _mapped, folder=folder, actor=actor, prepare=prepare, scale=fitting
        )
        _by_ray_data(shards, missing, mapped, title)
    fetch(folder)  # parts of other nodes
    lost = [number for number in missing if not has_part(folder, number)]
    if lost:
        raise StageFailedError(
            f"{len(lost)} of {len(shards)} parts of {display_path(folder)} are missing "
            f"(first: {lost[0]}). Run the same command again to compute them."
        )


def _by_ray_data(
    shards: Sequence[Any],
    missing: Sequence[int],
    mapped: Callable[[ray.data.Dataset], ray.data.Dataset],
    title: str,
) -> None:
    """Compute every missing part in Ray Data's actors or tasks, and show a bar."""
    configure_data()
    rows = ({"part": number, "rows": pickle.dumps(shards[number])} for number in missing)
    parts = mapped(ray.data.from_items(list(rows), override_num_blocks=len(missing)))
    existing = len(shards) - len(missing)
    with progress_bar(title, len(shards), done=existing) as counter:
        try:
            for done, _ in enumerate(parts.iter_batches(batch_size=1), start=existing + 1):
                counter.advance(done)
        except (RayError, RlhfvError) as error:
            raise unwrap(error) from error


def _by_crew(
    shards: Sequence[Any], folder: Path, make: Callable[[], "_Compute"], actors: int, crew: Crew
) -> None:
    """Compute every missing part in a crew's processes."""
    compute = functools.partial(_compute, stage=uuid.uuid4().hex, make=make)
    calls = (
        functools.partial(compute, {"part": [number], "rows": [pickle.dumps(shard)]})
        for number, shard in enumerate(shards)
        if not has_part(folder, number)
    )
    for _ in crew.each(actors, calls):
        pass


def forget_model() -> None:
    """Give up the model that this process keeps, before the pause that ends it."""
    _kept.drop()


def _mapped(
    shards: ray.data.Dataset,
    folder: Path,
    actor: Callable[[], PartActor],
    prepare: Callable[[Any], Any] | None,
    scale: ScaleConfig,
) -> ray.data.Dataset:
    """Return the dataset that, when it is read, has every shard's part computed."""
    lease = held_lease(folder)
    if is_private() and not scale.gpu:
        compute = functools.partial(_Compute, actor, prepare, str(folder), lease)
        return shards.map_batches(
            functools.partial(_compute, stage=uuid.uuid4().hex, make=compute),
            batch_size=1,
            num_cpus=scale.cpus,
            compute=ray.data.TaskPoolStrategy(size=scale.actors),
            runtime_env=MODEL_PROCESSES,
        )
    if prepare is not None and scale.gpu:
        # As many as the actors leave CPUs for: each process imports torch and transformers.
        free_cpus = ray.cluster_resources().get("CPU", 1) - scale.actors * scale.cpus
        shards = shards.map_batches(
            functools.partial(_prepare, prepare=prepare),
            batch_size=1,
            num_cpus=prepare_cpus(scale),
            compute=ray.data.TaskPoolStrategy(size=max(1, int(free_cpus))),
        )
        prepare = None
    return shards.map_batches(
        _Compute,
        fn_constructor_args=(actor, prepare, str(folder), lease),
        batch_size=1,
        num_cpus=scale.cpus,
        num_gpus=1 if scale.gpu else None,
        compute=ray.data.ActorPoolStrategy(size=scale.actors),
    )


def part_path(folder: Path, number: int) -> Path:
    """Return the file of one part."""
    return folder / f"part-{number:05d}.parquet"


def digest_path(folder: Path, number: int) -> Path:
    """Return the file with the digest of one part."""
    return folder / f"digest-{number:05d}.sha256"


def write_part(table: pa.Table, folder: Path, number: int, *, lease: Lease | None = None) -> None:
    """Publish one part by a rename.

    The digest comes first: without its part, it means nothing.

    Args:
        table: of the part.
        folder: of the parts.
        number: of the part.
        lease: that the driver must hold; None: nobody else writes the folder.

    Raises:
        StageFailedError: another driver took the lease over.
    """
    path, digest = part_path(folder, number), digest_path(folder, number)
    make(folder)  # a mirror's folder is not on every node yet
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    content = buffer.getvalue()
    line = f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"
    drafts = {digest: _draft(digest, line.encode()), path: _draft(path, content)}
    with holding(lease):
        for target, draft in drafts.items():
            draft.replace(target)
            publish(target)


def _draft(path: Path, content: Any) -> Path:
    """Write a file's content beside it, on the disk, and return the draft's path."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())  # or the file is empty after its node lost power
    return draft


def read_parts(folder: Path) -> pa.Table:
    """Return all parts of a folder as one table, in order."""
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))


def has_part(folder: Path, number: int) -> bool:
    """Return True if a part exists and has its digest; warn about one that has another."""
    path = part_path(folder, number)
    if not path.exists():
        return False
    try:
        digest = digest_path(folder, number).read_bytes()[:64].decode("ascii", "replace")
    except FileNotFoundError:
        digest = "nothing"
    if file_digest(path) == digest:
        return True
    logger.warning("%s is not what its digest says: it is made again", display_path(path))
    return False


def _prepare(batch: Any, *, prepare: Callable[[Any], Any]) -> Any:
    """Prepare one shard's rows; pickled on the way, because Arrow does not know their type."""
    rows = prepare(pickle.loads(batch["rows"][0]))
    return {"part": batch["part"], "rows": [pickle.dumps(rows)]}


def _compute(batch: Any, *, stage: str, make: Callable[[], "_Compute"]) -> Any:
    """Compute and publish a part in a task, with what this process keeps for the stage."""
    return _kept.use(stage, make, lambda compute: compute(batch))


class _Compute:
    """Computes a part's table and publishes its file."""

    def __init__(
        self,
        actor: Callable[[], PartActor],
        prepare: Callable[[Any], Any] | None,
        folder: str,
        lease: Lease | None,
    ) -> None:
        self.actor, self.prepare, self.folder, self.lease = actor(), prepare, Path(folder), lease

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        number = int(batch["part"][0])
        rows = pickle.loads(batch["rows"][0])
        table = self.actor(rows if self.prepare is None else self.prepare(rows))
        write_part(table, self.folder, number, lease=self.lease)
        return {"part": [number]}
