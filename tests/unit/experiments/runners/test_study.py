"""The end of a study, from the folders of its finished trainings."""

import json
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from eval.benchmarks.contract import RESPONSE_RATE, JudgedAnswer, Ratio, Scores
from eval.reporting.score_files import save_scores
from experiments.recipes import shapes
from experiments.runners.config import StudyConfig
from experiments.runners.contrasts import Claim
from experiments.runners.controls import with_controls
from experiments.runners.study import conclude, forecast, identity_of
from experiments.runners.study_arms import Arm, Study, plain_dpo
from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.records import Answer
from rlhfv_ray.storage.files import write_json

SCENES = 100
HITS = {"base": 30, "DPO": 10, "DPO, permuted": 25}
STUDY = with_controls(
    Study("So it is.", (Arm("base"), Arm("DPO", plain_dpo)), Claim("DPO", "base")), ("permuted",)
)


def scored(hits: int) -> Scores:
    """Return the scores of answers of which the first ones hallucinate."""
    ratios = [{"response_rate": Ratio(int(n < hits), 1)} for n in range(SCENES)]
    answers = [JudgedAnswer(Answer(str(n), "?", "a."), ratio) for n, ratio in enumerate(ratios)]
    return Scores((RESPONSE_RATE,), tuple(answers), {"prompts": "all"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a study's folder with the trainings of every arm under three seeds."""
    folder = tmp_path / "study-0123456789ab"
    for arm, hits in HITS.items():
        for seed in range(3):
            trial = folder / "trials" / f"{arm}-{seed}"
            scores = scored(hits + seed)
            save_scores(scores, trial / "scores" / "shapes" / "model.json")
            write_json(trial / "scores" / "shapes" / "ledger.json", {"calls": 0})  # of a judge
            rows = [metric._asdict() for metric in scores.metrics]
            write_json(trial / "params.json", {"arm": arm, "seed": seed})
            write_json(
                trial / "rung-000001.json",
                {"step": 1, "rates": scores.rates(), "metrics": rows},
            )
            write_json(trial / "outcome.json", {"status": "finished", "seconds": 1.0})
    return folder


def test_a_study_ends_with_its_contrasts_and_controls(folder):
    """Catches: scores that stay unread, so that scenes do not widen an interval; a control without
    its sentence.

    All differences over seeds are equal, so only the scenes make them uncertain. 20 of 100 answers
    differ between DPO and base: 1.96 * sqrt(0.2 * 0.8 / 100) = 0.078.
    """
    console = Console(file=StringIO(), width=200)
    outcome = conclude(STUDY, folder, ("permuted",), console=console)
    assert json.loads((folder / "study.json").read_text())["sentences"] == outcome["sentences"]
    first, control, kept = outcome["sentences"]
    assert first.startswith("So it is. The data support it: response rate 11.0 % with DPO, 31.0 %")
    assert "26.0 % with DPO, permuted" in control and control.endswith(": better.")
    assert kept == "DPO, permuted keeps 25 % of the gain in response rate."
    low, high = outcome["contrasts"][0]["interval"]
    assert (low, high) == (pytest.approx(-0.278, abs=0.01), pytest.approx(-0.122, abs=0.01))
    assert (folder / "table.md").exists() and (folder / "study.png").exists()


def test_a_dry_run_counts_what_will_be_trained(folder):
    """Catches: a forecast that counts the base model as trained, or what failed as finished."""
    write_json(folder / "trials" / "DPO-1" / "outcome.json", {"status": "failed", "error": "x"})
    config = StudyConfig(ddpo=shapes())
    assert identity_of(config, STUDY, folder.parent) == identity_of(
        replace(config, dry_run=True), STUDY, folder.parent
    )
    first, trained, untrained, *_, done = forecast(config, STUDY, folder, concurrent=2)
    steps = config.ddpo.optim.steps
    assert first.startswith(f"2 arms x 3 seeds: 6 trainings, 2 at a time, of {steps} updates")
    assert trained == "trained: DPO; DPO, permuted" and untrained.endswith(": base")
    assert done == "finished so far: 8 of 9 scored models"


def test_a_study_with_an_open_training_does_not_conclude(folder):
    """Catches: a table in which a failed training is left out."""
    outcome = folder / "trials" / "DPO-1" / "outcome.json"
    write_json(outcome, {"status": "failed", "error": "no memory"})
    with pytest.raises(StageFailedError, match="no memory"):
        conclude(STUDY, folder, (), console=Console(file=StringIO()))


def test_a_study_is_named_by_the_content_of_its_base_models(small_model, tmp_path):
    """Catches: a study that finds its trainings finished after a base model was replaced in its
    folder; one that runs again because a folder was moved.
    """
    bases = [tmp_path / name for name in ("first", "second", "moved")]
    for base in bases:
        shutil.copytree(small_model, base)

    def identity(*paths: Path) -> dict[str, Any]:
        config = StudyConfig(ddpo=shapes(), seeds=(0, 1), bases=tuple(map(str, paths)))
        return identity_of(config, STUDY, tmp_path)

    before = identity(*bases[:2])
    assert identity(bases[0], bases[2]) == before
    weights = load_file(bases[1] / "model.safetensors")
    save_file(
        {name: weight + 1 for name, weight in weights.items()}, bases[1] / "model.safetensors"
    )
    after = identity(*bases[:2])
    assert after["references"][0] == before["references"][0]
    assert after["references"][1] != before["references"][1]
