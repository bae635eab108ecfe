"""Real Ray Tune on trials of milliseconds: stopped and failed trials, and a second run."""

import json
import os
import signal
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from experiments.recipes import shapes
from rlhfv_ray.errors import ConfigError, StageFailedError, StaleReferenceError
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import local_path
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.sweep.bayes import SettingSearch
from rlhfv_ray.sweep.record import drawn_trials, write_rung
from rlhfv_ray.sweep.search_space import (
    SearchConfig,
    SpaceConfig,
    TrialParams,
    name_of,
    plan_trials,
)
from rlhfv_ray.sweep.setting_value import Measure, Objective
from rlhfv_ray.sweep.trials import SweepJob, Trial, run_sweep, trials_at_once

pytestmark = [pytest.mark.ray, pytest.mark.aside]
OBJECTIVE = Objective(Measure("rate", "lower", 1.0))
NAN, KILLED_ONCE, LOST, WORST = 3.0, 4.0, 5.0, 6.0


def job_of(folder: Path, space: SpaceConfig, search: SearchConfig, run: Trial) -> SweepJob:
    return SweepJob(folder, shapes(), space, search, run, OBJECTIVE, [{"rate": 1.0}] * 2)


def on_a_full_disk(trial_params: TrialParams, place: Path, rung: int) -> None:
    """Write to /dev/full, a device of Linux that always is full."""
    with (place.parent / "started").open("a") as stream:
        stream.write(f"{trial_params['loss.gamma']}\n")
    with open("/dev/full", "w") as stream:
        stream.write("a checkpoint")


def toy(trial_params: TrialParams, place: Path, rung: int, *, stale: bool = False) -> None:
    """Find gamma as the rate; special values of gamma fail, each in its own way."""
    gamma = trial_params["loss.gamma"]
    with (place.parent / "started").open("a") as stream:
        stream.write(f"{gamma}\n")
    if stale:
        raise StaleReferenceError("not this model's")
    if gamma == NAN:
        raise StageFailedError("loss is not finite with the pairs a, b")
    if gamma == LOST or (gamma == KILLED_ONCE and not (place / "killed.json").exists()):
        if gamma == KILLED_ONCE:
            write_json(place / "killed.json", {})
        os.kill(os.getpid(), signal.SIGKILL)
    write_rung(place, rung, {"rate": gamma})


def outcomes(folder: Path, trials: list[TrialParams]) -> dict[float, tuple[str, str]]:
    statuses = {}
    for trial in trials:
        path = folder / "trials" / name_of(trial) / "outcome.json"
        if path.exists():
            outcome = json.loads(path.read_text())
            statuses[trial["loss.gamma"]] = (outcome["status"], outcome["error"])
    return statuses


def started(folder: Path) -> Counter:
    return Counter(map(float, (folder / "trials" / "started").read_text().split()))


def test_a_sweep_outlives_its_trials_and_does_nothing_twice(cluster, tmp_path: Path) -> None:
    """Catches: a failed or killed trial that ends the sweep or is not reported.

    Also: a rung that stops no trial, and a second run that repeats trials. Of six settings three
    go on; those that failed have no value.
    """
    space, search = SpaceConfig(gamma=(2.0, 1.0, NAN, KILLED_ONCE, LOST, WORST)), SearchConfig()
    trials = plan_trials(space, search, shapes())
    job = job_of(tmp_path, space, search, toy)
    run_sweep(job, trials, concurrent=1)
    first = outcomes(tmp_path, trials)
    assert {gamma: status for gamma, (status, _) in first.items()} == {
        **{2.0: "finished", 1.0: "finished", NAN: "failed"},
        **{KILLED_ONCE: "finished", LOST: "failed", WORST: "stopped"},
    }
    assert "pairs a, b" in first[NAN][1] and "lost 3 times" in first[LOST][1]
    counts = {2.0: 2, 1.0: 2, NAN: 1, KILLED_ONCE: 3, LOST: 3, WORST: 1}
    assert started(tmp_path) == counts
    assert not (tmp_path / "tune").exists()

    run_sweep(job, trials, concurrent=1)
    assert outcomes(tmp_path, trials) == first
    assert started(tmp_path) == {**counts, NAN: 2, LOST: 6}  # what failed is tried again


