"""LLaVA Bench (COCO; arXiv 2304.08485): 90 questions of three categories; a judge gives the reference answer and ours a score each.

A review's first line holds two numbers from 1 to 10, the reference's first; a category's score is 100 * mean(ours) / mean(reference).
Reviews that do not begin so are dropped, as in the release, and counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CATEGORIES = ("conv", "detail", "complex")
LOWEST, HIGHEST = 1, 10


def parse_score_pair(review: str) -> tuple[float, float] | None:
    r"""The two scores of a review's first line, the reference's and ours; None where it does not hold two from 1 to 10 and nothing else.

    One blank or one comma stands between them, as the release wants it.

    Example:
        >>> parse_score_pair("7,10\nBoth are good."), parse_score_pair("7, 10"), parse_score_pair("8 11"), parse_score_pair("Both: 8")
        ((7.0, 10.0), None, None, None)
    """
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        reference, ours = map(float, parts)
    except ValueError:
        return None
    return (reference, ours) if all(LOWEST <= score <= HIGHEST for score in (reference, ours)) else None


@dataclass(frozen=True)
class Relative:
    """One category's score."""

    reference: float  # mean
    ours: float  # mean
    n: int
    unparsed: int

    @property
    def score(self) -> float:
        """100 * ours / reference."""
        return self.ours / self.reference * 100  # in the release's order: it rounds to one decimal


def relative_scores(reviews: Sequence[tuple[str, str]]) -> Mapping[str, Relative]:
    """Score every category, and `all`; a category without a readable review is left out.

    Args:
        reviews: category and text of each.

    Example:
        >>> relative_scores([("conv", "8 6"), ("conv", "8 10"), ("detail", "Both are good.")])["conv"].score
        100.0
    """
    pairs = [(category, parse_score_pair(review)) for category, review in reviews]
    scores = {}
    for category in (*dict.fromkeys(category for category, _ in pairs), "all"):
        mine = [pair for name, pair in pairs if category in (name, "all")]
        there = [pair for pair in mine if pair is not None]
        if there:
            means = (sum(column) / len(there) for column in zip(*there, strict=True))
            scores[category] = Relative(*means, n=len(there), unparsed=len(mine) - len(there))
    return scores
