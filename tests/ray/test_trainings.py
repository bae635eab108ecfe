"""Trainings that do not depend on each other, on real Ray."""

import os
from functools import partial
from pathlib import Path

import pytest

from rlhfv_ray.errors import ConfigError, StageFailedError
from rlhfv_ray.sweep.trainings import train_all

pytestmark = [pytest.mark.ray, pytest.mark.aside]


def leave(path: Path) -> None:
    """Leave the process's id in a file, after a first attempt that kills its process."""
    tried = path.with_suffix(".tried")
    if path.stem == "killed" and not tried.exists():
        tried.touch()
        os._exit(1)
    path.write_text(str(os.getpid()))


def fail(error: Exception) -> None:
    """Fail as a training does."""
    raise error


def test_all_trainings_end_and_failures_are_named(cluster, tmp_path):
    """Catches: a lost process that ends the study; a failure without a reason."""
    jobs = {name: partial(leave, tmp_path / f"{name}.txt") for name in ("one", "killed", "two")}
    jobs["bad"] = partial(fail, StageFailedError("Loss was not finite three times."))
    reasons = train_all(jobs, tmp_path, concurrent=2)
    assert reasons == {"bad": "Loss was not finite three times."}
    processes = {(tmp_path / f"{name}.txt").read_text() for name in ("one", "killed", "two")}
    assert str(os.getpid()) not in processes  # never in the driver


def test_an_error_of_the_settings_stops_all(cluster, tmp_path):
    """Catches: the same mistake reported once per training, hours apart."""
    jobs = {"bad": partial(fail, ConfigError("beta = 0: must be > 0."))}
    jobs |= {f"later-{n}": partial(leave, tmp_path / f"later-{n}.txt") for n in range(3)}
    with pytest.raises(ConfigError, match="beta = 0"):
        train_all(jobs, tmp_path, concurrent=1)
    assert not list(tmp_path.glob("later-*"))
