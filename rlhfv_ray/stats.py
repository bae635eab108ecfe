"""How sure a rate is, and whether two systems differ on the same items.

A rate of k successes in n items gets Wilson's interval. Two systems that answered the same items are compared item by
item: with McNemar's test where an item is right or wrong, with a paired bootstrap where it adds to a ratio of sums
(hallucinated mentions / mentions). Probabilities and shares are fractions throughout.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import root_scalar
from scipy.stats import binomtest, norm, t

from rlhfv_ray.errors import DataError


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float


class RatioSample(NamedTuple):
    """One system's rate as a ratio of sums: what each item adds above and below the line."""

    numerators: Sequence[float]
    denominators: Sequence[float]


class PairedDifference(NamedTuple):
    """How a candidate's rate differs from a baseline's on the same items; None where it is not defined."""

    difference: float | None  # candidate - baseline
    difference_interval: Interval | None
    reduction: float | None  # 1 - candidate / baseline
    reduction_interval: Interval | None


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval | None:
    """Bound a proportion by Wilson's score interval (J. Am. Stat. Assoc. 22, 1927, p. 209; no continuity correction).

        (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n),    p = successes / n

    Returns:
        None if n is 0.

    Raises:
        DataError: successes lie outside 0 .. n, or confidence outside 0 .. 1.

    Example:
        No success in 10, z = 1.96: the bounds are 0 and z^2 / (10 + z^2) = 3.84 / 13.84.

        >>> interval = wilson_interval(0, 10)
        >>> round(interval.low, 4), round(interval.high, 4)
        (0.0, 0.2775)
    """
    if not 0 <= successes <= n:
        raise DataError(f"wilson_interval: {successes} successes in {n} items; allowed: 0 to n")
    _check_share("confidence", confidence)
    if n == 0:
        return None
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float | None:
    """Test whether two systems succeed equally often on the same items: the exact two-sided p-value.

    McNemar (Psychometrika 12, 1947) in its exact form: of the d items on which the systems differ, the number that
    only `a` gets right is Binomial(d, 1/2) if they are equally good. Without such items p is 1.

    Returns:
        None if there are no items.

    Raises:
        DataError: the two differ in length.

    Example:
        They differ on 4 items, always in favour of b: p = 2 / 2^4.

        >>> mcnemar([False, False, False, False, True], [True, True, True, True, True])
        0.125
    """
    _check_lengths(len(a), len(b))
    if len(a) == 0:
        return None
    only_a = sum(bool(x) and not y for x, y in zip(a, b, strict=True))
    only_b = sum(bool(y) and not x for x, y in zip(a, b, strict=True))
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def paired_bootstrap(
    baseline: RatioSample,
    candidate: RatioSample,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Bound the difference of two ratios of sums, and the relative reduction, over the same items.

    Percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13): items are drawn with
    replacement, each with what both systems did on it, and both ratios are formed anew.

        rate = sum of numerators / sum of denominators;   difference = candidate - baseline;   reduction = 1 - c / b

    A resample without a denominator leaves the difference without an interval. One in which the baseline's rate is 0
    counts as an unbounded increase, the least favourable reading of the reduction; too many of them leave no interval.

    Raises:
        DataError: the four sequences differ in length, or confidence lies outside 0 .. 1.

    Example:
        On each of 3 items the baseline is wrong in 2 of 4 mentions, the candidate in 1 of 4: nothing varies.

        >>> paired_bootstrap(RatioSample([2, 2, 2], [4, 4, 4]), RatioSample([1, 1, 1], [4, 4, 4]), resamples=100)[:2]
        (-0.25, Interval(low=-0.25, high=-0.25))
    """
    _check_lengths(*(len(column) for column in (*baseline, *candidate)))
    _check_share("confidence", confidence)
    items = np.array([*baseline, *candidate], dtype=float)  # (4, n)
    n = items.shape[1]
    if n == 0:
        return PairedDifference(None, None, None, None)
    draw = np.random.default_rng(seed)
    sums = np.array(
        [items[:, draw.integers(n, size=n)].sum(axis=1) for _ in range(resamples)]
    )  # (resamples, 4)
    observed = _compare(items.sum(axis=1, keepdims=True).T)
    differences, reductions = _compare(sums)
    reductions = np.where(np.isnan(reductions), -np.inf, reductions)
    return PairedDifference(
        *_bounded(float(observed[0][0]), differences, confidence),
        *_bounded(float(observed[1][0]), reductions, confidence),
    )


def bootstrap_interval(
    ratio: RatioSample, *, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Interval | None:
    """Bound one system's ratio of sums by the percentile bootstrap over items.

    Returns:
        None where the ratio is not defined, or is not in too many of the resamples.

    Example:
        >>> bootstrap_interval(RatioSample([3, 3, 3], [4, 4, 4]), resamples=100)
        Interval(low=0.75, high=0.75)
    """
    _check_lengths(*(len(column) for column in ratio))
    _check_share("confidence", confidence)
    items = np.array(ratio, dtype=float)  # (2, n)
    n = items.shape[1]
    if n == 0 or not items[1].sum():
        return None
    draw = np.random.default_rng(seed)
    sums = np.array([items[:, draw.integers(n, size=n)].sum(axis=1) for _ in range(resamples)])
    with np.errstate(divide="ignore", invalid="ignore"):
        return _bounded(
            float(items[0].sum() / items[1].sum()), sums[:, 0] / sums[:, 1], confidence
        )[1]


def mean_interval(
    values: Sequence[float], *, confidence: float = 0.95
) -> tuple[float, Interval | None]:
    """Mean of a few independent runs, bounded by Student's t (Biometrika 6, 1908, p. 1).

        mean +- t_(k-1) s / sqrt(k),    s the standard deviation of k runs

    With three runs t is 4.3: what three seeds cannot show is not claimed.

    Returns:
        No interval for a single run.

    Raises:
        DataError: there is no run.

    Example:
        Two runs, 1 and 3: t is 12.7, s / sqrt(k) is 1.

        >>> mean, interval = mean_interval([1.0, 3.0])
        >>> mean, round(interval.low, 1), round(interval.high, 1)
        (2.0, -10.7, 14.7)
    """
    if not values:
        raise DataError("mean_interval: no values; give those of one run at least")
    _check_share("confidence", confidence)
    mean, runs = float(np.mean(values)), len(values)
    if runs == 1:
        return mean, None
    half = float(t.ppf((1 + confidence) / 2, runs - 1) * np.std(values, ddof=1) / runs**0.5)
    return mean, Interval(mean - half, mean + half)


def minimum_detectable_difference(
    n: int,
    base_rate: float,
    *,
    discordant: float | None = None,
    power: float = 0.8,
    confidence: float = 0.95,
) -> float | None:
    """Give the smallest fall below `base_rate` that McNemar's test on n items finds with the given power.

    Normal approximation (Connor, Biometrics 43, 1987, p. 207), solved for the difference d, with z the quantiles of
    (1 + confidence) / 2 and of power, and psi the share of items on which the two systems differ:

        sqrt(n) d = z_confidence sqrt(psi) + z_power sqrt(psi - d^2)

    Args:
        n: items that both systems answer.
        base_rate: of the baseline.
        discordant: psi, e.g. from an earlier comparison; None for two systems that err independently, psi = p (1 - q)
            + q (1 - p) with p the base rate and q = p - d: pessimistic where both stumble over the same items.
        power: chance of finding the difference.
        confidence: 1 - significance level, two-sided.

    Returns:
        None if not even a fall to zero would be found, or n is 0.

    Example:
        Half of 96 answers hallucinate, so psi = 1/2: a fall of 20 points is found, one of 19 may not be.

        >>> round(minimum_detectable_difference(96, 0.5), 3)
        0.2
    """
    if n < 0:
        raise DataError(f"minimum_detectable_difference: n = {n} items; allowed: 0 and above")
    shares = {
        "base_rate": base_rate,
        "discordant": discordant,
        "power": power,
        "confidence": confidence,
    }
    for name, share in shares.items():
        _check_share(name, 0.0 if share is None else share)
    z_confidence, z_power = norm.ppf((1 + confidence) / 2), norm.ppf(power)

    def excess(fall: float) -> float:
        candidate = base_rate - fall
        psi = (
            base_rate * (1 - candidate) + candidate * (1 - base_rate)
            if discordant is None
            else discordant
        )
        return float(
            n**0.5 * fall - z_confidence * psi**0.5 - z_power * max(psi - fall**2, 0.0) ** 0.5
        )

    largest = base_rate if discordant is None else min(base_rate, discordant)
    return (
        float(root_scalar(excess, bracket=(1e-12, largest)).root) if excess(largest) > 0 else None
    )


def _compare(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn rows of four sums into differences and reductions; NaN or infinite where a denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        baseline, candidate = sums[:, 0] / sums[:, 1], sums[:, 2] / sums[:, 3]
        return candidate - baseline, 1 - candidate / baseline


def _bounded(
    observed: float, resampled: np.ndarray, confidence: float
) -> tuple[float | None, Interval | None]:
    if not np.isfinite(observed):
        return None, None
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(
        resampled, tails, method="inverted_cdf"
    )  # interpolation would mix in infinities
    return observed, Interval(float(low), float(high)) if np.isfinite([low, high]).all() else None


def _check_lengths(*lengths: int) -> None:
    if len(set(lengths)) > 1:
        raise DataError(
            f"a paired comparison needs one value per item from each side, got lengths {lengths}"
        )


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise DataError(f"{name} = {value}; allowed: 0 to 1")
