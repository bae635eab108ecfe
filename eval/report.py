"""Scores of a base and an aligned model as numbers, tables, figures, and a page of answers to read.

Nothing is measured here: rates, intervals and tests come from `eval.benchmark`. Rates are fractions in `summary`, and
per cent wherever a person reads them.
"""

import base64
import io
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.table import Table

from eval.benchmark import Comparison, Mark, Scores
from eval.statistics import Interval
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Prompt

COLUMNS = ("% (95 % interval)", "better", "base", "aligned", "change")
HIGHER_IS_BETTER = {"object_recall"}
GREY, BLUE, VERMILION, GREEN = "#9aa3ad", "#0072b2", "#d55e00", "#009e73"  # told apart by the colour-blind too
SMOOTH = 15  # a curve in bold averages over this part of the run
SMALL_IMAGE = 160  # pixels; below, the page shows a picture's pixels as squares

Record = Mapping[str, Any]  # one update, see `rlhfv_ray.progress`


class Row(NamedTuple):
    """One line of a table, as text."""

    label: str
    better: str  # lower, higher, or nothing
    base: str
    aligned: str
    change: str  # aligned - base


@dataclass(frozen=True)
class Contents:
    """What a page of answers holds besides the scores."""

    figures: Mapping[str, Path] = field(default_factory=dict)  # caption -> PNG
    count: int = 20  # of answers
    seed: int = 0  # of their draw


class Choice(NamedTuple):
    """An answer that the page shows, and which draw it comes from."""

    item: int  # its place in the scores
    drawn: Literal["better", "worse", "random"]


class Piece(NamedTuple):
    """A stretch of an answer and the kinds of mistake that cover it."""

    text: str
    kinds: tuple[str, ...]


