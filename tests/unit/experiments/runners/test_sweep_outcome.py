"""The end of a sweep: the command that trains the best setting again, and what is kept of a run."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.recipes import RECIPES, SWEEPS, experiment_config
from experiments.runners.sweep_outcome import recorded_estimate, retrain_command
from rlhfv_ray.sweep.search_space import apply_params, plan_trials


@pytest.mark.parametrize("preset", SWEEPS)
def test_the_command_gives_the_configuration_of_the_trial(preset, monkeypatch, tmp_path: Path):
    """Catches: a name of one's own taken for a recipe; a changed setting, a value of the trial or
    its seed left out; a switch that is written the wrong way round.
    """
    sweep = SWEEPS[preset]()
    config = replace(sweep.ddpo, name="mine", optim=replace(sweep.ddpo.optim, learning_rate=3e-5))
    trial_params = plan_trials(sweep.space, sweep.search, config)[-1]
    command = retrain_command(
        trial_params, config=config, recipe=RECIPES[sweep.ddpo.name](), reference=tmp_path
    )
    python, script, *arguments = shlex.split(command)
    assert (python, script) == ("python", "experiments/ddpo.py")
    monkeypatch.setattr("sys.argv", [script, *arguments])
    expected = apply_params(config, trial_params)
    expected = replace(expected, data=replace(expected.data, reference=str(tmp_path)))
    assert experiment_config(RECIPES, None).ddpo == expected


def test_an_estimate_is_kept_for_the_same_choice_alone(tmp_path: Path):
    """Catches: the estimate of another setting, or of other seeds, beside the new choice."""
    outcome = {"value": {"mean": 12.0, "interval": (10.0, 14.0)}}
    assert recorded_estimate(tmp_path / "best.json", outcome) == {}
    recorded = {**outcome, "fresh": {"pictures": 30}, "sentence": "Best: gamma 5."}
    (tmp_path / "best.json").write_text(json.dumps(recorded))
    kept = recorded_estimate(tmp_path / "best.json", outcome)
    assert kept == {"fresh": {"pictures": 30}, "sentence": "Best: gamma 5."}
    other = {"value": {"mean": 13.0, "interval": (10.0, 14.0)}}
    assert recorded_estimate(tmp_path / "best.json", other) == {}
