"""Pairs as tensors for one forward pass of the policy or the reference.

Two layouts of the same pairs give the same log-probabilities:

    plain     Two rows per pair, prompt + answer each, and the image twice; chosen rows first.
    shared    One run of tokens per pair: the prompt and the common beginning of the answers, then
              the rest of the chosen answer, then the rest of the rejected one. The two rests do not
              see each other, and both count their positions on from where they part. A row holds
              one run, or several.

`PairBatch.predictors` holds the position that predicts each answer token, so nothing behind the
forward pass knows the layout.

Shapes: P pairs, B = 2P answers of up to A tokens, R rows of T tokens, N scored tokens, and K
position ids per token (1, or 3 in Qwen-VL).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, takewhile
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rlhfv_ray.config import LARGEST_IMAGE
from rlhfv_ray.data.images import decode_image
from rlhfv_ray.data.templates import process, prompt_text
from rlhfv_ray.records import EncodedPair, PairBatch, ReferencePair
from rlhfv_ray.segments import Rule

PADDING = -1  # branch of a token that pads its row
NOWHERE = -1  # index of a token that is not scored
COMMON, CHOSEN, REJECTED = range(3)  # branches of one pair
# Input of shared rows, (P, 5) long, one line per pair: row, first position in the row, tokens that
# both answers see, tokens of the chosen answer alone, tokens of the rejected answer alone.
FORKS = "forks"
# Position in the R * T tokens whose feature predicts a token, and that token's id.
Prediction = tuple[int, int]


# Inputs with one value per token. Rows are made of ids, so these are made anew.
TOKEN_INPUTS = frozenset(
    {
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "mm_token_type_ids",
        "moe_mm_token_type_ids",
        "position_ids",
        "labels",
    }
)


@dataclass(frozen=True)
class Layout:
    """The layout of pairs in the rows of a model.

    Most models use it as it is. A few override what differs, see `models.layouts`.
    """

    shared: bool = False
    # Shared rows take further pairs up to this many tokens; 0: one pair per row.
    row_tokens: int = 0
    # The logits are the output head applied to the body's features, so the head may run alone.
    split_head: bool = False
    accepts: frozenset[str] = frozenset({"pixel_values"})  # names of the model's inputs
    # Attention within a pair is causal except at its fork, so `models.attention` needs no mask.
    forked: bool = True
    # Kinds of the language model's layers, and the positions that each kind sees; 0: all.
    windows: tuple[tuple[str, int], ...] = (("full_attention", 0),)

    def image_inputs(self, processor: Any, images: Sequence[bytes]) -> dict[str, Tensor]:
        """Return what the whole processor makes of encoded images (pixel_values, ...).

        The image processor alone would not know the settings that the whole one adds. The text is a
        prompt of one image; its tokens are left out. Nothing is random here: no crop, no flip.
        """
        # Their size was checked when their rows were encoded.
        pictures = [decode_image(image, max_pixels=LARGEST_IMAGE) for image in images]
        texts = [prompt_text(processor, "?")] * len(pictures)
        tensors = process(processor, pictures, texts, padding=True, return_tensors="pt")
        return {
            name: tensor
            for name, tensor in tensors.items()
            if name in self.accepts - TOKEN_INPUTS and isinstance(tensor, Tensor)
        }

    def token_inputs(
        self, input_ids: Tensor, answered: Tensor, processor: Any
    ) -> dict[str, Tensor]:
        """Return further inputs of the model that have one value per token.

        Args:
            input_ids: (R, T).
            answered: (R, T) bool, True on the tokens of answers.
            processor: the model's processor, which knows its image tokens.
        """
        ids = input_ids.tolist()
        inputs: dict[str, Tensor] = {}
        names = self.accepts & {"token_type_ids", "mm_token_type_ids"}
        if names:  # 0 on text, 1 on images
            kinds = torch.tensor(processor.create_mm_token_type_ids(ids))
            inputs |= dict.fromkeys(names, kinds)
        if "moe_mm_token_type_ids" in self.accepts:  # ERNIE 4.5 VL: 1 on an image's marks too
            experts = torch.tensor(processor.create_moe_mm_token_type_ids(ids))
            inputs["moe_mm_token_type_ids"] = experts
        return inputs

    def row_inputs(self, input_ids: Tensor, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the image tensors as rows of ids (R, T) take them, in the order of the rows."""
        return images

    def positions(
        self, prompt: Tensor, images: dict[str, Tensor], image_index: int, processor: Any
    ) -> Tensor:
        """Return the position ids (K, L) of a prompt (L,) that has image `image_index`."""
        return torch.arange(len(prompt)).unsqueeze(0)  # (1, L)

    def attention(self, allowed: Tensor, inputs: dict[str, Tensor]) -> Any:
        """Return the model's `attention_mask`: a mask, or one for each kind of layer.

        Windows are counted in positions, because a continuation may stand far from what it
        continues.

        Args:
            allowed: (R, 1, T, T) bool, query by key, from `branch_mask`.
            inputs: the model's other inputs.
        """
        masks = {
            kind: allowed & self._near(inputs["position_ids"], window) if window else allowed
            for kind, window in self.windows
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))

    @staticmethod
    def _near(position_ids: Tensor, window: int) -> Tensor:
        """Return where a key is within the window before its query: (R, 1, T, T) bool."""
        positions = position_ids if position_ids.ndim == 2 else position_ids[0]  # (R, T)
        distance = positions.unsqueeze(2) - positions.unsqueeze(1)  # (R, T, T), query - key
        return distance.unsqueeze(1) < window

    def tokens_of(self, pair: EncodedPair) -> int:
        """Return the number of tokens that a pair puts through the model, padding included."""
        prompt = len(pair.prompt_ids)
        chosen = len(pair.chosen_ids)
        rejected = len(pair.rejected_ids)
        if not rejected:  # an example, which has one answer
            return prompt + chosen
        if self.shared:
            return prompt + chosen + rejected - common_start(pair)
        return 2 * (prompt + max(chosen, rejected))


