"""The value of a setting: one definition, by which a sweep ranks, prunes and reports.

A setting is tried with several seeds. Its value is the mean over them; no seed counts by itself.
Every number has the unit in which people see it: points for a rate, rating points for a rating.

    loss = r + v / w,    r = (m + 1) / (b + 1)  if lower is better, else its inverse

    m, b   mean of the measure over the seeds; the base model's
    v      how far the guard's mean is outside what is allowed (`within` of the base's), >= 0
    w      `within`, at least 1 unit

The base model has loss 1. A guard that misses its limit by `within` costs as much as the whole way
from the base model to a perfect one, and a small miss costs little.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

from rlhfv_ray.stats import Interval, mean_interval

Rates = Mapping[str, float | None]  # by measure, as the benchmark computes them
K = TypeVar("K", bound=Hashable)


class Measure(NamedTuple):
    """A score of the benchmark, as the search sees it."""

    name: str
    better: Literal["lower", "higher"]
    scale: float = 100.0  # factor to the unit that people see

    def shown(self, rates: Rates | None) -> float | None:
        """Return the measure in the unit that people see; None if it is absent or not finite."""
        value = rates.get(self.name) if rates is not None else None
        return None if value is None or not math.isfinite(value) else value * self.scale


class Objective(NamedTuple):
    """The measure that a sweep improves, and the one that may not get much worse."""

    metric: Measure
    guard: Measure | None = None
    within: float = 2.0  # in the guard's unit


class SettingValue(NamedTuple):
    """A setting's value over its seeds, in the units that people see."""

    loss: float  # what the search minimises; the base model has 1
    mean: float  # of the metric
    interval: Interval | None  # of the mean, Student's t over seeds; None for one seed
    guard: float | None  # mean of the guard; None without a guard
    violation: float  # how far the guard's mean is outside what is allowed; 0 inside
    seeds: int  # that have a value
    missing: int  # that failed, or whose measure could not be computed


def setting_value(
    seeds: Sequence[Rates | None], base: Rates, objective: Objective
) -> SettingValue | None:
    """Return the value of a setting.

    Args:
        seeds: rates of every seed; None: the seed failed. A seed whose metric or guard is absent or
            not finite counts as failed.
        base: the base model's rates on the same pictures.
        objective: metric, guard and the guard's limit.

    Returns:
        None if no seed has a value.

    Example:
        The base model's recall is 85 and may fall to 83. The second seed falls to 82; their mean
        does not.

        >>> objective = Objective(Measure("rate", "lower"), Measure("recall", "higher"), within=2)
        >>> seeds = [{"rate": 0.2, "recall": 0.86}, {"rate": 0.1, "recall": 0.82}]
        >>> value = setting_value(seeds, {"rate": 0.4, "recall": 0.85}, objective)
        >>> round(value.mean, 6), round(value.guard, 6), value.violation
        (15.0, 84.0, 0.0)
    """
    metric, guard = objective.metric, objective.guard
    values: list[float] = []
    guards: list[float] = []
    for rates in seeds:
        value = metric.shown(rates)
        guarded = guard.shown(rates) if guard else 0.0
        if value is not None and guarded is not None:
            values.append(value)
            guards.append(guarded)
    if not values:
        return None
    mean, interval = mean_interval(values)
    guard_mean = sum(guards) / len(guards) if guard else None
    violation = _violation(guard_mean, base, objective)
    loss = _ratio(mean, base, metric) + violation / max(objective.within, 1.0)
    missing = len(seeds) - len(values)
    return SettingValue(loss, mean, interval, guard_mean, violation, len(values), missing)


def _violation(guard_mean: float | None, base: Rates, objective: Objective) -> float:
    guard = objective.guard
    base_guard = guard.shown(base) if guard else None
    if guard is None or guard_mean is None or base_guard is None:
        return 0.0
    worse_by = base_guard - guard_mean if guard.better == "higher" else guard_mean - base_guard
    violation = worse_by - objective.within
    return violation if violation > 1e-9 else 0.0  # rounding of the sums is no violation


def _ratio(mean: float, base: Rates, metric: Measure) -> float:
    base_mean = metric.shown(base)
    ratio = (mean + 1) / ((0.0 if base_mean is None else base_mean) + 1)
    return ratio if metric.better == "lower" else 1 / ratio


def ranked(values: Mapping[K, SettingValue | None], objective: Objective) -> list[K]:
    """Return the settings that have a value, the best first.

    A setting with failed seeds comes after all that have more of them. Then the loss decides; of
    equal ones the smaller violation, the better guard, and at last the order of `values`.
    """
    sign = -1.0 if objective.guard and objective.guard.better == "higher" else 1.0

    def sort_key(key: K) -> tuple[float, ...]:
        value = values[key]
        assert value is not None
        loss = round(value.loss, 12)  # means of equal numbers may differ in their last digit
        return value.missing, loss, round(value.violation, 9), sign * round(value.guard or 0.0, 9)

    return sorted((key for key, value in values.items() if value is not None), key=sort_key)


def survivors(
    values: Mapping[K, SettingValue | None], objective: Objective, *, reduction: int
) -> list[K]:
    """Return the settings that go on to the next rung: one in `reduction`, rounded up.

    Example:
        >>> objective = Objective(Measure("rate", "lower"))
        >>> rates = {"a": 0.3, "b": 0.1, "c": 0.2, "d": None}
        >>> values = {key: setting_value([{"rate": rate}], {"rate": 0.4}, objective)
        ...           for key, rate in rates.items()}
        >>> survivors(values, objective, reduction=2)
        ['b', 'c']
    """
    return ranked(values, objective)[: math.ceil(len(values) / reduction)]


def indistinct(values: Mapping[K, SettingValue | None], objective: Objective) -> list[K]:
    """Return the settings after the best whose mean is within the best one's interval."""
    order = ranked(values, objective)
    top = values[order[0]] if order else None
    if top is None or top.interval is None:
        return []
    low, high = top.interval
    close: list[K] = []
    for key in order[1:]:
        value = values[key]
        if value is not None and low <= value.mean <= high:
            close.append(key)
    return close
