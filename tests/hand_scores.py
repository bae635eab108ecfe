"""Scores of two models, built by hand and small enough to count."""

import io
from collections.abc import Sequence

from PIL import Image

from eval.benchmarks.contract import (
    CHAIR,
    WORDS,
    JudgedAnswer,
    Metric,
    Ratio,
    Scores,
    Span,
    chair_ratios,
)
from eval.chair import AnswerScore
from rlhfv_ray.records import Answer, Prompt

TEXT = "two red dogs & a cat"
CAT = Span(17, 20, "object")
RED_DOGS = (Span(0, 12, "attribute"), Span(0, 12, "number"))
WRONG_ATTRIBUTES = Metric("wrong_attributes", "lower", "of the phrases")
RATING = Metric("average_score", "higher", "mean rating, 0 to 6", scale=1, is_proportion=False)
HALLUCINATION = Metric("hallucination_rate", "lower", "answers rated below 3")


def judged(number: int, *, spans: Sequence[Span] = (), text: str = TEXT) -> JudgedAnswer:
    """Make an answer that names 1 of 2 true objects (a dog) and, if a span says so, a false cat."""
    kinds = [span.kind for span in spans]
    hallucinated = (("cat", "cat"),) if "object" in kinds else ()
    parts = chair_ratios(AnswerScore(1 + len(hallucinated), hallucinated, 1, 2), 6)
    parts["wrong_attributes"] = Ratio(kinds.count("attribute"), 1)
    return JudgedAnswer(Answer(str(number), "What is <here>?", text), parts, tuple(spans))


def pets(answers: Sequence[JudgedAnswer]) -> Scores:
    return Scores((*CHAIR, WRONG_ATTRIBUTES, WORDS), tuple(answers), {"benchmark": "pets"})


def base() -> Scores:
    """Score 10 answers: 6 hallucinate a cat, 1 has two other mistakes."""
    return _pets_with_cats(0, 1, 2, 3, 4, 5)


def aligned() -> Scores:
    """Score 10 answers: 4 hallucinate; 0, 1 and 2 are better than the base's, 9 is worse."""
    return _pets_with_cats(3, 4, 5, 9)


def _pets_with_cats(*hallucinating: int) -> Scores:
    spans = {6: RED_DOGS} | dict.fromkeys(hallucinating, (CAT,))
    return pets([judged(number, spans=spans.get(number, ())) for number in range(10)])


def models() -> dict[str, Scores]:
    return {"base": base(), "aligned": aligned()}


def rated(ratings: Sequence[int | str], *, benchmark: str = "mmhal_bench") -> Scores:
    """Make scores of answers that a judge rated.

    The groups `counting` and `other` alternate. A text in place of a rating is the reason why the
    rating is missing.
    """
    return Scores(
        (HALLUCINATION, RATING, WORDS),
        tuple(_rated(number, rating) for number, rating in enumerate(ratings)),
        {"benchmark": benchmark, "judge": {"model": "a judge"}},
        {"release_compatible": {"average_score": 2.25, "unparsed": 1}, "agreement": None},
    )


def _rated(number: int, rating: int | str) -> JudgedAnswer:
    answer = Answer(str(number), "How many?", "three cats")
    group = ("counting", "other")[number % 2]
    words = {"words": Ratio(2, 1)}
    if isinstance(rating, str):
        return JudgedAnswer(answer, words, group=group, verdict="I cannot say.", missing=rating)
    parts = {"hallucination_rate": Ratio(int(rating < 3), 1), "average_score": Ratio(rating, 1)}
    return JudgedAnswer(answer, words | parts, group=group, verdict=f"Rating: {rating}")


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, format="PNG")
    return buffer.getvalue()


def prompts(count: int) -> list[Prompt]:
    return [Prompt(str(number), png(), "What is <here>?") for number in range(count)]
