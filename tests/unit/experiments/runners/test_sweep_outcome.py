"""The end of a sweep: the command that trains the best setting again, and what MLflow is told."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.recipes import RECIPES, SWEEPS, experiment_config
from experiments.runners.sweep_outcome import (
    NOTE,
    recorded_estimate,
    retrain_command,
    track_settings,
)
from experiments.runners.sweep_report import ordered, settings_of
from rlhfv_ray.sweep.search_space import apply_params, plan_trials
from rlhfv_ray.sweep.setting_value import indistinct
from rlhfv_ray.tracking.run import Spool, TrackedRun
from tests.unit.experiments.runners.test_sweep_report import BASES, OBJECTIVE, TrialResult, trial


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
    program, subcommand, *arguments = shlex.split(command)
    assert (Path(program).name, subcommand) == ("rlhfv-ray", "train")
    monkeypatch.setattr("sys.argv", [subcommand, *arguments])
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


def tracked(trials: list[TrialResult], folder: Path) -> dict[str, dict[str, Any]]:
    """Track the settings of trials; return the last tags and metrics of every run."""
    settings = settings_of(trials, BASES, OBJECTIVE)
    order = ordered(settings, OBJECTIVE)
    values = {setting.title: setting.value for setting in order if setting.outcome == "finished"}
    spool = Spool(folder)
    run = TrackedRun(spool, "sweep", params={})
    close = indistinct(values, OBJECTIVE)
    track_settings(order, close, OBJECTIVE, run, headline="Best: beta 0.5.")
    logged: dict[str, dict[str, Any]] = {}
    for event in spool.events:
        name = event["run"].removeprefix("sweep/")
        content = event["content"]
        if event["kind"] == "metrics":
            content = {metric: value for metric, value, _ in content}
        if event["kind"] in ("metrics", "tags"):
            logged.setdefault(name, {}).update(content)
        if event["kind"] == "status":
            logged.setdefault(name, {})["status"] = content
    return logged


def test_every_trial_says_how_its_setting_did(tmp_path: Path) -> None:
    """Catches: twelve runs side by side, of which nobody sees the best, or why it is; a setting
    that the seeds do not tell from the best called worse; one seed's number as the setting's.
    """
    rates = {0.5: (0.2, 0.21, 0.22), 0.1: (0.2, 0.22, 0.23), 0.9: (0.38, 0.39, 0.4)}
    trials = [trial(beta, seed, x) for beta, row in rates.items() for seed, x in enumerate(row)]
    trials += [trial(0.7, seed, 0.3, recall=0.7, status="stopped") for seed in (0, 1, 2)]
    logged = tracked(trials, tmp_path)
    verdicts = {
        beta: {logged[f"beta {beta:g}, gamma 5, seed {seed}"]["verdict"] for seed in (0, 1, 2)}
        for beta in (0.5, 0.1, 0.9, 0.7)
    }
    assert verdicts == {
        **{0.5: {"1 of 4: best"}, 0.1: {"2 of 4: not resolved from the best"}},
        **{0.9: {"3 of 4: worse"}, 0.7: {"4 of 4: stopped early"}},
    }
    best = logged["beta 0.5, gamma 5, seed 0"]
    assert best["setting"] == "beta 0.5, gamma 5" and best["setting/rank"] == 1
    assert best["value"].startswith("response rate 21.0 % (18.5 to 23.5), object recall 80.0 %; 3 ")
    assert abs(best["setting/mean"] - 21) < 1e-9 and best["status"] == "FINISHED"
    assert abs(logged["beta 0.7, gamma 5, seed 1"]["setting/beyond guard"] - 8) < 1e-9
    lines = logged["sweep"][NOTE].splitlines()
    assert lines[0] == "Best: beta 0.5." and lines[2].startswith("| rank | setting | verdict |")
    assert lines[4].startswith("| 1 | beta 0.5, gamma 5 | best | 3 of 3 | 21.0 % (18.5 to 23.5) |")
    assert len(lines) == 4 + 4


def test_a_long_table_fits_into_a_description(tmp_path: Path) -> None:
    """Catches: a description that MLflow refuses, because a hundred settings are in it."""
    logged = tracked([trial(0.01 * n, 0, 0.001 * n) for n in range(1, 101)], tmp_path)
    note = logged["sweep"][NOTE]
    assert note.endswith("| 80.0 % |\n\n80 more are in settings.json.") and len(note) < 8000
    assert logged["beta 1, gamma 5, seed 0"]["verdict"].startswith("100 of 100: worse")


def test_one_seed_resolves_nothing(tmp_path: Path) -> None:
    """Catches: a ranking of single seeds that is told as settled; a failed trial as finished."""
    failed = [trial(0.1, 1, None, status="failed", error="lost"), trial(0.1, 0, 0.1)]
    logged = tracked([trial(0.5, 0, 0.2), trial(0.9, 0, 0.3), *failed], tmp_path)
    assert logged["beta 0.9, gamma 5, seed 0"]["verdict"] == (
        "2 of 3: worse, with one seed: not resolved"
    )
    assert logged["beta 0.1, gamma 5, seed 1"]["status"] == "FAILED"
    assert logged["beta 0.1, gamma 5, seed 0"]["status"] == "FINISHED"
