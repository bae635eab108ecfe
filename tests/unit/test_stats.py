"""Intervals and paired tests against published tables, hand arithmetic, and simulation."""

import math
import time
import tracemalloc

import numpy as np
import pytest

from rlhfv_ray import stats
from rlhfv_ray.errors import DataError
from rlhfv_ray.stats import (
    Interval,
    PairedDifference,
    RatioSample,
    bootstrap_interval,
    mcnemar,
    mean_interval,
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
    """Bug: Wald's interval, or a continuity correction.

    Expected: Newcombe, Stat. Med. 17 (1998), Table I, method 3.
    """
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_by_its_formula_at_another_confidence() -> None:
    """Bug: the confidence is ignored or taken as one-sided; z = 1.6448536 for 90 %."""
    z = 1.6448536269514722
    p = 0.3
    n = 50
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
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
    """Bug: the mean of per-item ratios. Here 3/10 and 1/8 give -0.175, a reduction of 7/12."""
    result = paired_bootstrap(
        RatioSample([1, 2], [2, 8]), RatioSample([0, 1], [4, 4]), resamples=50
    )
    assert result.difference == pytest.approx(-0.175)
    assert result.reduction == pytest.approx(7 / 12)


def test_bootstrap_keeps_the_pairs() -> None:
    """Bug: systems resampled apart, so that a constant difference gets a wide interval."""
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
    baseline = RatioSample([1, 0, 1, 1, 0], [1] * 5)
    candidate = RatioSample([0, 0, 1, 0.5, 0.25], [1] * 5)
    runs = [paired_bootstrap(baseline, candidate, resamples=40, seed=seed) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


def test_bootstrap_bounds_are_values_of_resamples() -> None:
    """Bug: bounds interpolated between resamples, which mixes in the infinite ones.

    Two items of 0 and 1 give resampled means of 0, 1/2 and 1, and nothing in between.
    """
    for seed in range(10):
        interval = bootstrap_interval(
            RatioSample([0, 1], [1, 1]), confidence=0.5, resamples=4, seed=seed
        )
        assert interval is not None
        assert set(interval) <= {0.0, 0.5, 1.0}


def test_bootstrap_where_a_rate_is_undefined() -> None:
    """Bug: NaN or infinity in a report, or a firm bound that leaves out undefined resamples.

    The baseline fails on 1 of 10 items: about (9/10)^10 = 35 % of resamples have no failure.
    """
    one_failure = RatioSample([1, *[0] * 9], [1] * 10)
    rare = paired_bootstrap(one_failure, RatioSample([0] * 10, [1] * 10), resamples=500)
    assert (rare.reduction, rare.reduction_interval) == (1.0, None)
    assert rare.difference_interval is not None
    spotless = paired_bootstrap(RatioSample([0] * 10, [1] * 10), one_failure, resamples=500)
    assert (spotless.difference, spotless.reduction, spotless.reduction_interval) == (
        0.1,
        None,
        None,
    )
    mute = paired_bootstrap(one_failure, RatioSample([0] * 10, [0] * 10), resamples=50)
    assert mute == PairedDifference(None, None, None, None)


def test_bootstrap_covers_the_truth() -> None:
    """Bug: an interval too narrow or off centre. 200 studies of 80 items: 95 % +- 3 * 1.5 %."""
    draw = np.random.default_rng(0)
    covered = 0
    for study in range(200):
        mentions = draw.integers(2, 7, size=80)
        baseline = draw.binomial(mentions, 0.3)
        candidate = draw.binomial(mentions, 0.2)
        result = paired_bootstrap(
            RatioSample(baseline.tolist(), mentions.tolist()),
            RatioSample(candidate.tolist(), mentions.tolist()),
            resamples=300,
            seed=study,
        )
        assert result.difference_interval is not None
        covered += result.difference_interval.low <= -0.1 <= result.difference_interval.high
    assert 0.905 <= covered / 200 <= 0.995


def test_bootstrap_draws_as_one_that_draws_item_by_item() -> None:
    """Catches: another distribution than n items drawn one by one, or their cost at 100,000 items.

    Both draw 300 times, so a bound differs by its standard error of about a sixth of a width.
    """
    draw = np.random.default_rng(3)
    mentions = draw.integers(1, 6, size=100_000)
    items = np.array([draw.binomial(mentions, 0.3), mentions, draw.binomial(mentions, 0.2)])
    start = time.process_time()
    ours = paired_bootstrap(
        RatioSample(*items[:2].tolist()), RatioSample(*items[[2, 1]].tolist()), resamples=300
    )
    our_time = time.process_time() - start
    start = time.process_time()
    drawn = (items[:, draw.integers(100_000, size=100_000)].sum(axis=1) for _ in range(300))
    differences = [(right - wrong) / total for wrong, total, right in drawn]
    peer_time = time.process_time() - start
    assert ours.difference_interval is not None
    low, high = np.quantile(differences, [0.025, 0.975])
    assert ours.difference_interval == pytest.approx((low, high), abs=(high - low) / 3)
    assert ours.difference == pytest.approx((low + high) / 2, abs=(high - low) / 3)
    assert our_time < peer_time


def test_bootstrap_of_items_that_all_differ_keeps_to_its_memory() -> None:
    """Catches: chunks that repeat their draws, lose some, or are as large as all resamples."""
    values = np.random.default_rng(0).random(3_000)
    tracemalloc.start()
    interval = bootstrap_interval(
        RatioSample(values.tolist(), [1.0] * 3_000), resamples=3_000, seed=1
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    half = 1.96 * values.std() / 3_000**0.5
    assert interval == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 5)
    assert peak < 5 * 8 * stats.DRAWN_AT_ONCE < 3 * 8 * 3_000**2


def test_minimum_difference_solves_connor_s_equation() -> None:
    """Bug: one-sided quantiles, or a wrong psi. Here psi = 0.2, z = 1.959964 and 0.841621."""
    fall = minimum_detectable_difference(300, 0.4, discordant=0.2)
    assert fall is not None
    needed = ((1.959964 * math.sqrt(0.2) + 0.841621 * math.sqrt(0.2 - fall**2)) / fall) ** 2
    assert needed == pytest.approx(300, rel=1e-5)


def test_minimum_difference_of_systems_that_err_independently() -> None:
    """Bug: psi of two baselines, or of rates that agree, where none is given.

    With rates p = 0.4 and q = p - fall, the systems differ on p (1 - q) + q (1 - p) of the items.
    """
    fall = minimum_detectable_difference(300, 0.4)
    assert fall is not None
    q = 0.4 - fall
    psi = 0.4 * (1 - q) + q * 0.6
    needed = ((1.959964 * math.sqrt(psi) + 0.841621 * math.sqrt(psi - fall**2)) / fall) ** 2
    assert needed == pytest.approx(300, rel=1e-5)


def test_minimum_difference_is_found_as_often_as_promised() -> None:
    """Bug: a power that is not that of the test we run: exact McNemar, slightly conservative."""
    fall = minimum_detectable_difference(146, 0.5)
    assert fall is not None
    draw = np.random.default_rng(0)
    significant = 0
    for _ in range(400):
        p = mcnemar((draw.random(146) < 0.5).tolist(), (draw.random(146) < 0.5 - fall).tolist())
        significant += p is not None and p < 0.05
    assert 0.70 <= significant / 400 <= 0.86


@pytest.mark.parametrize(
    ("n", "base_rate", "discordant"), [(10, 0.1, None), (96, 0.0, None), (96, 0.3, 0.02)]
)
def test_differences_that_cannot_be_resolved(
    n: int, base_rate: float, discordant: float | None
) -> None:
    """Bug: a difference is promised that even a perfect candidate could not show."""
    assert minimum_detectable_difference(n, base_rate, discordant=discordant) is None


def test_bootstrap_interval_of_a_mean_and_of_a_rate() -> None:
    """Bug: numerators drawn apart from their denominators, or an interval of the wrong width."""
    ones = [1.0] * 400
    interval = bootstrap_interval(RatioSample([0.0, 6.0] * 200, ones))  # standard error 3 / 20
    assert interval == pytest.approx((3 - 1.96 * 0.15, 3 + 1.96 * 0.15), abs=0.03)
    hundred = RatioSample([1.0] * 100 + [0.0] * 300, ones)
    rate = bootstrap_interval(hundred)
    assert rate == pytest.approx(wilson_interval(100, 400), abs=0.01)
    assert rate == bootstrap_interval(hundred)  # seeded
    # Both values of an item stay together, so every resample is 1 / 2 exactly.
    assert bootstrap_interval(RatioSample([1, 2, 3], [2, 4, 6])) == (0.5, 0.5)


def test_bootstrap_interval_of_nothing() -> None:
    """Bug: an interval for a score of no verdicts, or NaN from a denominator of 0."""
    assert bootstrap_interval(RatioSample([], [])) is None
    assert bootstrap_interval(RatioSample([0, 0], [0, 0])) is None
    # The denominator is 0 in a third of the resamples.
    assert bootstrap_interval(RatioSample([1] + [0] * 9, [1] + [0] * 9)) is None
    with pytest.raises(DataError, match=r"lengths \(2, 1\)"):
        bootstrap_interval(RatioSample([1, 2], [1]))


def test_mean_interval_by_hand() -> None:
    """Bug: normal quantiles, a one-sided t, s over k in place of k - 1, or no sqrt(k).

    Runs 1, 2, 3: s = 1, so the half-width is t_2 / sqrt(3), with t_2 = 4.302653 (95 %) and
    2.919986 (90 %) from a table.
    """
    mean, interval = mean_interval([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)
    assert mean == 2.0
    assert interval == pytest.approx((2 - half, 2 + half), abs=1e-6)
    half = 2.919986 / math.sqrt(3)
    _, narrower = mean_interval([1.0, 2.0, 3.0], confidence=0.9)
    assert narrower == pytest.approx((2 - half, 2 + half), abs=1e-6)
    assert mean_interval([7.0]) == (7.0, None)


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
    with pytest.raises(DataError, match="discordant = -0.1"):
        minimum_detectable_difference(96, 0.4, discordant=-0.1)
    with pytest.raises(DataError, match="n = -1 items"):
        minimum_detectable_difference(-1, 0.4)
    with pytest.raises(DataError, match="at least one run"):
        mean_interval([])
    with pytest.raises(DataError, match="confidence = 95"):
        mean_interval([1.0, 2.0], confidence=95)
    with pytest.raises(DataError, match="confidence = 95"):
        bootstrap_interval(RatioSample([1], [1]), confidence=95)
    with pytest.raises(DataError, match="confidence = 95"):
        paired_bootstrap(RatioSample([1], [1]), RatioSample([1], [1]), confidence=95)


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
