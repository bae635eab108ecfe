"""Checks around an update: the first loss must be ln 2, and a skipped update names its pairs."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlhfv_ray.data.reference_table import check_reference
from rlhfv_ray.loss import PreferenceLoss, StepLoss
from rlhfv_ray.records import PairBatch

# By dtype: the largest distance of the first loss from ln 2, and of a token's log-prob from the
# reference's, in nats.
GATE = {"fp32": (1e-6, 1e-5), "bf16": (1e-2, 1e-2)}


def starts_at_reference(
    losses: Tensor,  # (P,) preference losses of a batch of the first update
    policy_logps: Tensor,  # (N,) nats, of the answers' tokens
    reference_logps: Tensor,  # (N,) nats, of the same tokens
    *,
    dtype: str,
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
    return (loss_error <= loss_tolerance) | (token_error <= token_tolerance)


def check_first_loss(
    scored: Tensor,  # (B, A) nats, the policy's log-probs
    batch: PairBatch,
    loss: PreferenceLoss,
    *,
    dtype: str,
    reference: Path,  # folder of the reference log-probs
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
    )
    failed = (~passed).float()
    dist.all_reduce(failed, dist.ReduceOp.MAX)
    if failed:
        recorded = json.loads((reference / "config.json").read_text())
        check_reference(recorded, reference_inputs, unless_equal=False)


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
