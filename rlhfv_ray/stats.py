"""Confidence intervals of rates, and paired tests of two systems on the same items.

A rate of k successes in n items gets Wilson's interval. Two systems that answered the same items
are compared item by item. McNemar's test serves where an item is right or wrong. A paired bootstrap
serves where an item adds to a ratio of sums (hallucinated mentions / mentions). Probabilities and
shares are fractions throughout.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import root_scalar
from scipy.special import bdtr, ndtri, stdtrit  # scipy.stats takes half a second to load

from rlhfv_ray.errors import DataError

DRAWN_AT_ONCE = 2**22  # counts of a bootstrap, which bounds the memory


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float

    def of_share(self) -> "Interval":
        """Return the part of the interval in which a share can lie, from 0 to 1."""
        return Interval(max(0.0, self.low), min(1.0, self.high))


class RatioSample(NamedTuple):
    """One system's rate as a ratio of sums, sum of numerators / sum of denominators."""

    numerators: Sequence[float]  # one per item
    denominators: Sequence[float]  # one per item

    @property
    def is_all_or_nothing(self) -> bool:
        """Return True if the rate is 0 or 1 in every item, so that a bootstrap bounds nothing."""
        return not any(self.numerators) or list(self.numerators) == list(self.denominators)


class PairedDifference(NamedTuple):
    """Difference of a candidate's rate from a baseline's on the same items; None if undefined."""

    difference: float | None  # candidate - baseline
    difference_interval: Interval | None
    reduction: float | None  # 1 - candidate / baseline
    reduction_interval: Interval | None


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval | None:
    """Bound a proportion by Wilson's score interval, without continuity correction.

    Wilson (J. Am. Stat. Assoc. 22, 1927, p. 209):

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
    return wilson_of_rate(successes / n, n, normal_quantile(confidence))


def wilson_of_rate(rate: float, items: float, z: float) -> Interval:
    """Bound a rate by Wilson's interval, for a number of items that need not be whole.

    Args:
        rate: p of Wilson's formula (`wilson_interval`), 0 to 1.
        items: n, such as an effective sample size; above 0.
        z: quantile of the confidence.

    Example:
        >>> interval = wilson_of_rate(0.0, 10, 1.96)
        >>> round(interval.low, 4), round(interval.high, 4)
        (0.0, 0.2775)
    """
    center = rate + z**2 / (2 * items)
    half = z * (rate * (1 - rate) / items + z**2 / (4 * items**2)) ** 0.5
    low, high = ((center + side * half) / (1 + z**2 / items) for side in (-1, 1))
    # Rounding would leave a bound beside the edge.
    return Interval(low if rate > 0 else 0.0, high if rate < 1 else 1.0)


def normal_quantile(confidence: float) -> float:
    """Return z, so that a standard normal variable lies within -z and z with this probability.

    Example:
        >>> round(normal_quantile(0.95), 3)
        1.96
    """
    return float(ndtri((1 + confidence) / 2))  # norm.ppf takes 300 times as long


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float | None:
    """Test if two systems succeed equally often on the same items; return the two-sided p-value.

    McNemar (Psychometrika 12, 1947) in its exact form. The systems differ on d items. If they are
    equally good, the number that only `a` gets right is Binomial(d, 1/2). If d is 0, p is 1.

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
    only_a = sum(bool(right_a) and not right_b for right_a, right_b in zip(a, b, strict=True))
    only_b = sum(bool(right_b) and not right_a for right_a, right_b in zip(a, b, strict=True))
    rarer = min(only_a, only_b)
    return min(1.0, 2 * float(bdtr(rarer, only_a + only_b, 0.5)))


