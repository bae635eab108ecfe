"""An evaluation of files of answers, in this process."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from rich.console import Console

from eval.config import EvalConfig, POPEConfig, ShapesBenchConfig
from eval.evaluation import run_evaluation
from eval.plan import plan_of
from rlhfv_ray.errors import DataError
from rlhfv_ray.inference.generate import write_answers
from rlhfv_ray.records import Answer
from rlhfv_ray.storage.stages import run_stages

QUESTIONS = [("1.jpg", "dog", "yes"), ("1.jpg", "cat", "no"), ("2.jpg", "bus", "yes")]


@pytest.fixture
def config(tmp_path) -> EvalConfig:
    """Two files of answers to three of POPE's questions; the second lacks one."""
    (tmp_path / "coco_pope_random.json").write_text(
        "".join(
            json.dumps(
                {
                    "question_id": number,
                    "image": image,
                    "text": f"Is there a {thing}?",
                    "label": is_,
                }
            )
            + "\n"
            for number, (image, thing, is_) in enumerate(QUESTIONS, 1)
        )
    )
    for name, count in (("whole", 3), ("short", 2)):
        rows = [
            {"question": f"Is there a {QUESTIONS[n][1]}?", "answer": "Yes"} for n in range(count)
        ]
        (tmp_path / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return EvalConfig(
        answers=(str(tmp_path / "whole.json"), str(tmp_path / "short.json")),
        benchmarks=("pope",),
        pope=POPEConfig(str(tmp_path)),
    )


def refuse(*_, **__) -> None:
    """Take the place of `ray.init`."""
    pytest.fail("Ray was started")


def test_answers_that_exist_are_scored_again_without_ray(tmp_path, empty_database, monkeypatch):
    """Catches: seconds of Ray's start to read scores again; answers that are not made since others
    of the same folder exist.
    """
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    config = EvalConfig(model=("shapes",), shapes=ShapesBenchConfig(scenes=2))
    evaluation = plan_of(config, tmp_path)
    (stage,) = evaluation.answers.values()
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(pytest.fail.Exception, match="Ray was started"):
        run_evaluation(config, tmp_path, console=Console(quiet=True))

    def answer(folder: Path, _: str) -> None:
        (benchmark,) = evaluation.benchmarks
        texts = [Answer(prompt.id, prompt.question, "Nothing.") for prompt in benchmark.prompts]
        write_answers(texts, folder)

    run_stages([*evaluation.drawn, replace(stage, run=answer)], tmp_path)
    outcome = run_evaluation(config, tmp_path, console=Console(quiet=True))
    assert outcome["shapes"]["models"]["shapes"]["n"] == 2


def test_files_of_answers_are_scored_without_ray(config, tmp_path, empty_database, monkeypatch):
    """Catches: seconds of Ray's start where there is nothing to run; a file that does not fit and
    leaves an empty run, which `latest` names.
    """
    monkeypatch.setattr(ray, "init", refuse)
    storage = tmp_path / "runs"
    storage.mkdir()
    shutil.copy(empty_database, storage / "mlflow.db")
    with pytest.raises(DataError, match=r"short\.json.*: it has no ids, the .* It has 2 rows"):
        run_evaluation(config, storage, console=Console(quiet=True))
    assert {path.name for path in storage.iterdir()} == {"mlflow.db"}
    (tmp_path / "short.json").write_text((tmp_path / "whole.json").read_text())
    outcome = run_evaluation(config, storage, console=Console(quiet=True))
    rates = outcome["pope"]["models"]["whole"]
    assert rates["accuracy"] == pytest.approx(2 / 3) and rates["n"] == 3
