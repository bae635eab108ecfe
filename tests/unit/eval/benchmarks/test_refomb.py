"""RefoMB: its files, the reading of its judge's reviews and its score, by hand."""

import json
from pathlib import Path

import pytest

from eval.benchmarks.refomb import RefoMB, read_points
from eval.config import RefoMBConfig
from eval.inputs.answer_files import read_answer_file
from tests.unit.eval.benchmarks.test_mmhal_bench import JUDGE, score

ROWS = [
    {
        "image_url": f"https://host/folder/image_{number // 2}.jpg",
        "question": f"Q{number}?",
        "description": f"Description {number}.",
        "type": ("OCR", "Creative generation")[number % 2],
        "id": number,
        "answer": f"Opponent {number}.",
    }
    for number in range(4)
]


def refomb(folder: Path, *, images: bool = False) -> RefoMB:
    (folder / "gpt4v.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    answers = [{**row, "answer": f"Ours {row['id']}."} for row in ROWS]
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, answers[::-1])))
    for number in range(2):
        (folder / f"image_{number}.jpg").write_bytes(str(number).encode())
    config = RefoMBConfig(str(folder / "gpt4v.jsonl"), str(folder) if images else "")
    return RefoMB(config, JUDGE, decoding={})


def test_scores_by_hand(tmp_path: Path) -> None:
    """Catches: a tie as a win, the opponent's wins counted, and an unread review as a loss."""
    benchmark = refomb(tmp_path)
    reviews = ["B is better: [[B]]", "[[C]]", "[[A]], not [[B]]", "Neither."]
    scores = score(benchmark, reviews)
    assert scores.rates() == {
        "score": 1.5 / 3,
        "win_rate": 1 / 3,
        "tie_rate": 1 / 3,
        "words": 2.0,
        "n": 4,
        "missing": 1,
    }
    assert scores.groups == ("OCR", "Creative generation")
    assert [item.cluster for item in scores.answers] == ["image_0.jpg"] * 2 + ["image_1.jpg"] * 2
    assert scores.answers[3].missing == "unparsed"


def test_the_judge_sees_description_and_both_answers(tmp_path: Path) -> None:
    """Catches: the answers changing places, another question's description."""
    benchmark = refomb(tmp_path, images=True)
    answers = read_answer_file(str(tmp_path / "answers.jsonl"), benchmark.prompts)
    text = benchmark.requests(answers)[1].text
    parts = ["Description 1.", "Q1?", "Opponent 1.", "Ours 1."]
    assert sorted(parts, key=text.index) == parts
    assert benchmark.prompts[2].image == b"1"
    assert "images" not in benchmark.manifest()


@pytest.mark.parametrize("review", ["", "[B]", "[[D]]", "[[b]]"])
def test_a_review_without_a_mark_has_no_points(review: str) -> None:
    """Catches: a verdict made up from a broken review."""
    assert read_points(review) is None
    assert not RefoMB.readable(review)
