"""The GPU benchmark runs at toy size, its peers compute the same, and its rows can be trusted."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks.cells import generation_cell, trl_cells
from benchmarks.gpu import TINY, peak_flops
from benchmarks.measure import (
    OtherLoad,
    Row,
    assert_gradients_close,
    judged,
    line,
    page,
    quartiles,
)
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
    # Our generation (f) is in a module that needs Ray: the test below runs it.
    assert {row["cell"][:2] for row in rows} == {"a ", "b ", "d ", "e ", "la", "MF", "sw"}
    assert len([row for row in rows if row["cell"].startswith("switch: ")]) == 5
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
        "c step, toy, TRL, the same stored reference",
    ]
    assert ["one epoch" in row.note for row in rows] == [True, True, False]
    after = list(setting.model.parameters())
    assert all(torch.equal(now, then) for now, then in zip(after, before, strict=True))


def test_generation_runs_our_code_and_gives_the_peers_texts():
    """Catches: a cell that measures `generate` instead of ours (its own check compares texts)."""
    setting = make_setting(TINY, pairs=2, device=torch.device("cpu"), dtype=torch.float32)
    row = generation_cell(setting, "toy", rounds=1, batch=3, new_tokens=4, goal=0.0)
    assert row.cell == "f generation, toy"


def test_quartiles_and_void_rows():
    """Catches: a ratio without its spread, a disturbed row that passes, a quiet one that is void.

    Five rounds with ratios 1 to 5: quartiles 2 and 4.
    """
    assert quartiles([5.0, 1.0, 4.0, 2.0, 3.0]) == (2.0, 4.0)
    assert quartiles([2.0]) == (None, None)
    quiet = judged(Row("a", 1.0, 2.0, 2.0, 1.5, passed=False, others=0.09))
    busy = judged(replace(quiet, others=0.11))
    assert (quiet.passed, quiet.is_void, busy.passed, busy.is_void) == (True, False, False, True)
    assert not judged(replace(quiet, ratio=1.4)).passed
    assert "VOID" in line(busy)
    assert "**void**" in page([busy])
    assert busy.as_dict()["void"] is True


def test_other_processes_are_seen_and_our_own_are_not():
    """Catches: our own work counted as a disturbance; a busy neighbour that nobody sees."""
    spin = "import time; end = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as neighbour:
        try:
            time.sleep(0.5)
            load = OtherLoad()
            time.sleep(1.5)
            disturbed = load.cores()
            used = sum(psutil.Process(neighbour.pid).cpu_times()[:2])
        finally:
            neighbour.kill()
    assert disturbed > 0.1 * min(1.0, used)
    load.own -= 1000  # as if this process had used so many seconds since
    assert load.cores() == 0


def test_the_gradients_of_all_parameters_are_compared():
    """Catches: a small parameter whose gradient is wrong, or missing on one side."""
    right = {"large": torch.ones(100), "small": torch.ones(2)}
    assert_gradients_close(right, dict(right), tolerance=1e-5, what="same")
    with pytest.raises(AssertionError, match="small differs"):
        wrong = {**right, "small": torch.tensor([1.0, -1.0])}
        assert_gradients_close(wrong, right, tolerance=1e-2, what="wrong")
    with pytest.raises(AssertionError, match="on one side alone"):
        assert_gradients_close({"large": right["large"]}, right, tolerance=1e-2, what="missing")


def test_peaks_by_name():
    """Catches: the share of a PCIe card's peak counted against that of another form."""
    assert peak_flops("NVIDIA H100 PCIe", None) == 756e12
    assert peak_flops("NVIDIA H100 80GB HBM3", None) == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", None) == 312e12
    assert peak_flops("a new card", 50.0) == 50e12
    with pytest.raises(SystemExit, match="by --peak"):
        peak_flops("a new card", None)
