"""Pairs as tensors for one forward pass of the policy or the reference.

Two layouts of the same pairs give the same log-probabilities:

    plain     two rows per pair, prompt + answer each, the image twice; chosen rows first
    shared    prompt and common beginning of the answers once, then both continuations; they share a row, do not see each other, and each
              counts its positions on from where they part. Several pairs may share a row.

`PairBatch.predictors` says where each answer's tokens are predicted, so nothing behind the forward pass knows the layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from rlhfv_ray.data.images import decode_image
from rlhfv_ray.records import EncodedPair, PairBatch, ReferencePair
from rlhfv_ray.segments import Rule

PADDING = -1  # branch of a token that pads its row
NOWHERE = -1  # place of a token that is not scored
COMMON, CHOSEN, REJECTED = range(3)
FORKS = "forks"  # (P, 5) of shared rows: row, first position, tokens of both, of the chosen answer alone, of the rejected one alone


@dataclass(frozen=True)
class Layout:
    """How pairs become rows of a model; LLaVA and its like need no more, other families override what differs (`models.layouts`)."""

    shared: bool = False
    row_tokens: int = (
        0  # shared rows take further pairs up to this many tokens; 0: one pair per row
    )
    split_head: bool = False  # the logits are the output head on the body's features, so the head may run by itself
    accepts: frozenset[str] = frozenset({"pixel_values"})  # inputs the model knows
    # Attention within a pair is causal but for its fork, so `models.attention` needs no mask.
    forked: ClassVar[bool] = True

    def image_inputs(self, processor: Any, images: Sequence[bytes]) -> dict[str, Tensor]:
        """The processor's image tensors (pixel_values, ...) for encoded images: no crop, no flip, always the same."""
        made = processor.image_processor(
            [decode_image(image) for image in images], return_tensors="pt"
        )
        return {name: tensor for name, tensor in made.items() if name in self.accepts}

    def token_inputs(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Further inputs of the model that follow from the ids (R, T)."""
        return {}

    def positions(self, prompt: Tensor, images: dict[str, Tensor], which: int) -> Tensor:
        """Position ids (K, L) of a prompt (L,) with image number `which`; K is 1, or more where a token has several."""
        return torch.arange(len(prompt)).unsqueeze(0)

    def attention(self, allowed: Tensor, inputs: dict[str, Tensor]) -> Any:
        """The model's `attention_mask` from who may see whom (R, 1, T, T) bool; `inputs` are the others of the model."""
        return allowed

    def tokens_of(self, pair: EncodedPair) -> int:
        """Tokens that a pair puts through the model."""
        prompt, chosen, rejected = (
            len(pair.prompt_ids),
            len(pair.chosen_ids),
            len(pair.rejected_ids),
        )
        if not rejected:
            return prompt + chosen
        if self.shared:
            return prompt + chosen + rejected - common_start(pair)
        return 2 * (prompt + max(chosen, rejected))


def common_start(pair: EncodedPair) -> int:
    """How many tokens both answers begin with."""
    both = zip(pair.chosen_ids, pair.rejected_ids, strict=False)
    return sum(1 for _ in takewhile(lambda tokens: tokens[0] == tokens[1], both))


def collate_pairs(
    pairs: Sequence[EncodedPair], processor: Any, *, rule: Rule, layout: Layout | None = None
) -> PairBatch:
    """Lay pairs out in one batch.

    Args:
        pairs: P pairs, or examples; where all are `ReferencePair`s the batch has their reference log-probabilities.
        processor: the model's processor: pixels and the padding token.
        rule: which of the pairs' changed-token masks to use.
        layout: of the model; plain rows where there is none.
    """
    layout = layout or Layout()
    changed = [pair.changed[rule].chosen for pair in pairs] + [
        pair.changed[rule].rejected for pair in pairs
    ]
    reference = None
    if all(isinstance(pair, ReferencePair) for pair in pairs):
        logps = [p.chosen_logps for p in pairs] + [p.rejected_logps for p in pairs]  # type: ignore[attr-defined]
        reference = _padded(logps, 0.0, torch.float32)
    inputs, places = (_shared_rows if layout.shared else _plain_rows)(pairs, processor, layout)
    seen: dict[tuple[int, int], int] = {}  # (predictor, target) -> which of the N
    wanted = [pair.scored or [True] * len(pair.chosen_ids) for pair in pairs]
    wanted += [[True] * len(pair.rejected_ids) for pair in pairs]
    answers = [
        [
            seen.setdefault(place, len(seen)) if scored else NOWHERE
            for place, scored in zip(answer, flags, strict=True)
        ]
        for answer, flags in zip(places, wanted, strict=True)
    ]
    predictors, targets = torch.tensor(list(seen)).T
    return PairBatch(
        ids=tuple(pair.id for pair in pairs),
        inputs=inputs,
        predictors=predictors,
        targets=targets,
        answers=_padded(answers, NOWHERE, torch.long),
        changed=_padded(changed, False, torch.bool),
        reference_token_logps=reference,
    )


def to_device(batch: PairBatch, device: torch.device, dtype: torch.dtype) -> PairBatch:
    """Move a batch; pixels take the model's dtype."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=True)

    reference = batch.reference_token_logps
    return batch._replace(
        # Forks are read as numbers: on a GPU each would wait for it.
        inputs={
            name: tensor if name == FORKS else move(tensor) for name, tensor in batch.inputs.items()
        },
        predictors=move(batch.predictors),
        targets=move(batch.targets),
        answers=move(batch.answers),
        changed=move(batch.changed),
        reference_token_logps=None
        if reference is None
        else reference.to(device, non_blocking=True),
    )


def branch_mask(branches: Tensor) -> Tensor:
    """Who may see whom in shared rows: what stands before in the same pair, but for the other continuation.

    Args:
        branches: (R, T), 3 * pair + (0 common, 1 chosen, 2 rejected), or -1 for padding, which sees only padding.

    Returns:
        (R, 1, T, T) bool: query, key.

    Example:
        A prompt of two tokens, one token of each answer:

        >>> branch_mask(torch.tensor([[0, 0, 1, 2]]))[0, 0].int()
        tensor([[1, 0, 0, 0],
                [1, 1, 0, 0],
                [1, 1, 1, 0],
                [1, 1, 0, 1]], dtype=torch.int32)
    """
    pair, branch = branches.div(3, rounding_mode="floor"), branches.remainder(3)
    query, key = (slice(None), slice(None), None), (slice(None), None, slice(None))
    allowed = (pair[query] == pair[key]) & (
        (branch[key] == COMMON) | (branch[query] == branch[key])
    )
    allowed |= (pair[query] < 0) & (pair[key] < 0)
    return allowed.tril().unsqueeze(1)


Place = tuple[int, int]  # position in the R * T tokens that predicts a token, and the token


def _plain_rows(
    pairs: Sequence[EncodedPair], processor: Any, layout: Layout
) -> tuple[dict[str, Tensor], list[list[Place]]]:
    both = [
        *((pair, pair.chosen_ids) for pair in pairs),
        *((pair, pair.rejected_ids) for pair in pairs),
    ]
    kept = [
        number for number, (_, answer) in enumerate(both) if answer
    ]  # of an example nothing is rejected
    rows = [both[number][0].prompt_ids + both[number][1] for number in kept]
    input_ids = _padded(rows, processor.tokenizer.pad_token_id, torch.long)
    places: list[list[Place]] = [[] for _ in both]
    for row, number in enumerate(kept):
        pair, answer = both[number]
        first = row * input_ids.shape[1] + len(pair.prompt_ids) - 1
        places[number] = list(enumerate(answer, start=first))
    inputs = {
        "input_ids": input_ids,
        "attention_mask": _padded([[1] * len(row) for row in rows], 0, torch.long),
        **layout.token_inputs(input_ids),
        **layout.image_inputs(processor, [both[number][0].image for number in kept]),
    }
    return inputs, places


def _shared_rows(
    pairs: Sequence[EncodedPair], processor: Any, layout: Layout
) -> tuple[dict[str, Tensor], list[list[Place]]]:
    packed = _pack([layout.tokens_of(pair) for pair in pairs], layout.row_tokens)
    width = max(sum(layout.tokens_of(pairs[number]) for number in row) for row in packed)
    order = [number for row in packed for number in row]
    images = layout.image_inputs(processor, [pairs[number].image for number in order])
    ids: list[list[int]] = []
    branches: list[list[int]] = []
    positions: list[Tensor] = []
    places: list[list[Place]] = [[] for _ in range(2 * len(pairs))]
    lengths: list[tuple[int, ...]] = []
    for row, numbers in enumerate(packed):
        forks = [Fork(pairs[number]) for number in numbers]
        starts = accumulate((len(fork.ids) for fork in forks), initial=row * width)
        for number, fork, start in zip(numbers, forks, starts, strict=False):
            places[number], places[number + len(pairs)] = fork.places(start)
            lengths.append((row, start - row * width, fork.parting, *map(len, fork.tails)))
        ids.append([token for fork in forks for token in fork.ids])
        branches.append(
            [3 * slot + branch for slot, fork in enumerate(forks) for branch in fork.branches]
        )
        counted = []
        for number, fork in zip(numbers, forks, strict=True):
            prompt = layout.positions(
                torch.tensor(fork.pair.prompt_ids), images, order.index(number)
            )
            counted += [prompt, prompt[:, -1:] + 1 + torch.tensor(fork.steps)]
        positions.append(torch.cat(counted, dim=1))
    input_ids = _padded(ids, processor.tokenizer.pad_token_id, torch.long)
    position_ids = torch.stack(
        [functional.pad(row, (0, width - row.shape[1])) for row in positions], dim=1
    )  # (K, R, T)
    inputs = {
        "input_ids": input_ids,
        "branches": _padded(branches, PADDING, torch.long),
        FORKS: torch.tensor(lengths),
        "position_ids": position_ids if len(position_ids) > 1 else position_ids[0],
        **layout.token_inputs(input_ids),
        **images,
    }
    return inputs, places


class Fork:
    """One pair as one run of tokens: prompt and common beginning, the rest of the chosen answer, the rest of the rejected one."""

    def __init__(self, pair: EncodedPair) -> None:
        self.pair, self.common = pair, common_start(pair)
        self.tails = pair.chosen_ids[self.common :], pair.rejected_ids[self.common :]
        self.ids = [
            *pair.prompt_ids,
            *pair.chosen_ids[: self.common],
            *self.tails[0],
            *self.tails[1],
        ]

    @property
    def parting(self) -> int:
        """Tokens before the answers part."""
        return len(self.pair.prompt_ids) + self.common

    @property
    def branches(self) -> list[int]:
        """Where each token stands."""
        return (
            [COMMON] * self.parting
            + [CHOSEN] * len(self.tails[0])
            + [REJECTED] * len(self.tails[1])
        )

    @property
    def steps(self) -> list[int]:
        """How far behind the prompt each token of the answers stands; both count on from where they part."""
        return [
            *range(self.common),
            *(self.common + step for tail in self.tails for step in range(len(tail))),
        ]

    def places(self, start: int) -> tuple[list[Place], list[Place]]:
        """Where the tokens of both answers are predicted, when the run begins at position `start`."""
        # Up to the first token that is the answer's own, what stands before it is common to both.
        before = range(start + len(self.pair.prompt_ids) - 1, start + self.parting)
        own = start + self.parting, start + self.parting + len(self.tails[0])
        chosen, rejected = (
            list(zip([*before, *range(first, first + len(tail))], answer, strict=False))
            for first, tail, answer in zip(
                own, self.tails, (self.pair.chosen_ids, self.pair.rejected_ids), strict=True
            )
        )
        return chosen, rejected


def _pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Which items share a row: longest first, each into the first row with room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        row = next((row for row, left in enumerate(room) if left >= lengths[item]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(max(budget, lengths[item]))
        rows[row].append(item)
        room[row] -= lengths[item]
    return rows


def _padded(rows: Sequence[Sequence[Any]], filler: Any, dtype: torch.dtype) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *([filler] * (width - len(row)))] for row in rows], dtype=dtype)
