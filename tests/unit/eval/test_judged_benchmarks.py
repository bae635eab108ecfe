"""What is read from a judge's words, and the scores made of it, against what the release's scripts give for the same texts."""

import json
from pathlib import Path

import pytest

from eval.llava_bench import read_pair, relative_scores, release_pair
from eval.mmhal_bench import TYPES, read_rating, release_rating, score_ratings

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "judge.json").read_text())
QUESTIONS = Path(__file__).parents[4] / "shared" / "data" / "mmhal_bench_questions.json"


def test_mmhal_scores_are_the_releases() -> None:
    """Catches: another reading of reviews, types in another order, informativeness on another scale."""
    golden = GOLDEN["mmhal"]
    scores = score_ratings([release_rating(review) for review in golden["reviews"]])
    assert (scores.n, scores.missing) == (96, 0)
    assert f"{scores.average:.2f}" == golden["average_score"]
    assert f"{scores.hallucination_rate:.2f}" == golden["hallucination_rate"]
    assert ",".join(f"{round(scores.by_type[name], 2)}" for name in TYPES) == golden["average_by_type"]
    assert 100 * scores.informativeness == pytest.approx(golden["informativeness"], abs=1e-9)


def test_mmhal_ratings_that_the_release_takes_for_0_are_read_or_missing() -> None:
    """Catches: a judge that is unsure or silent counted as a hallucination of the model."""
    reviews = GOLDEN["mmhal"]["reviews"]
    ours, theirs = [read_rating(review) for review in reviews], [release_rating(review) for review in reviews]
    apart = [(review, mine) for review, mine, other in zip(reviews, ours, theirs, strict=True) if mine != other]
    assert sorted(apart, key=str) == sorted(
        [(f"Rating:{n}", n) for n in (4, 1, 2)]
        + [(review, None) for review in reviews if review.startswith(("It could be", "I am unable"))],
        key=str,
    )
    scores = score_ratings(ours)
    assert scores.missing == 8
    assert scores.bounds is not None and scores.interval is not None and scores.hallucination_rate is not None
    assert scores.bounds.low <= scores.hallucination_rate <= scores.bounds.high


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
    pairs = [(one["category"], release_pair(one["review"])) for one in reviews]
    assert [[-1, -1] if pair is None else list(pair) for _, pair in pairs] == [one["pair"] for one in reviews]
    scores = relative_scores(pairs)
    wanted = GOLDEN["llava_bench"]["relative"]
    assert scores.keys() == wanted.keys()
    for category, found in scores.items():
        assert [found.reference, found.ours] == pytest.approx(wanted[category]["mean"], abs=1e-12)
        assert round(found.score, 1) == wanted[category]["relative"]


def test_llava_bench_pairs_that_the_release_drops_are_read() -> None:
    """Catches: a review lost for a blank too many; numbers taken from a sentence."""
    reviews = [one["review"] for one in GOLDEN["llava_bench"]["reviews"]]
    gained = [review for review in reviews if release_pair(review) is None and read_pair(review) is not None]
    assert gained and all(review[0].isdigit() for review in gained)
    assert all(read_pair(review) == release_pair(review) for review in reviews if release_pair(review) is not None)