def counted(trial_params: TrialParams, place: Path, rung: int, *, counter: Path) -> None:
    """Find gamma as the rate; the file `counter` has a line for each training."""
    with counter.open("a") as stream:
        stream.write(f"{trial_params['loss.gamma']}\n")
    write_rung(place, rung, {"rate": trial_params["loss.gamma"]})


def test_a_sweep_in_a_bucket_goes_on_where_nothing_else_is_left(
    cluster, bucket, tmp_path: Path, monkeypatch
) -> None:
    """Catches: rungs, outcomes or decisions that stay on the disk of one node."""
    space, search = SpaceConfig(gamma=(2.0, 1.0, WORST)), SearchConfig()
    trials = plan_trials(space, search, shapes())
    counter = tmp_path / "counter"
    results = []
    for node in ("first", "second"):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / node))
        folder = local_path(bucket.address("sweep"))
        with hold_lease(folder):
            run_sweep(
                job_of(folder, space, search, partial(counted, counter=counter)),
                trials,
                concurrent=1,
            )
            results.append(outcomes(folder, trials))
    assert results[0] == results[1]
    assert {status for status, _ in results[0].values()} == {"finished", "stopped"}
    assert sorted(counter.read_text().split()) == ["1.0", "1.0", "2.0", "2.0", "6.0"]


def test_an_error_for_all_stops_the_sweep_at_the_first(cluster, tmp_path: Path) -> None:
    """Catches: every trial repeating that the reference is another model's."""
    space, search = SpaceConfig(gamma=(1.0, 2.0, 3.0, 4.0)), SearchConfig()
    trials = plan_trials(space, search, shapes())
    job = job_of(tmp_path, space, search, partial(toy, stale=True))
    with pytest.raises(StaleReferenceError, match="not this model's"):
        run_sweep(job, trials, concurrent=1)
    assert sum(started(tmp_path).values()) == 1 and outcomes(tmp_path, trials) == {}


def test_a_full_disk_stops_the_sweep(cluster, tmp_path: Path) -> None:
    """Catches: every trial running into the same full disk, or an unclear error."""
    space, search = SpaceConfig(gamma=(1.0, 2.0, 3.0)), SearchConfig()
    job = job_of(tmp_path, space, search, on_a_full_disk)
    with pytest.raises(StageFailedError, match="disk is full"):
        run_sweep(job, plan_trials(space, search, shapes()), concurrent=1)
    assert sum(started(tmp_path).values()) == 1


def test_more_trials_than_fit_are_refused(cluster) -> None:
    """Catches: trials that wait for ever for the workers of other trials."""
    scale = replace(shapes().scale, workers=2, cpus=0.5)
    assert trials_at_once(scale, 0) == trials_at_once(scale, 1) == 1
    with pytest.raises(ConfigError, match="1 fit at a time"):
        trials_at_once(scale, 2)


def test_bayes_draws_settings_with_all_their_seeds_and_remembers(cluster, tmp_path: Path) -> None:
    """Catches: values outside the range, a resumed search that forgets or repeats its trials, seeds
    that are stopped by themselves. Two trials run at a time.
    """
    space = SpaceConfig(gamma=(6.5, 50.0), seed=(0, 1))
    search = SearchConfig(kind="bayes", trials=3)
    job = job_of(tmp_path, space, search, toy)
    corners = plan_trials(space, search, shapes())
    drawn = run_sweep(job, corners, concurrent=2, searcher=SettingSearch(job))
    assert len(drawn) == 6 and all(6.5 <= trial["loss.gamma"] <= 50 for trial in drawn)
    best_two = sorted({trial["loss.gamma"] for trial in drawn})[:2]
    ends = {
        (trial["loss.gamma"], trial["seed"]): json.loads(
            (job.trial_folder(trial) / "outcome.json").read_text()
        )["status"]
        for trial in drawn
    }
    assert {key for key, status in ends.items() if status == "finished"} == {
        (gamma, seed) for gamma in best_two for seed in (0, 1)
    }
    before = started(tmp_path)
    assert run_sweep(job, corners, concurrent=2, searcher=SettingSearch(job)) == drawn
    assert drawn_trials(tmp_path) == drawn and started(tmp_path) == before
