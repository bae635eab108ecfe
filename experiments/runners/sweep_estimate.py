"""The estimate of the best setting on fresh pictures, against the base model, in words."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from eval.benchmarks.contract import Metric, Ratio, Scores, check_comparable
from eval.reporting.wording import humanize, signed
from experiments.runners.sweep_report import PER_CENT, shown
from rlhfv_ray.stats import RatioSample
from rlhfv_ray.sweep.estimate import Estimate, estimate, paired_estimate
from rlhfv_ray.sweep.setting_value import Measure, Objective, SettingValue, setting_value


class FreshMeasure(NamedTuple):
    """One measure of the best setting on fresh pictures, in the unit that people see."""

    base: float | None
    mean: float | None  # over the setting's models, one per seed
    interval: tuple[float, float] | None  # 95 %, for other pictures
    change: float | None  # from the base model on the same pictures
    change_interval: tuple[float, float] | None
    p_value: float | None  # paired t test
    resolved: bool  # the interval of the change excludes 0


class Fresh(NamedTuple):
    """The best setting on pictures that decided nothing."""

    pictures: int  # with a verdict on every model
    metric: FreshMeasure
    guard: FreshMeasure | None
    value: SettingValue | None

    def as_json(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        value = self.value._asdict() if self.value else None
        guard = self.guard._asdict() if self.guard else None
        keeps = self.value is not None and self.value.violation == 0
        return {
            "pictures": self.pictures,
            "metric": self.metric._asdict(),
            "guard": guard,
            "value": value,
            "keeps_guard": keeps,
        }


def compare_fresh(base: Scores, models: Sequence[Scores], objective: Objective) -> Fresh:
    """Compare models with their base on the same pictures.

    A picture without a verdict on one of them counts for none.
    """
    for scores in models:
        check_comparable(base.manifest, scores.manifest)
    all_models = [base, *models]
    judged = [
        index
        for index in range(len(base.answers))
        if not any(scores.answers[index].missing for scores in all_models)
    ]
    kinds = {metric.name: metric for metric in base.metrics}

    def samples(measure: Measure) -> list[RatioSample]:
        return [_sample(scores, judged, measure.name) for scores in all_models]

    def measured(measure: Measure) -> FreshMeasure:
        theirs, *ours = samples(measure)
        before, after = (rate_of(models, kinds[measure.name]) for models in ([theirs], ours))
        return _in_units(measure, before, after, paired_estimate(ours, [theirs]))

    metric, guard = objective.metric, objective.guard
    value = setting_value([scores.rates() for scores in models], base.rates(), objective)
    return Fresh(len(judged), measured(metric), measured(guard) if guard else None, value)


def rate_of(models: Sequence[RatioSample], metric: Metric) -> Estimate:
    """Return a metric's mean over models with its interval; a share's stays within 0 and 1."""
    rate = estimate(models, is_proportion=metric.is_proportion)
    if rate.interval is None or not metric.is_share:
        return rate
    return rate._replace(interval=rate.interval.of_share())


def _sample(scores: Scores, judged: Sequence[int], name: str) -> RatioSample:
    ratios = [scores.answers[index].ratios.get(name, Ratio(0, 0)) for index in judged]
    return RatioSample(
        [ratio.numerator for ratio in ratios], [ratio.denominator for ratio in ratios]
    )


def _in_units(
    measure: Measure, before: Estimate, after: Estimate, change: Estimate
) -> FreshMeasure:
    def scaled(value: float | None) -> float | None:
        return None if value is None else measure.scale * value

    def bounds(estimated: Estimate) -> tuple[float, float] | None:
        if estimated.interval is None:
            return None
        low, high = estimated.interval
        return measure.scale * low, measure.scale * high

    return FreshMeasure(
        scaled(before.mean),
        scaled(after.mean),
        bounds(after),
        scaled(change.mean),
        bounds(change),
        change.p_value,
        change.is_resolved,
    )


def sentence(
    title: str, seeds: int, fresh: Fresh | None, close: Sequence[str], objective: Objective
) -> str:
    """Return the result in words: the setting, its estimate, its guard, who is as good.

    Args:
        title: of the best setting.
        seeds: that it was trained with.
        fresh: its estimate; None if there is none.
        close: settings that the seeds do not tell from it.
        objective: of the sweep.
    """
    metric, guard = objective.metric, objective.guard
    parts = [f"best: {title} (mean of {seeds} seed{'' if seeds == 1 else 's'})"]
    if fresh is None:
        parts.append("its models are gone, so it has no estimate on fresh pictures")
    else:
        parts.append(f"on {fresh.pictures} fresh pictures, {_change(metric, fresh.metric)}")
        if guard and fresh.guard:
            state = guard_state(fresh.guard, guard, objective.within)
            limit = f"guard ({objective.within:g} allowed) {state}"
            parts.append(f"{_change(guard, fresh.guard)}; {limit}")
    if close:
        more = f" and {len(close) - 1} more" if len(close) > 1 else ""
        parts.append(f"the seeds do not tell it from {close[0]}{more}")
    return ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def _change(measure: Measure, numbers: FreshMeasure) -> str:
    name = humanize(measure.name)
    if numbers.mean is None or numbers.base is None or numbers.change is None:
        return f"{name} could not be computed"
    text = f"{name} {shown(measure, numbers.mean, numbers.interval)}"
    text += f", base {shown(measure, numbers.base)}"
    if numbers.change_interval is None:
        return text
    digits = 1 if measure.scale == PER_CENT else 2
    change, low, high = (
        signed(number, digits) for number in (numbers.change, *numbers.change_interval)
    )
    verdict = "" if numbers.resolved else ", not resolved"
    return f"{text}, change {change} ({low} to {high}){verdict}"


def guard_state(numbers: FreshMeasure, guard: Measure, within: float) -> str:
    """Return if a guard is kept: `kept`, `missed` or `not resolved`, by the change's interval.

    Example:
        >>> change = FreshMeasure(85.0, 84.0, None, -1.0, (-1.5, -0.5), 0.01, True)
        >>> guard_state(change, Measure("recall", "higher"), 2.0)
        'kept'
        >>> guard_state(change, Measure("recall", "higher"), 1.0)
        'not resolved'
    """
    if numbers.change_interval is None:
        return "not resolved"
    low, high = numbers.change_interval
    least, most = (-high, -low) if guard.better == "higher" else (low, high)  # how much worse
    if most <= within:
        return "kept"
    return "missed" if least > within else "not resolved"
