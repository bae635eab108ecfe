"""Scores and comparisons as text: per cent, points, intervals and sentences.

Tables for the terminal, Markdown and the page have the same rows. Models go by name. The first
model is the base, with which every other model is compared.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from eval.benchmarks.contract import OBJECT_RECALL, Comparison, Metric, Scores, compare
from rlhfv_ray.errors import DataError
from rlhfv_ray.stats import Interval

Models = Mapping[str, Scores]

NO_VALUE = "none counted"
PER_CENT = 100.0
ALPHA = 0.05  # a paired test with a larger p-value finds no difference
EXACT_BELOW = 10  # values in other units than per cent get a second decimal below this


class Cell(NamedTuple):
    """A metric of one model, as text."""

    number: str
    interval: str = ""  # 95 %

    def __str__(self) -> str:
        return f"{self.number} ({self.interval})" if self.interval else self.number


class TableRow(NamedTuple):
    """One metric of all models."""

    metric: Metric
    cells: tuple[Cell, ...]
    changes: tuple[str, ...]  # of every further model from the first

    @property
    def label(self) -> str:
        """The metric's name with its unit."""
        return label(self.metric)


def humanize(name: str) -> str:
    """Return a name with spaces in place of underscores."""
    return name.replace("_", " ")


def label(metric: Metric) -> str:
    """Return a metric's name with its unit.

    Example:
        >>> label(OBJECT_RECALL)
        'object recall / %'
    """
    return f"{humanize(metric.name)} / %" if metric.scale == PER_CENT else humanize(metric.name)


def title(models: Models) -> str:
    """Return a title: the benchmark, the models and the number of answers, also of those that the
    first metric is of, where others have metrics of their own.

    Raises:
        DataError: there is no model.
    """
    if not models:
        raise DataError("a report needs the scores of at least one model; got none")
    *first_names, last = models
    names = f"{', '.join(first_names)} and {last}" if first_names else last
    each = " each" if first_names else ""
    base = next(iter(models.values()))
    rate, total = base.metrics[0].name, len(base.answers)
    in_rate = sum(bool(item.missing) or rate in item.ratios for item in base.answers)
    in_rate_text = f", {in_rate} of them in the first rate" if in_rate < total else ""
    return f"{benchmark_of(base)}: {names}, n = {total} answers{each}{in_rate_text}"


def benchmark_of(scores: Scores) -> str:
    """Return the benchmark's name from the manifest."""
    return str(scores.manifest.get("benchmark", "benchmark"))


def comparisons(models: Models) -> dict[str, Comparison]:
    """Compare every further model with the first.

    Raises:
        DataError: the manifests differ; the message names the fields.
    """
    (_, base), *others = models.items()
    return {name: compare(base, scores) for name, scores in others}


def table_rows(models: Models) -> list[TableRow]:
    """Return one row per metric, with every model's value and its change from the first model."""
    rates = {name: scores.rates() for name, scores in models.items()}
    intervals = {name: scores.intervals() for name, scores in models.items()}
    table = []
    for metric in next(iter(models.values())).metrics:
        values = [rates[name].get(metric.name) for name in models]
        cells = [
            format_cell(metric, value, intervals[name].get(metric.name))
            for name, value in zip(models, values, strict=True)
        ]
        changes = tuple(_change(metric, values[0], value) for value in values[1:])
        table.append(TableRow(metric, tuple(cells), changes))
    return table


def headline(models: Models) -> str:
    """Return the first metric of all models in one line, with intervals."""
    row = table_rows(models)[0]
    cells = [f"{name} {cell}" for name, cell in zip(models, row.cells, strict=True)]
    return f"{row.label} {', '.join(cells)}"


def format_cell(metric: Metric, value: float | None, interval: Interval | None = None) -> Cell:
    """Return a value and its interval as text, multiplied by the metric's scale."""
    if value is None:
        return Cell(NO_VALUE)
    digits = _digits(metric, value)
    bounds = [unsigned(metric.scale * bound, digits) for bound in interval or ()]
    return Cell(unsigned(metric.scale * value, digits), " to ".join(bounds))


