"""HallusionBench on a few questions of our own, by the formulas of its script, by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks.contract import Scores
from eval.benchmarks.hallusion_bench import HallusionBench
from eval.config import HallusionBenchConfig
from eval.inputs.answer_files import read_answer_file
from rlhfv_ray.errors import DataError

# category, set, figure, question, visual_input, truth, answer
ROWS = [
    ("VD", "0", "0", "0", "1", "1", "Yes, it is."),
    ("VD", "0", "0", "1", "1", "0", "No."),
    ("VD", "0", "1", "0", "2", "0", "Yes."),  # wrong on the edited figure
    ("VD", "0", "1", "1", "2", "1", "The answer is yes"),
    ("VS", "0", "0", "0", "0", "1", "I cannot tell."),  # no figure: right
    ("VS", "0", "0", "1", "0", "0", "YES"),  # wrong
    ("VS", "0", "1", "0", "1", "1", "yes"),
    ("VS", "0", "1", "1", "1", "0", "Perhaps."),  # uncertain about a figure: wrong
]


def questions(folder: Path) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    rows = []
    for category, part, figure, number, visual, truth, _ in ROWS:
        path = f"./{category}/map/{part}_{figure}.png" if visual != "0" else None
        rows.append(
            {
                "category": category,
                "subcategory": "map",
                "set_id": part,
                "figure_id": figure,
                "question_id": number,
                "visual_input": visual,
                "question": f"Is it so, {number}?",
                "gt_answer": truth,
                "filename": path,
            }
        )
        if path:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(path.encode())
    (folder / "HallusionBench.json").write_text(json.dumps(rows))
    return rows


def bench(folder: Path, **settings: Any) -> HallusionBench:
    config = HallusionBenchConfig(str(folder / "HallusionBench.json"), **settings)
    return HallusionBench(config, decoding={})


def score(folder: Path, benchmark: HallusionBench, rows: list[dict[str, Any]]) -> Scores:
    path = folder / "HallusionBench_result.json"
    answered = [
        {**row, "model_prediction": texts[-1]} for row, texts in zip(rows, ROWS, strict=True)
    ]
    known = {prompt.id for prompt in benchmark.prompts}
    chosen = [row for row in answered if "_".join(_keys(row)) in known]
    path.write_text(json.dumps(chosen[::-1]))  # in any order
    return benchmark.score(read_answer_file(str(path), benchmark.prompts), {})


def _keys(row: dict[str, Any]) -> list[str]:
    names = ("category", "subcategory", "set_id", "figure_id", "question_id")
    return [row[name] for name in names]


def test_scores_by_hand(tmp_path: Path) -> None:
    """Catches: figures counted where there is none, pairs split by figure, uncertain as wrong."""
    scores = score(tmp_path, bench(tmp_path), questions(tmp_path))
    # Right: VD 1 1 0 1, VS 1 0 1 0. Pairs: VD question 0 no, 1 yes; VS 0 yes, 1 no.
    # Figures: VD 0 yes, VD 1 no, VS 1 no.
    assert scores.rates() == {
        "a_acc": 5 / 8,
        "q_acc": 2 / 4,
        "f_acc": 1 / 3,
        "uncertain_rate": 2 / 8,
        "words": 15 / 8,
        "n": 8,
        "missing": 0,
    }
    # Easy: VD questions of figure 0, both right; VS 0 right, 1 wrong. Hard: wrong, right.
    assert scores.extras == {"easy_acc": 3 / 4, "hard_acc": 1 / 2}
    assert scores.groups == ("VD", "VS")
    assert scores.rates("VD")["f_acc"] == 1 / 2
    assert {item.cluster for item in scores.answers} == {"VD_map_0", "VS_map_0"}


def test_questions_about_figures_alone(tmp_path: Path) -> None:
    """Catches: questions without a figure put to a model that needs one."""
    rows = questions(tmp_path)
    benchmark = bench(tmp_path, images=str(tmp_path), part="figures")
    assert benchmark.has_images and "images" not in benchmark.manifest()
    assert benchmark.prompts[0].image == b"./VD/map/0_0.png"
    assert score(tmp_path, benchmark, rows).rates()["a_acc"] == 4 / 6
    whole = bench(tmp_path, images=str(tmp_path))
    assert not whole.has_images and "images" not in whole.manifest()
    assert bench(tmp_path).manifest()["images"] == "not given"


def test_broken_questions_are_named(tmp_path: Path) -> None:
    """Catches: a truth of 2 taken for no, and one question counted twice."""
    rows = questions(tmp_path)
    path = tmp_path / "HallusionBench.json"
    path.write_text(json.dumps([*rows, rows[0]]))
    with pytest.raises(DataError, match="two rows have the same category"):
        bench(tmp_path).prompts  # noqa: B018
    path.write_text(json.dumps([{**rows[0], "gt_answer": "2"}]))
    with pytest.raises(DataError, match="VD_map_0_0_0: gt_answer '2'"):
        bench(tmp_path).prompts  # noqa: B018
