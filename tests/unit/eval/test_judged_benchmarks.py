"""What is read from a judge's words, and the scores made of it, against what the release's scripts give for the same texts."""

import json
from pathlib import Path

import pytest

from eval.llava_bench import parse_score_pair, relative_scores
from eval.mmhal_bench import TYPES, mmhal_scores, read_rating, release_rating

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "judge.json").read_text())
QUESTIONS = Path(__file__).parents[4] / "shared" / "data" / "mmhal_bench_questions.json"


def test_mmhal_scores_are_the_releases() -> None:
    """Catches: another reading of reviews, types in another order, informativeness on another scale."""
    golden = GOLDEN["mmhal"]
    scores = mmhal_scores(golden["reviews"], release_compatible=True)
    assert scores.hallucinating.of == 96
    assert f"{scores.average_score:.2f}" == golden["average_score"]
    assert f"{scores.hallucination_rate:.2f}" == golden["hallucination_rate"]
    assert ",".join(str(round(average or 0.0, 2)) for average in scores.by_type) == golden["average_by_type"]
    assert scores.informativeness == pytest.approx(golden["informativeness"], abs=1e-9)


def test_mmhal_ratings_that_the_release_takes_for_0_are_read_or_missing() -> None:
    """Catches: a judge that is unsure or silent counted as a hallucination of the model."""
    reviews = GOLDEN["mmhal"]["reviews"]
    pairs = [(review, read_rating(review), release_rating(review)) for review in reviews]
    apart = sorted(((review, ours) for review, ours, theirs in pairs if ours != theirs), key=str)
    unclear = [(review, None) for review in reviews if review.startswith(("It could be", "I am unable"))]
    assert apart == sorted([*((f"Rating:{n}", n) for n in (4, 1, 2)), *unclear], key=str)
    ours, theirs = (mmhal_scores(reviews, release_compatible=flag) for flag in (False, True))
    assert ours.unparsed == theirs.unparsed == len(unclear) == 8
    assert ours.hallucinating.of == 88
    assert ours.interval is not None
    assert ours.interval.low < ours.hallucinating.wrong / 88 < ours.interval.high


def test_mmhal_scores_of_nothing_are_missing() -> None:
    scores = mmhal_scores(["no word"] * 8, release_compatible=False)
    assert scores[:3] == (None, None, None)
    assert (scores.by_type, scores.interval) == ((None,) * 8, None)


@pytest.mark.parametrize(
    ("review", "rating"),
    [
        ("rating: 3/6", 3),
        ("Rating: 3. Later again: rating: 3", 3),
        ("**Rating**: 5", 5),
        ("Rating: 7", None),
        ("Rating: 36", None),
        ("Rating: 4.5", None),
        ("Bewertung: 4", None),
        ("", None),
    ],
)
def test_odd_ratings(review: str, rating: int | None) -> None:
    assert read_rating(review) == rating


def test_mmhal_types_are_those_of_the_questions() -> None:
    if not QUESTIONS.exists():
        pytest.skip("the benchmark's question file is not at hand")
    questions = json.loads(QUESTIONS.read_text())
    assert [question["question_type"] for question in questions[:8]] == list(TYPES)
    assert all(question["question_type"] == TYPES[place % 8] for place, question in enumerate(questions))


def test_llava_bench_scores_are_the_releases() -> None:
    """Catches: ours and the reference turned round, means of ratios, unread pairs kept."""
    reviews = GOLDEN["llava_bench"]["reviews"]
    found = [parse_score_pair(one["review"]) for one in reviews]
    assert [[-1, -1] if pair is None else list(pair) for pair in found] == [one["pair"] for one in reviews]
    scores = relative_scores([(one["category"], one["review"]) for one in reviews])
    wanted = GOLDEN["llava_bench"]["relative"]
    assert scores.keys() == wanted.keys()
    for category, score in scores.items():
        assert [score.reference, score.ours] == pytest.approx(wanted[category]["mean"], abs=1e-12)
        assert round(score.score, 1) == wanted[category]["relative"]
    assert scores["all"].n + scores["all"].unparsed == len(reviews)
