"""Figures as PNG files: how a run went, and the rates of models side by side, all in all and by group of questions.

Models go by name, the first is the base. Colours are told apart by the colour-blind too (Okabe and Ito).
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from eval.benchmarks.contract import Metric, Scores
from rlhfv_ray.errors import DataError
from rlhfv_ray.stats import Interval

GREY, BLUE, VERMILION, GREEN = "#9aa3ad", "#0072b2", "#d55e00", "#009e73"
COLORS = (
    GREY,
    BLUE,
    VERMILION,
    GREEN,
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#222222",
)  # of models, in order
PANELS = {
    "lower": ("↓ lower is better", "#fdf3ec"),
    "higher": ("↑ higher is better", "#edf6f1"),
    "": ("neither is better", "#f4f5f6"),
}
SAME = {"response_rate_all"}  # next to response_rate it says little; the table has it
PER_CENT = 100.0
GROUP_WIDTH = 0.8  # of the bars at one place
LONGEST = 42  # characters of a group's name
SMOOTH = 15  # a curve in bold averages over this part of the run

Record = Mapping[str, Any]  # one update, see `rlhfv_ray.training.metrics_log`
Models = Mapping[str, Scores]


class Bar(NamedTuple):
    """One rate of one model, as a fraction."""

    place: int
    rate: float | None
    interval: Interval | None


def rates_figure(models: Models, path: Path) -> None:
    """Draw every rate of every model: bars with 95 % intervals, a panel for each direction. Other units are left to tables.

    Raises:
        DataError: there is no rate to draw, or there are more models than colours.
    """
    metrics = _first(models).metrics
    rates = [m for m in metrics if m.scale == PER_CENT and m.name not in SAME]
    panels = {better: [m for m in rates if m.better == better] for better in PANELS}
    panels = {better: group for better, group in panels.items() if group}
    if not panels:
        raise DataError(
            f"rates_figure: none of {', '.join(m.name for m in metrics)} is in per cent"
        )
    widths = [
        max(1.7, len(group) * (1 + len(models)) / 3) for group in panels.values()
    ]  # room for the titles
    figure = Figure(figsize=(max(7.0, 2 + 1.6 * sum(widths)), 4.6), dpi=150, layout="constrained")
    columns = figure.subplots(1, len(panels), sharey=True, width_ratios=widths, squeeze=False)[0]
    for axes, (better, group) in zip(columns, panels.items(), strict=True):
        for order, scores in enumerate(models.values()):
            values, intervals = scores.rates(), scores.intervals()
            bars = [
                Bar(place, values.get(m.name), intervals.get(m.name))
                for place, m in enumerate(group)
            ]
            _draw_bars(axes, bars, order=order, of=len(models))
        _name_places(axes, [m.name.replace("_", "\n") for m in group], better=better)
    _finish(figure, columns, models, path)


def groups_figure(models: Models, path: Path) -> None:
    """Draw the first measure that more than one group of questions has, group by group: bars with 95 % intervals.

    Raises:
        DataError: there are not two groups with such a measure, or there are more models than colours.
    """
    metric = grouped_measure(models)
    if metric is None:
        raise DataError(
            "groups_figure: no measure in per cent is there for two groups of questions or more"
        )
    base = _first(models)
    groups = [group for group in base.groups if _rate(models, metric, group)]
    width = max(7.0, 2 + 0.45 * len(groups) * (1 + len(models)))
    figure = Figure(figsize=(width, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    for order, scores in enumerate(models.values()):
        bars = [
            Bar(place, scores.rates(group)[metric.name], scores.intervals(group)[metric.name])
            for place, group in enumerate(groups)
        ]
        _draw_bars(axes, bars, order=order, of=len(models))
    names = [f"{_short(group)}\nn = {base.rates(group)['n']}" for group in groups]
    _name_places(axes, names, better=metric.better)
    _finish(figure, [axes], models, path, label=metric.name.replace("_", " "))


def grouped_measure(models: Models) -> Metric | None:
    """The first measure in per cent that is counted in two groups of questions or more."""
    base = _first(models)
    for metric in base.metrics:
        if (
            metric.scale == PER_CENT
            and sum(_rate(models, metric, group) for group in base.groups) > 1
        ):
            return metric
    return None


def _short(group: str) -> str:
    return textwrap.fill(
        textwrap.shorten(group.replace("_", " "), LONGEST, placeholder=" …"), LONGEST // 3
    )


def _rate(models: Models, metric: Metric, group: str) -> bool:
    return any(scores.sums(group)[metric.name].denominator for scores in models.values())


def _first(models: Models) -> Scores:
    if not 1 <= len(models) <= len(COLORS):
        raise DataError(f"a figure shows 1 to {len(COLORS)} models side by side, got {len(models)}")
    return next(iter(models.values()))


def _draw_bars(axes: Axes, bars: Sequence[Bar], *, order: int, of: int) -> None:
    width = GROUP_WIDTH / of
    shift = width * (order - (of - 1) / 2)
    small = {"ha": "center", "va": "bottom", "fontsize": 9 if of < 3 else 7}
    for place, rate, interval in bars:
        if rate is None:
            axes.text(place + shift, 1, "none", rotation=90, **small)
            continue
        low, high = interval or (rate, rate)
        axes.bar(
            place + shift, PER_CENT * rate, width=0.95 * width, color=COLORS[order if of > 1 else 1]
        )
        axes.vlines(place + shift, PER_CENT * low, PER_CENT * high, color="black", linewidth=1.2)
        axes.text(place + shift, PER_CENT * high + 1, f"{PER_CENT * rate:.1f}", **small)


def _name_places(axes: Axes, names: Sequence[str], *, better: str) -> None:
    said, color = PANELS[better]
    axes.set_xticks(range(len(names)), list(names))
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_title(said, loc="left", fontweight="bold")
    axes.set_facecolor(color)
    _tidy(axes)


def _finish(
    figure: Figure, columns: Sequence[Axes], models: Models, path: Path, *, label: str = "rate"
) -> None:
    first = columns[0]
    top = max(
        108.0, *(axes.dataLim.y1 + 8 for axes in columns)
    )  # a score relative to a reference's can be above 100
    first.set(ylabel=f"{label} / %", ylim=(0, top), yticks=range(0, int(top) + 1, 20))
    if len(models) > 1:
        handles = [Patch(color=color) for color, _ in zip(COLORS, models, strict=False)]
        figure.legend(
            handles, list(models), loc="outside lower center", ncols=len(models), frameon=False
        )
    base = _first(models)
    benchmark, one = (
        base.manifest.get("benchmark", "benchmark"),
        "" if len(models) > 1 else f", {next(iter(models))}",
    )
    figure.suptitle(f"{benchmark}{one}, n = {len(base.answers)}; lines: 95 % intervals")
    figure.savefig(path, format="png")


def training_figure(records: Sequence[Record], path: Path) -> None:
    """Draw a run as a PNG: loss, rewards with their margin, and accuracies over updates; of fine-tuning alone, the loss.

    Raises:
        DataError: there are no records.
    """
    if not records:
        raise DataError(
            "training_figure: no records; a run has some once its first updates are done"
        )
    if not any("loss/preference" in record for record in records):
        imitation_figure(records, path)
        return
    figure = Figure(figsize=(13, 4.4), dpi=150, layout="constrained")
    loss, rewards, accuracies = figure.subplots(1, 3)
    _draw_curve(loss, records, "loss/preference", color=BLUE)
    loss.axhline(
        math.log(2),
        color="black",
        linestyle="--",
        linewidth=1,
        label="start, policy = reference: ln 2",
    )
    loss.set(title="Loss", ylabel="preference loss / nats", ylim=(0, None))
    for name, color in (("chosen", GREEN), ("rejected", VERMILION), ("margins", "black")):
        _draw_curve(rewards, records, f"rewards/{name}", color=color, label=name)
    rewards.axhline(0, color="black", linestyle="--", linewidth=1)
    rewards.set(
        title="Rewards, and margins between them", ylabel="beta x log(policy / reference) / nats"
    )
    _draw_curve(accuracies, records, "rewards/accuracies", color=BLUE, factor=100)
    accuracies.axhline(50, color="black", linestyle="--", linewidth=1, label="chance: 50 %")
    accuracies.set(title="Accuracies", ylabel="pairs with margin > 0 / %", ylim=(0, 103))
    skipped = [record["step"] for record in records if record.get("skipped")]
    if skipped:
        loss.plot(
            skipped,
            [0] * len(skipped),
            "x",
            color=VERMILION,
            clip_on=False,
            label=f"skipped: {len(skipped)}",
        )
    for axes in (loss, rewards, accuracies):
        axes.set_xlabel("update")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
        _tidy(axes)
    figure.suptitle(
        f"Training; thin: each update, bold: mean of the last {max(1, len(records) // SMOOTH)}"
    )
    figure.savefig(path, format="png")


def imitation_figure(records: Sequence[Record], path: Path) -> None:
    """Draw a run of supervised fine-tuning as a PNG: its loss over updates."""
    figure = Figure(figsize=(6.5, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    _draw_curve(axes, records, "loss", color=BLUE)
    axes.set(
        title="Loss",
        ylabel="negative log-likelihood of the answers / nats",
        xlabel="update",
        ylim=(0, None),
    )
    _tidy(axes)
    figure.suptitle(
        f"Training; thin: each update, bold: mean of the last {max(1, len(records) // SMOOTH)}"
    )
    figure.savefig(path, format="png")


def _draw_curve(
    axes: Axes,
    records: Sequence[Record],
    name: str,
    *,
    color: str,
    label: str | None = None,
    factor: float = 1,
) -> None:
    steps = np.array([record["step"] for record in records])
    values = factor * np.array([record.get(name, np.nan) for record in records], dtype=float)
    width = max(1, len(records) // SMOOTH)
    windows = [values[max(0, stop - width) : stop] for stop in range(1, len(values) + 1)]
    means = np.array(
        [np.nan if np.isnan(window).all() else np.nanmean(window) for window in windows]
    )
    axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.45)
    axes.plot(
        steps, means, color=color, linewidth=2, label=label, marker="o" if len(steps) == 1 else None
    )


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
