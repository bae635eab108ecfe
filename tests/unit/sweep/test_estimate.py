"""The estimate of a chosen setting: by hand, and over simulated sweeps with known truths."""

import pytest

from rlhfv_ray.errors import DataError
from rlhfv_ray.stats import RatioSample
from rlhfv_ray.sweep.estimate import estimate, paired_estimate
from tests.sweep_simulation import halving, luckiest_seed, random_search, simulate


def test_a_mean_of_ratings_has_students_interval():
    """Ratings 1, 3 and 2, 4: pictures have 1.5 and 3.5, 2.5 +- 12.7 * 1."""
    models = [RatioSample([1, 3], [1, 1]), RatioSample([2, 4], [1, 1])]
    mean, interval, _ = estimate(models, is_proportion=False)
    assert mean == 2.5 and interval is not None
    assert (interval.low, interval.high) == (pytest.approx(-10.2, abs=0.1), pytest.approx(15.2062))


def test_a_ratio_of_sums_is_the_ratio_not_the_mean_of_ratios():
    """1 of 1 and 1 of 9 mentions are 2 of 10, not 0.56."""
    assert estimate([RatioSample([1, 1], [1, 9])], is_proportion=True).mean == pytest.approx(0.2)
    assert estimate([RatioSample([0, 0], [0, 0])], is_proportion=True).mean is None


def test_the_same_answers_differ_by_nothing():
    """Catches: a difference that is resolved where there is none; p of 0 by 0."""
    sample = RatioSample([1, 0, 1], [1, 1, 1])
    same = paired_estimate([sample, sample], [sample])
    assert (same.mean, same.p_value, same.is_resolved) == (0.0, 1.0, False)
    always = paired_estimate([RatioSample([0] * 4, [1] * 4)], [RatioSample([1] * 4, [1] * 4)])
    assert (always.mean, always.p_value, always.is_resolved) == (-1.0, 0.0, True)


def test_other_pictures_are_refused():
    """Catches: a paired test on pictures that are not pairs."""
    with pytest.raises(DataError, match="equal pictures"):
        estimate([RatioSample([1], [1]), RatioSample([1, 0], [1, 1])], is_proportion=True)


def check(sweeps: int, *, margin: float) -> None:
    """Check coverage, regret and the winner's curse of simulated sweeps against other rules."""
    ours, at_random, former = (
        simulate(rule, sweeps) for rule in (halving, random_search, luckiest_seed)
    )
    assert 0.93 - margin <= ours.covered <= 0.97 + margin
    assert abs(ours.error) < 0.002 + margin / 10
    assert ours.curse < -0.002
    assert ours.regret < at_random.regret < 0.01 < 0.1 < ours.at_random
    assert former.covered < ours.covered - 0.03 and former.error < -0.005
    assert former.curse < 2 * ours.curse


@pytest.mark.soak
def test_intervals_cover_the_truth_in_a_thousand_sweeps():
    """Catches: an estimate on pictures that chose; an interval that is too narrow or too wide; a
    choice that is no better than a random search or than the former rule.
    """
    check(1000, margin=0.0)


@pytest.mark.slow
def test_intervals_cover_the_truth_in_a_hundred_sweeps():
    """The same on a tenth, whose coverage has a standard error of 2 points."""
    check(100, margin=0.05)
