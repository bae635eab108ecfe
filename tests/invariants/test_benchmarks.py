"""The GPU benchmark runs completely at toy size, and its peer TRL computes the same loss."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.cells import trl_cells
from benchmarks.gpu import TINY
from benchmarks.settings import make_setting

ROOT = Path(__file__).parents[2]
BLOCKED = ("ray", "deepspeed", "mlflow", "datasets", "trl")


def test_gpu_benchmark_runs_at_toy_size_and_its_sides_agree(tmp_path):
    """Catches: cells that fail, or that compare different results (their own check raises).

    Also catches: a page without the cells, and a GPU machine that needs Ray.
    """
    outputs = ["--json", str(tmp_path / "rows.json"), "--page", str(tmp_path / "page.md")]
    command = ["benchmarks/gpu.py", "--tiny", *outputs]
    code = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({BLOCKED!r}))  # None makes import and find_spec fail
sys.argv = {command!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["cell"][:2] for row in rows} == {"a ", "b ", "d ", "e ", "f ", "la", "MF"}
    assert any("LoRA" in row["cell"] for row in rows)
    text = (tmp_path / "page.md").read_text()
    assert all({"cell", "ours", "peer", "ratio", "goal", "passed"} <= row.keys() for row in rows)
    assert all(row["cell"] in text for row in rows)


def test_trl_computes_the_same_loss_and_gradient_at_gamma_1():
    """Catches: a peer on another batch or with other weights (the cells' own check raises).

    Also catches: a copy of the model that shares weights with ours.
    """
    setting = make_setting(TINY, pairs=2, device=torch.device("cpu"), dtype=torch.float32)
    before = [weight.clone() for weight in setting.model.parameters()]
    rows = trl_cells(setting, "toy", rounds=1)
    assert [row.cell for row in rows] == [
        "c step, toy, TRL, equal checkpointing",
        "c step, toy, TRL, its defaults",
    ]
    after = list(setting.model.parameters())
    assert all(torch.equal(now, then) for now, then in zip(after, before, strict=True))