def paired_bootstrap(
    baseline: RatioSample,
    candidate: RatioSample,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Bound the difference of two ratios of sums, and the relative reduction, over the same items.

    Percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13):
    items are drawn with replacement, and both ratios are computed on every resample. An item keeps
    the values of both systems together.

        rate = sum of numerators / sum of denominators
        difference = candidate - baseline;   reduction = 1 - candidate / baseline

    A resample whose denominators sum to 0 has no difference; one is enough for no interval. A
    resample in which the baseline's rate is 0 counts as an unbounded increase, the least favourable
    reading of the reduction. If it reaches a bound, the reduction has no interval.

    Raises:
        DataError: the four sequences differ in length, or confidence lies outside 0 .. 1.

    Example:
        On each of 3 items the baseline is wrong in 2 of 4 mentions, the candidate in 1 of 4. All
        resamples agree.

        >>> baseline = RatioSample([2, 2, 2], [4, 4, 4])
        >>> candidate = RatioSample([1, 1, 1], [4, 4, 4])
        >>> paired_bootstrap(baseline, candidate, resamples=100)[:2]
        (-0.25, Interval(low=-0.25, high=-0.25))
    """
    _check_lengths(*(len(column) for column in (*baseline, *candidate)))
    _check_share("confidence", confidence)
    # (4, n): numerators and denominators of the baseline, then of the candidate
    items = np.array([*baseline, *candidate], dtype=float)
    if items.shape[1] == 0:
        return PairedDifference(None, None, None, None)
    observed_differences, observed_reductions = _compare(items.sum(axis=1, keepdims=True).T)
    differences, reductions = _compare(_resampled_sums(items, resamples, seed))
    reductions = np.where(np.isnan(reductions), -np.inf, reductions)  # 0 / 0: least favourable
    return PairedDifference(
        *_bounded(float(observed_differences[0]), differences, confidence),
        *_bounded(float(observed_reductions[0]), reductions, confidence),
    )


def bootstrap_interval(
    ratio: RatioSample, *, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Interval | None:
    """Bound one system's ratio of sums by the percentile bootstrap over items.

    Returns:
        None if the denominators sum to 0, in the data or in any resample.

    Example:
        >>> bootstrap_interval(RatioSample([3, 3, 3], [4, 4, 4]), resamples=100)
        Interval(low=0.75, high=0.75)
    """
    _check_lengths(*(len(column) for column in ratio))
    _check_share("confidence", confidence)
    items = np.array(ratio, dtype=float)  # (2, n): numerators, denominators
    numerator, denominator = items.sum(axis=1)
    if not denominator:  # also if there are no items
        return None
    sums = _resampled_sums(items, resamples, seed)  # (resamples, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = sums[:, 0] / sums[:, 1]
    return _bounded(float(numerator / denominator), ratios, confidence)[1]


def mean_interval(
    values: Sequence[float], *, confidence: float = 0.95
) -> tuple[float, Interval | None]:
    """Return the mean of a few independent runs and its interval by Student's t.

    Student (Biometrika 6, 1908, p. 1):

        mean +- t_(k-1) s / sqrt(k),    s the standard deviation of k runs

    With three runs t is 4.3, so three seeds give a wide interval.

    Returns:
        The mean, and None as interval for a single run.

    Raises:
        DataError: there is no run.

    Example:
        Two runs, 1 and 3: t is 12.7, s / sqrt(k) is 1.

        >>> mean, interval = mean_interval([1.0, 3.0])
        >>> mean, round(interval.low, 1), round(interval.high, 1)
        (2.0, -10.7, 14.7)
    """
    if not values:
        raise DataError("mean_interval: no values; give the value of at least one run")
    _check_share("confidence", confidence)
    mean = float(np.mean(values))
    runs = len(values)
    if runs == 1:
        return mean, None
    half = float(stdtrit(runs - 1, (1 + confidence) / 2) * np.std(values, ddof=1) / runs**0.5)
    return mean, Interval(mean - half, mean + half)


def minimum_detectable_difference(
    n: int,
    base_rate: float,
    *,
    discordant: float | None = None,
    power: float = 0.8,
    confidence: float = 0.95,
) -> float | None:
    """Return the smallest fall below `base_rate` that McNemar's test on n items finds.

    Normal approximation (Connor, Biometrics 43, 1987, p. 207), solved for the difference d. psi is
    the share of items on which the two systems differ. z_confidence and z_power are the normal
    quantiles of (1 + confidence) / 2 and of power.

        sqrt(n) d = z_confidence sqrt(psi) + z_power sqrt(psi - d^2)

    Args:
        n: items that both systems answer.
        base_rate: rate of the baseline.
        discordant: psi, e.g. from an earlier comparison. None assumes systems that err
            independently, psi = p (1 - q) + q (1 - p) with p the base rate and q = p - d. This is
            pessimistic if both fail on the same items.
        power: probability of finding the difference.
        confidence: 1 - significance level, two-sided.

    Returns:
        None if even a fall to zero would not be found, or n is 0.

    Raises:
        DataError: n is below 0, or a rate or probability lies outside 0 .. 1.

    Example:
        Half of 96 answers hallucinate, so psi = 1/2. The test finds a fall of 20 points.

        >>> round(minimum_detectable_difference(96, 0.5), 3)
        0.2
    """
    if n < 0:
        raise DataError(f"minimum_detectable_difference: n = {n} items; allowed: 0 and above")
    _check_share("base_rate", base_rate)
    _check_share("discordant", 0.0 if discordant is None else discordant)
    _check_share("power", power)
    _check_share("confidence", confidence)
    z_confidence = normal_quantile(confidence)
    z_power = float(ndtri(power))

    def excess(fall: float) -> float:
        """Return the left side of Connor's equation minus its right side."""
        candidate = base_rate - fall
        psi = discordant
        if psi is None:  # two systems that err independently
            psi = base_rate * (1 - candidate) + candidate * (1 - base_rate)
        spread = max(psi - fall**2, 0.0)  # a variance; rounding may take it below 0
        return float(n**0.5 * fall - z_confidence * psi**0.5 - z_power * spread**0.5)

    # A fall is at most the base rate, and at most the share of items that differ at all.
    largest = base_rate if discordant is None else min(base_rate, discordant)
    if excess(largest) <= 0:
        return None
    return float(root_scalar(excess, bracket=(1e-12, largest)).root)


