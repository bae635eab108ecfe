"""A sweep with three seeds, by its command: killed and resumed, and its best model trained again.

It trains seventeen models, so it is one for `make soak`.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhfv_ray.storage.files import file_digest
from tests.conftest import wait_for
from tests.ray.conftest import end_family
from tests.ray.test_experiment import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(3600)]
SEEDS, SCENES = 3, 40
COMMAND = [
    *(sys.executable, "experiments/sweep.py", "shapes-small", "--name", "seeded"),
    *("--space.beta", "0.1", "--space.gamma", "1", "5", "--space.seed", "0", "1", "2"),
    *("--ddpo.shapes.scenes", "60", "--ddpo.shapes.evaluation-scenes", str(SCENES)),
    *("--search.metric", "response_rate"),
    *("--rung-scenes", "20", "--ddpo.optim.steps", "6", "--ddpo.optim.learning-rate", "1e-4"),
]


def start(storage: Path) -> subprocess.Popen:
    command = [*COMMAND, "--ddpo.storage", str(storage)]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True)


def killed(storage: Path, pattern: str, count: int) -> None:
    """Start the sweep, and kill all its processes once some files are there."""
    driver = start(storage)
    trials = f"seeded-*/trials/*/{pattern}"
    wait_for(lambda: driver.poll() is not None or len(list(storage.glob(trials))) >= count, 500)
    assert driver.poll() is None
    end_family(driver)


def best_of(storage: Path) -> dict[str, Any]:
    (path,) = storage.glob("seeded-*/best.json")
    return json.loads(path.read_text())


def digest_of(model: str) -> str:
    return file_digest(Path(model) / "model.safetensors")


def test_a_seeded_sweep_is_the_same_after_kills_and_trains_again(tmp_path: Path) -> None:
    """Catches: a best setting whose models were deleted, a luckiest seed in the headline, another
    choice or other weights after a kill, a printed command that trains another model.
    """
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert start(undisturbed).wait(900) == 0
    killed(disturbed, "rung-0.json", 2)
    killed(disturbed, "rung-1.json", 1)
    assert start(disturbed).wait(900) == 0
    best, other = best_of(undisturbed), best_of(disturbed)
    for name in ("setting", "value", "rates", "base", "fresh", "sentence", "indistinct"):
        assert other[name] == best[name], name
    assert len(best["models"]) == SEEDS == best["value"]["seeds"]
    digests = {name: digest_of(model) for name, model in best["models"].items()}
    assert {name: digest_of(model) for name, model in other["models"].items()} == digests
    assert len(set(digests.values())) == SEEDS

    fresh = best["fresh"]
    low, high = fresh["metric"]["interval"]
    assert fresh["pictures"] == SCENES and low <= fresh["metric"]["mean"] <= high
    assert fresh["metric"]["base"] is not None and fresh["metric"]["change_interval"] is not None
    rates = [json.loads(path.read_text())["rates"] for path in rungs_of(undisturbed, best)]
    mean = 100 * sum(row["response_rate"] for row in rates) / SEEDS
    assert best["value"]["mean"] == pytest.approx(mean)

    words = shlex.split(best["retrain"])
    again = [
        sys.executable,
        "-m",
        "rlhfv_ray.entry",
        *words[1:],
        "--storage",
        str(tmp_path / "again"),
    ]
    subprocess.run(again, cwd=ROOT, check=True)
    (model,) = (tmp_path / "again").glob("train-*/model")
    assert digest_of(str(model)) == digest_of(best["model"])


def rungs_of(storage: Path, best: dict[str, Any]) -> list[Path]:
    """Return the records of the best setting's trials at the last rung."""
    return [
        path for name in best["models"] for path in storage.glob(f"seeded-*/trials/{name}/rung-1.*")
    ]
