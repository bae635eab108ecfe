"""LLaVA Bench (COCO; arXiv 2304.08485): 90 questions of three categories; a judge gives the reference answer and ours a score each.

A review's first line holds two numbers from 1 to 10, the reference's first; a category's score is 100 * mean(ours) / mean(reference).
The release wants exactly one blank or comma between them and drops what it cannot read; that reading is kept beside ours.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

CATEGORIES = ("conv", "detail", "complex")
PAIR = re.compile(r"\s*(\d+(?:\.\d+)?)\s*[,/;\s]\s*(\d+(?:\.\d+)?)\s*")
LOWEST, HIGHEST = 1, 10


class Pair(NamedTuple):
    """The scores that a review gives."""

    reference: float
    ours: float


def read_pair(review: str) -> Pair | None:
    r"""The two scores of a review's first line; None where there are not two from 1 to 10, and nothing else.

    Example:
        >>> read_pair("7, 10\nBoth are good."), read_pair("8 11"), read_pair("Assistant 1: 8")
        (Pair(reference=7.0, ours=10.0), None, None)
    """
    found = PAIR.fullmatch(review.split("\n", 1)[0])
    if not found:
        return None
    pair = Pair(*map(float, found.groups()))
    return pair if all(LOWEST <= score <= HIGHEST for score in pair) else None


def release_pair(review: str) -> Pair | None:
    """The two scores as the release reads them.

    Example:
        >>> release_pair("7,10"), release_pair("7, 10")
        (Pair(reference=7.0, ours=10.0), None)
    """
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        return Pair(*map(float, parts)) if len(parts) == 2 else None
    except ValueError:
        return None


@dataclass(frozen=True)
class Relative:
    """One category's score."""

    reference: float  # mean
    ours: float  # mean
    n: int
    missing: int  # reviews without two scores

    @property
    def score(self) -> float:
        """100 * ours / reference."""
        return self.ours / self.reference * 100  # in the release's order: it rounds to one decimal


def relative_scores(pairs: Sequence[tuple[str, Pair | None]]) -> Mapping[str, Relative]:
    """Score every category, and `all`; a category without a readable review is left out.

    Args:
        pairs: each review's category with what was read.

    Example:
        >>> relative_scores([("conv", Pair(8, 6)), ("conv", Pair(8, 10)), ("detail", None)])["conv"].score
        100.0
    """
    scores = {}
    for category in (*dict.fromkeys(category for category, _ in pairs), "all"):
        mine = [pair for name, pair in pairs if category in (name, "all")]
        there = [pair for pair in mine if pair is not None]
        if there:
            means = (sum(column) / len(there) for column in zip(*there, strict=True))
            scores[category] = Relative(*means, n=len(there), missing=len(mine) - len(there))
    return scores
