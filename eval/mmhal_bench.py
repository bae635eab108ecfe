"""MMHal-Bench (arXiv 2309.14525): 96 questions of eight types; a judge rates each answer from 0 to 6, below 3 it hallucinates.

The release searches a review for `rating: 0` to `rating: 6` and takes none, or several, for 0, which counts as a hallucination. Here such a
review is a missing rating, counted and shown; the release's reading is kept beside it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from eval.benchmark import Count
from eval.statistics import Interval, wilson_interval

RATINGS = range(7)
FAITHFUL = 3  # the lowest rating of an answer without hallucination
TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
RATING = re.compile(r"rating\W{0,4}:\W{0,4}(\d+(?:\.\d+)?)(?![\d.]*\d)", re.IGNORECASE)


def read_rating(review: str) -> int | None:
    """The rating that a review gives, 0 to 6; None where it gives none, several, or another number.

    Example:
        >>> read_rating("Rating: 4, no hallucination"), read_rating("**Rating:** 2"), read_rating("rating: 1 ... rating: 5")
        (4, 2, None)
    """
    found = set(RATING.findall(review))
    if len(found) != 1:
        return None
    (rating,) = found
    return int(rating) if rating.isdigit() and int(rating) in RATINGS else None


def release_rating(review: str) -> int:
    """The rating as the release reads it: 0 where it finds none or several.

    Example:
        >>> release_rating("Rating: 4"), release_rating("Rating:4"), release_rating("rating: 1 or rating: 5")
        (4, 0, 0)
    """
    found = [rating for rating in RATINGS if f"rating: {rating}" in review.lower()]
    return found[0] if len(found) == 1 else 0


@dataclass(frozen=True)
class MMHalScores:
    """Scores of one model; rates are fractions, ratings from 0 to 6."""

    n: int  # answers with a rating
    missing: int  # answers without one
    average: float | None
    hallucinating: Count  # answers rated below 3, of those with a rating
    by_type: dict[str, float | None]  # average rating of each question type
    informativeness: float | None  # mean of (rating - 3 if at least 3 else rating) / 3

    @property
    def hallucination_rate(self) -> float | None:
        """Share of rated answers that hallucinate."""
        return self.hallucinating.wrong / self.hallucinating.of if self.hallucinating.of else None

    @property
    def interval(self) -> Interval | None:
        """Wilson's 95 % interval of the hallucination rate."""
        return wilson_interval(*self.hallucinating)

    @property
    def bounds(self) -> Interval | None:
        """The hallucination rate if no missing answer hallucinated, and if all did."""
        everyone = self.n + self.missing
        if not everyone:
            return None
        return Interval(self.hallucinating.wrong / everyone, (self.hallucinating.wrong + self.missing) / everyone)


def score_ratings(ratings: Sequence[int | None]) -> MMHalScores:
    """Score ratings in the order of the questions; question i is of type i mod 8.

    Example:
        >>> scores = score_ratings([6, 2, None, 3])
        >>> scores.hallucinating, scores.missing, scores.by_type["attribute"], round(scores.informativeness, 3)
        (Count(wrong=1, of=3), 1, 6.0, 0.556)
    """
    there = [rating for rating in ratings if rating is not None]
    informative = [rating - FAITHFUL if rating >= FAITHFUL else rating for rating in there]
    return MMHalScores(
        n=len(there),
        missing=len(ratings) - len(there),
        average=_mean(there),
        hallucinating=Count(sum(rating < FAITHFUL for rating in there), len(there)),
        by_type={
            name: _mean([rating for rating in ratings[place :: len(TYPES)] if rating is not None])
            for place, name in enumerate(TYPES)
        },
        informativeness=None if not there else sum(informative) / len(there) / 3,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
