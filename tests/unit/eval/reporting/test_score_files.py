"""Scores written to a file and read back."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eval.benchmarks.contract import CHAIR, WORDS, JudgedAnswer, Ratio, Scores, Span
from eval.reporting.score_files import holds_scores, load_scores, save_scores
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Answer

SCORES = Scores(
    (*CHAIR, WORDS),
    (
        JudgedAnswer(
            Answer(
                "1", "What?", "a cat & „Hund“ \ud83d"
            ),  # half a character, as tokenizers produce them
            {"response_rate": Ratio(1, 1), "words": Ratio(0.1 + 0.2, 1)},
            spans=(Span(2, 5, "object"),),
            group="conv",
            verdict="line\nline",
            cluster="a.jpg",
        ),
        JudgedAnswer(Answer("2", "What?", ""), {}, missing="refused, unparsed"),
    ),
    {
        "benchmark": "pets",
        "judge": {"votes": 3, "temperature": 0.1},
        "images": ["a", "b"],
        "none": None,
    },
    {"release_compatible": {"unparsed": 1}},
)


def test_scores_come_back_exactly(tmp_path: Path) -> None:
    """Catches: tuples read back as lists, so that equal scores differ; a changed manifest hash."""
    path = tmp_path / "pets" / "base.json"
    save_scores(SCORES, path)
    loaded = load_scores(path)
    assert loaded == SCORES
    assert loaded.manifest_hash == SCORES.manifest_hash
    first = loaded.answers[0]
    assert type(first.spans[0]) is Span and type(first.ratios["words"]) is Ratio
    assert [path.name for path in path.parent.iterdir()] == [
        "base.json"
    ]  # nothing half-written is left


def test_files_without_clusters_are_read(tmp_path: Path) -> None:
    """Catches: scores of an earlier version that can no longer be compared."""
    path = tmp_path / "base.json"
    save_scores(SCORES, path)
    record = json.loads(path.read_text())
    for answer in record["answers"]:
        del answer["cluster"]
    path.write_text(json.dumps(record))
    assert [item.cluster for item in load_scores(path).answers] == ["", ""]


def test_values_that_json_would_change_are_not_written(tmp_path: Path) -> None:
    """Catches: scores whose manifest differs, once read back, from the one they were saved with."""
    for value in ((1, 2), {1: "a"}, {1, 2}, float("nan")):
        with pytest.raises(DataError, match="manifest of the scores"):
            save_scores(replace(SCORES, manifest={"value": value}), tmp_path / "x.json")
    with pytest.raises(DataError, match="extras of the scores"):
        save_scores(replace(SCORES, extras={"pair": (1, 2)}), tmp_path / "x.json")
    assert not list(tmp_path.iterdir())


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    """Catches: a traceback, or empty scores, from a file that is cut off or something else."""
    path = tmp_path / "base.json"
    with pytest.raises(DataError, match=r"base\.json"):
        load_scores(path)
    save_scores(SCORES, path)
    complete = path.read_text()
    assert holds_scores(path)
    for text in (
        "",
        "[]",
        '{"rating": 3}',
        "no JSON",
        complete[: len(complete) // 2],
        complete.replace('"metrics"', '"ms"'),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=r"base\.json"):
            load_scores(path)
    for text in ("", "[]", '{"rating": 3}'):
        path.write_text(text)
        assert not holds_scores(path)
    record = json.loads(complete)
    record["answers"][0]["ratios"] = {"response_rate": [1]}
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match="cannot be read|can be read"):
        load_scores(path)