def summary(base: Scores, aligned: Scores, comparison: Comparison, *, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Give scores, comparison and how long each stage took, ready for JSON."""
    models = {"base": base, "aligned": aligned}
    result = {name: {**scores.rates(), "intervals": _listed(scores.intervals())} for name, scores in models.items()}
    return {**result, "comparison": _listed(asdict(comparison)), "seconds": dict(seconds)}


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def table(base: Scores, aligned: Scores, comparison: Comparison) -> Table:
    """Lay the scores out for the terminal."""
    findings = "\n".join(conclusions(comparison, n=base.chair.n))
    shown = Table(*COLUMNS, title=_title(base), caption=findings, caption_justify="left")
    for column in shown.columns[2:]:
        column.justify = "right"
    for row in _rows(base, aligned):
        shown.add_row(*row)
    return shown


def markdown_table(base: Scores, aligned: Scores, comparison: Comparison) -> str:
    """Lay the scores out in Markdown, what follows from them below."""
    head, *lines = [f"| {' | '.join(row)} |" for row in (COLUMNS, *_rows(base, aligned))]
    findings = [f"* {finding}" for finding in conclusions(comparison, n=base.chair.n)]
    return "\n".join([head, "|---|---|---:|---:|---:|", *lines, "", *findings, ""])


def conclusions(comparison: Comparison, *, n: int) -> list[str]:
    """Say what the comparison shows, and what it cannot show with n answers."""
    p = comparison.p_value
    test = "" if p is None else f" Exact McNemar test: p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}."
    reduction = _finding(comparison.relative_reduction, comparison.relative_reduction_interval, n, unit=" %")
    recall = _finding(comparison.recall_change, comparison.recall_change_interval, n, unit=" points")
    return [f"Relative reduction of the response rate: {reduction}.{test}", f"Change of object recall: {recall}."]


def _finding(value: float | None, interval: Interval | None, n: int, *, unit: str) -> str:
    if value is None:
        return "not defined"
    if interval is None:
        return f"{100 * value:+.1f}{unit}, not resolved at n = {n}: too few cases for an interval"
    low, high = interval
    resolved = "" if low > 0 or high < 0 else f", not resolved at n = {n}: the interval includes 0"
    return f"{100 * value:+.1f}{unit} (95 % interval {100 * low:+.1f} to {100 * high:+.1f}){resolved}"


def _rows(base: Scores, aligned: Scores) -> list[Row]:
    rows = []
    for name in base.counts():
        rates = [scores.rates().get(name) for scores in (base, aligned)]
        shown = [_percent(scores, name) for scores in (base, aligned)]
        rows.append(Row(name.replace("_", " "), _better(name), shown[0], shown[1], _change(*rates, factor=100)))
    before, after = base.chair.words, aligned.chair.words
    words = ["none counted" if length is None else f"{length:.1f}" for length in (before, after)]
    return [*rows, Row("words per answer", "", words[0], words[1], _change(before, after, factor=1))]


def _better(name: str) -> str:
    return "higher" if name in HIGHER_IS_BETTER else "lower"


def _percent(scores: Scores, name: str) -> str:
    rate, interval = scores.rates().get(name), scores.intervals().get(name)
    if rate is None or interval is None:
        return "none counted"
    return f"{100 * rate:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _change(before: float | None, after: float | None, *, factor: float) -> str:
    return "" if before is None or after is None else f"{factor * (after - before):+.1f}"


def _title(scores: Scores) -> str:
    return f"{scores.manifest.get('benchmark', 'benchmark')}: base and aligned model, n = {scores.chair.n} answers each"


def rates_figure(base: Scores, aligned: Scores, path: Path) -> None:
    """Draw every rate before and after as a PNG: bars with Wilson's 95 % intervals, a panel for each direction."""
    names = [name for name in base.counts() if name != "response_rate_all"]
    panels = {better: [name for name in names if _better(name) == better] for better in ("lower", "higher")}
    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    widths = [max(1.7, len(group)) for group in panels.values()]  # room for the titles
    columns = figure.subplots(1, 2, sharey=True, width_ratios=widths)
    for axes, (better, group) in zip(columns, panels.items(), strict=True):
        _draw_bars(axes, group, base, shift=-0.2, color=GREY)
        _draw_bars(axes, group, aligned, shift=0.2, color=BLUE)
        axes.set_xticks(range(len(group)), [name.replace("_", "\n") for name in group])
        axes.set_xlim(-0.6, len(group) - 0.4)
        axes.set_title(f"{'↓' if better == 'lower' else '↑'} {better} is better", loc="left", fontweight="bold")
        axes.set_facecolor("#fdf3ec" if better == "lower" else "#edf6f1")
        _tidy(axes)
    columns[0].set(ylabel="rate / %", ylim=(0, 108), yticks=range(0, 101, 20))
    handles = [columns[0].bar(0, 0, color=color) for color in (GREY, BLUE)]
    figure.legend(handles, ["base", "aligned"], loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(f"{_title(base)}; lines: 95 % intervals")
    figure.savefig(path, format="png")


def _draw_bars(axes: Axes, names: Sequence[str], scores: Scores, *, shift: float, color: str) -> None:
    rates, intervals = scores.rates(), scores.intervals()
    for place, name in enumerate(names):
        rate, interval = rates.get(name), intervals.get(name)
        if rate is None or interval is None:
            axes.text(place + shift, 1, "none\ncounted", ha="center", va="bottom", fontsize=8)
            continue
        axes.bar(place + shift, 100 * rate, width=0.38, color=color)
        axes.vlines(place + shift, 100 * interval.low, 100 * interval.high, color="black", linewidth=1.4)
        axes.text(place + shift, 100 * interval.high + 1, f"{100 * rate:.1f}", ha="center", va="bottom", fontsize=9)


def training_figure(records: Sequence[Record], path: Path) -> None:
    """Draw a run as a PNG: loss, rewards with their margin, and accuracies over updates.

    Raises:
        DataError: there are no records.
    """
    if not records:
        raise DataError("training_figure: no records; a run has some once its first updates are done")
    figure = Figure(figsize=(13, 4.4), dpi=150, layout="constrained")
    loss, rewards, accuracies = figure.subplots(1, 3)
    _draw_curve(loss, records, "loss/preference", color=BLUE)
    loss.axhline(math.log(2), color="black", linestyle="--", linewidth=1, label="start, policy = reference: ln 2")
    loss.set(title="Loss", ylabel="preference loss / nats", ylim=(0, None))
    for name, color in (("chosen", GREEN), ("rejected", VERMILION), ("margins", "black")):
        _draw_curve(rewards, records, f"rewards/{name}", color=color, label=name)
    rewards.axhline(0, color="black", linestyle="--", linewidth=1)
    rewards.set(title="Rewards, and margins between them", ylabel="beta x log(policy / reference) / nats")
    _draw_curve(accuracies, records, "rewards/accuracies", color=BLUE, factor=100)
    accuracies.axhline(50, color="black", linestyle="--", linewidth=1, label="chance: 50 %")
    accuracies.set(title="Accuracies", ylabel="pairs with margin > 0 / %", ylim=(0, 103))
    skipped = [record["step"] for record in records if record.get("skipped")]
    if skipped:
        loss.plot(skipped, [0] * len(skipped), "x", color=VERMILION, clip_on=False, label=f"skipped: {len(skipped)}")
    for axes in (loss, rewards, accuracies):
        axes.set_xlabel("update")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
        _tidy(axes)
    figure.suptitle(f"Training; thin: each update, bold: mean of the last {max(1, len(records) // SMOOTH)}")
    figure.savefig(path, format="png")


def _draw_curve(
    axes: Axes, records: Sequence[Record], name: str, *, color: str, label: str | None = None, factor: float = 1
) -> None:
    steps = np.array([record["step"] for record in records])
    values = factor * np.array([record.get(name, np.nan) for record in records], dtype=float)
    width = max(1, len(records) // SMOOTH)
    windows = [values[max(0, stop - width) : stop] for stop in range(1, len(values) + 1)]
    means = np.array([np.nan if np.isnan(window).all() else np.nanmean(window) for window in windows])
    axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.45)
    axes.plot(steps, means, color=color, linewidth=2, label=label, marker="o" if len(steps) == 1 else None)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def answers_page(
    prompts: Sequence[Prompt], base: Scores, aligned: Scores, comparison: Comparison, path: Path, *, contents: Contents
) -> None:
    """Write one HTML file that needs no other: scores, figures, and answers of both models, mistakes marked."""
    folder = FileSystemLoader(Path(__file__).parent / "templates")
    templates = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    choices = choose_answers(base, aligned, count=contents.count, seed=contents.seed)
    images = {prompt.id: prompt.image for prompt in prompts}
    page = templates.get_template("report.html").render(
        title=_title(base),
        rows=_rows(base, aligned),
        conclusions=conclusions(comparison, n=base.chair.n),
        manifest=base.manifest,
        figures={caption: _data_uri(figure.read_bytes()) for caption, figure in contents.figures.items()},
        shown=[_shown(choice, base, aligned, images) for choice in choices],
        seed=contents.seed,
        added=_mistakes_added(base, aligned),
    )
    path.write_text(page, encoding="utf-8")


def choose_answers(base: Scores, aligned: Scores, *, count: int, seed: int) -> list[Choice]:
    """Draw answers to show: half where the number of mistakes changed, the rest at random from all others.

    Among the changed, those that got worse have their share, and at least one place if there is one.
    """
    added = _mistakes_added(base, aligned)
    better, worse = [i for i, k in enumerate(added) if k < 0], [i for i, k in enumerate(added) if k > 0]
    changed = min(count // 2, len(better) + len(worse))
    share = round(changed * len(worse) / max(1, len(better) + len(worse)))
    from_worse = min(len(worse), changed, max(share, 1))
    draw = random.Random(seed)
    picked = {i: Choice(i, "better") for i in draw.sample(better, changed - from_worse)}
    picked |= {i: Choice(i, "worse") for i in draw.sample(worse, from_worse)}
    others = [i for i in range(len(added)) if i not in picked]
    rest = draw.sample(others, min(len(others), count - len(picked)))
    return [*picked.values(), *(Choice(i, "random") for i in rest)]


def _mistakes_added(base: Scores, aligned: Scores) -> list[int]:
    return [len(after.marks) - len(before.marks) for before, after in zip(base.answers, aligned.answers, strict=True)]


def _shown(choice: Choice, base: Scores, aligned: Scores, images: Mapping[str, bytes]) -> dict[str, Any]:
    judged = {"base": base.answers[choice.item], "aligned": aligned.answers[choice.item]}
    answers = {name: (pieces(one.answer.text, one.marks), len(one.marks)) for name, one in judged.items()}
    asked = judged["base"].answer
    image = images[asked.id]
    small = max(Image.open(io.BytesIO(image)).size) < SMALL_IMAGE
    return {"asked": asked, "drawn": choice.drawn, "image": _data_uri(image), "small": small, "answers": answers}


def pieces(text: str, marks: Sequence[Mark]) -> list[Piece]:
    """Cut an answer where marks begin and end, so that a piece is covered by a mark entirely or not at all.

    Example:
        >>> [tuple(piece) for piece in pieces("a red cat", [Mark(2, 9, "attribute"), Mark(6, 9, "object")])]
        [('a ', ()), ('red ', ('attribute',)), ('cat', ('attribute', 'object'))]
    """
    cuts = sorted({0, len(text), *(mark.start for mark in marks), *(mark.stop for mark in marks)})
    found = []
    for start, stop in pairwise(cuts):
        kinds = dict.fromkeys(mark.kind for mark in marks if mark.start <= start and stop <= mark.stop)
        found.append(Piece(text[start:stop], tuple(kinds)))
    return found


def _data_uri(image: bytes) -> str:
    kind = Image.MIME[Image.open(io.BytesIO(image)).format or "PNG"]
    return f"data:{kind};base64,{base64.b64encode(image).decode()}"
