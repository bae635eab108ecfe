"""The record of a sweep's trials."""

import json
from pathlib import Path

from rlhfv_ray.sweep.record import (
    ENDED,
    add_drawn,
    drawn_samples,
    drawn_trials,
    end_trial,
    forget_unfinished,
    read_rung,
    trial_folder,
    write_rung,
)


def status(folder: Path) -> str:
    return json.loads((folder / ENDED).read_text())["status"]


def test_a_finished_trial_stays_finished_and_replaces_a_failure(tmp_path):
    """Catches: a result that is there and counts as failed; a first end that is overwritten."""
    end_trial(tmp_path, "failed", error="lost")
    end_trial(tmp_path, "stopped")
    assert status(tmp_path) == "failed"
    end_trial(tmp_path, "finished", seconds=1.25)
    end_trial(tmp_path, "failed", error="late")
    assert json.loads((tmp_path / ENDED).read_text()) == {
        "status": "finished",
        "error": "",
        "seconds": 1.2,
    }


def test_only_unfinished_ends_are_forgotten(tmp_path):
    """Catches: a finished trial that runs again; a failed one that never does."""
    for name in ("finished", "failed", "stopped"):
        end_trial(tmp_path / "trials" / name, name)
    forget_unfinished(tmp_path)
    assert [path.parent.name for path in tmp_path.glob(f"trials/*/{ENDED}")] == ["finished"]


def test_rungs_and_draws_are_read_as_written(tmp_path):
    """Catches: rates at another rung; draws in another order."""
    params = {"loss.gamma": 5.0, "seed": 1}
    folder = trial_folder(tmp_path, params)
    folder.mkdir(parents=True)
    assert read_rung(folder, 0) is None and drawn_trials(tmp_path) == drawn_samples(tmp_path) == []
    write_rung(folder, 1, {"rate": None}, step=8)
    assert read_rung(folder, 1) == {"rate": None} and read_rung(folder, 0) is None
    for sample in ({"gamma": 0.5}, {"gamma": 0.1}):
        add_drawn(tmp_path, sample, [params])
    assert drawn_samples(tmp_path) == [{"gamma": 0.5}, {"gamma": 0.1}]
    assert drawn_trials(tmp_path) == [params, params]
