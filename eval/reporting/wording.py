"""What scores and their comparisons say, as people read them: per cent, points, intervals, sentences.

Tables for the terminal, Markdown and the page are laid out from the same rows. Models go by name; the first is the base, which every other
is compared with.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from eval.benchmarks.contract import OBJECT_RECALL, Comparison, Metric, Scores, compare
from rlhfv_ray.errors import DataError
from rlhfv_ray.stats import Interval

Models = Mapping[str, Scores]

NOTHING = "none counted"
PER_CENT = 100.0
EXACT_BELOW = 10  # numbers that are no percentages get a second decimal below


class Cell(NamedTuple):
    """A number of one model."""

    number: str
    interval: str = ""  # 95 %

    def __str__(self) -> str:
        return f"{self.number} ({self.interval})" if self.interval else self.number


class TableRow(NamedTuple):
    """One measure of all models."""

    metric: Metric
    cells: tuple[Cell, ...]
    changes: tuple[str, ...]  # of every further model, less the first

    @property
    def label(self) -> str:
        """The measure with its unit."""
        return label(self.metric)


def humanize(name: str) -> str:
    """A name as people write it."""
    return name.replace("_", " ")


def label(metric: Metric) -> str:
    """A measure with its unit.

    Example:
        >>> label(OBJECT_RECALL)
        'object recall / %'
    """
    return f"{humanize(metric.name)} / %" if metric.scale == PER_CENT else humanize(metric.name)


def title(models: Models) -> str:
    """Of what and whom the scores are.

    Raises:
        DataError: there is no model.
    """
    if not models:
        raise DataError("a report needs the scores of one model at least; got none")
    *others, last = models
    names = f"{', '.join(others)} and {last}" if others else last
    first = next(iter(models.values()))
    each = " each" if others else ""
    return f"{benchmark_of(first)}: {names}, n = {len(first.answers)} answers{each}"


def benchmark_of(scores: Scores) -> str:
    """The name of the benchmark, as the manifest has it."""
    return str(scores.manifest.get("benchmark", "benchmark"))


def comparisons(models: Models) -> dict[str, Comparison]:
    """Every further model against the first.

    Raises:
        DataError: they were measured differently; names the fields of the manifest that differ.
    """
    (_, base), *others = models.items()
    return {name: compare(base, scores) for name, scores in others}


def table_rows(models: Models) -> list[TableRow]:
    """Every measure of every model, and how it changed."""
    rates = {name: scores.rates() for name, scores in models.items()}
    intervals = {name: scores.intervals() for name, scores in models.items()}
    found = []
    for metric in next(iter(models.values())).metrics:
        values = [rates[name].get(metric.name) for name in models]
        cells = [
            format_cell(metric, value, intervals[name].get(metric.name))
            for name, value in zip(models, values, strict=True)
        ]
        changes = tuple(_change(metric, values[0], value) for value in values[1:])
        found.append(TableRow(metric, tuple(cells), changes))
    return found


def format_cell(metric: Metric, value: float | None, interval: Interval | None = None) -> Cell:
    """A number as it is shown: times its scale."""
    if value is None:
        return Cell(NOTHING)
    digits = _digits(metric, value)
    low_high = (
        ""
        if interval is None
        else " to ".join(f"{metric.scale * bound:.{digits}f}" for bound in interval)
    )
    return Cell(f"{metric.scale * value:.{digits}f}", low_high)


def _change(metric: Metric, before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    return f"{metric.scale * (after - before):+.{_digits(metric, before)}f}"


def _digits(metric: Metric, value: float) -> int:
    return 1 if metric.scale == PER_CENT or abs(metric.scale * value) >= EXACT_BELOW else 2


def conclusions(comparison: Comparison) -> list[str]:
    """Say what a comparison shows, and what it cannot show with so many answers."""
    c = comparison
    if c.metric.better == "lower":
        found = f"Relative reduction of the {humanize(c.metric.name)}: "
        found += _finding(
            c.relative_reduction, c.relative_reduction_interval, c.n, unit=" %", scale=PER_CENT
        )
    else:
        found = f"Change of the {humanize(c.metric.name)}: "
        found += _finding(
            c.change, c.change_interval, c.n, unit=_unit(c.metric), scale=c.metric.scale
        )
    sentences = [found, *_test(c.p_value), *_power(c)]
    said = [". ".join(sentences) + "."]
    if c.recall_change is not None:
        recall = _finding(
            c.recall_change, c.recall_change_interval, c.n, unit=" points", scale=PER_CENT
        )
        said.append(f"Change of {humanize(OBJECT_RECALL.name)}: {recall}.")
    return said


def _unit(metric: Metric) -> str:
    return " points" if metric.scale == PER_CENT else ""


def _finding(
    value: float | None, interval: Interval | None, n: int, *, unit: str, scale: float
) -> str:
    if value is None:
        return f"not defined at n = {n}"
    digits = 1 if scale == PER_CENT else 2
    number = f"{scale * value:+.{digits}f}{unit}"
    if interval is None:
        return f"{number}, not resolved at n = {n}: too few cases for an interval"
    low, high = (f"{scale * bound:+.{digits}f}" for bound in interval)
    resolved = "" if _resolved(interval) else f", not resolved at n = {n}: the interval includes 0"
    return f"{number} (95 % interval {low} to {high}){resolved}"


def _resolved(interval: Interval | None) -> bool:
    return interval is not None and (interval.low > 0 or interval.high < 0)


def _test(p_value: float | None) -> list[str]:
    if p_value is None:
        return []
    return [f"Exact McNemar test: p {'< 0.001' if p_value < 0.001 else f'= {p_value:.3f}'}"]


def _power(c: Comparison) -> list[str]:
    if c.detectable is None or _resolved(c.relative_reduction_interval):
        return []
    return [f"n = {c.n} finds a fall of {PER_CENT * c.detectable:.1f} points or more (power 80 %)"]


def findings(models: Models, found: Mapping[str, Comparison]) -> list[str]:
    """All conclusions; where more than one model is compared, with its name."""
    several = len(found) > 1
    return [
        f"{name}: {sentence}" if several else sentence
        for name, comparison in found.items()
        for sentence in conclusions(comparison)
    ]


def notes(models: Models) -> list[str]:
    """What stands beside the scores: answers without a verdict, and what a benchmark reports but does not compare."""
    found = []
    for name, scores in models.items():
        found += [f"{name}: {text}" for text in (missing_text(scores), *_beside(scores)) if text]
    return found


def missing_text(scores: Scores) -> str:
    """How many answers have no verdict, and why; nothing where all have one."""
    reasons = missing_reasons(scores)
    why = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    total = sum(reasons.values())
    return f"{total} of {len(scores.answers)} answers without a verdict: {why}" if total else ""


def missing_reasons(scores: Scores) -> dict[str, int]:
    """Answers without a verdict by why they have none, the most common reason first."""
    return dict(Counter(item.missing for item in scores.answers if item.missing).most_common())


def _beside(scores: Scores) -> Iterator[str]:
    loose = {}
    for name, value in scores.extras.items():
        if isinstance(value, Mapping):
            whole = {
                part: number for part, number in value.items() if not isinstance(number, Mapping)
            }
            yield f"{name}: {join_values(whole or value)}"  # its parts are in the file of scores
        elif value is not None:
            loose[name] = value
    if loose:
        yield join_values(loose)


def join_values(values: Mapping[str, Any]) -> str:
    """Names and values in a line.

    Example:
        >>> join_values({"average_score": 2.34375, "of": {"conv": 85.2, "detail": None}})
        'average score 2.344, of conv 85.2, of detail none'
    """
    return ", ".join(f"{humanize(name)} {value}" for name, value in flat(values).items())


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as text, by their names one after the other."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name} ")
        else:
            found[f"{prefix}{name}"] = _text(value)
    return found


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
