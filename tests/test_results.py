"""Figures that the documents quote are those of the committed results (docs/results/)."""

import json
from pathlib import Path
from typing import Any

import pytest
import tyro

from benchmarks import results
from eval.benchmarks.contract import Metric
from experiments.runners.study_report import row_texts
from experiments.runners.study_results import StudyResults

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
STUDIES = [file.stem for file in sorted(RESULTS.glob("*.json")) if not file.stem.startswith("demo")]
TABLE = (
    "response_rate",
    "mention_rate",
    "object_recall",
    "wrong_attributes",
    "wrong_numbers",
    "wrong_positions",
)
SEEDS = (0, 1, 2)


def text_of(page: str) -> str:
    """Return a page's text, without its line ends."""
    return " ".join((ROOT / page).read_text().split())


@pytest.fixture(scope="module")
def demo() -> dict[str, Any]:
    return json.loads((RESULTS / "demo.json").read_text())


def per_cent(value: float) -> str:
    return f"{100 * value:.1f}"


def cell(scores: dict[str, Any], name: str) -> str:
    low, high = scores["intervals"][name]
    return f"{per_cent(scores[name])} ({per_cent(low)} to {per_cent(high)})"


def test_without_arguments_the_demo_is_measured(tmp_path, monkeypatch):
    """Catches: the command of the README that ends at its own default."""
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(results, "demo", lambda storage, recipe: [str(storage), recipe])
    tyro.cli(results.main, args=[])
    storage, recipe = json.loads((tmp_path / "results" / "demo.json").read_text())
    assert storage.endswith("runs/results") and recipe == "shapes"
    tyro.cli(results.main, args=["demo", "--recipe", "shapes_balanced"])
    storage, recipe = json.loads((tmp_path / "results" / "demo-balanced.json").read_text())
    assert storage.endswith("runs/results/balanced") and recipe == "shapes_balanced"
    with pytest.raises(SystemExit):
        tyro.cli(results.main, args=["no_study"])


@pytest.mark.parametrize("name", TABLE)
def test_readme_table_is_the_demos(name, demo):
    """Catches: a table of an earlier version, which `make demo` no longer shows."""
    base, aligned = demo["gamma-5-seed-0"]["base"], demo["gamma-5-seed-0"]["aligned"]
    change = f"{100 * (aligned[name] - base[name]):+.1f}"
    row = f"| {cell(base, name)} | {cell(aligned, name)} | {change} |"
    assert row in text_of("README.md")


def test_readme_sentences_are_the_demos(demo):
    """Catches: a rate in a sentence that no result has."""
    readme = text_of("README.md")
    first = demo["gamma-5-seed-0"]
    base, aligned = first["base"], first["aligned"]
    assert f"from {base['words']:.1f} to {aligned['words']:.1f} words" in readme
    low, high = map(per_cent, first["comparison"]["relative_reduction_interval"])
    reduction = per_cent(first["comparison"]["relative_reduction"])
    assert f"falls by {reduction} % of its value ({low} to {high}; exact McNemar" in readme
    assert first["comparison"]["p_value"] < 0.001
    others = [per_cent(demo[f"gamma-5-seed-{seed}"]["aligned"]["response_rate"]) for seed in (1, 2)]
    assert f"Two more random seeds give {others[0]} and {others[1]} % of answers" in readme


def test_readme_says_of_gamma_1_what_all_seeds_show(demo):
    """Catches: a comparison of DDPO and DPO that one lucky seed supports."""
    readme = text_of("README.md")
    plain = [demo[f"gamma-1-seed-{seed}"]["aligned"] for seed in SEEDS]
    dense = [demo[f"gamma-5-seed-{seed}"]["aligned"] for seed in SEEDS]
    rates = [per_cent(scores["response_rate"]) for scores in plain]
    assert f"({rates[0]}, {rates[1]} and {rates[2]} % of answers)" in readme
    assert all(
        one["object_recall"] < five["object_recall"] for one, five in zip(plain, dense, strict=True)
    )
    times = [mistakes(one) / mistakes(five) for one, five in zip(plain, dense, strict=True)]
    assert f"{min(times):.1f} to {max(times):.1f} times as many mistakes of number" in readme


def mistakes(scores: dict[str, Any]) -> float:
    return scores["wrong_numbers"] + scores["wrong_positions"]


@pytest.mark.parametrize("name", STUDIES)
def test_tables_of_studies_are_those_of_their_results(name):
    """Catches: a table in docs/studies.md that was not measured, or not with this code."""
    result = json.loads((RESULTS / f"{name}.json").read_text())
    metrics = tuple(Metric(**metric) for metric in result["metrics"])
    values = {
        (arm, metric): tuple(mean["values"])
        for arm, means in result["arms"].items()
        for metric, mean in means.items()
    }
    errors = {
        (arm, metric): mean["scene_error"]
        for arm, means in result["arms"].items()
        for metric, mean in means.items()
    }
    arms, seeds = tuple(result["arms"]), tuple(result["seeds"])
    study = StudyResults(arms, seeds, metrics, values, errors=errors)
    page = text_of("docs/studies.md")
    for texts in row_texts(study):
        assert f"| {' | '.join(texts)} |" in page
