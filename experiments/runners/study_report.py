"""The report of a study: sentences, a table and a figure of its results."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from eval.reporting.figures import BLUE, GREY
from eval.reporting.wording import format_cell, format_p, humanize, label, signed
from experiments.runners.contrasts import Contrast
from experiments.runners.study_results import StudyResults


def sentences(title: str, contrasts: Sequence[Contrast], results: StudyResults) -> list[str]:
    """Say what the data support: the claim first, then its other contrasts."""
    answers = {
        "better": "The data support it",
        "worse": "The data say the opposite",
        "not resolved": f"Not resolved with {len(results.seeds)} seeds",
    }
    claim = contrasts[0]
    texts = [f"{title} {answers[claim.verdict]}: {describe(claim, results)}."]
    for contrast in contrasts[1:]:
        text = describe(contrast, results)
        if contrast.metric.better:
            text += f": {contrast.verdict}"
        texts.append(f"{text}.")
    return [text[0].upper() + text[1:] for text in texts]


def describe(contrast: Contrast, results: StudyResults) -> str:
    """Return two arms' means of one metric and their difference, in words."""
    metric, difference = contrast.metric, contrast.difference
    means = [
        format_cell(metric, results.mean(arm, metric.name).mean).number
        for arm in (contrast.arm, contrast.than)
    ]
    bounds = [signed(metric.scale * bound, 1) for bound in difference.interval or ()]
    unit = " %" if metric.scale == 100 else ""
    text = (
        f"{humanize(metric.name)} {means[0]}{unit} with {contrast.arm}, {means[1]}{unit} with "
        f"{contrast.than}, difference {signed(metric.scale * difference.mean, 1)} "
        f"(95 % interval {' to '.join(bounds)}"
    )
    if contrast.adjusted_p is not None:
        text += f", p {format_p(contrast.adjusted_p)} after correction"
    return f"{text})"


def row_texts(results: StudyResults) -> list[list[str]]:
    """Return one row per metric: its name, the better direction, and every arm's mean."""
    rows = []
    for metric in results.metrics:
        means = [results.mean(arm, metric.name) for arm in results.arms]
        cells = [str(format_cell(metric, mean.mean, mean.interval)) for mean in means]
        rows.append([label(metric), metric.better, *cells])
    return rows


def study_table(title: str, results: StudyResults) -> Table:
    """Return the results as a table for the terminal."""
    table = Table(title=Text(f"{title} Mean over {len(results.seeds)} seeds (95 % interval)"))
    for index, column in enumerate(("metric", "better", *results.arms)):
        table.add_column(Text(column), justify="right" if index > 1 else "left")
    for texts in row_texts(results):
        table.add_row(*map(Text, texts))
    return table


def markdown(title: str, results: StudyResults, claim_sentences: Sequence[str]) -> str:
    """Return the results as Markdown: title, sentences and table."""
    first_column = f"metric, mean over {len(results.seeds)} seeds (95 % interval)"
    lines = [
        f"# {title}",
        "",
        *(f"* {sentence}" for sentence in claim_sentences),
        "",
        f"| {first_column} | better | {' | '.join(results.arms)} |",
        f"|---|---|{'---:|' * len(results.arms)}",
        *(f"| {' | '.join(texts)} |" for texts in row_texts(results)),
        "",
    ]
    return "\n".join(lines)


SHOWN = (
    "response_rate",
    "mention_rate",
    "object_recall",
    "wrong_positions",
    "wrong_numbers",
    "words",
)


def arms_figure(results: StudyResults, path: Path, *, names: Sequence[str] = SHOWN) -> None:
    """Draw one panel per metric, one line per arm: seeds as dots, and the mean with its interval.

    Without any metric of these `names`, all metrics are drawn.
    """
    metrics = [metric for metric in results.metrics if metric.name in names]
    metrics = metrics or list(results.metrics)
    figure = Figure(
        figsize=(2.2 + 2.3 * len(metrics), 1.6 + 0.5 * len(results.arms)),
        dpi=150,
        layout="constrained",
    )
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    heights = range(len(results.arms))[::-1]  # the first arm on top
    for axes, metric in zip(panels, metrics, strict=True):
        for y, arm in zip(heights, results.arms, strict=True):
            over_seeds = results.mean(arm, metric.name)
            values = [metric.scale * value for value in over_seeds.values]
            axes.scatter(values, [y] * len(values), color=GREY, s=16, zorder=2)
            if over_seeds.interval is not None:
                low, high = over_seeds.interval
                axes.hlines(y, metric.scale * low, metric.scale * high, color=BLUE, linewidth=1.6)
            mean = metric.scale * over_seeds.mean
            axes.scatter(mean, y, color=BLUE, marker="|", s=120, zorder=3)
        arrow = {"lower": "←", "higher": "→", "": ""}[metric.better]
        axes.set_title(f"{label(metric)} {arrow}", fontsize=9)
        axes.set_yticks(list(heights), results.arms)
        axes.set_ylim(-0.6, len(results.arms) - 0.4)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    intervals = "each, their mean and its 95 % interval"
    figure.suptitle(f"{len(results.seeds)} seeds: {intervals}; arrows point to better", fontsize=9)
    figure.savefig(path)
