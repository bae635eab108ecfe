"""What travels along the line: one record per arrow of the design.

Shapes: P pairs, B = 2P rows (row p is the chosen answer of pair p, row P+p its rejected answer),
T tokens of a padded row, S = T-1 positions; position s holds what is known of token s+1.
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
    chosen_spans: tuple[Span, ...] | None = None  # characters a human marked, [start, stop); None: not marked
    rejected_spans: tuple[Span, ...] | None = None
    origin: Mapping[str, str] = field(default_factory=dict)  # ds_name, origin_dataset, image_path, ...


class ChangedTokens(NamedTuple):
    """Which answer tokens were corrected, one flag per token."""

    chosen: list[bool]
    rejected: list[bool]


@dataclass(frozen=True)
class EncodedPair:
    """A pair as token ids; an answer's ids end with the token that ends the turn."""

    id: str
    image: bytes
    prompt_ids: list[int]  # image tokens expanded
    chosen_ids: list[int]
    rejected_ids: list[int]
    changed: Mapping[str, ChangedTokens]  # by rule, see `segments.changed_tokens`


@dataclass(frozen=True)
class ReferencePair(EncodedPair):
    """An encoded pair with the reference's log-probability of every answer token, nats."""

    chosen_logps: list[float]
    rejected_logps: list[float]


class PairBatch(NamedTuple):
    """P pairs as B = 2P right-padded rows, chosen rows first."""

    ids: tuple[str, ...]
    inputs: dict[str, Tensor]  # input_ids, attention_mask (B, T) and the processor's image tensors, B images
    labels: Tensor  # (B, T), -100 on prompt and padding
    changed: Tensor  # (B, S) bool, corrected tokens
    reference_token_logps: Tensor | None  # (B, S) nats, fp32, 0 where labels are -100


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
