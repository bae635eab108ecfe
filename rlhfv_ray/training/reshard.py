"""A DeepSpeed checkpoint brought into an engine of another number of workers or ZeRO stage.

Each worker's file holds flat slices of the weights in fp32 and of AdamW's two moments, by parameter. They are joined per parameter and
cut anew for the engine at hand, so that the files on disk stay what DeepSpeed wrote, whatever is made of them later.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

STATES = ("fp32", "exp_avg", "exp_avg_sq")


class Slice(NamedTuple):
    """Where a worker keeps its share of one parameter."""

    group: int  # number of the flat tensor
    start: int  # in the flat tensor
    numel: int


def can_reshard(engine: Any, zero_stage: int) -> bool:
    """Whether both sides keep states in slices; ZeRO stage 0 in bf16 has its own layout."""
    return zero_stage > 0 and engine.zero_optimization_stage() > 0


def load_resharded(engine: Any, folder: Path, *, world_size: int, zero_stage: int) -> None:
    """Set the engine's trained weights and AdamW's state from the files of a complete checkpoint; called by every worker.

    Args:
        engine: of this run; its frozen weights are the base model's already.
        folder: of the engines' files.
        world_size: of the workers that wrote them.
        zero_stage: theirs, 1 to 3.
    """
    shards = [
        _read(folder, rank, "optim_states")["optimizer_state_dict"] for rank in range(world_size)
    ]
    saved = _saved_stage_3(folder, world_size) if zero_stage == 3 else _saved(shards)
    inner, here = engine.optimizer.optimizer, engine.zero_optimization_stage()
    flats = (
        engine.optimizer.fp32_partitioned_groups_flat
        if here == 3
        else engine.optimizer.single_partition_of_fp32_groups
    )
    updates = _moments(shards[0])[0]["step"]
    for flat in flats:
        inner.state[flat] = {
            "step": updates.to(flat.device, copy=True),  # where the fused AdamW wants it
            "exp_avg": torch.zeros_like(flat),
            "exp_avg_sq": torch.zeros_like(flat),
        }
    for name, weight in engine.module.named_parameters():
        if not weight.requires_grad:
            continue
        at = _place(engine, weight)
        for state in STATES:
            whole = torch.cat([_flat(shards[rank], state, where) for rank, where in saved[name]])
            if at is not None:
                where, start = at
                flat = (
                    flats[where.group]
                    if state == "fp32"
                    else inner.state[flats[where.group]][state]
                )
                flat.data.narrow(0, where.start, where.numel).copy_(
                    whole.narrow(0, start, where.numel)
                )
            if state == "fp32":
                _set_weight(weight, whole, here)


def _saved(shards: list[dict[str, Any]]) -> dict[str, list[tuple[int, Slice]]]:
    """Of every parameter, what each worker has of it, in order (ZeRO 1 and 2: a flat group is cut wherever its share ends)."""
    found: dict[str, list[tuple[int, Slice]]] = {}
    for rank, shard in enumerate(shards):
        for group, mapping in enumerate(shard["param_slice_mappings"]):
            for name, address in mapping.items():
                found.setdefault(name, []).append(
                    (rank, Slice(group, address.start, address.numel))
                )
    return found


def _saved_stage_3(folder: Path, world: int) -> dict[str, list[tuple[int, Slice]]]:
    """The same for ZeRO 3: every parameter is cut into equal shares, the last ones padded."""
    found: dict[str, list[tuple[int, Slice]]] = {}
    for group, shapes in enumerate(_read(folder, 0, "model_states")["param_shapes"]):
        start = 0
        for name, shape in shapes.items():
            found[name] = [
                (rank, Slice(group, start, numel))
                for rank, numel in enumerate(_shares(shape.numel(), world))
            ]
            start += -(-shape.numel() // world)
    return found


def _shares(numel: int, world: int) -> Iterator[int]:
    """How many elements of a parameter each worker has at ZeRO 3, padding left out."""
    share = -(-numel // world)
    return (max(0, min(share, numel - rank * share)) for rank in range(world))


def _place(engine: Any, weight: Any) -> tuple[Slice, int] | None:
    """Where this worker keeps its share of a parameter, and where in the parameter that share begins; None where it has none."""
    if engine.zero_optimization_stage() == 3:
        rank, world = dist.get_rank(), dist.get_world_size()
        group, start, _ = engine.optimizer.grad_position[engine.optimizer.get_param_id(weight)]
        numel = list(_shares(weight.ds_numel, world))[rank]
        return Slice(group, start, numel), min(rank * -(-weight.ds_numel // world), weight.ds_numel)
    if weight._hp_mapping is None:
        return None
    mine, whole = weight._hp_mapping.hp_fragment_address, weight._hp_mapping.lp_fragment_address
    return Slice(weight._hp_mapping.param_group_index, mine.start, mine.numel), whole.start


def _set_weight(weight: Any, whole: Tensor, stage: int) -> None:
    """Set what the forward pass uses."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0, enabled=stage == 3):
        weight.data.copy_(whole.view(weight.shape))


def _flat(shard: dict[str, Any], state: str, where: Slice) -> Tensor:
    """A slice of one state in a worker's file."""
    if state == "fp32":
        flat = shard[
            "fp32_flat_groups" if "fp32_flat_groups" in shard else "single_partition_of_fp32_groups"
        ][where.group]
    else:
        flat = _moments(shard)[where.group][state]
    return flat.narrow(0, where.start, where.numel)


def _moments(shard: dict[str, Any]) -> dict[int, dict[str, Tensor]]:
    """AdamW's state in a worker's file, by number of the flat tensor."""
    return (
        shard["optimizer_state_dict"]
        if "optimizer_state_dict" in shard
        else shard["base_optimizer_state"]
    )["state"]


def _read(folder: Path, rank: int, what: str) -> dict[str, Any]:
    """A worker's file; only what is used of it is read from disk."""
    (path,) = folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_{what}.pt")
    # DeepSpeed's own classes are in it; the manifest's digest says that we wrote it
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)
