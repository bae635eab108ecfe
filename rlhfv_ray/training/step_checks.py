"""Checks around an update: the first loss must be ln 2, the first update after a resume repeats the
recorded one, and a skipped update names its pairs.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from rlhfv_ray.data.reference_table import check_reference
from rlhfv_ray.errors import CheckpointError
from rlhfv_ray.inference.model_check import read_check
from rlhfv_ray.loss import PreferenceLoss, StepLoss
from rlhfv_ray.records import PairBatch
from rlhfv_ray.storage.folder import display_path
from rlhfv_ray.training.metrics_log import METRICS_FILE, recorded_loss

# By dtype: the largest distance of the first loss from ln 2, and of a token's log-prob from the
# reference's, in nats. bf16 where the self-check has not measured its rounding.
GATE = {"fp32": (1e-6, 1e-5), "bf16": (1e-2, 1e-2)}
# Largest distance of a token's log-prob in bf16, as a multiple of what the self-check measured
# between two passes of the same rows, which knows two pairs alone.
ROUNDINGS = 4
# By dtype: the largest distance of a repeated update's loss from the recorded one, relative to a
# recorded loss above 1. The same workers repeat it to the bit on CPUs. Other workers, another micro
# batch or other GPUs round differently, which beta, gamma and long answers magnify.
REPEATED = {"fp32": 1e-3, "bf16": 5e-2}


class RecordedLoss(NamedTuple):
    """The loss of the first update after a resume, as it was before."""

    folder: Path  # of the training stage
    step: int  # number of the update, from 1
    loss: float | None  # None: nothing was recorded after the checkpoint


def starts_at_reference(
    losses: Tensor,  # (P,) preference losses of a batch of the first update
    policy_logps: Tensor,  # (N,) nats, of the answers' tokens
    reference_logps: Tensor,  # (N,) nats, of the same tokens
    *,
    dtype: str,
    rounding: float | None = None,  # that the self-check measured in this dtype, nats
) -> Tensor:
    """Return a scalar that is true if the policy still is the reference, up to rounding.

    Before the first update policy = reference, so the DPO loss is -log sigmoid(0) = ln 2.
    Large beta and gamma on long answers magnify rounding, so another loss passes too if the tokens'
    log-probs themselves agree. A NaN never passes.

    Example:
        >>> logps = torch.tensor([-1.0, -2.0])
        >>> starts_at_reference(torch.tensor([0.5]), logps, logps, dtype="fp32").item()
        True
        >>> starts_at_reference(torch.tensor([0.5]), logps, logps - 1, dtype="fp32").item()
        False
    """
    loss_error = (losses.mean() - math.log(2)).abs()
    token_error = (policy_logps - reference_logps).abs().mean()
    loss_tolerance, token_tolerance = GATE[dtype]
    if dtype == "bf16" and rounding is not None:
        loss_tolerance, token_tolerance = GATE["fp32"]
        token_tolerance = max(token_tolerance, ROUNDINGS * rounding)
    return (loss_error <= loss_tolerance) | (token_error <= token_tolerance)


def check_first_loss(
    scored: Tensor,  # (B, A) nats, the policy's log-probs
    batch: PairBatch,
    loss: PreferenceLoss,
    *,
    dtype: str,
    reference: Path,  # folder of the reference log-probs, with the self-check
    reference_inputs: Mapping[str, Any],  # what its config.json should say
) -> None:
    """Check a batch of the first update: policy and reference must agree; called by every worker.

    Raises:
        StaleReferenceError: the reference log-probs are not this model's; on every rank.
    """
    assert batch.reference_token_logps is not None, "the reference stage fills these in"
    is_answer = batch.answers >= 0  # (B, A)
    passed = starts_at_reference(
        loss.losses.detach(),
        scored.detach()[is_answer],
        batch.reference_token_logps[is_answer],
        dtype=dtype,
        rounding=read_check(reference).rounding if dtype == "bf16" else None,
    )
    failed = (~passed).float()
    dist.all_reduce(failed, dist.ReduceOp.MAX)
    if failed:
        recorded = json.loads((reference / "config.json").read_text())
        check_reference(recorded, reference_inputs, unless_equal=False)


def loss_to_repeat(folder: Path, step: int) -> RecordedLoss:
    """Return the record of the update after a checkpoint's; called by every worker.

    Args:
        folder: of the training stage.
        step: updates done; 0: training starts, and nothing is repeated.
    """
    recorded = [recorded_loss(folder, step + 1) if step and dist.get_rank() == 0 else None]
    dist.broadcast_object_list(recorded)
    return RecordedLoss(folder, step + 1, recorded[0])


def repeats(loss: float, recorded: float, *, dtype: str) -> bool:
    """Return True if the loss of a repeated update is the recorded one, up to rounding.

    Example:
        >>> repeats(0.69315, 0.69313, dtype="fp32"), repeats(0.69, 0.65, dtype="fp32")
        (True, False)
    """
    return abs(loss - recorded) <= REPEATED[dtype] * max(1.0, abs(recorded))


def check_repeated_loss(
    losses: Sequence[tuple[PairBatch, StepLoss]], recorded: RecordedLoss, *, step: int, dtype: str
) -> None:
    """Compare the first update after a resume with its record; called by every worker.

    A loss that is not finite is not compared: its update is skipped, and its pairs are named.

    Args:
        losses: this worker's batches of the update with their losses.
        recorded: the record; nothing is compared with that of another update.
        step: number of the update, from 1.
        dtype: of the weights.

    Raises:
        CheckpointError: the losses differ by more than rounding; on every rank.
    """
    if recorded.loss is None or recorded.step != step:
        return
    mean = torch.stack([loss.total.detach().float() for _, loss in losses]).mean()
    dist.all_reduce(mean)
    loss = mean.item() / dist.get_world_size()
    if math.isfinite(loss) and not repeats(loss, recorded.loss, dtype=dtype):
        raise CheckpointError(
            f"Update {step} was repeated from a checkpoint with a loss of {loss:.6g}, but "
            f"{display_path(recorded.folder / METRICS_FILE)} has {recorded.loss:.6g}: the model, "
            "the reference, the code or a library is not what training began with. Undo the "
            f"change. To continue all the same, delete {METRICS_FILE}; to start again, delete "
            "the folder."
        )


def pairs_to_blame(losses: Sequence[tuple[PairBatch, StepLoss]]) -> list[str]:
    """Return the suspects of a skipped update, over all ranks; called by every worker."""
    batches = [(batch.ids, bool(torch.isfinite(loss.total))) for batch, loss in losses]
    batches_by_rank: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(batches_by_rank, batches)
    return suspect_pairs(list(itertools.chain.from_iterable(batches_by_rank)))


def suspect_pairs(batches: Sequence[tuple[Sequence[str], bool]]) -> list[str]:
    """Return the pairs of the batches whose loss is not finite.

    If all losses are finite, a gradient was not: then every pair is a suspect.

    Args:
        batches: the ids of each batch's pairs, and true if its loss is finite.

    Example:
        >>> suspect_pairs([(["a", "b"], True), (["c"], False)])
        ['c']
        >>> suspect_pairs([(["a", "b"], True), (["c"], True)])
        ['a', 'b', 'c']
    """
    not_finite = [ids for ids, is_finite in batches if not is_finite]
    suspects = not_finite or [ids for ids, _ in batches]
    return list(itertools.chain.from_iterable(suspects))
