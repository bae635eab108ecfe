"""The start of the command, and the names that the package lends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rlhfv_ray
from rlhfv_ray import entry
from rlhfv_ray.console import STOPPED
from rlhfv_ray.entry import OURS, location_of

LENT = "import sys, rlhfv_ray; {}; print('torch' in sys.modules)"


def run(*arguments: str, cwd: Path = OURS, path: Path = OURS) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["eval", "experiments"])
def test_a_folder_that_hides_ours_is_named(tmp_path, name):
    """Catches: "No module named experiments.command", where another project's folder is in front
    of ours; a namespace package, which is behind ours, taken for one that hides it.
    """
    (tmp_path / name).mkdir()
    assert run("-m", "rlhfv_ray.entry", "--version", cwd=tmp_path).returncode == 0
    (tmp_path / name / "__init__.py").touch()
    done = run("-m", "rlhfv_ray.entry", "--version", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"`import {name}` finds {tmp_path / name}" in done.stderr


def interrupted() -> None:
    raise KeyboardInterrupt


def test_an_early_interruption_is_a_stop(monkeypatch, capsys):
    """Catches: a traceback of imports for Ctrl-C in the first second."""
    monkeypatch.setattr(entry, "COMMAND", "tests.unit.test_entry:interrupted")
    with pytest.raises(SystemExit) as stopped:
        entry.start()
    assert stopped.value.code == STOPPED and "Stopped." in capsys.readouterr().out


def test_our_own_packages_are_found():
    """Catches: a check that refuses every start, in the checkout or in a wheel."""
    assert location_of("eval") == OURS / "eval"
    assert location_of("no_such_package") is None


def test_names_are_lent():
    """Catches: a name that stands for nothing."""
    for name, module in rlhfv_ray.PUBLIC.items():
        assert getattr(rlhfv_ray, name).__module__.startswith(f"rlhfv_ray.{module}")
        assert name in dir(rlhfv_ray)
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = rlhfv_ray.nosuch


@pytest.mark.slow
def test_names_are_loaded_late():
    """Catches: seconds of torch for `import rlhfv_ray`."""
    assert run("-c", LENT.format("pass")).stdout == "False\n"
    assert run("-c", LENT.format("rlhfv_ray.token_logps")).stdout == "True\n"


@pytest.mark.slow
def test_a_driver_loads_what_it_needs():
    """Catches: a quarter more of a driver's start, for libraries that only its actors use."""
    unused = {"openai", "sklearn", "scipy.stats", "mlflow"}
    code = f"import sys, experiments.runners.experiment; print(sorted({unused} & set(sys.modules)))"
    assert run("-c", code).stdout == "[]\n"
