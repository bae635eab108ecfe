"""The estimate of a setting on pictures that decided nothing: mean, interval, paired test.

The mean is over the setting's models, one per seed, on the same pictures. The interval says how
other pictures would change it: for these models, not for trainings with other seeds. The seeds were
part of the choice, so the best of many settings also had lucky seeds. A simulation of 300 sweeps
shows it: an interval over seeds and pictures covered the mean over all seeds in 96 % of them where
seeds differ by less than pictures let one see, and in 64 % where they differ by several points.

A ratio of sums is linear in its parts near its value (Cochran, Sampling Techniques, 1977, ch. 6):
picture i adds x_i = R + (num_i - R den_i) / mean(den), whose mean is the rate R.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from rlhfv_ray.errors import DataError
from rlhfv_ray.stats import Interval, RatioSample, wilson_of_rate

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean over models and pictures; None where it cannot be computed."""

    mean: float | None
    interval: Interval | None  # 95 %
    p_value: float | None = None  # two-sided, of a mean of 0; None for a rate

    @property
    def is_resolved(self) -> bool:
        """Return True if the interval excludes 0."""
        return self.interval is not None and not self.interval.low <= 0 <= self.interval.high


def estimate(models: Sequence[RatioSample], *, is_proportion: bool) -> Estimate:
    """Return the mean rate of models on the same pictures.

    The interval of a proportion is Wilson's, with the number of items that has the same variance.
    So it stays within 0 and 1, and is no point where nothing happened.

    Args:
        models: one sample per model, of the same pictures in the same order.
        is_proportion: True if numerators and denominators count cases.

    Example:
        Nothing in ten pictures: Wilson's bound of 0 in 10 with t of 9 degrees of freedom,
        2.262^2 / (10 + 2.262^2).

        >>> nothing = RatioSample([0] * 10, [1] * 10)
        >>> mean, interval, _ = estimate([nothing, nothing], is_proportion=True)
        >>> mean, round(interval.high, 3)
        (0.0, 0.339)
    """
    parts = _contributions(models)
    if parts is None:
        return Estimate(None, None)
    if not is_proportion:
        return _by_t(parts)._replace(p_value=None)
    mean = float(parts.mean())
    variance = float(parts.var(ddof=1)) / len(parts) if len(parts) > 1 else 0.0
    items = float(np.mean([np.sum(model.denominators) for model in models]))
    if variance > 0 and 0 < mean < 1:
        items = mean * (1 - mean) / variance
    return Estimate(mean, wilson_of_rate(mean, items, _quantile(max(len(parts) - 1, 1))))


def paired_estimate(models: Sequence[RatioSample], base: Sequence[RatioSample]) -> Estimate:
    """Return the mean difference of models from others on the same pictures, by a paired t test.

    Example:
        The base model is wrong on two of four pictures, both models on the first alone.

        >>> base = RatioSample([1, 1, 0, 0], [1, 1, 1, 1])
        >>> model = RatioSample([1, 0, 0, 0], [1, 1, 1, 1])
        >>> mean, interval, p_value = paired_estimate([model, model], [base])
        >>> mean, round(p_value, 3)
        (-0.25, 0.391)
    """
    ours, theirs = _contributions(models), _contributions(base)
    if ours is None or theirs is None:
        return Estimate(None, None)
    return _by_t(ours - theirs)


def _contributions(models: Sequence[RatioSample]) -> np.ndarray | None:
    """Return each picture's contribution to the mean over models; None if a model has no rate."""
    rows: list[np.ndarray] = []
    for numerators, denominators in models:
        numerator, denominator = np.array([numerators, denominators], dtype=float)  # (pictures,)
        total = denominator.sum()
        if not total:
            return None
        rate = numerator.sum() / total
        rows.append(rate + (numerator - rate * denominator) * len(denominator) / total)
    if len({len(row) for row in rows}) != 1:
        raise DataError("estimate: every model needs one value per picture; give equal pictures")
    return np.mean(rows, axis=0)


def _quantile(freedom: int) -> float:
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def _by_t(parts: np.ndarray) -> Estimate:
    """Bound the mean of contributions by Student's t (see `rlhfv_ray.stats.mean_interval`)."""
    mean = float(parts.mean())
    if len(parts) == 1:
        return Estimate(mean, None)
    error = float(parts.std(ddof=1)) / len(parts) ** 0.5
    if error == 0:
        return Estimate(mean, Interval(mean, mean), 1.0 if mean == 0 else 0.0)
    half = _quantile(len(parts) - 1) * error
    p_value = 2 * float(stdtr(len(parts) - 1, -abs(mean) / error))
    return Estimate(mean, Interval(mean - half, mean + half), p_value)