def _change(metric: Metric, before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    return signed(metric.scale * (after - before), _digits(metric, before))


def unsigned(value: float, digits: int) -> str:
    """Return a number without a plus sign; one that rounds to 0 has no minus sign either.

    Example:
        >>> unsigned(-0.04, 1), unsigned(-0.06, 1)
        ('0.0', '-0.1')
    """
    return f"{round(value, digits) + 0.0:.{digits}f}"


def signed(value: float, digits: int) -> str:
    """Return a number with its sign; one that rounds to 0 has no minus sign.

    Example:
        >>> signed(1.25, 1), signed(-3.0, 1), signed(-0.04, 1)
        ('+1.2', '-3.0', '+0.0')
    """
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def _digits(metric: Metric, value: float) -> int:
    return 1 if metric.scale == PER_CENT or abs(metric.scale * value) >= EXACT_BELOW else 2


def comparison_sentences(comparison: Comparison) -> list[str]:
    """Say what a comparison shows, and which differences are too small to detect."""
    metric, n = comparison.metric, comparison.n
    if metric.better == "lower":
        estimate = _estimate(
            comparison.relative_reduction,
            comparison.relative_reduction_interval,
            n,
            unit=" %",
            scale=PER_CENT,
        )
        main = f"Relative reduction of the {humanize(metric.name)}: {estimate}"
    else:
        unit = " points" if metric.scale == PER_CENT else ""
        estimate = _estimate(
            comparison.change, comparison.change_interval, n, unit=unit, scale=metric.scale
        )
        main = f"Change of the {humanize(metric.name)}: {estimate}"
    parts = [main, *_test_result(comparison), *_power(comparison)]
    sentences = [". ".join(parts) + "."]
    if comparison.recall_change is not None:
        recall = _estimate(
            comparison.recall_change,
            comparison.recall_change_interval,
            n,
            unit=" points",
            scale=PER_CENT,
        )
        sentences.append(f"Change of {humanize(OBJECT_RECALL.name)}: {recall}.")
    return sentences


def _estimate(
    value: float | None, interval: Interval | None, n: int, *, unit: str, scale: float
) -> str:
    if value is None:
        return f"not defined at n = {n}"
    digits = 1 if scale == PER_CENT else 2
    number = f"{signed(scale * value, digits)}{unit}"
    if interval is None:
        return f"{number}, not resolved at n = {n}: too few cases for an interval"
    if interval.low == interval.high == value and value == 1:
        # Resamples of answers without a mistake have none either: they bound nothing.
        return f"{number} (no interval, as nothing is left of it)"
    low, high = (signed(scale * bound, digits) for bound in interval)
    resolved = "" if _resolved(interval) else f", not resolved at n = {n}: the interval includes 0"
    return f"{number} (95 % interval {low} to {high}){resolved}"


def is_resolved(comparison: Comparison) -> bool:
    """Return True if the interval of the compared metric excludes 0, and no paired test objects."""
    return _resolved(_main_interval(comparison)) and not _is_refuted(comparison)


def _main_interval(comparison: Comparison) -> Interval | None:
    lower = comparison.metric.better == "lower"
    return comparison.relative_reduction_interval if lower else comparison.change_interval


def _is_refuted(comparison: Comparison) -> bool:
    """Return True if the interval excludes 0, but the paired test finds no difference."""
    p_value = comparison.p_value
    return _resolved(_main_interval(comparison)) and p_value is not None and p_value >= ALPHA


def _resolved(interval: Interval | None) -> bool:
    return interval is not None and (interval.low > 0 or interval.high < 0)


def _test_result(comparison: Comparison) -> list[str]:
    if comparison.p_value is None:
        return []
    refuted = f", not resolved at n = {comparison.n}" if _is_refuted(comparison) else ""
    return [f"{comparison.test}: p {format_p(comparison.p_value)}{refuted}"]


def format_p(p_value: float) -> str:
    """Return a p-value with its relation sign.

    Example:
        >>> format_p(0.0123), format_p(1e-9)
        ('= 0.012', '< 0.001')
    """
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


def _power(comparison: Comparison) -> list[str]:
    detectable = comparison.detectable
    is_bounded = _resolved(comparison.relative_reduction_interval)
    if detectable is None or (is_bounded and not _is_refuted(comparison)):
        return []
    points = f"{PER_CENT * detectable:.1f} points"
    return [f"n = {comparison.n} finds a fall of {points} or more (power 80 %)"]


def result_sentences(compared: Mapping[str, Comparison]) -> list[str]:
    """Return the sentences of all comparisons; with several models, each begins with its name."""
    sentences = []
    for name, comparison in compared.items():
        prefix = f"{name}: " if len(compared) > 1 else ""
        sentences += [prefix + sentence for sentence in comparison_sentences(comparison)]
    return sentences


def notes(models: Models) -> list[str]:
    """Return notes on the scores: missing verdicts, and results that are not compared."""
    all_notes = []
    for name, scores in models.items():
        texts = [missing_text(scores), *_extras_notes(scores)]
        all_notes += [f"{name}: {text}" for text in texts if text]
    return all_notes


def missing_text(scores: Scores) -> str:
    """Return how many answers have no verdict and the reasons; empty if all have one."""
    reasons = missing_reasons(scores)
    counts = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    total = sum(reasons.values())
    return f"{total} of {len(scores.answers)} answers without a verdict: {counts}" if total else ""


def missing_reasons(scores: Scores) -> dict[str, int]:
    """Count the answers without a verdict by reason, the most common reason first."""
    return dict(Counter(item.missing for item in scores.answers if item.missing).most_common())


def _extras_notes(scores: Scores) -> Iterator[str]:
    ungrouped = {}
    for name, value in scores.extras.items():
        if name == "over_generalization":
            yield rise_text(value["mean_rise"])
        elif isinstance(value, Mapping):
            # Nested values are left to the file of scores, unless there is nothing else.
            totals = {key: item for key, item in value.items() if not isinstance(item, Mapping)}
            yield f"{name}: {join_values(totals or value)}"
        elif value is not None:
            ungrouped[name] = value
    if ungrouped:
        yield join_values(ungrouped)


def rise_text(mean_rise: float | None) -> str:
    """Return over-generalisation (`eval/over_generalization.py`) in words.

    Example:
        >>> rise_text(0.0766)
        "a scene's typical objects are made up 7.7 points more often in such scenes than overall"
    """
    if mean_rise is None:
        return "over-generalisation is not known: no typical object of a scene was named"
    points, more = f"{abs(PER_CENT * mean_rise):.1f}", "more" if mean_rise >= 0 else "less"
    return (
        f"a scene's typical objects are made up {points} points {more} often in such scenes "
        "than overall"
    )


def join_values(values: Mapping[str, Any]) -> str:
    """Return names and values in one line.

    Example:
        >>> join_values({"average_score": 2.34375, "of": {"conv": 85.2, "detail": None}})
        'average score 2.344, of conv 85.2, of detail none'
    """
    return ", ".join(f"{humanize(name)} {value}" for name, value in flat(values).items())


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested values as text; the name of each is its path of keys, separated by spaces."""
    texts: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            texts |= flat(value, f"{prefix}{name} ")
        else:
            texts[f"{prefix}{name}"] = _text(value)
    return texts


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
