"""The best setting on fresh pictures: its base, its interval, its guard, and the last line."""

import pytest

from eval.benchmarks.contract import CHAIR, JudgedAnswer, Metric, Ratio, Scores
from experiments.runners.sweep_estimate import compare_fresh, guard_state, rate_of, sentence
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Answer
from rlhfv_ray.stats import RatioSample
from rlhfv_ray.sweep.setting_value import Measure, Objective

OBJECTIVE = Objective(Measure("response_rate", "lower"), Measure("object_recall", "higher"))


def scores(wrong: str, named: str, *, missing: int = -1, part: str = "fresh") -> Scores:
    """Answers to as many pictures as letters: 1 is wrong, or names the one object there is."""
    answers = []
    for index, (is_wrong, is_named) in enumerate(zip(wrong, named, strict=True)):
        answer = Answer(str(index), "", "text")
        ratios = {
            "response_rate": Ratio(int(is_wrong), 1),
            "object_recall": Ratio(int(is_named), 1),
        }
        if index == missing:
            answers.append(JudgedAnswer(answer, {}, missing="unparsed"))
        else:
            answers.append(JudgedAnswer(answer, ratios))
    return Scores(CHAIR, tuple(answers), {"part": part})


def test_models_are_compared_with_their_own_base_on_the_same_pictures():
    """Catches: the base of other pictures; a seed left out. 10 pictures: base 8 wrong, models 3
    and 1, so 20 %, a change of -60 points.
    """
    base = scores("1111111100", "1" * 10)
    models = [scores("1110000000", "1" * 10), scores("1000000000", "1" * 9 + "0")]
    fresh = compare_fresh(base, models, OBJECTIVE)
    assert (fresh.metric.base, fresh.metric.mean) == (80.0, pytest.approx(20.0))
    assert fresh.metric.change == pytest.approx(-60.0) and fresh.metric.resolved
    low, high = fresh.metric.interval
    assert 0 < low < 20 < high < 100
    assert fresh.guard is not None and fresh.guard.change == pytest.approx(-5.0)
    assert not fresh.guard.resolved
    assert fresh.value is not None and fresh.value.violation == pytest.approx(3.0)
    written = fresh.as_json()
    assert written["keeps_guard"] is False and written["pictures"] == 10


def test_the_interval_of_an_f1_ends_at_100_per_cent():
    """Catches: a best setting "97.0 % (93.2 to 100.8)" in the last line of a sweep."""
    sample = RatioSample([2, 2, 2, 1], [2, 2, 2, 2])
    f1, ratio = (
        rate_of([sample], Metric(name, "higher", is_proportion=False)).interval
        for name in ("phrase_f1", "relative_score")
    )
    assert f1 is not None and ratio is not None
    assert f1.low == ratio.low and f1.high == 1.0 < ratio.high


def test_a_picture_without_a_verdict_counts_for_no_model():
    """Catches: models compared on different pictures."""
    base = scores("1100", "1111", missing=0)
    fresh = compare_fresh(base, [scores("1100", "1111"), scores("0100", "1111")], OBJECTIVE)
    assert fresh.pictures == 3
    assert fresh.metric.base == fresh.metric.mean == pytest.approx(100 / 3)
    with pytest.raises(DataError, match="part"):
        compare_fresh(base, [scores("1100", "1111", part="choice")], OBJECTIVE)


def test_the_last_line_says_what_is_resolved():
    """Catches: a change without its base or interval; a verdict that the interval does not give."""
    base = scores("1111111100", "1" * 10)
    fresh = compare_fresh(base, [scores("1110000000", "1" * 9 + "0")], OBJECTIVE)
    line = sentence("gamma 5", 1, fresh, ["gamma 1", "gamma 3"], OBJECTIVE)
    assert line.startswith("Best: gamma 5 (mean of 1 seed). On 10 fresh pictures, response rate 30")
    assert "base 80.0 %, change -50.0 (-87.7 to -12.3)." in line
    assert "change -10.0 (-32.6 to +12.6), not resolved; guard (2 allowed) not resolved." in line
    assert line.endswith("The seeds do not tell it from gamma 1 and 1 more.")
    assert "no estimate" in sentence("gamma 5", 2, None, [], OBJECTIVE)


def test_a_guard_is_judged_by_the_interval_of_its_change():
    """Catches: a guard of which less is better, judged the wrong way round."""
    base = scores("0" * 20, "1" * 20)
    same = compare_fresh(base, [base], OBJECTIVE)
    assert same.guard is not None
    assert guard_state(same.guard, Measure("object_recall", "higher"), 2.0) == "kept"
    worse = same.guard._replace(change_interval=(3.0, 9.0))
    assert guard_state(worse, Measure("rate", "lower"), 2.0) == "missed"
    assert guard_state(worse, Measure("recall", "higher"), 2.0) == "kept"
    assert guard_state(worse._replace(change_interval=None), Measure("r", "lower"), 2.0) == (
        "not resolved"
    )
