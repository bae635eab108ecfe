"""LLaVA Bench: the reading of reviews and scores, against the release's scripts and by hand."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks.contract import compare
from eval.benchmarks.llava_bench import LLaVABench, relative_scores
from eval.benchmarks.mmhal_bench import MMHalBench
from eval.config import JudgeConfig, LLaVABenchConfig, MMHalBenchConfig
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import Answer
from tests.golden.check import KINDS, Comparison, compare_llava
from tests.unit.eval.benchmarks.test_mmhal_bench import JUDGE, QUESTIONS, picture, score

GOLDEN = json.loads((Path(__file__).parents[3] / "golden" / "judge.json").read_text())


def test_llava_bench_scores_are_the_releases() -> None:
    """Catches: ours and the reference swapped, means of ratios, unreadable pairs kept."""
    comparison = Comparison(KINDS["judge"].tolerance)
    compare_llava(GOLDEN["llava_bench"], comparison)
    assert comparison.failures == []
    reviews = GOLDEN["llava_bench"]["reviews"]
    scores = relative_scores([(row["category"], row["review"]) for row in reviews])
    assert scores["all"].n + scores["all"].unparsed == len(reviews)


def llava(
    folder: Path, judge: JudgeConfig = JUDGE, **lines: Sequence[dict[str, Any]]
) -> LLaVABench:
    kinds = ("conv", "detail", "complex")
    questions = [
        {"question_id": n, "image": "000000000042.jpg", "text": f"Q{n}?", "category": kind}
        for n, kind in enumerate(kinds)
    ]
    files = {
        "questions": questions,
        "references": [{"question_id": n, "text": f"Reference {n}."} for n in (2, 0, 1)],
        "context": [
            {
                "id": "000000000042",
                "captions": ["A dog."],
                "instances": [{"category": "dog", "bbox": [0, 0, 1, 1]}],
            }
        ],
        **lines,
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "COCO_val2014_000000000042.jpg").write_bytes(picture())
    paths = {name: str(folder / f"{name}.jsonl") for name in files}
    return LLaVABench(LLaVABenchConfig(**paths, images=str(folder)), judge, decoding={})


def test_llava_bench_by_hand(tmp_path: Path) -> None:
    """8:6, 10:5 and a review without scores: 11 / 18 over all, 6 / 8 in conv."""
    benchmark = llava(tmp_path)
    scores = score(benchmark, ["8 6\nFine.", "10 5", "Both are good."])
    assert tuple(scores.sums()["relative_score"]) == (11, 18)
    assert (
        scores.rates("conv")["relative_score"] == 0.75 and scores.rates("complex")["missing"] == 1
    )
    assert scores.extras["release_compatible"] == {"conv": 75.0, "detail": 50.0, "all": 61.1}
    text = benchmark.requests([Answer(p.id, p.question, "Ours.") for p in benchmark.prompts])[
        1
    ].text
    for passage in ("A dog.", "dog: [0, 0, 1, 1]", "Q1?", "Reference 1.", "Ours."):
        assert passage in text
    swapped = score(llava(tmp_path), ["6 8", "5 10", "Both are good."])
    assert compare(scores, swapped).p_value is None  # a score is no right or wrong
    assert compare(scores, swapped).change == pytest.approx(18 / 11 - 11 / 18)


def test_release_scores_are_of_rounded_means() -> None:
    """Catches: `release_compatible` of exact means.

    23 reviews with means 112 / 23 = 4.8696 and 133 / 23 = 5.7826: 118.75 is 118.8, and the release
    prints 5.783 / 4.870 * 100 = 118.7.
    """
    reviews = [("detail", "4 5")] * 3 + [("detail", "5 6")] * 18 + [("detail", "5 5")] * 2
    scores = relative_scores(reviews)["detail"]
    assert (23 * scores.reference, 23 * scores.ours) == pytest.approx((112, 133))
    assert round(scores.score, 1) == 118.8 and scores.release_score == 118.7


def test_llava_bench_takes_the_official_rules(tmp_path: Path) -> None:
    rules = {
        kind: {"role": "Assistant", "prompt": f"Rules for {kind}."}
        for kind in ("conv", "detail", "complex")
    }
    (tmp_path / "rule.json").write_text(json.dumps(rules))
    benchmark = llava(tmp_path, replace(JUDGE, prompt=str(tmp_path / "rule.json")))
    answers = [Answer(p.id, p.question, "{reference}") for p in benchmark.prompts]
    assert benchmark.requests(answers)[1].text == (
        "[Context]\nA dog.\n\ndog: [0, 0, 1, 1]\n\n[Question]\nQ1?\n\n"
        "[Assistant 1]\nReference 1.\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\n{reference}\n\n[End of Assistant 2]\n\n[System]\nRules for detail.\n\n"
    )
    system, _ = benchmark.requests(answers)[1].messages()
    assert system["role"] == "system" and system["content"].startswith("You are a helpful and")
    ours, _ = llava(tmp_path).requests(answers)[1].messages()
    assert ours["content"].startswith("You check the quality")
    (tmp_path / "rule.json").write_text('{"conv": {}}')
    with pytest.raises(ConfigError, match="no rule file"):
        _ = llava(tmp_path, replace(JUDGE, prompt=str(tmp_path / "rule.json"))).judge_prompts


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            {"references": [{"question_id": n, "text": "R"} for n in (0, 1)]},
            "question_id 2 is in only one of them",
        ),
        (
            {"references": [{"question_id": n, "text": "R"} for n in (0, 1, 1, 2)]},
            "two rows have question_id 1",
        ),
        (
            {"context": [{"id": "7", "captions": [], "instances": []}]},
            "has no row for image '000000000042.jpg'",
        ),
        (
            {"questions": [{"question_id": 0, "image": "a", "text": "?", "category": "poem"}]},
            "category 'poem'; known",
        ),
    ],
)
def test_llava_files_that_do_not_fit_are_refused(lines: Any, message: str, tmp_path: Path) -> None:
    """Catches: lists of unequal length cut silently, as the release does."""
    with pytest.raises(DataError, match=message):
        llava(tmp_path, **lines)


def test_the_public_question_files_are_read() -> None:
    """Catches: a loader that fits the tests' files alone."""
    data = QUESTIONS.parent
    if not data.exists():
        pytest.skip("the benchmarks' question files are not at hand")
    assert len(MMHalBench(MMHalBenchConfig(str(QUESTIONS)), JUDGE, decoding={}).rows) == 96
    files = {
        "questions": "qa90_questions",
        "references": "qa90_gpt4_answer",
        "context": "caps_boxes_coco2014_val_80",
    }
    config = LLaVABenchConfig(**{name: str(data / f"{file}.jsonl") for name, file in files.items()})
    rules = replace(JUDGE, prompt=str(data / "llava_bench_rule.json"))
    benchmark = LLaVABench(config, rules, decoding={})
    assert len(benchmark.rows) == 90 and list(benchmark.judge_prompts) == [
        "conv",
        "detail",
        "complex",
    ]
