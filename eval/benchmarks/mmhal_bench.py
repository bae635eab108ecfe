"""MMHal-Bench (arXiv 2309.14525): 96 questions of eight types; a judge rates each answer from 0 to 6, below 3 it hallucinates.

The release searches a review for `rating: 0` to `rating: 6` and takes none, or several, for 0, which counts as a hallucination. Here such a
review is a missing rating, counted and shown; the release's reading is kept beside it.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import PurePosixPath
from statistics import median_low
from typing import Any, NamedTuple

from eval.benchmarks.contract import (
    WORDS,
    Benchmark,
    JudgedAnswer,
    Metric,
    Ratio,
    Scores,
    in_order,
    judged_by,
    missing_reason,
    read_votes,
)
from eval.chair import count_words
from eval.config import JudgeConfig, MMHalBenchConfig
from eval.inputs.images import image_bytes
from eval.inputs.json_rows import JsonRow, index_by, read_json_rows
from eval.judge.prompts import JudgePrompt
from rlhfv_ray.endpoint.records import Reply, Request
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Answer, Prompt
from rlhfv_ray.stats import Interval, wilson_interval

RATINGS = range(7)
FAITHFUL = 3  # the lowest rating of an answer without hallucination
TYPES = (
    "attribute",
    "adversarial",
    "comparison",
    "counting",
    "relation",
    "environment",
    "holistic",
    "other",
)
MEASURES = (
    Metric("hallucination_rate", "lower", "answers rated below 3, of those with a readable rating"),
    Metric("average_score", "higher", "mean rating, 0 to 6", scale=1, is_proportion=False),
    Metric(
        "informativeness",
        "higher",
        "mean of rating - 3 if it is 3 or more, else of the rating, of 3",
        is_proportion=False,
    ),
    WORDS,
)
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


class MMHalScores(NamedTuple):
    """Scores of one model; a score of nothing is None."""

    average_score: float | None  # 0 to 6
    hallucination_rate: float | None  # a fraction: answers rated below 3, of those that count
    informativeness: float | None  # 0 to 100: mean of (rating - 3 if at least 3 else rating) / 3
    by_type: tuple[float | None, ...]  # average rating of each of `TYPES`
    unparsed: int  # reviews that give no rating, or several
    hallucinating: Ratio  # what the rate is made of

    @property
    def interval(self) -> Interval | None:
        """Wilson's 95 % interval of the hallucination rate."""
        return wilson_interval(*map(round, self.hallucinating))


def mmhal_scores(reviews: Sequence[str], *, release_compatible: bool) -> MMHalScores:
    """Score a judge's reviews.

    Args:
        reviews: in the order of the questions; question i is of type i mod 8.
        release_compatible: read as the release does, unparsed reviews as 0; else those are missing and count nowhere.

    Example:
        >>> reviews = ["Rating: 6", "Rating: 2", "I cannot say.", "Rating: 3"]
        >>> mmhal_scores(reviews, release_compatible=False).hallucinating, mmhal_scores(reviews, release_compatible=True).hallucinating
        (Ratio(numerator=1, denominator=3), Ratio(numerator=2, denominator=4))
    """
    read = release_rating if release_compatible else read_rating
    ratings = [read(review) for review in reviews]
    there = [rating for rating in ratings if rating is not None]
    informative = [informed(rating) for rating in there]
    hallucinating = Ratio(sum(rating < FAITHFUL for rating in there), len(there))
    by_type = (ratings[place :: len(TYPES)] for place in range(len(TYPES)))
    return MMHalScores(
        average_score=_mean(there),
        hallucination_rate=hallucinating.numerator / hallucinating.denominator if there else None,
        informativeness=100 * sum(informative) / len(there) / 3 if there else None,
        by_type=tuple(_mean([rating for rating in some if rating is not None]) for some in by_type),
        unparsed=sum(read_rating(review) is None for review in reviews),
        hallucinating=hallucinating,
    )


def informed(rating: int) -> int:
    """How informative an answer of this rating is, 0 to 3, whether it hallucinates or not."""
    return rating - FAITHFUL if rating >= FAITHFUL else rating


