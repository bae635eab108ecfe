"""Scores of models side by side, as JSON-ready summaries, tables and figures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from eval.benchmarks.contract import Comparison, Scores
from eval.reporting.figures import grouped_metric, groups_figure, rates_figure, rates_of
from eval.reporting.wording import (
    Models,
    comparisons,
    humanize,
    missing_reasons,
    notes,
    result_sentences,
    table_rows,
    title,
)

BASE = "base"  # a model of this name comes first


def summary(models: Models) -> dict[str, Any]:
    """Return all scores, and the comparisons with the first model, ready for JSON.

    Returns:
        `models`: by name, rates (fractions) with `n` and `missing`, `missing_reasons`,
        `intervals`, rates of `groups`, `extras`, `manifest` and `manifest_hash`.
        `comparisons`: of every further model with the first, by name.
    """
    compared = comparisons(models)
    return {
        "models": {name: _scores(scores) for name, scores in models.items()},
        "comparisons": {name: _comparison(comparison) for name, comparison in compared.items()},
    }


def _scores(scores: Scores) -> dict[str, Any]:
    return {
        **scores.rates(),
        "missing_reasons": missing_reasons(scores),
        "intervals": _tuples_to_lists(scores.intervals()),
        "groups": {group: scores.rates(group) for group in scores.groups},
        "extras": dict(scores.extras),
        "manifest": dict(scores.manifest),
        "manifest_hash": scores.manifest_hash,
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {**_tuples_to_lists(asdict(comparison)), "measure": comparison.metric.name}


def _tuples_to_lists(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }


def table(models: Models) -> Table:
    """Return the scores as a table for the terminal, with result sentences and notes below."""
    caption = Text("\n".join(["", *_sentences(models), ""]))
    terminal_table = Table(
        title=Text(title(models)),
        caption=caption,
        caption_justify="left",
        box=SIMPLE_HEAD,  # two models fit 80 columns: with lines between columns they do not
        padding=0,
        show_edge=False,
    )
    for index, column in enumerate(_columns(models)):
        justify = "right" if index > 1 else "left"
        terminal_table.add_column(Text(column), justify=justify, overflow="fold")
    for texts in _row_texts(models):
        terminal_table.add_row(*map(Text, texts))
    return terminal_table


def markdown_table(models: Models) -> str:
    """Return the scores as a Markdown table, with result sentences and notes below."""
    columns = _columns(models)
    rule = "|".join(["", "---", "---", *["---:"] * (len(columns) - 2), ""])
    rows = [_markdown_row(texts) for texts in _row_texts(models)]
    sentences = [f"* {sentence}" for sentence in _sentences(models)]
    return "\n".join([_markdown_row(columns), rule, *rows, "", *sentences, ""])


def _markdown_row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', '&#124;') for text in texts)} |"


def _columns(models: Models) -> list[str]:
    _, *further = models
    changes = ["change"] if len(further) == 1 else [f"change, {name}" for name in further]
    return ["metric (95 % interval)", "better", *models, *changes]


def _row_texts(models: Models) -> list[list[str]]:
    return [
        [row.label, row.metric.better, *map(str, row.cells), *row.changes]
        for row in table_rows(models)
    ]


def _sentences(models: Models) -> list[str]:
    return [*result_sentences(comparisons(models)), *notes(models)]


def draw(models: Models, folder: Path) -> dict[str, Path]:
    """Draw one benchmark's figures into a folder; return their paths by caption."""
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Path] = {}
    if rates_of(next(iter(models.values())).metrics):
        rates_figure(models, folder / "rates.svg")
        figures["All rates"] = folder / "rates.svg"
    metric = grouped_metric(models)
    if metric is not None:
        groups_figure(models, folder / "groups.svg")
        caption = f"{humanize(metric.name).capitalize()} by group of questions"
        figures[caption] = folder / "groups.svg"
    return figures
