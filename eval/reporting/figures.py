"""Figures as SVG files: training curves, and rates of models in total and by group of questions.

Models go by name. The first model is the base. Colours are safe for colour-blind readers (Okabe
and Ito).
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
from eval.reporting.svg import BLUE, GREEN, GREY, INK, VERMILION, save_svg
from rlhfv_ray.errors import DataError
from rlhfv_ray.stats import Interval

COLORS = (GREY, BLUE, VERMILION, GREEN, "#cc79a7", "#e69f00", "#56b4e9", "#222222")  # of models
PANELS = {
    "lower": ("↓ lower is better", "#fdf3ec"),
    "higher": ("↑ higher is better", "#edf6f1"),
    "": ("neither is better", "#f4f5f6"),
}
REDUNDANT = {"response_rate_all"}  # adds little to response_rate; the table has it
PER_CENT = 100.0
GROUP_WIDTH = 0.8  # of all bars at one position, which are 1 apart
LOWEST_TOP = 1.0  # per cent, of an axis whose bars are all near 0
WIDEST = 9.0  # sum of the widths of panels that stand side by side
WIDEST_ROW = 8.0  # width of a panel that stands below another: more would be too small on a page
HEADROOM = 1.12  # of an axis, for the number above the highest bar
MAX_NAME_LENGTH = 42  # characters of a group's name
SMOOTH = 15  # a bold curve is a running mean over 1/15 of the run

Record = Mapping[str, Any]  # one update, see `rlhfv_ray.training.metrics_log`
Models = Mapping[str, Scores]


class Bar(NamedTuple):
    """One rate of one model, as a fraction."""

    position: int
    rate: float | None
    interval: Interval | None


def rates_figure(models: Models, path: Path) -> None:
    """Draw every rate of every model as bars with 95 % intervals, one panel for each direction.

    Metrics in other units are left to tables.

    Raises:
        DataError: there is no rate to draw, or there are more models than colours.
    """
    metrics = _first(models).metrics
    panels: dict[str, list[Metric]] = {}
    for better in PANELS:
        for metric in rates_of(metrics):
            if metric.better == better:
                panels.setdefault(better, []).append(metric)
    if not panels:
        raise DataError(
            f"rates_figure: none of {', '.join(m.name for m in metrics)} is in per cent"
        )
    # At least 1.7 units wide, so that the panels' titles fit.
    widths = [max(1.7, len(group) * (1 + len(models)) / 3) for group in panels.values()]
    if sum(widths) <= WIDEST:
        size = max(7.0, 2 + 1.6 * sum(widths)), 4.6
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        drawn = list(figure.subplots(1, len(panels), width_ratios=widths, squeeze=False)[0])
        rows = list(panels.items())
    else:  # one below the other, so that the numbers stay readable on a page
        rows = [
            (better, row) for better, group in panels.items() for row in _rows(group, len(models))
        ]
        width = max(len(row) for _, row in rows) * (1 + len(models)) / 3
        size = max(7.0, 2 + 1.6 * width), max(8.0, 3.2 * len(rows))
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        drawn = list(figure.subplots(len(rows), 1, squeeze=False)[:, 0])
    for axes, (better, group) in zip(drawn, rows, strict=True):
        for order, scores in enumerate(models.values()):
            values, intervals = scores.rates(), scores.intervals()
            bars = [
                Bar(position, values.get(metric.name), intervals.get(metric.name))
                for position, metric in enumerate(group)
            ]
            _draw_bars(axes, bars, model=order, models=len(models))
        _label_positions(axes, [m.name.replace("_", "\n") for m in group], better=better)
    _finish(figure, drawn, models, path)


def rates_of(metrics: Sequence[Metric]) -> list[Metric]:
    """Return the metrics that `rates_figure` draws: those in per cent."""
    return [
        metric for metric in metrics if metric.scale == PER_CENT and metric.name not in REDUNDANT
    ]


def _rows(metrics: Sequence[Metric], models: int) -> list[Sequence[Metric]]:
    """Cut the metrics of a panel into rows of about the same length, which fit a page."""
    most = max(1, int(WIDEST_ROW * 3 / (1 + models)))
    count = math.ceil(len(metrics) / most)
    length = math.ceil(len(metrics) / count)
    return [metrics[start : start + length] for start in range(0, len(metrics), length)]


def groups_figure(models: Models, path: Path) -> None:
    """Draw the first rate that two groups of questions have, by group, as bars with 95 % intervals.

    Raises:
        DataError: no rate exists for two groups, or there are more models than colours.
    """
    metric = grouped_metric(models)
    if metric is None:
        raise DataError("groups_figure: no metric in per cent exists for two groups of questions")
    base = _first(models)
    groups = [group for group in base.groups if _is_counted(models, metric, group)]
    width = max(7.0, 2 + 0.45 * len(groups) * (1 + len(models)))
    figure = Figure(figsize=(width, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    for order, scores in enumerate(models.values()):
        bars = [
            Bar(position, scores.rates(group)[metric.name], scores.intervals(group)[metric.name])
            for position, group in enumerate(groups)
        ]
        _draw_bars(axes, bars, model=order, models=len(models))
    names = [f"{_short(group)}\nn = {base.rates(group)['n']}" for group in groups]
    _label_positions(axes, names, better=metric.better)
    _finish(figure, [axes], models, path, label=metric.name.replace("_", " "))


def grouped_metric(models: Models) -> Metric | None:
    """Return the first metric in per cent that two groups of questions or more have."""
    base = _first(models)
    for metric in base.metrics:
        groups = [group for group in base.groups if _is_counted(models, metric, group)]
        if metric.scale == PER_CENT and len(groups) > 1:
            return metric
    return None


def _short(group: str) -> str:
    name = textwrap.shorten(group.replace("_", " "), MAX_NAME_LENGTH, placeholder=" …")
    return textwrap.fill(name, MAX_NAME_LENGTH // 3)


def _is_counted(models: Models, metric: Metric, group: str) -> bool:
    return any(scores.sums(group)[metric.name].denominator for scores in models.values())


def _first(models: Models) -> Scores:
    if not 1 <= len(models) <= len(COLORS):
        raise DataError(f"a figure shows 1 to {len(COLORS)} models side by side, got {len(models)}")
    return next(iter(models.values()))


def _draw_bars(axes: Axes, bars: Sequence[Bar], *, model: int, models: int) -> None:
    """Draw the bars of one model, given its index and the number of models."""
    width = GROUP_WIDTH / models
    shift = width * (model - (models - 1) / 2)
    color = COLORS[model if models > 1 else 1]
    small = {"ha": "center", "va": "bottom", "fontsize": 9 if models < 3 else 7}
    for position, rate, interval in bars:
        x = position + shift
        above = {"xytext": (0, 2), "textcoords": "offset points", **small}
        if rate is None:
            axes.annotate("none", (x, 0), rotation=90, **above)
            continue
        low, high = interval or (rate, rate)
        # The edge keeps a bar of 0 % visible, as a line.
        axes.bar(x, PER_CENT * rate, width=0.95 * width, color=color, edgecolor=color)
        axes.vlines(x, PER_CENT * low, PER_CENT * high, color=INK, linewidth=1.2)
        axes.annotate(f"{PER_CENT * rate:.1f}", (x, PER_CENT * high), **above)


def _label_positions(axes: Axes, names: Sequence[str], *, better: str) -> None:
    direction, color = PANELS[better]
    axes.set_xticks(range(len(names)), list(names))
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_title(direction, loc="left", fontweight="bold")
    axes.set_facecolor(color)
    _tidy(axes)


def _finish(
    figure: Figure, panels: Sequence[Axes], models: Models, path: Path, *, label: str = "rate"
) -> None:
    panels[0].set_ylabel(f"{label} / %")
    for axes in panels:  # each has a scale of its own, so that small bars are seen
        axes.set_ylim(0, HEADROOM * max(LOWEST_TOP, axes.dataLim.y1))
    if len(models) > 1:
        handles = [Patch(color=color) for color, _ in zip(COLORS, models, strict=False)]
        figure.legend(
            handles, list(models), loc="outside lower center", ncols=len(models), frameon=False
        )
    base = _first(models)
    benchmark = base.manifest.get("benchmark", "benchmark")
    only_model = "" if len(models) > 1 else f", {next(iter(models))}"
    figure.suptitle(f"{benchmark}{only_model}, n = {len(base.answers)}; lines: 95 % intervals")
    save_svg(figure, path)


def training_figure(records: Sequence[Record], path: Path) -> None:
    """Draw loss, rewards with their margins, and accuracies over updates; for SFT, the loss alone.

    Raises:
        DataError: there are no records.
    """
    if not records:
        raise DataError(
            "training_figure: there are no records; a run has some after its first updates"
        )
    if not any("loss/preference" in record for record in records):
        sft_figure(records, path)
        return
    figure = Figure(figsize=(13, 4.4), dpi=150, layout="constrained")
    loss, rewards, accuracies = figure.subplots(1, 3)
    _draw_curve(loss, records, "loss/preference", color=BLUE)
    loss.axhline(
        math.log(2),
        color=INK,
        linestyle="--",
        linewidth=1,
        label="start, policy = reference: ln 2",
    )
    loss.set(title="Loss", ylabel="preference loss / nats")
    for name, color in (("chosen", GREEN), ("rejected", VERMILION), ("margins", INK)):
        _draw_curve(rewards, records, f"rewards/{name}", color=color, label=name)
    rewards.axhline(0, color=INK, linestyle="--", linewidth=1)
    rewards.set(
        title="Rewards, and margins between them", ylabel="beta x log(policy / reference) / nats"
    )
    _draw_curve(accuracies, records, "rewards/accuracies", color=BLUE, factor=100)
    accuracies.axhline(50, color=INK, linestyle="--", linewidth=1, label="chance: 50 %")
    accuracies.set(title="Accuracies", ylabel="pairs with margin > 0 / %", ylim=(0, 103))
    skipped = [record["step"] for record in records if record.get("skipped")]
    if skipped:
        loss.plot(
            skipped,
            [0] * len(skipped),
            "x",
            transform=loss.get_xaxis_transform(),  # at the bottom, whatever the losses are
            color=VERMILION,
            clip_on=False,
            label=f"skipped: {len(skipped)}",
        )
    for axes in (loss, rewards, accuracies):
        axes.set_xlabel("update")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
        _tidy(axes)
    figure.suptitle(_training_title(records))
    save_svg(figure, path)


def sft_figure(records: Sequence[Record], path: Path) -> None:
    """Draw the loss of supervised fine-tuning over updates."""
    figure = Figure(figsize=(6.5, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    _draw_curve(axes, records, "loss", color=BLUE)
    axes.set(
        title="Loss",
        ylabel="negative log-likelihood of the answers / nats",
        xlabel="update",
    )
    _tidy(axes)
    figure.suptitle(_training_title(records))
    save_svg(figure, path)


def _training_title(records: Sequence[Record]) -> str:
    return f"Training; thin: each update, bold: mean of the last {_smoothing_window(records)}"


def _smoothing_window(records: Sequence[Record]) -> int:
    return max(1, len(records) // SMOOTH)


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
    width = _smoothing_window(records)
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
