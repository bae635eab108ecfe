"""LLaVA Bench (in the wild): its files, its judge's prompt and its scores, by hand."""

import json
from pathlib import Path

from eval.benchmarks.llava_wild import LLaVAWild
from eval.config import JudgeConfig, LLaVAWildConfig
from eval.inputs.answer_files import read_answer_file
from tests.unit.eval.benchmarks.test_mmhal_bench import JUDGE, score

KINDS = ("conv", "detail", "complex")


def wild(folder: Path, judge: JudgeConfig = JUDGE) -> LLaVAWild:
    files = {
        "questions": [
            {"question_id": n, "image": "001.jpg", "text": f"Q{n}?", "category": kind}
            for n, kind in enumerate(KINDS)
        ],
        "references": [{"question_id": n, "text": f"Reference {n}."} for n in range(3)],
        "context": [{"id": 0, "image": "001.jpg", "caption": "Hawaii, seen from a plane."}],
        "answers": [
            {"question_id": n, "prompt": f"Q{n}?", "text": f"Answer {n}.", "answer_id": "x"}
            for n in range(3)
        ],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    names = ("questions", "references", "context")
    paths = {name: str(folder / f"{name}.jsonl") for name in names}
    return LLaVAWild(LLaVAWildConfig(**paths), judge, decoding={})


def test_scores_by_hand(tmp_path: Path) -> None:
    """Catches: COCO's benchmark under the name of the other one, and answers in another order."""
    benchmark = wild(tmp_path)
    answers = read_answer_file(str(tmp_path / "answers.jsonl"), benchmark.prompts)
    assert [answer.text for answer in answers] == ["Answer 0.", "Answer 1.", "Answer 2."]
    scores = score(benchmark, ["8 6\nWhy.", "10 5", "4 9"])
    assert scores.rates()["relative_score"] == 20 / 22
    assert scores.extras["release_compatible"] == {
        "conv": 75.0,
        "detail": 50.0,
        "complex": 225.0,
        "all": 90.9,
    }
    assert scores.manifest["benchmark"] == "llava_wild"
    assert scores.manifest["images"] == "not given"


def test_the_official_rules_have_names_of_their_own(tmp_path: Path) -> None:
    """Catches: the rules of COCO's benchmark, which tell the judge of boxes."""
    rules = {f"llava_bench_{kind}": {"role": "Assistant", "prompt": "W"} for kind in KINDS}
    rules |= {kind: {"role": "Assistant", "prompt": "C"} for kind in KINDS}
    (tmp_path / "rule.json").write_text(json.dumps(rules))
    benchmark = wild(tmp_path, JudgeConfig(model="judge", prompt=str(tmp_path / "rule.json")))
    answers = read_answer_file(str(tmp_path / "answers.jsonl"), benchmark.prompts)
    assert benchmark.requests(answers)[0].text == (
        "[Context]\nHawaii, seen from a plane.\n\n[Question]\nQ0?\n\n"
        "[Assistant 1]\nReference 0.\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nAnswer 0.\n\n[End of Assistant 2]\n\n[System]\nW\n\n"
    )
