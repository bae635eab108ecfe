"""A small random Muffin in the release's layout goes the whole line, by the commands."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from rlhfv_ray.data import write_pairs
from rlhfv_ray.training.metrics_log import read_records
from tests.conftest import careless_pairs
from tests.families_muffin import write_release
from tests.ray.test_experiment import ROOT
from tests.unit.data.test_sft_formats import tsv

pytestmark = [pytest.mark.ray, pytest.mark.soak]
UPDATES = 30
LN_2 = 0.6931471805599453
# In the order in which the errors of a machine without GPUs ask for them.
ASKED_FOR = (
    *("--model.allow-pickle", "--scale.no-gpu", "--scale.workers", "2"),
    *("--scale.cpus", "0.5", "--scale.actors", "1"),
)
SHORT = (
    *("--model.dtype", "fp32", "--optim.steps", str(UPDATES), "--scale.checkpoint-every", "15"),
    *("--generation.max-new-tokens", "8", "--generation.beams", "1"),
)


def run(storage: Path, script: str, *flags: str) -> None:
    """Run a command into a storage folder."""
    words = [sys.executable, f"experiments/{script}", *flags, "--storage", str(storage)]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> str:
    return str(write_release(tmp_path_factory.mktemp("release") / "model", shards=6))


@pytest.mark.parametrize("stage", ["2", "3"])
def test_a_release_is_aligned_exported_and_scored(release, stage, tmp_path):
    """Catches: a stage of the line that a folder of the release cannot pass, on two workers."""
    write_pairs(careless_pairs(40), tmp_path / "pairs.parquet")
    data = ("--data.path", str(tmp_path / "pairs.parquet"), "--scale.zero-stage", stage)
    scored = ("--benchmarks", "shapes", "--shapes.evaluation-scenes", "12")
    rates = ("--optim.learning-rate", "1e-3", "--loss.normalize")
    first = ("ddpo.py", "released", "--model.path", release)
    run(tmp_path, *first, *data, *ASKED_FOR, *SHORT, *rates, *scored)
    (folder,) = tmp_path.glob("train-*")
    losses = [record["loss"] for record in read_records(folder)]
    assert len(losses) == UPDATES
    assert losses[0] == pytest.approx(LN_2, abs=1e-6)
    assert sum(losses[-5:]) / 5 < LN_2 - 0.01
    assert "model.query" in load_file(folder / "model" / "model.safetensors")
    (summary,) = tmp_path.glob("released-*/summary.json")
    assert "shapes" in json.dumps(json.loads(summary.read_text()))
    answers = [pq.read_table(part) for part in tmp_path.glob("answers-*/part-*.parquet")]
    assert sum(len(table) for table in answers) == 24  # of the base and of the aligned model


def test_the_release_is_fine_tuned_on_mixed_data(release, tmp_path):
    """Catches: a recipe of Muffin's fine-tuning that cannot run by its command."""
    chat = [{"from": "human", "value": "What is there?"}, {"from": "gpt", "value": "A red star."}]
    questions = {"question": "Which colour is the star?", "answer": "red"}
    for name, content in (("vqav2", questions), ("unimm", chat)):
        rows = [[*tsv(content)[:5], str(number), "a.jpg"] for number in range(9)]
        (tmp_path / f"{name}.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    mixed = (
        *("--data.path", str(tmp_path / "vqav2.tsv"), "--data.mix-weights", "3", "3"),
        *("--data.mixed-with", str(tmp_path / "unimm.tsv"), "--optim.batch", "8"),
    )
    rates = ("--optim.learning-rate", "1e-3")
    first = ("sft.py", "muffin_vqa", "--model.path", release)
    run(tmp_path, *first, *mixed, *ASKED_FOR, *SHORT, *rates)
    (folder,) = tmp_path.glob("train-*")
    losses = [record["loss"] for record in read_records(folder)]
    assert losses[-1] < losses[0] / 2
