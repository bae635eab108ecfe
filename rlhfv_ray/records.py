"""The records that stages exchange: one per arrow of the design.

Shapes: P pairs, B = 2P answers of up to A tokens. Answer p is the chosen answer of pair p, answer
P+p its rejected one.
"""

from __future__ import annotations  # torch is not imported: readers of data do without it

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from rlhfv_ray.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Span = tuple[int, int]


@dataclass(frozen=True)
class PreferencePair:
    """One image and question with two answers: the model's own (`rejected`) and its correction."""

    id: str
    image: bytes  # encoded file (JPEG, PNG, ...), exactly as stored
    question: str
    chosen: str
    rejected: str
    # Characters of the answer that a human marked, [start, stop); None: nobody marked it.
    chosen_spans: tuple[Span, ...] | None = None
    rejected_spans: tuple[Span, ...] | None = None
    # Source of the row: ds_name, origin_dataset, image_path, ...
    origin: Mapping[str, str] = field(default_factory=dict)
    system: str = ""  # the conversation's system prompt
    history: tuple[tuple[str, str], ...] = ()  # (question, answer) of earlier turns, not scored
    position: str = field(default="", compare=False)  # file and line, for messages
    image_path: str = field(default="", compare=False)  # as stored; empty: bytes alone


class ChangedTokens(NamedTuple):
    """Masks of the corrected tokens of both answers, one flag per token."""

    chosen: list[bool]
    rejected: list[bool]


@dataclass(frozen=True)
class Example:
    """One image and a conversation about it, whose answers the model learns to imitate."""

    id: str
    image: bytes
    turns: tuple[tuple[str, str], ...]  # (question, answer), in order
    origin: Mapping[str, str] = field(default_factory=dict)
    system: str = ""
    learned: tuple[bool, ...] = ()  # one flag per answer; empty: all of them are learnt
    position: str = field(default="", compare=False)
    dropped_marks: int = 0  # of a picture, taken out of later questions


@dataclass(frozen=True)
class EncodedPair:
    """A pair as token ids, or an example, which has no rejected answer.

    The ids of an answer end with the token that ends the turn.
    """

    id: str
    image: bytes
    prompt_ids: list[int]  # image tokens expanded
    chosen_ids: list[int]  # of an example: everything after the first question
    rejected_ids: list[int]  # of an example: empty
    changed: Mapping[str, ChangedTokens]  # masks by rule, see `segments.changed_tokens`
    # Flags of the first tokens of both answers: False for an example's later questions, and what
    # the release's labels leave out. All tokens behind them are scored; None: all are.
    scored: list[bool] | None = None
    position: str = field(default="", compare=False)
    source: int = 0  # of mixed data
    dropped_marks: int = 0  # see `Example`


@dataclass(frozen=True, kw_only=True)
class ReferencePair(EncodedPair):
    """An encoded pair with the reference's log-probability of every answer token, nats."""

    chosen_logps: list[float]
    rejected_logps: list[float]


class PairBatch(NamedTuple):
    """P pairs as R rows of T tokens, and the positions of their B = 2P answers in these rows.

    A row may hold tokens that both answers of a pair begin with. Such a token has the same context
    in both, so it is stored and scored once, and both answers point to it. The rejected answer of
    an example has no tokens.
    """

    ids: tuple[str, ...]  # of the P pairs
    # The model's arguments: input_ids (R, T), the attention masks or positions that keep answers
    # apart, and the processor's image tensors.
    inputs: dict[str, Tensor]
    # (N,) positions in the R * T tokens: the feature at `predictors[i]` predicts `targets[i]`.
    predictors: Tensor
    targets: Tensor  # (N,) token ids
    # (B, A) index into the N scored tokens for each answer token, chosen answers first. It is -1
    # beyond the answer's end and where nothing is scored.
    answers: Tensor
    changed: Tensor  # (B, A) bool, corrected tokens
    reference_token_logps: Tensor | None  # (B, A) nats, fp32, 0 beyond the answer's end
    # Scored tokens of a forward pass, on average over the passes of the update on all workers.
    pass_tokens: float | None = None


@dataclass(frozen=True)
class Prompt:
    """One question about one image, to be answered by a policy."""

    id: str
    image: bytes
    question: str

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not isinstance(self.question, str):
            raise DataError(
                f"Question {self.id!r} of a benchmark asks {self.question!r}: id and question must "
                "be text. Correct its row in the benchmark's file."
            )


@dataclass(frozen=True)
class Answer:
    """A policy's answer to one prompt."""

    id: str
    question: str
    text: str
