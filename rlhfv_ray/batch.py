"""Pairs as padded tensors for one forward pass of the policy or the reference.

The plain layout: two rows per pair, all chosen rows first, padded on the right. Shapes as in `records`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhfv_ray.data.images import decode_image
from rlhfv_ray.logps import IGNORED
from rlhfv_ray.records import EncodedPair, PairBatch, ReferencePair
from rlhfv_ray.segments import Rule


def image_inputs(processor: Any, images: Sequence[bytes]) -> dict[str, Tensor]:
    """The processor's image tensors (pixel_values, ...) for encoded images: no crop, no flip, always the same."""
    return dict(processor.image_processor([decode_image(image) for image in images], return_tensors="pt"))


def collate_pairs(pairs: Sequence[EncodedPair], processor: Any, *, rule: Rule) -> PairBatch:
    """Pad pairs to one batch.

    Args:
        pairs: P pairs; where all are `ReferencePair`s the batch has their reference log-probabilities.
        processor: the model's processor: pixels and the padding token.
        rule: which of the pairs' changed-token masks to use.
    """
    prompts = [pair.prompt_ids for pair in pairs] * 2
    answers = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
    changed = [pair.changed[rule].chosen for pair in pairs] + [pair.changed[rule].rejected for pair in pairs]
    width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    pad = processor.tokenizer.pad_token_id
    rows = [_pad(prompt + answer, width, pad) for prompt, answer in zip(prompts, answers, strict=True)]
    inputs = {
        "input_ids": torch.tensor(rows),
        "attention_mask": torch.tensor(
            [_pad([1] * (len(p) + len(a)), width, 0) for p, a in zip(prompts, answers, strict=True)]
        ),
        **image_inputs(processor, [pair.image for pair in pairs] * 2),
    }
    reference = None
    if all(isinstance(pair, ReferencePair) for pair in pairs):
        logps = [p.chosen_logps for p in pairs] + [p.rejected_logps for p in pairs]  # type: ignore[attr-defined]
        reference = torch.tensor(_on_answers(prompts, logps, width, 0.0), dtype=torch.float32)
    return PairBatch(
        ids=tuple(pair.id for pair in pairs),
        inputs=inputs,
        labels=torch.tensor(
            [_pad([IGNORED] * len(p) + a, width, IGNORED) for p, a in zip(prompts, answers, strict=True)]
        ),
        changed=torch.tensor(_on_answers(prompts, changed, width, False), dtype=torch.bool),
        reference_token_logps=reference,
    )


def to_device(batch: PairBatch, device: torch.device, dtype: torch.dtype) -> PairBatch:
    """Move a batch; pixels take the model's dtype."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=True)

    reference = batch.reference_token_logps
    return batch._replace(
        inputs={name: move(tensor) for name, tensor in batch.inputs.items()},
        labels=batch.labels.to(device, non_blocking=True),
        changed=batch.changed.to(device, non_blocking=True),
        reference_token_logps=None if reference is None else reference.to(device, non_blocking=True),
    )


def _pad(values: list, width: int, filler: object) -> list:
    return values + [filler] * (width - len(values))


def _on_answers(prompts: list[list[int]], values: list[list], width: int, filler: object) -> list[list]:
    """Per-token values placed at the positions that predict the answer's tokens: (B, S)."""
    return [
        _pad([filler] * (len(prompt) - 1) + row, width - 1, filler) for prompt, row in zip(prompts, values, strict=True)
    ]
