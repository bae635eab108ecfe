"""Intervals and paired tests against published tables, hand arithmetic, and simulation."""

import math

import numpy as np
import pytest

from rlhfv_ray.errors import DataError
from rlhfv_ray.stats import (
    Interval,
    PairedDifference,
    RatioSample,
    bootstrap_interval,
    mcnemar,
    minimum_detectable_difference,
    paired_bootstrap,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_published(successes: int, n: int, low: float, high: float) -> None:
    """Bug: Wald's interval, or a continuity correction. Newcombe, Stat. Med. 17 (1998), Table I, method 3."""
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_by_its_formula_at_another_confidence() -> None:
    """Bug: the confidence is ignored or taken as one-sided; z = 1.6448536 for 90 %."""
    z, p, n = 1.6448536269514722, 0.3, 50
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = ((centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n))
    assert wilson_interval(15, 50, confidence=0.9) == pytest.approx(expected, abs=1e-12)


def test_nothing_counted_has_no_interval() -> None:
    """Bug: no data gives 0.0, an error, or the interval (0, 1) that reads like a measurement."""
    nothing = RatioSample([], [])
    assert wilson_interval(0, 0) is None
    assert mcnemar([], []) is None
    assert paired_bootstrap(nothing, nothing) == PairedDifference(None, None, None, None)
    assert minimum_detectable_difference(0, 0.5) is None


@pytest.mark.parametrize(
    ("only_a", "only_b", "both", "p"),
    [
        (1, 7, 5, 2 * (1 + 8) / 2**8),
        (7, 1, 0, 2 * (1 + 8) / 2**8),
        (3, 3, 9, 1.0),
        (0, 6, 2, 2 / 2**6),
        (0, 0, 4, 1.0),
    ],
)
def test_mcnemar_by_hand(only_a: int, only_b: int, both: int, p: float) -> None:
    """Bug: items on which both agree count, one-sided p, or the chi-square approximation."""
    a = [True] * only_a + [False] * only_b + [True] * both
    b = [False] * only_a + [True] * only_b + [True] * both
    assert mcnemar(a, b) == pytest.approx(p, abs=1e-12)


def test_bootstrap_point_estimates_are_ratios_of_sums() -> None:
    """Bug: the mean of per-item ratios. By hand: 3/10 against 1/8 is -0.175, a reduction of 7/12."""
    result = paired_bootstrap(
        RatioSample([1, 2], [2, 8]), RatioSample([0, 1], [4, 4]), resamples=50
    )
    assert result.difference == pytest.approx(-0.175)
    assert result.reduction == pytest.approx(7 / 12)


def test_bootstrap_keeps_the_pairs() -> None:
    """Bug: the systems are resampled apart, so that a constant difference per item gets a wide interval."""
    draw = np.random.default_rng(1)
    hallucinated = draw.integers(2, 9, size=40)
    mentions = np.full(40, 10)
    result = paired_bootstrap(
        RatioSample(hallucinated.tolist(), mentions.tolist()),
        RatioSample((hallucinated - 1).tolist(), mentions.tolist()),
    )
    assert result.difference_interval == pytest.approx((-0.1, -0.1))


def test_bootstrap_is_seeded() -> None:
    """Bug: the same report differs from run to run, or the seed has no effect."""
    baseline, candidate = (
        RatioSample([1, 0, 1, 1, 0], [1] * 5),
        RatioSample([0, 0, 1, 0.5, 0.25], [1] * 5),
    )
    runs = [paired_bootstrap(baseline, candidate, resamples=40, seed=seed) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


def test_bootstrap_where_a_rate_is_undefined() -> None:
    """Bug: NaN or infinity in a report, or resamples without a hallucination are left out and the bound looks firm.

    The baseline fails on 1 of 10 items: about (9/10)^10 = 35 % of resamples have no failure to reduce.
    """
    one = RatioSample([1, *[0] * 9], [1] * 10)
    rare = paired_bootstrap(one, RatioSample([0] * 10, [1] * 10), resamples=500)
    assert (rare.reduction, rare.reduction_interval) == (1.0, None)
    assert rare.difference_interval is not None
    spotless = paired_bootstrap(RatioSample([0] * 10, [1] * 10), one, resamples=500)
    assert (spotless.difference, spotless.reduction, spotless.reduction_interval) == (
        0.1,
        None,
        None,
    )
    mute = paired_bootstrap(one, RatioSample([0] * 10, [0] * 10), resamples=50)
    assert mute == PairedDifference(None, None, None, None)


def test_bootstrap_covers_the_truth() -> None:
    """Bug: the interval is too narrow or off centre. 200 studies of 80 items: 95 % +- 3 errors of 1.5 %."""
    draw = np.random.default_rng(0)
    covered = 0
    for study in range(200):
        mentions = draw.integers(2, 7, size=80)
        baseline, candidate = draw.binomial(mentions, 0.3), draw.binomial(mentions, 0.2)
        result = paired_bootstrap(
            RatioSample(baseline.tolist(), mentions.tolist()),
            RatioSample(candidate.tolist(), mentions.tolist()),
            resamples=300,
            seed=study,
        )
        assert result.difference_interval is not None
        covered += result.difference_interval.low <= -0.1 <= result.difference_interval.high
    assert 0.905 <= covered / 200 <= 0.995


def test_minimum_difference_solves_connor_s_equation() -> None:
    """Bug: one-sided quantiles, or psi of the wrong rates; here psi = 0.2, z = 1.959964 and 0.841621."""
    fall = minimum_detectable_difference(300, 0.4, discordant=0.2)
    assert fall is not None
    needed = ((1.959964 * math.sqrt(0.2) + 0.841621 * math.sqrt(0.2 - fall**2)) / fall) ** 2
    assert needed == pytest.approx(300, rel=1e-5)


def test_minimum_difference_is_found_as_often_as_promised() -> None:
    """Bug: the promised power is not that of the test we run (exact McNemar, slightly conservative) at n = 146."""
    fall = minimum_detectable_difference(146, 0.5)
    assert fall is not None
    draw = np.random.default_rng(0)
    found = 0
    for _ in range(400):
        p = mcnemar((draw.random(146) < 0.5).tolist(), (draw.random(146) < 0.5 - fall).tolist())
        found += p is not None and p < 0.05
    assert 0.70 <= found / 400 <= 0.86


@pytest.mark.parametrize(
    ("n", "base_rate", "discordant"), [(10, 0.1, None), (96, 0.0, None), (96, 0.3, 0.02)]
)
def test_differences_that_cannot_be_resolved(
    n: int, base_rate: float, discordant: float | None
) -> None:
    """Bug: a difference is promised that even a perfect candidate could not show."""
    assert minimum_detectable_difference(n, base_rate, discordant=discordant) is None


def test_bootstrap_interval_of_a_mean_and_of_a_rate() -> None:
    """Bug: items drawn without each other's whole, or an interval of the wrong width."""
    ones = [1.0] * 400
    interval = bootstrap_interval(RatioSample([0.0, 6.0] * 200, ones))  # standard error 3 / 20
    assert interval == pytest.approx((3 - 1.96 * 0.15, 3 + 1.96 * 0.15), abs=0.03)
    rate, wilson = (
        bootstrap_interval(RatioSample([1.0] * 100 + [0.0] * 300, ones)),
        wilson_interval(100, 400),
    )
    assert rate == pytest.approx(wilson, abs=0.01)
    # share and whole of an item stay together: every resample is 1 / 2 exactly
    assert bootstrap_interval(RatioSample([1, 2, 3], [2, 4, 6])) == (0.5, 0.5)
    assert rate == bootstrap_interval(
        RatioSample([1.0] * 100 + [0.0] * 300, ones)
    )  # the same again


def test_bootstrap_interval_of_nothing() -> None:
    """Bug: a score of no verdicts gets an interval, or a resample without a whole a warning and a NaN."""
    assert bootstrap_interval(RatioSample([], [])) is None
    assert bootstrap_interval(RatioSample([0, 0], [0, 0])) is None
    assert (
        bootstrap_interval(RatioSample([1] + [0] * 9, [1] + [0] * 9)) is None
    )  # a third of the resamples have no whole
    with pytest.raises(DataError, match=r"lengths \(2, 1\)"):
        bootstrap_interval(RatioSample([1, 2], [1]))


def test_errors_say_what_was_given() -> None:
    """Bug: zip drops items, or a count and its total in the wrong order give an interval."""
    with pytest.raises(DataError, match="5 successes in 3 items"):
        wilson_interval(5, 3)
    with pytest.raises(DataError, match=r"lengths \(1, 2\)"):
        mcnemar([True], [True, False])
    with pytest.raises(DataError, match=r"lengths \(2, 2, 2, 1\)"):
        paired_bootstrap(RatioSample([1, 0], [1, 1]), RatioSample([1, 0], [1]))
    with pytest.raises(DataError, match="confidence = 95"):
        wilson_interval(1, 3, confidence=95)
    with pytest.raises(DataError, match="base_rate = 40"):
        minimum_detectable_difference(96, 40)


def test_bounds_are_plain_floats() -> None:
    """Bug: NumPy scalars break the JSON of a report."""
    interval = wilson_interval(1, 3)
    assert interval is not None
    result = paired_bootstrap(
        RatioSample([1, 2], [2, 2]), RatioSample([0, 1], [2, 2]), resamples=50
    )
    assert isinstance(result.difference_interval, Interval)
    for value in (*interval, result.difference, *result.difference_interval):
        assert type(value) is float
