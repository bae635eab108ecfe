"""An evaluation of files of answers, in this process."""

import json
import shutil

import pytest
import ray
from rich.console import Console

from eval.config import EvalConfig, POPEConfig
from eval.evaluation import run_evaluation
from rlhfv_ray.errors import DataError

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


def test_files_of_answers_are_scored_without_ray(config, tmp_path, empty_database, monkeypatch):
    """Catches: seconds of Ray's start where there is nothing to run; a file that does not fit and
    leaves an empty run, which `latest` names.
    """
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
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
