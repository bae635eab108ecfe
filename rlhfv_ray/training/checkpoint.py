"""Checkpoints that are whole or not there: a manifest with digests is published last, and only what it vouches for is loaded.

`checkpoints/step-000050-2w-1f3a/` holds what the workers' DeepSpeed engines wrote, `records.jsonl` (the metrics so far) and
`manifest.json`. The name carries world size and the writing driver's token, so that attempts never mix their files. Where the storage is an
address, each node sends what its workers wrote and keeps nothing; to go on, each fetches the whole.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rlhfv_ray.config import ModelConfig
from rlhfv_ray.errors import CheckpointError
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import (
    discard,
    display_path,
    fetch,
    is_there,
    make,
    names_in,
    open_folder,
    publish,
)
from rlhfv_ray.storage.lease import holds_lease
from rlhfv_ray.training.reshard import can_reshard, load_resharded

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
RECORDS = "records.jsonl"
TAG = "engine"
SPARE = 1.05  # of the numbers' bytes: names, records, and what others write meanwhile


@dataclass(frozen=True)
class Manifest:
    """What a complete checkpoint consists of."""

    step: int  # updates done
    world_size: int
    zero_stage: int
    files: dict[str, str]  # relative path -> sha256


@dataclass(frozen=True)
class Writer:
    """Where checkpoints go, and on whose behalf."""

    folder: Path  # of the stage; its lease must be `token`'s
    token: str
    keep: int

    @property
    def checkpoints(self) -> Path:
        """The folder of all checkpoints."""
        return self.folder / "checkpoints"


def save_checkpoint(
    engine: Any, writer: Writer, *, step: int, records: list[dict[str, Any]]
) -> None:
    """Save the engine's state; called by every worker.

    Rank 0 removes checkpoints beyond the newest `keep` once the new one is published.

    Raises:
        CheckpointError: another driver has taken the folder over, or the disk has no room; on every rank.
    """
    world = dist.get_world_size()
    target = writer.checkpoints / f"step-{step:06d}-{world}w-{writer.token[:4]}"
    if dist.get_rank() == 0 and holds_lease(writer.folder, writer.token):
        _clear_torn(writer)
        discard(target)  # a damaged one of the same step
    _check_space(engine, writer)
    once_a_folder(target, lambda: make(target))
    engine.save_checkpoint(str(target), tag=TAG, client_state={"step": step}, save_latest=False)
    if dist.get_rank() == 0:
        (target / RECORDS).write_text("".join(json.dumps(record) + "\n" for record in records))
    dist.barrier()
    written: dict[str, str] = {}
    once_a_folder(target, lambda: written.update(_sent_files(target)))
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, written)
    ours = [True]
    if dist.get_rank() == 0 and (ours := [holds_lease(writer.folder, writer.token)])[0]:
        files = dict(sorted((name, digest) for found in everyone for name, digest in found.items()))
        write_json(
            target / MANIFEST,
            asdict(Manifest(step, world, engine.zero_optimization_stage(), files)),
        )
        _prune(writer, target)
    dist.broadcast_object_list(ours)
    open_folder(target).drop_copy()
    if not ours[0]:
        raise CheckpointError(
            f"{display_path(writer.folder)} was taken over by another driver; this one stops."
        )


def once_a_folder(folder: Path, work: Callable[[], Any]) -> None:
    """Let one of the workers that share a folder do what it needs: of all, or of those with the same mirror; called by every worker."""
    theirs: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(theirs, open_folder(folder).copy_id())
    if theirs.index(theirs[dist.get_rank()]) == dist.get_rank():
        work()
    dist.barrier()


def _sent_files(target: Path) -> dict[str, str]:
    """Digests of all files of a folder, published if it is a mirror."""
    publish(target)
    return {
        str(path.relative_to(target)): _sha256(path)
        for path in sorted(target.rglob("*"))
        if path.is_file()
    }


def _clear_torn(writer: Writer) -> None:
    """Delete what lost attempts left unfinished: it would take the room of the next."""
    for name in _names(writer.folder):
        if not is_there(writer.checkpoints / name / MANIFEST):
            discard(writer.checkpoints / name)


def _check_space(engine: Any, writer: Writer) -> None:
    """Refuse, on every rank, to begin what a disk cannot hold: half a checkpoint would only fill it."""
    found = [0, 0]
    if dist.get_rank() == 0:
        sizes = [
            (weight, getattr(weight, "ds_numel", weight.numel()))
            for weight in engine.module.parameters()
        ]
        needed = sum(
            numel * (weight.element_size() + 12 * weight.requires_grad) for weight, numel in sizes
        )  # and 3 states in fp32
        found = [int(needed * SPARE), shutil.disk_usage(writer.folder).free]
    dist.broadcast_object_list(found)
    needed, free = found
    if free < needed:
        raise CheckpointError(
            f"{display_path(writer.folder)} has {free / 2**30:.3f} GiB free, and a checkpoint takes "
            f"{needed / 2**30:.3f}: make room (--scale.keep is how many stay, now {writer.keep}) "
            "and run the same command again; it goes on from the last checkpoint, which is whole."
        )


def latest_checkpoint(folder: Path) -> tuple[Path, Manifest] | None:
    """The newest checkpoint of a stage whose files are all there and unchanged; torn ones are named and passed over."""
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


def load_checkpoint(engine: Any, folder: Path) -> tuple[int, list[dict[str, Any]]]:
    """Bring the engine to the newest checkpoint of a stage, if there is one; called by every worker.

    It may have been written by another number of workers or at another ZeRO stage.

    Returns:
        Updates done, and the metrics of those updates.

    Raises:
        CheckpointError: one of both is ZeRO stage 0 in bf16, and the other is not.
    """
    found = [latest_checkpoint(folder) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)
    if found[0] is None:
        return 0, []
    target, manifest = found[0]
    once_a_folder(target, lambda: fetch(target))
    world, stage = manifest.world_size, manifest.zero_stage
    if (world, stage) == (dist.get_world_size(), engine.zero_optimization_stage()):
        engine.load_checkpoint(str(target), tag=TAG)
    elif can_reshard(engine, stage):
        logger.warning(
            "%s was written by %d workers at ZeRO stage %d; its states are dealt out anew",
            target,
            world,
            stage,
        )
        load_resharded(engine, target / TAG, world_size=world, zero_stage=stage)
    else:
        raise CheckpointError(
            f"{display_path(target)} was written by {world} workers at ZeRO stage {stage}, and stage 0 in bf16 keeps its state in its own way: "
            f"continue with --scale.workers {world} --scale.zero-stage {stage}, or delete {display_path(target.parent)}."
        )
    records = [json.loads(line) for line in (target / RECORDS).read_text().splitlines()]
    dist.barrier()
    open_folder(target).drop_copy()
    return manifest.step, records


def export_policy(engine: Any, processor: Any, folder: Path, config: ModelConfig) -> None:
    """Write the engine's weights as a Hugging Face folder that `from_pretrained` loads, adapters merged; called by every worker."""
    state = (
        engine._zero3_consolidated_16bit_state_dict()
        if engine.zero_optimization_stage() == 3
        else None
    )
    if dist.get_rank() == 0:
        model = engine.module.model
        state = _of_model(state or engine.module.state_dict())
        from rlhfv_ray.models import keep_video_settings, load_model, merge_adapters, resolve_model

        if config.lora_rank:
            base, _ = load_model(replace(config, dtype="fp32", attention="auto"))
            model = merge_adapters(base.cpu(), config, state)
            state = model.state_dict()
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(
            temporary,
            state_dict={name: tensor.contiguous().cpu() for name, tensor in state.items()},
        )
        processor.save_pretrained(temporary)
        keep_video_settings(resolve_model(config.path), temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
        publish(folder)
    dist.barrier()


def weights_of(engine: Any) -> dict[str, torch.Tensor]:
    """Full weights on this rank, whatever the ZeRO stage; for tests and digests."""
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        return {
            name: tensor.detach().clone()
            for name, tensor in _of_model(engine.module.state_dict()).items()
        }


def _of_model(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What of a policy's state is its model's, by the model's names."""
    return {
        name.removeprefix("model."): tensor
        for name, tensor in state.items()
        if name.startswith("model.")
    }


def _read_manifest(target: Path) -> Manifest | None:
    """A checkpoint's manifest where every file it names is there with the digest it names."""
    try:
        manifest = Manifest(**json.loads((target / MANIFEST).read_text()))
        intact = all(_sha256(target / name) == digest for name, digest in manifest.files.items())
    except (OSError, ValueError, TypeError):
        return None
    return manifest if intact else None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _prune(writer: Writer, newest: Path) -> None:
    """Keep the newest `keep` complete checkpoints up to the one just written; what claims a later step is damaged."""
    there = [writer.checkpoints / name for name in sorted(_names(writer.folder), reverse=True)]
    kept = [path for path in there if path.name < newest.name and is_there(path / MANIFEST)][
        : writer.keep - 1
    ]
    for target in there:
        if target not in (newest, *kept):
            discard(target / MANIFEST)  # first of all it stops being a checkpoint
            discard(target)


def _names(folder: Path) -> list[str]:
    return [name for name in names_in(folder / "checkpoints") if name.startswith("step-")]