def _resampled_sums(items: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Draw the items (columns) with replacement and return each resample's sums, (resamples, k).

    Most items have equals, so those that differ are few. How often each of these is drawn has a
    multinomial distribution.
    """
    # Whole columns, so that what belongs to an item stays together: (k, kinds), (kinds,)
    kinds, counts = np.unique(items, axis=1, return_counts=True)
    n = items.shape[1]
    draw = np.random.default_rng(seed)
    chunk = max(1, DRAWN_AT_ONCE // len(counts))
    sums = []
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        sums.append(draw.multinomial(n, counts / n, size=size) @ kinds.T)
    return np.concatenate(sums)


def _compare(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return differences and reductions of rows of four sums; not finite if a denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        baseline = sums[:, 0] / sums[:, 1]
        candidate = sums[:, 2] / sums[:, 3]
        return candidate - baseline, 1 - candidate / baseline


def _bounded(
    observed: float, resampled: np.ndarray, confidence: float
) -> tuple[float | None, Interval | None]:
    """Return the observed value and its percentile interval, each None if it is not finite."""
    if not np.isfinite(observed):
        return None, None
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    # inverted_cdf picks resampled values; interpolation would mix in infinities.
    low, high = np.quantile(resampled, tails, method="inverted_cdf")
    is_bounded = np.isfinite([low, high]).all()
    return observed, Interval(float(low), float(high)) if is_bounded else None


def _check_lengths(*lengths: int) -> None:
    if len(set(lengths)) > 1:
        raise DataError(
            f"every sequence needs one value per item, but their lengths differ: lengths {lengths}"
        )


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise DataError(f"{name} = {value}; allowed: 0 to 1")
