"""What the field does, written anew and plainly: the other side of each comparison.

`concatenated_loss` has the shape of the RLHF-V release's step (Muffin's trainer: chosen and rejected as two padded rows, the image encoded
twice, `labels=` passed so that a cross-entropy nobody uses is computed, full logits, fp32 log-softmax over all of them).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhfv_ray.batch import Layout, collate_pairs
from rlhfv_ray.config import LossConfig
from rlhfv_ray.logps import IGNORED, token_logps, weighted_logps
from rlhfv_ray.loss import dpo_loss
from rlhfv_ray.records import ReferencePair
from rlhfv_ray.segments import Rule


def concatenated_inputs(
    pairs: Sequence[ReferencePair], processor: Any, layout: Layout, *, rule: Rule
) -> dict[str, Any]:
    """Two padded rows per pair with labels, and masks and reference on all positions (2P, T-1)."""
    batch = collate_pairs(pairs, processor, rule=rule, layout=layout)
    rows, width = batch.inputs["input_ids"].shape
    labels = torch.full((rows, width), IGNORED)
    changed, reference = torch.zeros(rows, width - 1, dtype=torch.bool), torch.zeros(rows, width - 1)
    assert batch.reference_token_logps is not None
    for row in range(rows):
        scored = batch.answers[row] >= 0
        places = batch.predictors[batch.answers[row][scored]] - row * width
        labels[row, places + 1] = batch.targets[batch.answers[row][scored]]
        changed[row, places] = batch.changed[row][scored]
        reference[row, places] = batch.reference_token_logps[row][scored]
    return {"inputs": batch.inputs, "labels": labels, "changed": changed, "reference": reference}


def concatenated_loss(model: Any, made: dict[str, Any], loss: LossConfig) -> Tensor:
    """Loss of a batch of pairs as the release computes it."""
    logits = model(**made["inputs"], labels=made["labels"], use_cache=False).logits
    logps = token_logps(logits, made["labels"])
    weights = (made["labels"][:, 1:] != IGNORED) * (1 + (loss.gamma - 1) * made["changed"].to(logps.dtype))
    ours, reference = (weighted_logps(part, weights, normalize=loss.normalize) for part in (logps, made["reference"]))
    pairs = len(ours) // 2
    found = dpo_loss(ours[:pairs], ours[pairs:], reference[:pairs], reference[pairs:], beta=loss.beta)
    return found.losses.mean()


def full_head_logps(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The release's head: logits of every token, a cross-entropy that is thrown away, log-softmax of all again."""
    logits = torch.nn.functional.linear(hidden, weight)
    shifted, wanted = logits[:, :-1].contiguous(), labels[:, 1:].contiguous()
    torch.nn.functional.cross_entropy(shifted.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)
    return token_logps(logits, labels)


def one_by_one_logps(model: Any, rows: Sequence[dict[str, Any]]) -> list[Tensor]:
    """A reference pass one answer at a time, as the release's script does it: `rows` hold inputs and labels of one answer each."""
    with torch.no_grad():
        return [token_logps(model(**row["inputs"], labels=row["labels"]).logits, row["labels"]) for row in rows]
