"""Checkpoints that are complete or ignored: the manifest with all digests is published last.

`checkpoints/step-000050-2w-1f3a/` holds the files of the workers' DeepSpeed engines,
`records.jsonl` (the metrics so far) and `manifest.json`. Only files with the manifest's digests are
loaded. The name carries world size and the writing driver's token, so that attempts never mix
their files. If the storage is an address, each node sends its workers' files and keeps none; to
resume, each node fetches the whole checkpoint.
"""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rlhfv_ray.config import ModelConfig
from rlhfv_ray.errors import CheckpointError, StageFailedError, StorageError
from rlhfv_ray.storage.files import apply_umask, file_digest, unsealed
from rlhfv_ray.storage.folder import (
    discard,
    display_path,
    fetch,
    is_there,
    names_in,
    open_folder,
    publish,
)
from rlhfv_ray.storage.lease_file import Lease, open_lease
from rlhfv_ray.training.reshard import can_reshard, load_resharded

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
RECORDS = "records.jsonl"
TAG = "engine"
SPARE = 1.05  # space to ask for, relative to the numbers' bytes: names, records, other writers


@dataclass(frozen=True)
class Manifest:
    """The contents of a complete checkpoint."""

    step: int  # updates done
    world_size: int
    zero_stage: int
    files: dict[str, str]  # relative path -> sha256
    reference: str = ""  # digest of the reference's parts; empty in those of earlier versions


@dataclass(frozen=True)
class Writer:
    """The folder that receives checkpoints, and the driver that they are written for."""

    folder: Path  # of the stage; its lease must be `token`'s
    token: str
    keep: int
    reference: str = ""  # digest of the reference's parts

    @property
    def checkpoints(self) -> Path:
        """Return the folder of all checkpoints."""
        return self.folder / "checkpoints"

    @property
    def lease(self) -> Lease:
        """Return the lease that the driver must hold for anything to be published."""
        return open_lease(self.folder, self.token)


def publish_from_rank_0(writer: Writer, work: Callable[[], None]) -> None:
    """Do the work on rank 0 while the driver holds its lease; called by every worker.

    Raises:
        CheckpointError: another driver has taken the folder over; on every rank.
    """
    lost = [""]
    if dist.get_rank() == 0:
        try:
            with writer.lease.holding():
                work()
        except StorageError:  # raised by one rank alone, and a retry may succeed
            raise
        except StageFailedError as error:
            lost[0] = str(error)
    dist.broadcast_object_list(lost)
    if lost[0]:
        raise CheckpointError(lost[0])


def once_a_folder(folder: Path, work: Callable[[], Any]) -> None:
    """Do the work on the first worker of each copy of the folder; every worker calls this.

    On a shared disk all workers share one copy. Of a bucket, every node has a copy (a mirror).
    """
    mirror_ids: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(mirror_ids, open_folder(folder).copy_id())
    first_rank = mirror_ids.index(mirror_ids[dist.get_rank()])
    if first_rank == dist.get_rank():
        work()
    dist.barrier()


def clear_torn(writer: Writer) -> None:
    """Delete the unfinished checkpoints of lost attempts, which take the room of the next one."""
    for name in _names(writer.folder):
        if not is_there(writer.checkpoints / name / MANIFEST):
            discard(writer.checkpoints / name)


def check_space(engine: Any, writer: Writer) -> None:
    """Refuse, on every rank, a checkpoint that the disk cannot hold: half of one only fills it."""
    sizes = [0, 0]  # bytes needed and free
    if dist.get_rank() == 0:
        sizes = [checkpoint_bytes(engine.module), shutil.disk_usage(writer.folder).free]
    dist.broadcast_object_list(sizes)
    needed, free = sizes
    require_space(writer, needed=needed, free=free)


def checkpoint_bytes(model: torch.nn.Module) -> int:
    """Return the bytes that a checkpoint of a model takes on all workers together, plus a margin.

    A weight is saved in its own dtype. A trained weight also has 3 fp32 states, of 4 bytes each:
    the master weight and AdamW's two moments.

    Example:
        Six trained weights in fp32 take 6 * (4 + 12) bytes, plus a margin of 5 %.

        >>> checkpoint_bytes(torch.nn.Linear(3, 2, bias=False))
        100
    """
    needed = 0
    for weight in model.parameters():
        numel = getattr(weight, "ds_numel", weight.numel())  # ZeRO 3 leaves a rank an empty tensor
        needed += numel * (weight.element_size() + 12 * weight.requires_grad)
    return int(needed * SPARE)


def require_space(writer: Writer, *, needed: int, free: int) -> None:
    """Compare the bytes that a checkpoint needs with the bytes that are free.

    Raises:
        CheckpointError: fewer are free than needed.
    """
    if free < needed:
        raise CheckpointError(
            f"{display_path(writer.folder)} has {free / 2**30:.3f} GiB free, and a checkpoint "
            f"takes {needed / 2**30:.3f}. Free some disk space (--scale.keep is the number of "
            f"checkpoints kept, now {writer.keep}) and run the same command again; it continues "
            "from the last checkpoint, which is intact."
        )


def saved_step(folder: Path) -> int:
    """Return the updates that the newest checkpoint of a stage has; 0 without one.

    Its files are not read: if one is damaged, training continues from an older checkpoint.
    """
    names = [name for name in _names(folder) if is_there(folder / "checkpoints" / name / MANIFEST)]
    return max((int(name.split("-")[1]) for name in names), default=0)


def latest_checkpoint(folder: Path) -> tuple[Path, Manifest] | None:
    """Return the newest intact checkpoint of a stage; log and skip damaged ones."""
    for name in sorted(_names(folder), reverse=True):
        target = folder / "checkpoints" / name
        if is_there(target / MANIFEST):
            fetch(target)
        manifest = _read_manifest(target)
        if manifest is not None:
            return target, manifest
        logger.warning(
            "checkpoint %s is incomplete or damaged; using an older one", display_path(target)
        )
    return None


