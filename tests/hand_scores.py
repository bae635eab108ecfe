"""Scores of two models built by hand, small enough to count."""

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
    """An answer that names a dog (true) and, by `spans`, a cat (false); it misses 1 true object."""
    hallucinated = (("cat", "cat"),) if any(span.kind == "object" for span in spans) else ()
    ratios = chair_ratios(AnswerScore(1 + len(hallucinated), hallucinated, 1, 2), 6)
    ratios["wrong_attributes"] = Ratio(sum(span.kind == "attribute" for span in spans), 1)
    return JudgedAnswer(Answer(str(number), "What is <here>?", text), ratios, tuple(spans))


def pets(answers: Sequence[JudgedAnswer]) -> Scores:
    return Scores((*CHAIR, WRONG_ATTRIBUTES, WORDS), tuple(answers), {"benchmark": "pets"})


def base() -> Scores:
    """Of 10 answers 6 hallucinate a cat; 1 has two other mistakes."""
    return pets(
        [judged(n, spans=[CAT] if n < 6 else RED_DOGS if n == 6 else []) for n in range(10)]
    )


def aligned() -> Scores:
    """Answers 0, 1, 2 got better, 9 got worse: 4 of 10 hallucinate."""
    return pets(
        [
            judged(n, spans=[CAT] if n in (3, 4, 5, 9) else RED_DOGS if n == 6 else [])
            for n in range(10)
        ]
    )


def models() -> dict[str, Scores]:
    return {"base": base(), "aligned": aligned()}


def rated(ratings: Sequence[int | str], *, benchmark: str = "mmhal_bench") -> Scores:
    """Rated answers, of the groups counting and other in turn.

    A word instead of a rating is the reason for a missing one.
    """
    return Scores(
        (HALLUCINATION, RATING, WORDS),
        tuple(_rated(n, rating) for n, rating in enumerate(ratings)),
        {"benchmark": benchmark, "judge": {"model": "a judge"}},
        {"release_compatible": {"average_score": 2.25, "unparsed": 1}, "agreement": None},
    )


def _rated(number: int, rating: int | str) -> JudgedAnswer:
    answer, group = (
        Answer(str(number), "How many?", "three cats"),
        ("counting", "other")[number % 2],
    )
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
