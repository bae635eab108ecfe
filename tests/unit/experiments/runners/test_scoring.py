"""The disk of a sweep: the best setting keeps the models of all its seeds, others lose theirs."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.recipes import shapes_small
from experiments.runners.scoring import Measured, SweepMonitor
from experiments.runners.sweep_outcome import describe
from experiments.runners.sweep_report import ordered, read_trials, settings_of
from rlhfv_ray.console import progress_bar
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.sweep.record import end_trial, trial_folder, write_rung
from rlhfv_ray.sweep.setting_value import Measure, Objective
from rlhfv_ray.tracking.run import Spool, TrackedRun

BASE = {"response_rate": 0.4}
MEASURED = Measured([BASE, BASE], Objective(Measure("response_rate", "lower")))
RATES = {"lucky": (0.10, 0.30), "steady": (0.12, 0.125)}  # means: 20 and 12.25 %
GAMMA = {"lucky": 1.0, "steady": 5.0}


def write_trial(folder: Path, setting: str, seed: int) -> Path:
    """Write a finished trial with its training; return the folder of the training."""
    params = {"loss.gamma": GAMMA[setting], "seed": seed}
    place = trial_folder(folder, params)
    place.mkdir(parents=True)
    train = folder.parent / f"train-{setting}-{seed}"
    (train / "model").mkdir(parents=True)
    (train / "SUCCESS").touch()
    write_json(place / "params.json", params)
    write_json(place / "train.json", {"folder": train.name, "made": True})
    write_rung(place, 1, {"response_rate": RATES[setting][seed]}, step=8, intervals={})
    end_trial(place, "finished")
    return train


@pytest.mark.parametrize("names", [("lucky", "steady"), ("steady", "lucky")])
def test_the_models_on_disk_are_those_of_the_reported_best(tmp_path: Path, names) -> None:
    """Catches: models ranked trial by trial, so that the winner over seeds has none left; a model
    deleted while its setting still waits for a seed.
    """
    folder = tmp_path / "sweep-1"
    config = shapes_small()
    config = replace(config, space=replace(config.space, seed=(0, 1)))
    run = TrackedRun(Spool(folder), "sweep", params={})
    trains: dict[str, list[Path]] = {name: [] for name in names}
    with progress_bar("Trials", 4) as bar:
        monitor = SweepMonitor(folder, run, bar, measured=MEASURED, config=config)
        for seed in (0, 1):
            for name in names:
                trains[name].append(write_trial(folder, name, seed))
                monitor.refresh()
            if seed == 0:
                assert all(train.exists() for group in trains.values() for train in group)
    best = ordered(settings_of(read_trials(folder), *MEASURED), MEASURED.objective)[0]
    outcome = describe(best, tmp_path, base=BASE)
    assert outcome["setting"] == {"loss.gamma": 5.0}
    assert outcome["value"]["mean"] == pytest.approx(12.25)
    assert sorted(outcome["models"].values()) == [str(t / "model") for t in trains["steady"]]
    assert not any(train.exists() for train in trains["lucky"])
