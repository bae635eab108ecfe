"""Estimates over seeds and scenes: both are drawn, and both make an estimate uncertain.

A study trains under k seeds and scores each training on scenes. Its estimate is the mean over seeds
of a rate, or of the difference of two rates. Its variance has a part from the seeds and a part from
the scenes that each seed is scored on:

    V = s^2 / k + b^2

s is the standard deviation over seeds. b comes from a bootstrap: the scenes are drawn again, the
seeds stay. Seeds with scenes of their own have scene noise in s as well, so V is rather too large
there. It is not 0 because three seeds happen to agree. Where no scene of any seed has a case, or
all have, every draw is alike; b is then half of the bound that the rule of three gives. The
interval is Student's t with Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946, p.
110):

    df = V^2 / ((s^2 / k)^2 / (k - 1)),    k - 1 where all of V comes from the seeds
"""

import functools
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from rlhfv_ray.errors import DataError
from rlhfv_ray.stats import Interval, RatioSample

RESAMPLES = 1000
# 0 cases of n: the rate is below 3 / n with 95 % confidence (Hanley, JAMA 249, 1983, p. 1743).
BOUND_OF_NONE = 3.0


class SeedEstimate(NamedTuple):
    """A mean over seeds."""

    mean: float
    interval: Interval | None  # None for a single seed
    p_value: float | None  # two-sided, of a true mean of 0; None for a single seed


def over_seeds(
    values: Sequence[float], scene_error: float = 0.0, *, confidence: float = 0.95
) -> SeedEstimate:
    """Return the mean of one value per seed, with the uncertainty of seeds and scenes.

    Args:
        values: one rate, or difference of rates, per seed.
        scene_error: b, the standard error of the mean that comes from the scenes. With 0 the result
            is Student's t over seeds.
        confidence: of the interval, 0 to 1.

    Raises:
        DataError: there is no seed, or a number is out of range.

    Example:
        Values 1 and 3: the mean is 2, s / sqrt(2) is 1, and t with one degree of freedom is 12.7.

        >>> estimate = over_seeds([1.0, 3.0])
        >>> estimate.mean, round(estimate.interval.low, 1), round(estimate.interval.high, 1)
        (2.0, -10.7, 14.7)
    """
    if not values or scene_error < 0 or not 0 < confidence < 1:
        raise DataError(
            f"over_seeds: {len(values)} values, scene_error = {scene_error}, confidence = "
            f"{confidence}; give one value or more, an error >= 0 and a confidence between 0 and 1"
        )
    mean = float(np.mean(values))
    seeds = len(values)
    if seeds == 1:
        return SeedEstimate(mean, None, None)
    from_seeds = float(np.var(values, ddof=1)) / seeds
    variance = from_seeds + scene_error**2
    if variance == 0:
        return SeedEstimate(mean, Interval(mean, mean), 1.0 if mean == 0 else 0.0)
    # Without a spread over seeds only scenes vary, and there are many.
    freedom = (seeds - 1) * (variance / from_seeds) ** 2 if from_seeds else float("inf")
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * variance**0.5
    p_value = 2 * float(stdtr(freedom, -abs(mean) / variance**0.5))
    return SeedEstimate(mean, Interval(mean - half, mean + half), p_value)


