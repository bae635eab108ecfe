"""MMHal-Bench (arXiv 2309.14525): 96 questions of eight types, rated from 0 to 6 by a judge.

An answer rated below 3 hallucinates. The release searches a review for `rating: 0` to `rating: 6`.
If it finds no rating, or several, it takes 0, which counts as a hallucination. Here the rating of
such a review is missing. It is counted and reported, and the scores by the release's reading stand
beside ours.
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
    judge_manifest,
    missing_reason,
    read_votes,
    without_images,
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
METRICS = (
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
    """Return the rating in a review, 0 to 6; None if it has none, several, or another number.

    Example:
        >>> read_rating("Rating: 4, no hallucination"), read_rating("**Rating:** 2")
        (4, 2)
        >>> read_rating("rating: 1 ... rating: 5") is None
        True
    """
    ratings = set(RATING.findall(review))
    if len(ratings) != 1:
        return None
    (rating,) = ratings
    return next((allowed for allowed in RATINGS if rating == str(allowed)), None)


def release_rating(review: str) -> int:
    """Return the rating as the release reads it: 0 if it finds none or several.

    Example:
        >>> release_rating("Rating: 4"), release_rating("Rating:4")
        (4, 0)
        >>> release_rating("rating: 1 or rating: 5")
        0
    """
    ratings = [rating for rating in RATINGS if f"rating: {rating}" in review.lower()]
    return ratings[0] if len(ratings) == 1 else 0


def rating_informativeness(rating: int) -> int:
    """Return the informativeness of a rated answer, 0 to 3, hallucinated or not."""
    return rating - FAITHFUL if rating >= FAITHFUL else rating


class MMHalScores(NamedTuple):
    """Scores of one model; None if no review counts."""

    average_score: float | None  # 0 to 6
    hallucination_rate: float | None  # fraction of the counted answers that are rated below 3
    informativeness: float | None  # 0 to 100: mean informativeness of 3
    by_type: tuple[float | None, ...]  # average rating of each of `TYPES`
    unparsed: int  # reviews without a rating, or with several
    hallucinated: Ratio  # numerator and denominator of `hallucination_rate`

    @property
    def interval(self) -> Interval | None:
        """Wilson's 95 % interval of the hallucination rate."""
        return wilson_interval(*map(round, self.hallucinated))


def mmhal_scores(reviews: Sequence[str], *, release_compatible: bool) -> MMHalScores:
    """Score a judge's reviews.

    Args:
        reviews: in the order of the questions; question i is of type i mod 8.
        release_compatible: count an unparsed review as 0, as the release does. Otherwise its rating
            is missing and counts nowhere.

    Example:
        >>> reviews = ["Rating: 6", "Rating: 2", "I cannot say.", "Rating: 3"]
        >>> mmhal_scores(reviews, release_compatible=False).hallucinated
        Ratio(numerator=1, denominator=3)
        >>> mmhal_scores(reviews, release_compatible=True).hallucinated
        Ratio(numerator=2, denominator=4)
    """
    read = release_rating if release_compatible else read_rating
    ratings = [read(review) for review in reviews]
    known = _known(ratings)
    informativeness = [rating_informativeness(rating) for rating in known]
    hallucinated = Ratio(sum(rating < FAITHFUL for rating in known), len(known))
    rate = hallucinated.numerator / hallucinated.denominator if known else None
    types = [ratings[number :: len(TYPES)] for number in range(len(TYPES))]
    return MMHalScores(
        average_score=_mean(known),
        hallucination_rate=rate,
        informativeness=100 * sum(informativeness) / len(known) / FAITHFUL if known else None,
        by_type=tuple(_mean(_known(type_ratings)) for type_ratings in types),
        unparsed=sum(read_rating(review) is None for review in reviews),
        hallucinated=hallucinated,
    )