class MMHalBench(Benchmark):
    """The benchmark's questions, from the user's copy of its file."""

    name = "mmhal_bench"

    def __init__(
        self, config: MMHalBenchConfig, judge: JudgeConfig, *, decoding: dict[str, Any]
    ) -> None:
        fields = ("image_content", "question", "gt_answer", "image_id")
        self.rows = index_by(
            read_json_rows(config.questions, fields, what="mmhal_bench.questions"),
            "image_id",
            what="mmhal_bench.questions",
        )
        self.config, self.judge, self.decoding = config, judge, decoding
        self.prompt = JudgePrompt.load(
            judge.prompt,
            default="mmhal.txt",
            fields=("image_content", "question", "reference", "answer"),
        )
        self.groups = {
            name: row.get("question_type", TYPES[n % len(TYPES)])
            for n, (name, row) in enumerate(self.rows.items())
        }
        wrong = [
            name for n, name in enumerate(self.rows) if self.groups[name] != TYPES[n % len(TYPES)]
        ]
        if wrong:
            raise DataError(
                f"mmhal_bench.questions: question {wrong[0]} is of type {self.groups[wrong[0]]!r}, not the one of its place in the "
                f"benchmark ({', '.join(TYPES)}, and again). Is it another version of the file, or sorted anew?"
            )

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The questions with their images."""
        if all("image" in row for row in self.rows.values()):
            images = {name: _decoded(row, name) for name, row in self.rows.items()}
        else:
            other = {
                name: [PurePosixPath(row.get("image_src", "")).name]
                for name, row in self.rows.items()
            }
            images = image_bytes(self.config.images, list(self.rows), aliases=other)
        return [Prompt(name, images[name], row["question"]) for name, row in self.rows.items()]

    def requests(self, answers: Sequence[Answer]) -> list[Request]:
        """One for every answer."""
        return [self._request(answer) for answer in in_order(self.prompts, answers)]

    def _request(self, answer: Answer) -> Request:
        row = self.rows[answer.id]
        content = ", ".join(map(str, row["image_content"]))
        asked = {
            "image_content": content,
            "question": row["question"],
            "reference": row["gt_answer"],
        }
        return Request(answer.id, self.prompt.fill(**asked, answer=answer.text))

    @property
    def judged(self) -> bool:
        """Every answer is shown to one."""
        return True

    @staticmethod
    def readable(text: str) -> bool:
        """Whether it holds one rating."""
        return read_rating(text) is not None

    def score(self, answers: Sequence[Answer], verdicts: Mapping[str, Sequence[Reply]]) -> Scores:
        """Score answers by their ratings; of several votes the middle one counts, the lower of two."""
        ordered = in_order(self.prompts, answers)
        votes, agreement = read_votes(ordered, verdicts, read_rating)
        judged = tuple(
            self._judged(answer, votes[answer.id], verdicts.get(answer.id, ()))
            for answer in ordered
        )
        reviews = [
            next((one.text for one in verdicts.get(answer.id, ())), "") for answer in ordered
        ]
        release = mmhal_scores(reviews, release_compatible=True)._asdict()
        beside = {
            name: release[name]
            for name in ("average_score", "hallucination_rate", "informativeness", "unparsed")
        }
        return Scores(
            MEASURES,
            judged,
            self.manifest(),
            {"release_compatible": beside, "agreement": agreement},
        )

    def _judged(
        self, answer: Answer, ratings: Sequence[int], verdicts: Sequence[Reply]
    ) -> JudgedAnswer:
        parts = {WORDS.name: Ratio(count_words(answer.text), 1)}
        words = "\n\n".join(one.text for one in verdicts)
        group = self.groups[answer.id]
        if not ratings:
            return JudgedAnswer(
                answer, parts, group=group, verdict=words, missing=missing_reason(verdicts)
            )
        rating = median_low(ratings)
        parts |= {
            "hallucination_rate": Ratio(int(rating < FAITHFUL), 1),
            "average_score": Ratio(rating, 1),
            "informativeness": Ratio(informed(rating), 3),
        }
        return JudgedAnswer(answer, parts, group=group, verdict=words)

    def manifest(self) -> dict[str, Any]:
        """What scores on this benchmark depend on, besides the model."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            row = self.rows[prompt.id]
            digest.update(
                f"{prompt.id}\n{prompt.question}\n{row['gt_answer']}\n{row['image_content']}\n".encode()
                + prompt.image
            )
        return {
            "benchmark": self.name,
            "prompts": digest.hexdigest(),
            "n": len(self.rows),
            "decoding": self.decoding,
            **judged_by(self.judge, self.prompt),
        }


def _decoded(row: JsonRow, name: str) -> bytes:
    try:
        return base64.b64decode(row["image"], validate=True)
    except (binascii.Error, TypeError) as error:
        raise DataError(
            f"mmhal_bench.questions: the image of question {name} is no base64: {error}"
        ) from error


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
