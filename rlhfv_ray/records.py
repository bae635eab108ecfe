"""What travels along the line: one record per arrow of the design.

Shapes: P pairs, B = 2P answers (answer p is the chosen one of pair p, answer P+p its rejected one) of up to A tokens.
"""

from __future__ import annotations  # torch is not imported: readers of data do without it

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Span = tuple[int, int]


@dataclass(frozen=True)
class PreferencePair:
    """One image and question with two answers: `rejected` as the model said it, `chosen` as corrected."""

    id: str
    image: bytes  # encoded file (JPEG, PNG, ...), exactly as stored
    question: str
    chosen: str
    rejected: str
    chosen_spans: tuple[Span, ...] | None = (
        None  # characters a human marked, [start, stop); None: not marked
    )
    rejected_spans: tuple[Span, ...] | None = None
    origin: Mapping[str, str] = field(
        default_factory=dict
    )  # ds_name, origin_dataset, image_path, ...


class ChangedTokens(NamedTuple):
    """Which answer tokens were corrected, one flag per token."""

    chosen: list[bool]
    rejected: list[bool]


@dataclass(frozen=True)
class Example:
    """One image and a conversation about it whose answers are to be imitated."""

    id: str
    image: bytes
    turns: tuple[tuple[str, str], ...]  # question, answer
    origin: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EncodedPair:
    """A pair as token ids; an answer's ids end with the token that ends the turn. Or an example: there is nothing rejected."""

    id: str
    image: bytes
    prompt_ids: list[int]  # image tokens expanded
    chosen_ids: list[int]  # of an example, all that follows the first question
    rejected_ids: list[int]  # of an example, none
    changed: Mapping[str, ChangedTokens]  # by rule, see `segments.changed_tokens`
    scored: list[bool] | None = (
        None  # of `chosen_ids`: what is answer, and no later question; None: all
    )


@dataclass(frozen=True, kw_only=True)
class ReferencePair(EncodedPair):
    """An encoded pair with the reference's log-probability of every answer token, nats."""

    chosen_logps: list[float]
    rejected_logps: list[float]


class PairBatch(NamedTuple):
    """P pairs laid out in R rows of T tokens, and where their B = 2P answers are found in them, chosen answers first.

    A token that stands in both answers for the same reasons (their common beginning) is there, and is scored, once. An example's rejected
    answer has no tokens.
    """

    ids: tuple[str, ...]
    inputs: dict[
        str, Tensor
    ]  # of the model: input_ids (R, T), what says who sees whom, the processor's image tensors
    predictors: (
        Tensor  # (N,) positions in the R * T tokens: feature `predictors[i]` predicts `targets[i]`
    )
    targets: Tensor  # (N,) token ids
    answers: Tensor  # (B, A) which of the N each token of an answer is; -1 beyond the answer's end, and where nothing is scored
    changed: Tensor  # (B, A) bool, corrected tokens
    reference_token_logps: Tensor | None  # (B, A) nats, fp32, 0 beyond the answer's end


@dataclass(frozen=True)
class Prompt:
    """One question about one image, to be answered by a policy."""

    id: str
    image: bytes
    question: str


@dataclass(frozen=True)
class Answer:
    """What a policy said to one prompt."""

    id: str
    question: str
    text: str
