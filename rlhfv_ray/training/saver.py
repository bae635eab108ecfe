"""Checkpoints written beside training: a thread of each worker writes and hashes its own files.

Training stops while the state is copied to CPU memory. The threads have a process group of their
own. When all have written, rank 0 publishes the manifest. An error of one is every thread's error,
and training raises it on all workers at the same update: at the next report or checkpoint, or at
the end.
"""

import functools
import json
import operator
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from rlhfv_ray.errors import CheckpointError, StageFailedError, StorageError
from rlhfv_ray.storage.files import file_digest, sealed, write_json
from rlhfv_ray.storage.folder import discard, make, open_folder, publish
from rlhfv_ray.storage.lease import holds_lease
from rlhfv_ray.training.checkpoint import (
    MANIFEST,
    RECORDS,
    TAG,
    Manifest,
    Writer,
    check_space,
    checkpoint_bytes,
    clear_torn,
    once_a_folder,
    prune,
)
from rlhfv_ray.training.snapshot import Snapshot

TIMEOUT = timedelta(hours=6)  # that the fastest worker's thread waits for the slowest's
Buffers = dict[str, dict[str, torch.UntypedStorage]]
ROOM = 2  # times a checkpoint's bytes that CPU memory must have free for a copy


class CheckpointSaver:
    """Saves an engine's state; every worker has one, and calls its methods at the same updates.

    Args:
        engine: of this worker.
        writer: the folder that receives checkpoints.
        minutes: after which a checkpoint is due; 0: never.
    """

    def __init__(self, engine: Any, writer: Writer, *, minutes: float = 0.0) -> None:
        self.engine, self.writer, self.minutes = engine, writer, minutes
        self.group: Any = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self.since = time.monotonic()  # of the last checkpoint
        self._buffers: Buffers = {}  # kept for the next checkpoint
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def is_busy(self) -> bool:
        """Return True while this worker's thread writes a checkpoint."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, step: int, records: Sequence[dict[str, Any]]) -> None:
        """Copy the state, and start to write it as the checkpoint of an update.

        Rank 0 removes checkpoints beyond the newest `keep` once the new one is published.

        Args:
            step: updates done.
            records: the metrics of these updates.

        Raises:
            CheckpointError: another driver has taken the folder over, or the disk has no room; on
                every rank. Also, as every method here, what the last checkpoint's threads raised.
        """
        self.wait()
        writer, world = self.writer, dist.get_world_size()
        target = writer.checkpoints / f"step-{step:06d}-{world}w-{writer.token[:4]}"
        if dist.get_rank() == 0 and holds_lease(writer.folder, writer.token):
            clear_torn(writer)
            discard(target)  # a damaged one of the same step
        check_space(self.engine, writer)
        once_a_folder(target, lambda: make(target))
        copies = self._has_room()
        buffers = self._buffers if copies else None
        snapshots = take_snapshots(self.engine, target, step=step, buffers=buffers)
        stage = self.engine.zero_optimization_stage()
        manifest = Manifest(step, world, stage, {}, writer.reference)
        arguments = (target, manifest, snapshots, list(records))
        self._thread = threading.Thread(target=self._run, args=arguments, daemon=True)
        self._thread.start()
        self.since = time.monotonic()
        if not copies:
            self.wait()

    def check(self) -> bool:
        """Return True if a checkpoint is due by the clock of a worker."""
        is_due = 0 < 60 * self.minutes <= time.monotonic() - self.since
        flags = torch.tensor([is_due, self._error is not None], dtype=torch.int32)
        flags = flags.to(self.engine.device)  # where the backend reduces
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        any_due, any_failed = map(bool, flags.tolist())
        if any_failed:
            self.wait()
        return any_due

    def wait(self) -> None:
        """Wait until the last checkpoint is complete."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Wait until the last checkpoint is complete, and end the threads' process group."""
        self.wait()
        dist.destroy_process_group(self.group)

    def _has_room(self) -> bool:
        """Return True if every node's CPU memory has its workers' buffers, or room for them."""
        workers_on_node = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
        needed = checkpoint_bytes(self.engine.module) * workers_on_node / dist.get_world_size()
        rooms: list[Any] = [None] * dist.get_world_size()
        has_room = bool(self._buffers) or psutil.virtual_memory().available > ROOM * needed
        dist.all_gather_object(rooms, has_room)
        return all(rooms)

    def _run(self, *arguments: Any) -> None:
        try:
            self._write(*arguments)
        except Exception as error:  # noqa: BLE001  `wait` raises it in the worker's own thread
            self._error = error

    def _write(
        self,
        target: Path,
        manifest: Manifest,
        snapshots: list[Snapshot],
        records: list[dict[str, Any]],
    ) -> None:
        """Write this worker's files and publish the checkpoint; runs in every worker's thread."""
        is_first = dist.get_rank() == 0

        def write_files() -> dict[str, str]:
            digests = {str(file.path.relative_to(target)): file.write() for file in snapshots}
            if is_first:
                lines = "".join(json.dumps(record) + "\n" for record in records)
                (target / RECORDS).write_text(lines)
                files = (path for path in target.iterdir() if path.is_file())
                digests |= {path.name: file_digest(path) for path in files}
            return digests

        def publish_manifest() -> None:
            try:
                with self.writer.lease.holding():
                    write_json(target / MANIFEST, sealed(complete))
                    prune(self.writer, target)
            except StorageError:  # a retry may succeed
                raise
            except StageFailedError as error:  # the lease is lost
                raise CheckpointError(str(error)) from error

        try:
            files = functools.reduce(operator.or_, self._agreed(write_files))
            complete = {**asdict(manifest), "files": dict(sorted(files.items()))}
            copy_ids = self._agreed(open_folder(target).copy_id)
            is_sender = copy_ids.index(copy_ids[dist.get_rank()]) == dist.get_rank()
            self._agreed(lambda: publish(target) if is_sender else None)
            self._agreed(lambda: publish_manifest() if is_first else None)
        finally:
            open_folder(target).drop_copy()

    def _agreed(self, work: Callable[[], Any]) -> list[Any]:
        """Do each worker's work, and return all results, or raise the first error on every worker.

        Without that, one worker's error would leave the others waiting for it.
        """
        outcome: tuple[Any, Exception | None]
        try:
            outcome = work(), None
        except Exception as error:  # noqa: BLE001  raised below, on every worker
            outcome = None, error
        outcomes: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(outcomes, outcome, group=self.group)
        for _, error in outcomes:
            if error is not None:
                raise error
        return [result for result, _ in outcomes]


def take_snapshots(
    engine: Any, target: Path, *, step: int, buffers: Buffers | None
) -> list[Snapshot]:
    """Return what DeepSpeed would write of this worker's engine, for `Snapshot.write`.

    Args:
        engine: of this worker; every worker calls this.
        target: folder of the checkpoint.
        step: updates done.
        buffers: by file, memory for copies, so that training may go on; None: no copies.
    """
    snapshots: list[Snapshot] = []

    def keep(state_dict: Any, path: str) -> None:
        kept = None if buffers is None else buffers.setdefault(Path(path).name, {})
        snapshots.append(Snapshot(state_dict, Path(path), buffers=kept))

    files = engine.checkpoint_engine  # DeepSpeed's place for another way of writing
    write, files.save = files.save, keep
    try:
        engine.save_checkpoint(str(target), tag=TAG, client_state={"step": step}, save_latest=False)
    finally:
        files.save = write
    return snapshots