def scene_error(
    samples: Sequence[RatioSample],
    baselines: Sequence[RatioSample] = (),
    *,
    is_shared: bool,
    clusters: Sequence[Sequence[Hashable]] = (),
    resamples: int = RESAMPLES,
) -> float:
    """Return the standard error of a mean over seeds that comes from the scenes.

    Args:
        samples: for each seed, every scene's contribution to a rate.
        baselines: of another system on the same scenes; then the error is that of the mean
            difference. Empty: the error of the mean rate.
        is_shared: all seeds are scored on the same scenes, so that one draw serves all.
        clusters: for each seed, a name for every scene. Scenes of one name are drawn together, as
            they are alike. Empty: every scene alone.
        resamples: number of draws.

    Returns:
        The standard deviation over draws. A draw in which a rate has no denominator is left out.
        Of a rate that is 0 or 1 in all scenes: half of what the rule of three allows.

    Raises:
        DataError: the numbers of seeds or scenes differ.
    """
    if baselines and len(baselines) != len(samples):
        raise DataError(f"scene_error: {len(samples)} seeds, but {len(baselines)} baselines")
    total = np.zeros(resamples)
    for seed, sample in enumerate(samples):
        ids = clusters[seed] if clusters else range(len(sample.numerators))
        draw = functools.partial(_resampled_rates, names=ids, stream=0 if is_shared else seed)
        rates = draw(sample, resamples=resamples)
        total += rates - draw(baselines[seed], resamples=resamples) if baselines else rates
    means = total[np.isfinite(total)] / len(samples)
    units = min(len(set(ids)) for ids in clusters) if clusters else _fewest(samples)
    if len(means) < 2 or units < 2:
        return 0.0
    if not baselines and not means.std() and all(sample.is_all_or_nothing for sample in samples):
        named = clusters or [()] * len(samples)
        counts = [_rated(sample, names) for sample, names in zip(samples, named, strict=True)]
        return BOUND_OF_NONE / 2 / (min(counts) if is_shared else sum(counts))
    return float(np.std(means, ddof=1)) * (units / (units - 1)) ** 0.5


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the number of tests, in the given order.

    Holm (Scandinavian Journal of Statistics 6, 1979, p. 65). With the p-values in ascending order,
    the i-th of m is multiplied by m - i + 1. None becomes smaller than one before it, or larger
    than 1. All tests with an adjusted value below 0.05 hold together with 95 % confidence.

    Raises:
        DataError: a p-value lies outside 0 .. 1.

    Example:
        The smallest times 3, the next one times 2, and the largest is not below that.

        >>> holm([0.04, 0.01, 0.03])
        [0.06, 0.03, 0.06]
    """
    if not all(0 <= p_value <= 1 for p_value in p_values):
        raise DataError(f"holm: p-values {list(p_values)}; allowed: 0 to 1")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda item: p_values[item])):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def _rated(sample: RatioSample, names: Sequence[Hashable]) -> int:
    """Return the number of scenes that a rate is of; scenes of one name count once."""
    ids = names or range(len(sample.denominators))
    return len({name for name, size in zip(ids, sample.denominators, strict=True) if size})


def _fewest(samples: Sequence[RatioSample]) -> int:
    return min((len(sample.numerators) for sample in samples), default=0)


def _resampled_rates(
    sample: RatioSample, *, names: Sequence[Hashable], stream: int, resamples: int
) -> np.ndarray:
    """Return a rate on scenes drawn with replacement, (resamples,); not finite without cases."""
    if not len(sample.numerators) == len(sample.denominators) == len(names):
        raise DataError(
            f"scene_error: {len(sample.numerators)} numerators, {len(sample.denominators)} "
            f"denominators and {len(names)} scenes; give one of each per scene"
        )
    cluster = {name: number for number, name in enumerate(dict.fromkeys(names))}
    sums = np.zeros((len(cluster), 2))  # of each cluster: numerators, denominators
    np.add.at(sums, [cluster[name] for name in names], np.array([*zip(*sample, strict=True)]))
    drawn = _draws(len(cluster), resamples, stream) @ sums  # (resamples, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return drawn[:, 0] / drawn[:, 1]


@functools.lru_cache(maxsize=16)
def _draws(units: int, resamples: int, stream: int) -> np.ndarray:
    """Return how often each of some units is drawn, (resamples, units).

    The same arguments return the same draws, so that two systems are compared on equal ones.
    """
    shares = np.full(units, 1 / units)
    draws = np.random.default_rng(stream).multinomial(units, shares, size=resamples)
    return draws.astype(np.float32)
