"""Scoring and reporting of many answers: its cost, at a twentieth of the size of the script's."""

from pathlib import Path

from benchmarks.scoring import score_and_report


def test_a_report_pays_for_its_intervals_once(tmp_path: Path) -> None:
    """Catches: a bootstrap item by item, or one for each of table, page and figure.

    100,000 answers of each model take 19 s of process time, and 5,000 take one.
    """
    times = score_and_report(tmp_path, 5_000)
    assert (tmp_path / "report.html").exists()
    assert times["table"] < times["summary"] / 2
    assert sum(times.values()) < 12