class MMHalBench(Benchmark):
    """MMHal-Bench, with the questions of the user's copy of its file."""

    name = "mmhal_bench"

    def __init__(
        self, config: MMHalBenchConfig, judge: JudgeConfig, *, decoding: dict[str, Any]
    ) -> None:
        self.config = config
        self.judge = judge
        self.decoding = decoding
        fields = ("image_content", "question", "gt_answer", "image_id")
        setting = "mmhal_bench.questions"
        rows = read_json_rows(config.questions, fields, what=setting)
        self.rows = index_by(rows, "image_id", what=setting)
        self.prompt = JudgePrompt.load(
            judge.prompt,
            default="mmhal.txt",
            fields=("image_content", "question", "reference", "answer"),
        )
        self.groups = _question_types(self.rows)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The numbers that its scores have."""
        return METRICS

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The questions with their images."""
        if all("image" in row for row in self.rows.values()):
            images = {name: _decode_image(row, name) for name, row in self.rows.items()}
        else:
            aliases = {
                name: [PurePosixPath(row.get("image_src", "")).name]
                for name, row in self.rows.items()
            }
            images = image_bytes(self.config.images, list(self.rows), aliases=aliases)
        return [Prompt(name, images[name], row["question"]) for name, row in self.rows.items()]

    def requests(self, answers: Sequence[Answer]) -> list[Request]:
        """Return one request for every answer."""
        return [self._request(answer) for answer in in_order(self.prompts, answers)]

    def _request(self, answer: Answer) -> Request:
        row = self.rows[answer.id]
        text = self.prompt.fill(
            image_content=", ".join(map(str, row["image_content"])),
            question=row["question"],
            reference=row["gt_answer"],
            answer=answer.text,
        )
        return Request(answer.id, text)

    @property
    def judged(self) -> bool:
        """True: a judge rates every answer."""
        return True

    @staticmethod
    def readable(text: str) -> bool:
        """Return whether a judge's reply holds one rating."""
        return read_rating(text) is not None

    def score(self, answers: Sequence[Answer], verdicts: Mapping[str, Sequence[Reply]]) -> Scores:
        """Score answers by their ratings; of several votes the median counts, the lower of two."""
        ordered = in_order(self.prompts, answers)
        votes, agreement = read_votes(ordered, verdicts, read_rating)
        judged = []
        reviews = []  # the release takes the first review
        for answer in ordered:
            replies = verdicts.get(answer.id, ())
            judged.append(self._judge(answer, votes[answer.id], replies))
            reviews.append(replies[0].text if replies else "")
        release = mmhal_scores(reviews, release_compatible=True)._asdict()
        names = ("average_score", "hallucination_rate", "informativeness", "unparsed")
        extras = {
            "release_compatible": {name: release[name] for name in names},
            "agreement": agreement,
        }
        return Scores(self.metrics, tuple(judged), self.manifest(), extras)

    def _judge(
        self, answer: Answer, ratings: Sequence[int], verdicts: Sequence[Reply]
    ) -> JudgedAnswer:
        ratios = {WORDS.name: Ratio(count_words(answer.text), 1)}
        review = "\n\n".join(verdict.text for verdict in verdicts)
        group = self.groups[answer.id]
        if not ratings:
            reason = missing_reason(verdicts)
            return JudgedAnswer(answer, ratios, group=group, verdict=review, missing=reason)
        rating = median_low(ratings)
        ratios |= {
            "hallucination_rate": Ratio(int(rating < FAITHFUL), 1),
            "average_score": Ratio(rating, 1),
            "informativeness": Ratio(rating_informativeness(rating), FAITHFUL),
        }
        return JudgedAnswer(answer, ratios, group=group, verdict=review)

    def manifest(self) -> dict[str, Any]:
        """Return everything that scores on this benchmark depend on, except the model."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            row = self.rows[prompt.id]
            texts = (prompt.id, prompt.question, row["gt_answer"], row["image_content"])
            digest.update("".join(f"{text}\n" for text in texts).encode() + prompt.image)
        return {
            "benchmark": self.name,
            "prompts": digest.hexdigest(),
            "n": len(self.rows),
            "decoding": self.decoding,
            **without_images(self.prompts),
            **judge_manifest(self.judge, self.prompt),
        }


def _question_types(rows: Mapping[str, JsonRow]) -> dict[str, str]:
    """Return the type of each question; the types must repeat in the order of `TYPES`."""
    types: dict[str, str] = {}
    for number, (name, row) in enumerate(rows.items()):
        expected = TYPES[number % len(TYPES)]
        types[name] = row.get("question_type", expected)
        if types[name] != expected:
            raise DataError(
                f"mmhal_bench.questions: question {name} is of type {types[name]!r}, but its "
                f"position in the file needs {expected!r}. The types must repeat in this order: "
                f"{', '.join(TYPES)}. Use the original file; this is another version of it, or "
                "it was sorted."
            )
    return types


def _decode_image(row: JsonRow, name: str) -> bytes:
    try:
        return base64.b64decode(row["image"], validate=True)
    except (binascii.Error, TypeError) as error:
        raise DataError(
            f"mmhal_bench.questions: the image of question {name} is not base64: {error}"
        ) from error


def _known(ratings: Sequence[int | None]) -> list[int]:
    return [rating for rating in ratings if rating is not None]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
