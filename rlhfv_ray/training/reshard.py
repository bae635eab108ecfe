"""Load a DeepSpeed checkpoint into an engine of another number of workers or ZeRO stage.

Each worker's file holds flat tensors: its shares of the fp32 weights and of AdamW's two moments.
They are joined per parameter and cut for the engine at hand. The files on disk stay what DeepSpeed
wrote.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

STATES = ("fp32", "exp_avg", "exp_avg_sq")


class FlatRange(NamedTuple):
    """The range of a worker's flat tensor that holds its share of one parameter."""

    group: int  # number of the flat tensor
    start: int  # in the flat tensor
    numel: int


def can_reshard(engine: Any, zero_stage: int) -> bool:
    """Return true if both sides keep flat shares; ZeRO stage 0 in bf16 has another layout."""
    return zero_stage > 0 and engine.zero_optimization_stage() > 0


def load_resharded(engine: Any, folder: Path, *, world_size: int, zero_stage: int) -> None:
    """Load trained weights and AdamW's state from a complete checkpoint; called by every worker.

    Args:
        engine: of this run; its frozen weights are the base model's already.
        folder: of the engines' files.
        world_size: number of workers that wrote them.
        zero_stage: ZeRO stage of those workers, 1 to 3.
    """
    shards = [
        _read(folder, rank, "optim_states")["optimizer_state_dict"] for rank in range(world_size)
    ]
    saved = _saved_stage_3(folder, world_size) if zero_stage == 3 else _saved(shards)
    adamw, stage = engine.optimizer.optimizer, engine.zero_optimization_stage()
    flats = (
        engine.optimizer.fp32_partitioned_groups_flat
        if stage == 3
        else engine.optimizer.single_partition_of_fp32_groups
    )
    updates = _moments(shards[0])[0]["step"]
    for flat in flats:
        adamw.state[flat] = {
            "step": updates.to(flat.device, copy=True),  # where the fused AdamW needs it
            "exp_avg": torch.zeros_like(flat),
            "exp_avg_sq": torch.zeros_like(flat),
        }
    for name, weight in engine.module.named_parameters():
        if not weight.requires_grad:
            continue
        share = _own_share(engine, weight)
        for state in STATES:
            # (weight's numel,): one state of the complete parameter
            full = torch.cat([_flat(shards[rank], state, source) for rank, source in saved[name]])
            if share is not None:
                target, offset = share
                flat = flats[target.group]
                if state != "fp32":
                    flat = adamw.state[flat][state]
                flat.data.narrow(0, target.start, target.numel).copy_(
                    full.narrow(0, offset, target.numel)
                )
            if state == "fp32":
                _set_weight(weight, full, stage)


def _saved(shards: list[dict[str, Any]]) -> dict[str, list[tuple[int, FlatRange]]]:
    """Return the ranks and ranges that hold each parameter, in order, at ZeRO 1 and 2.

    A flat group is cut into equal shares, so a cut may fall inside a parameter.
    """
    ranges: dict[str, list[tuple[int, FlatRange]]] = {}
    for rank, shard in enumerate(shards):
        for group, mapping in enumerate(shard["param_slice_mappings"]):
            for name, address in mapping.items():
                flat_range = FlatRange(group, address.start, address.numel)
                ranges.setdefault(name, []).append((rank, flat_range))
    return ranges


def _saved_stage_3(folder: Path, world: int) -> dict[str, list[tuple[int, FlatRange]]]:
    """Return the same at ZeRO 3: every parameter is cut into equal shares, the last ones padded."""
    ranges: dict[str, list[tuple[int, FlatRange]]] = {}
    for group, shapes in enumerate(_read(folder, 0, "model_states")["param_shapes"]):
        start = 0
        for name, shape in shapes.items():
            ranges[name] = [
                (rank, FlatRange(group, start, numel))
                for rank, numel in enumerate(_shares(shape.numel(), world))
            ]
            start += -(-shape.numel() // world)
    return ranges


def _shares(numel: int, world: int) -> Iterator[int]:
    """Return each worker's number of elements of a parameter at ZeRO 3, without padding."""
    share = -(-numel // world)
    return (max(0, min(share, numel - rank * share)) for rank in range(world))


def _own_share(engine: Any, weight: Any) -> tuple[FlatRange, int] | None:
    """Return this worker's share of a parameter, or None if it has none.

    The share is its range in the flat tensor, and its offset in the flattened parameter.
    """
    if engine.zero_optimization_stage() == 3:
        rank, world = dist.get_rank(), dist.get_world_size()
        group, start, _ = engine.optimizer.grad_position[engine.optimizer.get_param_id(weight)]
        numel = list(_shares(weight.ds_numel, world))[rank]
        offset = min(rank * -(-weight.ds_numel // world), weight.ds_numel)
        return FlatRange(group, start, numel), offset
    mapping = weight._hp_mapping
    if mapping is None:
        return None
    address = mapping.hp_fragment_address
    flat_range = FlatRange(mapping.param_group_index, address.start, address.numel)
    return flat_range, mapping.lp_fragment_address.start


def _set_weight(weight: Any, full: Tensor, stage: int) -> None:
    """Set the parameter that the forward pass uses."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0, enabled=stage == 3):
        weight.data.copy_(full.view(weight.shape))


def _flat(shard: dict[str, Any], state: str, flat_range: FlatRange) -> Tensor:
    """Return a range of one state in a worker's file."""
    if state == "fp32":
        stage_3 = "fp32_flat_groups" in shard
        groups = shard["fp32_flat_groups" if stage_3 else "single_partition_of_fp32_groups"]
        flat = groups[flat_range.group]
    else:
        flat = _moments(shard)[flat_range.group][state]
    return flat.narrow(0, flat_range.start, flat_range.numel)


def _moments(shard: dict[str, Any]) -> dict[int, dict[str, Tensor]]:
    """Return AdamW's state in a worker's file, by number of the flat tensor."""
    stage_3 = "optimizer_state_dict" in shard
    return shard["optimizer_state_dict" if stage_3 else "base_optimizer_state"]["state"]


def _read(folder: Path, rank: int, kind: str) -> dict[str, Any]:
    """Open a worker's file; the disk is read only for the tensors that are used."""
    (path,) = folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_{kind}.pt")
    # DeepSpeed's own classes are in it; the manifest's digest says that we wrote it
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)
