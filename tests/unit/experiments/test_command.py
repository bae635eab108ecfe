"""The console command, from a wheel that is installed outside of the checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import experiments.command

pytestmark = pytest.mark.slow

COMMANDS = tuple(experiments.command.COMMANDS)


def run(
    installed_wheel: Path, *arguments: str, cwd: Path, columns: int = 200
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "experiments.command", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(installed_wheel), "COLUMNS": str(columns)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_everything(installed_wheel):
    """Catches: a wheel without evaluation, experiments, prompts, templates or the shapes model."""
    for name in (
        "experiments/command.py",
        "experiments/runners/experiment.py",
        "eval/run.py",
        "eval/data/prompts/mmhal.txt",
        "eval/templates/page.html",
        "rlhfv_ray/shapes/checkpoint/model.safetensors",
        "rlhfv_ray/shapes/checkpoint_balanced/model.safetensors",
    ):
        assert (installed_wheel / name).is_file(), name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_subcommand_explains_itself(installed_wheel, tmp_path, name):
    """Catches: a subcommand that needs the checkout; a help that starts the work, or whose first
    screen is more than 40 lines of 80 columns.
    """
    done = run(installed_wheel, name, "--help", cwd=tmp_path, columns=80)
    assert done.returncode == 0, done.stderr
    lines = [-(-len(line) // 80) or 1 for line in done.stdout.splitlines()]
    assert sum(lines) <= 40
    assert "usage: " in done.stdout and f"rlhfv-ray {name}" in done.stdout


def test_help_version_and_mistakes(installed_wheel, tmp_path):
    """Catches: a command that says nothing without arguments, or a traceback for a typing error."""
    assert all(name in run(installed_wheel, cwd=tmp_path).stdout for name in COMMANDS)
    assert run(installed_wheel, "--version", cwd=tmp_path).stdout.startswith("rlhfv-ray 0.")
    wrong = run(installed_wheel, "teach", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "no subcommand 'teach'" in wrong.stderr and "Traceback" not in wrong.stderr


def test_a_table_with_a_wrong_line_is_named():
    """Catches: a traceback of imports for a typing error in a table of formats."""
    wrong = (
        "import sys; from rlhfv_ray.config import PAIR_FORMATS; from experiments import command;"
        "PAIR_FORMATS['trl'] = 'rlhfv_ray.data.pair_formats:TLR';"
        "sys.argv = ['rlhfv-ray', 'audit', 'pairs.jsonl']; sys.exit(command.main())"
    )
    done = subprocess.run([sys.executable, "-c", wrong], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "'trl'" in done.stderr and "TLR" in done.stderr and "Traceback" not in done.stderr
