"""The report as numbers and tables, and its command line in a process of its own."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from eval.benchmarks.contract import Metric, Ratio, Scores
from eval.reporting.comparison import read_runs
from eval.reporting.score_files import save_scores
from eval.reporting.tables import markdown_table, summary, table
from rlhfv_ray.errors import DataError
from rlhfv_ray.storage.files import write_json
from tests.hand_scores import aligned, base, judged, models, pets, rated

ROOT = Path(__file__).parents[3]


def test_summary_is_json_with_fractions() -> None:
    report = summary(models())
    # A tuple would come back as a list.
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report) == ["models", "comparisons"]
    # 6 of 10 answers; 6 of 16 mentions; 1 of 2 true objects; 1 attribute wrong in 10 phrases
    expected = {
        "response_rate": 0.6,
        "response_rate_all": 0.6,
        "mention_rate": 6 / 16,
        "object_recall": 0.5,
    }
    details = {"wrong_attributes": 0.1, "words": 6.0, "n": 10, "missing": 0}
    scores = report["models"]["base"]
    assert {name: scores[name] for name in (*expected, *details)} == expected | details
    assert scores["manifest"] == {"benchmark": "pets"}
    assert scores["manifest_hash"] == base().manifest_hash
    assert scores["groups"] == scores["extras"] == scores["missing_reasons"] == {}
    low, high = scores["intervals"]["response_rate"]
    assert low < 0.6 < high
    (compared,) = report["comparisons"].values()
    assert compared["measure"] == "response_rate" and compared["n"] == 10
    assert compared["relative_reduction"] == pytest.approx(1 - 4 / 6)
    assert compared["recall_change_interval"] == [0.0, 0.0]
    # 3 answers got better, 1 worse: 2 * (1 + 4) / 2^4
    assert compared["p_value"] == pytest.approx(0.625)


def test_summary_has_groups_and_missing_verdicts() -> None:
    report = summary({"only": rated([0, 6, "refused", 6])})
    assert report["comparisons"] == {}
    scores = report["models"]["only"]
    assert scores["groups"]["counting"] == {
        **{"hallucination_rate": 1.0, "average_score": 0.0, "words": 2.0},
        **{"n": 2, "missing": 1},
    }
    assert scores["groups"]["other"]["hallucination_rate"] == 0
    assert (scores["missing"], scores["missing_reasons"]) == (1, {"refused": 1})
    assert scores["extras"]["release_compatible"] == {"average_score": 2.25, "unparsed": 1}


def test_markdown_table() -> None:
    head, rule, *lines = markdown_table(models()).splitlines()
    assert {line.count("|") for line in (head, rule, *lines[:6])} == {6}
    # Wilson for 6 of 10 and 4 of 10, z = 1.96
    assert (
        lines[0]
        == "| response rate / % | lower | 60.0 (31.3 to 83.2) | 40.0 (16.8 to 68.7) | -20.0 |"
    )
    assert (
        lines[3]
        == "| object recall / % | higher | 50.0 (29.9 to 70.1) | 50.0 (29.9 to 70.1) | +0.0 |"
    )
    assert lines[5] == "| words |  | 6.00 (6.00 to 6.00) | 6.00 (6.00 to 6.00) | +0.00 |"
    assert "not resolved at n = 10" in lines[7]


def test_tables_have_a_change_for_every_further_model() -> None:
    """Catches: a comparison with the wrong model; an empty column where one model stands alone."""
    head, _, first, *_ = markdown_table({"a|b": base()}).splitlines()
    assert head == "| metric (95 % interval) | better | a&#124;b |"
    assert first == "| response rate / % | lower | 60.0 (31.3 to 83.2) |"
    head, _, first, *_ = markdown_table({**models(), "third": aligned()}).splitlines()
    assert head.endswith("| base | aligned | third | change, aligned | change, third |")
    assert first.endswith("| -20.0 | -20.0 |")


def test_different_manifests_are_refused() -> None:
    for lay_out in (summary, table, markdown_table):
        with pytest.raises(DataError, match="'pets' against 'cars'"):
            lay_out({"base": base(), "other": replace(base(), manifest={"benchmark": "cars"})})


def shown(scores: dict[str, Scores]) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(scores))
    return " ".join(console.export_text().split())


def test_terminal_table_shows_the_same() -> None:
    text = shown(models())
    for part in ("60.0 (31.3 to 83.2)", "n = 10 answers each", "not resolved at n = 10"):
        assert part in text
    text = shown({"[red]one[/red]": rated([1, "refused", 5])})
    assert "[red]one[/red]" in text and "1 of 3 answers without a verdict: refused 1" in text


def test_two_models_fit_80_columns() -> None:
    """Catches: rows that break, with the longest name and interval that the shapes world has."""
    name = "response_rate_all"
    answers = tuple(replace(judged(0), ratios={name: Ratio(1, 1)}) for _ in range(50))
    scores = Scores((Metric(name, "higher"),), answers, {"benchmark": "shapes"})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table({"base": scores, "aligned": scores}))
    row = r"response rate all / % +higher +(100\.0 \(92\.\d to 100\.0\) +){2}\+0\.0 *\n"
    assert re.search(row, console.export_text())


def test_a_rate_of_nothing_is_no_zero() -> None:
    silent = pets([replace(judged(0), ratios={})])
    lines = markdown_table({"base": silent, "aligned": silent}).splitlines()
    assert lines[2] == "| response rate / % | lower | none counted | none counted |  |"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as an evaluation leaves it, other files beside the scores."""
    folder = tmp_path / "one"
    save_scores(base(), folder / "pets" / "base.json")
    save_scores(aligned(), folder / "pets" / "aligned.json")
    save_scores(rated([1, 5]), folder / "mmhal_bench" / "base.json")
    (folder / "pets" / "base.ledger.json").write_text('{"requests": 3}')
    (folder / "summary.json").write_text("{}")
    return folder


