"""Scores of models side by side, as numbers and as tables; as a command, of evaluations that are done.

    python eval/report.py RUN RUN --page comparison.html

A RUN is the folder of an evaluation, with a file `<benchmark>/<model>.json` for each model's scores, or such a file itself. The first model by
name of the first run is the base, which all others are compared with, unless one is called base, or --base names another. Every benchmark
that the runs have in common is shown; scores that were measured differently are refused. Nothing is measured here: rates, intervals and
tests come from `eval.benchmark`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the script's folder comes first on the path, and its statistics.py is not Python's
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.benchmark import Comparison, Scores
from eval.figures import grouped_measure, groups_figure, rates_figure
from eval.findings import Models, benchmark_of, comparisons, findings, missing_reasons, notes, rows, title
from eval.page import Section, write_page
from eval.saved import holds_scores, load_scores
from rlhfv_ray.errors import DataError
from rlhfv_ray.remote import local, shown
from rlhfv_ray.terminal import run_command

BASE = "base"  # a model of this name comes first


def summary(models: Models) -> dict[str, Any]:
    """Give all scores, and the comparisons with the first model's, ready for JSON.

    Returns:
        `models`: by name, rates (fractions) with `n` and `missing`, `missing_reasons`, `intervals`, rates of `groups`, `beside`, `manifest`
        and `manifest_hash`. `comparisons`: of every further model with the first, by name.
    """
    found = {name: _comparison(comparison) for name, comparison in comparisons(models).items()}
    return {"models": {name: _scores(scores) for name, scores in models.items()}, "comparisons": found}


def _scores(scores: Scores) -> dict[str, Any]:
    return {
        **scores.rates(),
        "missing_reasons": missing_reasons(scores),
        "intervals": _listed(scores.intervals()),
        "groups": {group: scores.rates(group) for group in scores.groups},
        "beside": dict(scores.beside),
        "manifest": dict(scores.manifest),
        "manifest_hash": scores.manifest_hash,
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {**_listed(asdict(comparison)), "measure": comparison.measure.name}


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


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
    head, *body = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in (columns, *lines)]
    rule = "|".join(["", "---", "---", *["---:"] * (len(columns) - 2), ""])
    return "\n".join([head, rule, *body, "", *(f"* {sentence}" for sentence in _said(models)), ""])


def _columns(models: Models) -> list[str]:
    _, *further = models
    changes = ["change"] if len(further) == 1 else [f"change, {name}" for name in further]
    return ["measure (95 % interval)", "better", *models, *changes]


def _lines(models: Models) -> list[list[str]]:
    return [[row.label, row.measure.better, *map(str, row.cells), *row.changes] for row in rows(models)]


def _said(models: Models) -> list[str]:
    return [*findings(models, comparisons(models)), *notes(models)]


class Saved(NamedTuple):
    """One file of scores."""

    run: Path  # as given
    model: str
    scores: Scores


def read_runs(runs: Sequence[Path]) -> dict[str, dict[str, Scores]]:
    """Read the scores of runs: models by name, by benchmark, as far as all runs have it.

    Raises:
        DataError: a run has no scores, or the runs have no benchmark in common.
    """
    read = [(run, [Saved(run, path.stem, load_scores(path)) for path in _files(run)]) for run in runs]
    names = [list(dict.fromkeys(benchmark_of(one.scores) for one in saved)) for _, saved in read]
    common = [name for name in names[0] if all(name in other for other in names)]
    if not common:
        have = "; ".join(f"{run}: {', '.join(some)}" for run, some in zip(runs, names, strict=True))
        raise DataError(f"the runs have no benchmark in common. They have: {have}.")
    every = [one for _, saved in read for one in saved]
    return {name: _named([one for one in every if benchmark_of(one.scores) == name]) for name in common}


def _files(run: Path) -> list[Path]:
    if run.is_file():
        return [run]
    found = sorted(path for path in run.glob("*/*.json") if holds_scores(path))
    if not found:
        raise DataError(f"{shown(run)} has no scores: expected a folder with <benchmark>/<model>.json, or such a file.")
    return found


def _named(saved: Sequence[Saved]) -> dict[str, Scores]:
    """Models by the shortest names that tell them apart."""
    for names in (
        [one.model for one in saved],
        [f"{one.run.resolve().name}/{one.model}" for one in saved],
        [f"{one.run}/{one.model}" for one in saved],
    ):
        if len(set(names)) == len(names):
            models = dict(zip(names, (one.scores for one in saved), strict=True))
            return with_base(models, BASE) if BASE in models else models
    raise DataError(f"the same scores are given twice: {', '.join(names)}")


def with_base(models: Models, base: str) -> dict[str, Scores]:
    """Put the base first.

    Raises:
        DataError: there is no model of this name.
    """
    if base not in models:
        raise DataError(f"--base {base}: no such model; there are {', '.join(models)}.")
    return {base: models[base], **models}


def report_runs(
    runs: tyro.conf.Positional[tuple[str, ...]], page: Path = Path("comparison.html"), base: str = ""
) -> None:
    """Print a table for every benchmark that the runs have in common, and write a page.

    Args:
        runs: folders of evaluations, or files of scores, or their addresses.
        page: where the page is written.
        base: name of the model that all others are compared with.
    """
    if not runs:
        raise DataError("name one run at least: the folder of an evaluation, or a file of scores.")
    console = Console()
    found = read_runs([local(run) for run in runs])
    if base:
        found = {name: with_base(models, base) for name, models in found.items()}
    for models in found.values():
        console.print(table(models))
    with tempfile.TemporaryDirectory() as folder:
        sections = [
            Section(name, models, figures=draw(models, Path(folder) / str(place)))
            for place, (name, models) in enumerate(found.items())
        ]
        write_page(page, sections, title="Comparison of models")
    console.print(f"page: {page}", highlight=False, soft_wrap=True)


def draw(models: Models, folder: Path) -> dict[str, Path]:
    """Draw one benchmark's figures into a folder; returns them by caption."""
    folder.mkdir(parents=True, exist_ok=True)
    rates_figure(models, folder / "rates.png")
    figures = {"All rates": folder / "rates.png"}
    measure = grouped_measure(models)
    if measure is not None:
        groups_figure(models, folder / "groups.png")
        figures[f"{measure.name.replace('_', ' ').capitalize()} by group of questions"] = folder / "groups.png"
    return figures


def main() -> None:
    """Run the command line."""
    tyro.cli(report_runs, description=__doc__)


if __name__ == "__main__":
    sys.exit(run_command(main))