def common_start(pair: EncodedPair) -> int:
    """Return the number of tokens that both answers begin with."""
    token_pairs = zip(pair.chosen_ids, pair.rejected_ids, strict=False)
    return sum(1 for _ in takewhile(lambda tokens: tokens[0] == tokens[1], token_pairs))


def collate_pairs(
    pairs: Sequence[EncodedPair], processor: Any, *, rule: Rule, layout: Layout | None = None
) -> PairBatch:
    """Lay out pairs in one batch.

    Args:
        pairs: P pairs or examples. If all are `ReferencePair`s, the batch holds their reference
            log-probabilities.
        processor: the model's processor, for the pixels and the padding token.
        rule: the rule that selects one of the pairs' changed-token masks.
        layout: the model's layout; plain rows by default.
    """
    layout = layout or Layout()
    lay_out = _shared_rows if layout.shared else _plain_rows
    inputs, predictions = lay_out(pairs, processor, layout)
    # Answers are ordered as in `PairBatch`: P chosen ones, then P rejected ones.
    changed = [pair.changed[rule].chosen for pair in pairs]
    changed += [pair.changed[rule].rejected for pair in pairs]
    scored = [_scored(pair, len(pair.chosen_ids)) for pair in pairs]
    scored += [_scored(pair, len(pair.rejected_ids)) for pair in pairs]
    answers, predictors, targets = _index_predictions(predictions, scored)
    return PairBatch(
        ids=tuple(pair.id for pair in pairs),
        inputs=inputs,
        predictors=predictors,  # (N,)
        targets=targets,  # (N,)
        answers=answers,  # (B, A)
        changed=_padded(changed, False, torch.bool),  # (B, A)
        reference_token_logps=_reference_logps(pairs),  # (B, A) or None
    )


def _scored(pair: EncodedPair, tokens: int) -> list[bool]:
    """Return one flag for each of the tokens of one of a pair's answers."""
    flags = (pair.scored or [])[:tokens]
    return flags + [True] * (tokens - len(flags))


