"""Scores of models side by side, as JSON-ready summaries, tables and figures."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from eval.benchmarks.contract import Comparison, Scores
from eval.reporting.figures import grouped_measure, groups_figure, rates_figure
from eval.reporting.wording import (
    Models,
    comparisons,
    findings,
    missing_reasons,
    notes,
    table_rows,
    title,
)

BASE = "base"  # a model of this name comes first


def summary(models: Models) -> dict[str, Any]:
    """Give all scores, and the comparisons with the first model's, ready for JSON.

    Returns:
        `models`: by name, rates (fractions) with `n` and `missing`, `missing_reasons`, `intervals`, rates of `groups`, `extras`, `manifest`
        and `manifest_hash`. `comparisons`: of every further model with the first, by name.
    """
    found = {name: _comparison(comparison) for name, comparison in comparisons(models).items()}
    return {
        "models": {name: _scores(scores) for name, scores in models.items()},
        "comparisons": found,
    }


def _scores(scores: Scores) -> dict[str, Any]:
    return {
        **scores.rates(),
        "missing_reasons": missing_reasons(scores),
        "intervals": _listed(scores.intervals()),
        "groups": {group: scores.rates(group) for group in scores.groups},
        "extras": dict(scores.extras),
        "manifest": dict(scores.manifest),
        "manifest_hash": scores.manifest_hash,
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {**_listed(asdict(comparison)), "measure": comparison.metric.name}


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }


def table(models: Models) -> Table:
    """Lay the scores out for the terminal, what follows from them below."""
    caption = "\n".join(_said(models))
    shown = Table(title=Text(title(models)), caption=Text(caption), caption_justify="left")
    for place, column in enumerate(_columns(models)):
        shown.add_column(Text(column), justify="right" if place > 1 else "left")
    for line in _lines(models):
        shown.add_row(*map(Text, line))
    return shown


def markdown_table(models: Models) -> str:
    """Lay the scores out in Markdown, what follows from them below."""
    columns, lines = _columns(models), _lines(models)
    head, *body = [
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |"
        for line in (columns, *lines)
    ]
    rule = "|".join(["", "---", "---", *["---:"] * (len(columns) - 2), ""])
    return "\n".join([head, rule, *body, "", *(f"* {sentence}" for sentence in _said(models)), ""])


def _columns(models: Models) -> list[str]:
    _, *further = models
    changes = ["change"] if len(further) == 1 else [f"change, {name}" for name in further]
    return ["measure (95 % interval)", "better", *models, *changes]


def _lines(models: Models) -> list[list[str]]:
    return [
        [row.label, row.metric.better, *map(str, row.cells), *row.changes]
        for row in table_rows(models)
    ]


def _said(models: Models) -> list[str]:
    return [*findings(models, comparisons(models)), *notes(models)]


def draw(models: Models, folder: Path) -> dict[str, Path]:
    """Draw one benchmark's figures into a folder; returns them by caption."""
    folder.mkdir(parents=True, exist_ok=True)
    rates_figure(models, folder / "rates.png")
    figures = {"All rates": folder / "rates.png"}
    metric = grouped_measure(models)
    if metric is not None:
        groups_figure(models, folder / "groups.png")
        figures[f"{metric.name.replace('_', ' ').capitalize()} by group of questions"] = (
            folder / "groups.png"
        )
    return figures
