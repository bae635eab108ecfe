"""Finished evaluations side by side: read their score files, compare them, and show them."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import tyro
from rich.console import Console

from eval.benchmarks.contract import Scores
from eval.reporting.html import Section, write_page
from eval.reporting.score_files import holds_scores, load_scores
from eval.reporting.tables import BASE, draw, table
from eval.reporting.wording import Models, benchmark_of
from rlhfv_ray.errors import DataError
from rlhfv_ray.storage.folder import display_path, fetch_local


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
    read = [
        (run, [Saved(run, path.stem, load_scores(path)) for path in _files(run)]) for run in runs
    ]
    names = [list(dict.fromkeys(benchmark_of(one.scores) for one in saved)) for _, saved in read]
    common = [name for name in names[0] if all(name in other for other in names)]
    if not common:
        have = "; ".join(f"{run}: {', '.join(some)}" for run, some in zip(runs, names, strict=True))
        raise DataError(f"the runs have no benchmark in common. They have: {have}.")
    every = [one for _, saved in read for one in saved]
    return {
        name: _named([one for one in every if benchmark_of(one.scores) == name]) for name in common
    }


def _files(run: Path) -> list[Path]:
    if run.is_file():
        return [run]
    found = sorted(path for path in run.glob("*/*.json") if holds_scores(path))
    if not found:
        raise DataError(
            f"{display_path(run)} has no scores: expected a folder with <benchmark>/<model>.json, or such a file."
        )
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
    runs: tyro.conf.Positional[tuple[str, ...]],
    page: Path = Path("comparison.html"),
    base: str = "",
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
    found = read_runs([fetch_local(run) for run in runs])
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