def _index_predictions(
    predictions: Sequence[Sequence[Prediction]], scored: Sequence[Sequence[bool]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Number the scored predictions, each different one once.

    In shared rows both answers predict their common beginning at the same positions, so it is
    computed once.

    Returns:
        answers (B, A): index of each answer token among the N, `NOWHERE` if it is not scored;
        predictors (N,) and targets (N,) of the N.
    """
    index_of: dict[Prediction, int] = {}
    answers: list[list[int]] = []
    for answer, flags in zip(predictions, scored, strict=True):
        indices: list[int] = []
        for prediction, is_scored in zip(answer, flags, strict=True):
            index = index_of.setdefault(prediction, len(index_of)) if is_scored else NOWHERE
            indices.append(index)
        answers.append(indices)
    predictors, targets = torch.tensor(list(index_of)).T  # a dict keeps its order, so row i is i
    return _padded(answers, NOWHERE, torch.long), predictors, targets


def _reference_logps(pairs: Sequence[EncodedPair]) -> Tensor | None:
    """Return the reference's log-probabilities (B, A), nats, or None if a pair has none."""
    referenced = [pair for pair in pairs if isinstance(pair, ReferencePair)]
    if len(referenced) < len(pairs):
        return None
    logps = [pair.chosen_logps for pair in referenced]
    logps += [pair.rejected_logps for pair in referenced]
    return _padded(logps, 0.0, torch.float32)


def to_device(batch: PairBatch, device: torch.device, dtype: torch.dtype) -> PairBatch:
    """Move a batch to a device; pixels take the model's dtype."""

    def move(tensor: Tensor) -> Tensor:
        target = dtype if tensor.is_floating_point() else None
        return tensor.to(device, target, non_blocking=True)

    reference = batch.reference_token_logps
    if reference is not None:
        reference = reference.to(device, non_blocking=True)  # stays fp32: differences are small
    moved = map_tensors(batch._replace(reference_token_logps=None), move)
    return moved._replace(reference_token_logps=reference)


def pinned(batch: PairBatch) -> PairBatch:
    """Return the batch in pinned memory, from which a GPU copies while it computes."""
    return map_tensors(batch, Tensor.pin_memory)


def map_tensors(batch: PairBatch, change: Callable[[Tensor], Tensor]) -> PairBatch:
    """Return the batch with every tensor changed that goes to the device: all but the forks."""
    inputs = {
        # Forks are read as Python numbers; from a GPU each forward pass would wait for them.
        name: tensor if name == FORKS else change(tensor)
        for name, tensor in batch.inputs.items()
    }
    reference = batch.reference_token_logps
    return batch._replace(
        inputs=inputs,
        predictors=change(batch.predictors),
        targets=change(batch.targets),
        answers=change(batch.answers),
        changed=change(batch.changed),
        reference_token_logps=None if reference is None else change(reference),
    )


def branch_mask(branches: Tensor) -> Tensor:
    """Return the attention mask of shared rows.

    A token sees itself and the earlier tokens of its own pair, except the other continuation.

    Args:
        branches: (R, T), 3 * pair + (0 common, 1 chosen, 2 rejected), or -1 for padding. Padding
            sees only padding: a query that sees nothing would become NaN.

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
    pair = branches.div(3, rounding_mode="floor")  # (R, T), -1 on padding
    branch = branches.remainder(3)  # (R, T)
    query_pair, key_pair = pair.unsqueeze(2), pair.unsqueeze(1)  # (R, T, 1), (R, 1, T)
    query_branch, key_branch = branch.unsqueeze(2), branch.unsqueeze(1)  # (R, T, 1), (R, 1, T)
    same_branch = (key_branch == COMMON) | (query_branch == key_branch)  # (R, T, T)
    allowed = (query_pair == key_pair) & same_branch
    allowed |= (query_pair < 0) & (key_pair < 0)
    return allowed.tril().unsqueeze(1)  # the head dimension is broadcast


def _plain_rows(
    pairs: Sequence[EncodedPair], processor: Any, layout: Layout
) -> tuple[dict[str, Tensor], list[list[Prediction]]]:
    """Return the model's inputs of plain rows, and the predictions of each of the B answers."""
    answers = [(pair, pair.chosen_ids) for pair in pairs]
    answers += [(pair, pair.rejected_ids) for pair in pairs]
    # An example has no rejected answer, so it takes one row.
    present = [index for index, (_, answer) in enumerate(answers) if answer]
    rows = [answers[index][0].prompt_ids + answers[index][1] for index in present]
    answered = [
        [False] * len(pair.prompt_ids) + [True] * len(answer)
        for pair, answer in (answers[index] for index in present)
    ]
    input_ids = _padded(rows, processor.tokenizer.pad_token_id, torch.long)  # (R, T)
    tokens = input_ids.shape[1]
    predictions: list[list[Prediction]] = [[] for _ in answers]
    for row, index in enumerate(present):
        pair, answer = answers[index]
        # The prompt's last token predicts the answer's first one.
        first = row * tokens + len(pair.prompt_ids) - 1
        predictions[index] = list(enumerate(answer, start=first))
    images = [answers[index][0].image for index in present]
    inputs = {
        "input_ids": input_ids,
        "attention_mask": _padded([[1] * len(row) for row in rows], 0, torch.long),  # (R, T)
        **layout.token_inputs(input_ids, _padded(answered, False, torch.bool), processor),
        **layout.row_inputs(input_ids, layout.image_inputs(processor, images)),
    }
    return inputs, predictions


def _shared_rows(
    pairs: Sequence[EncodedPair], processor: Any, layout: Layout
) -> tuple[dict[str, Tensor], list[list[Prediction]]]:
    """Return the model's inputs of shared rows, and the predictions of each of the B answers."""
    lengths = [layout.tokens_of(pair) for pair in pairs]
    packed = _pack(lengths, layout.row_tokens)  # indices of pairs, row by row
    width = max(sum(lengths[index] for index in row) for row in packed)  # T
    # A model takes its images in the order of their tokens: row by row, left to right.
    image_order = list(chain.from_iterable(packed))
    images = layout.image_inputs(processor, [pairs[index].image for index in image_order])
    rows: list[list[int]] = []  # token ids
    answered: list[list[bool]] = []  # tokens of answers
    branches: list[list[int]] = []
    positions: list[Tensor] = []  # (K, tokens in use), row by row
    sizes: list[tuple[int, ...]] = []  # lines of `FORKS`
    predictions: list[list[Prediction]] = [[] for _ in range(2 * len(pairs))]
    for row, indices in enumerate(packed):
        forks = [Fork(pairs[index]) for index in indices]
        starts = accumulate((len(fork.ids) for fork in forks), initial=0)
        row_positions: list[Tensor] = []
        row_branches: list[int] = []
        for slot, (index, fork, start) in enumerate(zip(indices, forks, starts, strict=False)):
            chosen, rejected = fork.predictions(row * width + start)
            predictions[index] = chosen
            predictions[index + len(pairs)] = rejected
            sizes.append((row, start, fork.parting, *map(len, fork.tails)))
            row_branches += [3 * slot + branch for branch in fork.branches]
            ids = torch.tensor(fork.pair.prompt_ids)  # (L,)
            image_index = image_order.index(index)
            prompt = layout.positions(ids, images, image_index, processor)  # (K, L)
            # Text after the prompt counts on from its last position, alike in all K.
            answer = prompt[:, -1:] + 1 + torch.tensor(fork.steps)  # (K, tokens of both answers)
            row_positions += [prompt, answer]
        rows.append(list(chain.from_iterable(fork.ids for fork in forks)))
        answered.append(list(chain.from_iterable(fork.answered for fork in forks)))
        branches.append(row_branches)
        positions.append(torch.cat(row_positions, dim=1))
    input_ids = _padded(rows, processor.tokenizer.pad_token_id, torch.long)  # (R, T)
    padded = [functional.pad(row, (0, width - row.shape[1])) for row in positions]  # (K, T) each
    position_ids = torch.stack(padded, dim=1)  # (K, R, T)
    inputs = {
        "input_ids": input_ids,
        "branches": _padded(branches, PADDING, torch.long),  # (R, T)
        FORKS: torch.tensor(sizes),  # (P, 5)
        # Models with one position per token take (R, T).
        "position_ids": position_ids if len(position_ids) > 1 else position_ids[0],
        **layout.token_inputs(input_ids, _padded(answered, False, torch.bool), processor),
        **layout.row_inputs(input_ids, images),
    }
    return inputs, predictions


class Fork:
    """One pair as one run of tokens.

    The run is the prompt, the common beginning of the answers, the rest of the chosen answer (the
    first tail), and the rest of the rejected answer (the second tail).
    """

    def __init__(self, pair: EncodedPair) -> None:
        self.pair = pair
        self.common = common_start(pair)  # answer tokens before the tails
        self.tails = (pair.chosen_ids[self.common :], pair.rejected_ids[self.common :])
        beginning = pair.chosen_ids[: self.common]
        self.ids = [*pair.prompt_ids, *beginning, *self.tails[0], *self.tails[1]]

    @property
    def parting(self) -> int:
        """Number of tokens before the answers part: prompt and common beginning."""
        return len(self.pair.prompt_ids) + self.common

    @property
    def branches(self) -> list[int]:
        """Branch of each token: `COMMON`, `CHOSEN` or `REJECTED`."""
        chosen, rejected = self.tails
        return [COMMON] * self.parting + [CHOSEN] * len(chosen) + [REJECTED] * len(rejected)

    @property
    def answered(self) -> list[bool]:
        """True for each token of an answer."""
        prompt = len(self.pair.prompt_ids)
        return [False] * prompt + [True] * (len(self.ids) - prompt)

    @property
    def steps(self) -> list[int]:
        """Number of answer tokens before each answer token. Both tails count on from the common
        beginning.
        """
        chosen, rejected = (range(self.common, self.common + len(tail)) for tail in self.tails)
        return [*range(self.common), *chosen, *rejected]

    def predictions(self, start: int) -> tuple[list[Prediction], list[Prediction]]:
        """Return the predictions of the chosen and of the rejected answer.

        Args:
            start: the position, among the R * T tokens, of the run's first token.
        """
        parting = start + self.parting
        # Each token is predicted one position earlier. The first token of either tail is predicted
        # by the last common one.
        shared = range(start + len(self.pair.prompt_ids) - 1, parting)
        answers: list[list[Prediction]] = []
        tail_start = parting
        for tail, answer in zip(
            self.tails, (self.pair.chosen_ids, self.pair.rejected_ids), strict=True
        ):
            predictors = [*shared, *range(tail_start, tail_start + len(tail))]
            # The last token of a tail predicts nothing, so there is one predictor too many.
            answers.append(list(zip(predictors, answer, strict=False)))
            tail_start += len(tail)
        return answers[0], answers[1]


def _pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Assign items to rows: longest first, each to the first row with room (first-fit decreasing).

    Args:
        lengths: tokens of each item.
        budget: tokens of a row; an item longer than that gets a row of its own.

    Returns:
        Indices of items, row by row.
    """
    rows: list[list[int]] = []
    room: list[int] = []  # tokens left, row by row
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        row = next((row for row, left in enumerate(room) if left >= lengths[item]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(max(budget, lengths[item]))
        rows[row].append(item)
        room[row] -= lengths[item]
    return rows


def _padded(rows: Sequence[Sequence[Any]], filler: Any, dtype: torch.dtype) -> Tensor:
    """Return rows of different lengths as one tensor (rows, longest), padded on the right."""
    width = max(len(row) for row in rows)
    filled = [[*row, *[filler] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=dtype)