def test_runs_are_read_with_the_base_first(run: Path) -> None:
    benchmarks = read_runs([run])
    assert {name: list(by_model) for name, by_model in benchmarks.items()} == {
        "mmhal_bench": ["base"],
        "pets": ["base", "aligned"],
    }
    assert benchmarks["pets"]["aligned"] == aligned()


def test_models_of_several_runs_are_told_apart(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "two" / "pets" / "base.json"
    save_scores(aligned(), other)
    benchmarks = read_runs([run, tmp_path / "two"])
    assert list(benchmarks) == ["pets"]  # both runs have it
    assert list(benchmarks["pets"]) == ["one/base", "one/aligned", "two/base"]
    assert list(read_runs([run / "pets" / "aligned.json", other])["pets"]) == ["base", "aligned"]
    with pytest.raises(DataError, match="given twice"):
        read_runs([other, other])


def test_a_run_keeps_its_own_base(tmp_path: Path) -> None:
    """Catches: an evaluation whose differences turn round, because another model comes first by
    name.
    """
    models = {"tuned": base(), "second": aligned()}
    for name, scores in models.items():
        save_scores(scores, tmp_path / "pets" / f"{name}.json")
    write_json(tmp_path / "summary.json", {"pets": summary(models)})
    assert list(read_runs([tmp_path])["pets"]) == ["tuned", "second"]
    write_json(tmp_path / "summary.json", {"n": 3, "benchmarks": {"pets": summary(models)}})
    assert list(read_runs([tmp_path])["pets"]) == ["tuned", "second"]


def test_runs_without_scores_or_a_common_benchmark_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two has no scores"):
        read_runs([run, tmp_path / "two"])
    save_scores(rated([1], benchmark="pope"), tmp_path / "two" / "pope" / "base.json")
    with pytest.raises(DataError, match=r"one: mmhal_bench, pets; .*two: pope\."):
        read_runs([run, tmp_path / "two"])


def command(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    words: Sequence[str] = [sys.executable, str(ROOT / "eval" / "report.py"), *map(str, arguments)]
    return subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_command_prints_tables_and_writes_a_page(run: Path, tmp_path: Path) -> None:
    """Catches: a module of eval that hides one of the standard library when run as a script."""
    done = command(run, run / "pets" / "base.json", "--base", "aligned", cwd=tmp_path)
    assert done.returncode == 2 and "--base aligned: no such model; there are one/" in done.stderr
    done = command(run, "--base", "base", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "pets: base and aligned" in done.stdout
        and "mmhal_bench: base, n = 2 answers" in done.stdout
    )
    assert "Wilson" in (tmp_path / "comparison.html").read_text()


@pytest.mark.slow
def test_command_refuses_scores_that_were_measured_differently(run: Path, tmp_path: Path) -> None:
    other = replace(base(), manifest={"benchmark": "pets", "decoding": "beams"})
    save_scores(other, tmp_path / "two" / "pets" / "beams.json")
    done = command(run, tmp_path / "two", "--page", "page.html", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "decoding: None against 'beams'" in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "page.html").exists()