def load_checkpoint(
    engine: Any, folder: Path, *, reference: str = ""
) -> tuple[int, list[dict[str, Any]]]:
    """Load the newest intact checkpoint of a stage, if one exists; called by every worker.

    Another number of workers, or another ZeRO stage, may have written it.

    Args:
        engine: of this worker.
        folder: of the stage.
        reference: digest of the reference's parts at hand; empty: any will do.

    Returns:
        Updates done, and the metrics of those updates.

    Raises:
        CheckpointError: workers or ZeRO stage differ, and one side is stage 0 in bf16; or the
            updates so far had other reference log-probs.
    """
    newest = [latest_checkpoint(folder) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(newest)
    if newest[0] is None:
        return 0, []
    target, manifest = newest[0]
    _check_reference(target, manifest, reference)
    once_a_folder(target, lambda: fetch(target))
    world, stage = manifest.world_size, manifest.zero_stage
    if (world, stage) == (dist.get_world_size(), engine.zero_optimization_stage()):
        engine.load_checkpoint(str(target), tag=TAG)
    elif can_reshard(engine, stage):
        logger.warning(
            "%s was written by %d workers at ZeRO stage %d; its states are resharded",
            target,
            world,
            stage,
        )
        load_resharded(engine, target / TAG, world_size=world, zero_stage=stage)
    else:
        raise CheckpointError(
            f"{display_path(target)} was written by {world} workers at ZeRO stage {stage}. Stage 0 "
            "in bf16 has a state layout of its own, which cannot be resharded. Continue with "
            f"--scale.workers {world} --scale.zero-stage {stage}, or delete "
            f"{display_path(target.parent)}."
        )
    records = [json.loads(line) for line in (target / RECORDS).read_text().splitlines()]
    dist.barrier()
    open_folder(target).drop_copy()
    return manifest.step, records


def _check_reference(target: Path, manifest: Manifest, reference: str) -> None:
    """Refuse a checkpoint whose updates had other reference log-probs than those at hand."""
    if reference and manifest.reference and manifest.reference != reference:
        raise CheckpointError(
            f"{display_path(target)} was trained against other reference log-probs than those that "
            "are there now: their parts were made again with other numbers. Bring the former parts "
            f"back, or delete {display_path(target.parent)} and metrics.jsonl beside it: training "
            "then starts again."
        )


def export_policy(
    engine: Any, processor: Any, folder: Path, config: ModelConfig, *, writer: Writer
) -> None:
    """Write the engine's weights as a folder that `from_pretrained` loads; called by every worker.

    LoRA adapters are merged into the base model's weights. Where they are all that was trained,
    `adapter/` in the folder has them alone.

    Raises:
        CheckpointError: another driver has taken the folder over; on every rank.
    """
    state = None
    if engine.zero_optimization_stage() == 3:
        state = engine._zero3_consolidated_16bit_state_dict()
    draft = folder.with_name(f".{folder.name}.{writer.token}")
    if dist.get_rank() == 0:
        model = engine.module.model
        state = _model_state(state or engine.module.state_dict())
        from rlhfv_ray.models import load_model, merge_adapters, resolve_model, save_processor

        shutil.rmtree(draft, ignore_errors=True)
        if config.lora_rank:
            base, _ = load_model(replace(config, dtype="fp32", attention="auto"))
            model = merge_adapters(base.cpu(), config, state, keep_in=draft / "adapter")
            state = model.state_dict()
        model.save_pretrained(
            draft,
            state_dict={name: tensor.contiguous().cpu() for name, tensor in state.items()},
        )
        save_processor(processor, resolve_model(config.path), draft)
        apply_umask(draft)

    def publish_model() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        draft.replace(folder)
        for left_over in folder.parent.glob(f".{folder.name}.*"):  # by drivers that were killed
            shutil.rmtree(left_over, ignore_errors=True)
        publish(folder)

    publish_from_rank_0(writer, publish_model)


def weights_of(engine: Any) -> dict[str, torch.Tensor]:
    """Return the full weights on this rank, at any ZeRO stage; for tests and digests."""
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        return {
            name: tensor.detach().clone()
            for name, tensor in _model_state(engine.module.state_dict()).items()
        }


def _model_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the model's part of a policy's state, by the model's own names."""
    return {
        name.removeprefix("model."): tensor
        for name, tensor in state.items()
        if name.startswith("model.")
    }


def _read_manifest(target: Path) -> Manifest | None:
    """Return a checkpoint's manifest if every file has the digest it names, otherwise None."""
    try:
        manifest = Manifest(**unsealed((target / MANIFEST).read_text()))
        intact = all(
            file_digest(target / name) == digest for name, digest in manifest.files.items()
        )
    except (OSError, ValueError, TypeError):
        return None
    return manifest if intact else None


def prune(writer: Writer, newest: Path) -> None:
    """Keep the newest `keep` complete checkpoints, up to the one just written.

    A checkpoint of a later step is damaged: training resumed from an earlier one.
    """
    targets = [writer.checkpoints / name for name in sorted(_names(writer.folder), reverse=True)]
    complete = [path for path in targets if path.name < newest.name and is_there(path / MANIFEST)]
    retained = complete[: writer.keep - 1]
    for target in targets:
        if target not in (newest, *retained):
            discard(target / MANIFEST)  # first of all it stops being a checkpoint
            discard(target)


def _names(folder: Path) -> list[str]:
    return [name for name in names_in(folder / "checkpoints") if name.startswith("step-")]
