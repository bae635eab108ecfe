"""Finished evaluations side by side: read their score files, compare them, and show them."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import tyro

from eval.benchmarks.contract import Scores, check_comparable
from eval.reporting.html import Heading, Section, write_page
from eval.reporting.score_files import holds_scores, load_scores
from eval.reporting.tables import BASE, draw, table
from eval.reporting.wording import Models, benchmark_of
from rlhfv_ray.console import new_console
from rlhfv_ray.errors import DataError
from rlhfv_ray.storage.folder import display_path, fetch_local
from rlhfv_ray.tracking.origin import page_origin


class ScoreFile(NamedTuple):
    """The scores of one model on one benchmark, and their file."""

    run: Path  # as given
    model: str
    scores: Scores

    @property
    def benchmark(self) -> str:
        """The benchmark's name."""
        return benchmark_of(self.scores)


def read_runs(runs: Sequence[Path]) -> dict[str, dict[str, Scores]]:
    """Read the scores of runs: by benchmark that all runs have, then by model.

    Raises:
        DataError: a run has no scores, or the runs have no benchmark in common.
    """
    files_by_run: list[list[ScoreFile]] = []
    for run in runs:
        paths = _score_paths(run)
        files_by_run.append([ScoreFile(run, path.stem, load_scores(path)) for path in paths])
    benchmarks = [list(dict.fromkeys(file.benchmark for file in files)) for files in files_by_run]
    common = [name for name in benchmarks[0] if all(name in names for names in benchmarks)]
    if not common:
        pairs = zip(runs, benchmarks, strict=True)
        have = "; ".join(f"{run}: {', '.join(names)}" for run, names in pairs)
        raise DataError(f"the runs have no benchmark in common. They have: {have}.")
    models: dict[str, dict[str, Scores]] = {}
    for name in common:
        same = [file for files in files_by_run for file in files if file.benchmark == name]
        models[name] = _by_model(same)
    return models


def _score_paths(run: Path) -> list[Path]:
    """Return a run's files of scores, by benchmark; the base's is the first of each."""
    if run.is_file():
        return [run]
    places = _places(run)

    def place(path: Path) -> tuple[str, int, str]:
        return path.parent.name, places.get(path.stem, len(places)), path.stem

    paths = sorted((path for path in run.glob("*/*.json") if holds_scores(path)), key=place)
    if not paths:
        raise DataError(
            f"{display_path(run)} has no scores: "
            "expected a folder with <benchmark>/<model>.json, or such a file."
        )
    return paths


def _places(run: Path) -> dict[str, int]:
    """Return the place of each model among those of its run, as its summary has them; the base's
    is 0.
    """
    try:
        written = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        by_benchmark = written.get("benchmarks", written)  # of an experiment, or of an evaluation
        first, *_ = by_benchmark.values()  # every benchmark has the same models
        names = list(first["models"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        names = []
    return {name: place for place, name in enumerate(names)} or {BASE: 0}


def _by_model(files: Sequence[ScoreFile]) -> dict[str, Scores]:
    """Return scores by the shortest names that distinguish the models."""
    for names in (
        [file.model for file in files],
        [f"{file.run.resolve().name}/{file.model}" for file in files],
        [f"{file.run}/{file.model}" for file in files],
    ):
        if len(set(names)) == len(names):
            models = dict(zip(names, (file.scores for file in files), strict=True))
            return with_base(models, BASE) if BASE in models else models
    raise DataError(f"the same scores are given twice: {', '.join(names)}")


def with_base(models: Models, base: str) -> dict[str, Scores]:
    """Return the models with the base first.

    Raises:
        DataError: there is no model of this name.
    """
    if base not in models:
        raise DataError(f"--base {base}: no such model; there are {', '.join(models)}.")
    return {base: models[base], **models}


def _check_alike(benchmark: str, models: Models) -> None:
    """Raise a DataError that names the first model that was measured otherwise than the base."""
    (base, scores), *others = models.items()
    for name, other in others:
        try:
            check_comparable(scores.manifest, other.manifest)
        except DataError as error:
            raise DataError(f"{benchmark}, {base} and {name}: {error}") from error


def report_runs(
    runs: tyro.conf.Positional[tuple[str, ...]],
    page: Path = Path("comparison.html"),
    base: str = "",
) -> None:
    """Print a table for every benchmark that the runs have in common, and write a page.

    Args:
        runs: Folders of evaluations, score files, or addresses of either.
        page: Path of the HTML page to write.
        base: Name of the model that all others are compared with. By default a model called base,
            else the base of the first run.
    """
    if not runs:
        raise DataError("name at least one run: the folder of an evaluation, or a score file.")
    console = new_console()
    benchmarks = read_runs([fetch_local(run) for run in runs])
    if base:
        benchmarks = {name: with_base(models, base) for name, models in benchmarks.items()}
    for benchmark, models in benchmarks.items():
        _check_alike(benchmark, models)
        console.print(table(models))
        if len(models) > 1:
            line = f"base of {benchmark}: {next(iter(models))} (--base NAME takes another)"
            console.print(line, highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder:
        sections = [
            Section(name, models, figures=draw(models, Path(folder) / str(index)))
            for index, (name, models) in enumerate(benchmarks.items())
        ]
        write_page(page, sections, heading=Heading("Comparison of models", page_origin()))
    console.print(f"page: {page}", highlight=False, soft_wrap=True)
