"""Optuna's draws from the conditional space, and what Optuna is told."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from experiments.recipes import shapes
from rlhfv_ray.sweep.bayes import SettingSearch
from rlhfv_ray.sweep.record import drawn_trials, write_rung
from rlhfv_ray.sweep.search_space import SearchConfig, SpaceConfig, by_setting
from rlhfv_ray.sweep.setting_value import Measure, Objective
from rlhfv_ray.sweep.trials import SweepJob

BASE = {"rate": 0.5}
SPACE = SpaceConfig(
    beta=(0.01, 1.0), beta_normalized=(0.5, 5.0), normalize=(True, False), seed=(0, 1)
)


def job_in(folder: Path, space: SpaceConfig, trials: int) -> SweepJob:
    folder.mkdir(exist_ok=True)
    search = SearchConfig(kind="bayes", trials=trials, rungs=1)
    objective = Objective(Measure("rate", "lower"))
    return SweepJob(folder, shapes(), space, search, print, objective, [BASE])


def rate_of(trial_params) -> float:
    """A seed adds a little; the best beta is 0.1 summed, 2 normalised."""
    best = 2.0 if trial_params["loss.normalize"] else 0.1
    return min(1.0, abs(trial_params["loss.beta"] - best) / best + trial_params["seed"] / 100)


def run_all(search: SettingSearch, rate: Callable, *, at_once: int = 1) -> int:
    """Run the searcher as Tune does; return how many trials ran."""
    live: dict[str, dict] = {}
    count = 0
    while True:
        suggested = search.suggest(str(count)) if len(live) < at_once else None
        if isinstance(suggested, dict):
            live[str(count)] = json.loads(suggested["params"])
            count += 1
            continue
        if not live:
            assert suggested == Searcher.FINISHED
            return count
        name, trial_params = next(iter(live.items()))
        del live[name]
        folder = search.job.trial_folder(trial_params)
        folder.mkdir(parents=True, exist_ok=True)
        value = rate(trial_params)
        if value is not None:
            write_rung(folder, 0, {"rate": value})
        search.on_trial_complete(name, {})


def told(search: SettingSearch, state: TrialState = TrialState.COMPLETE) -> list:
    return [trial for trial in search.study.trials if trial.state == state]


@pytest.mark.parametrize("at_once", [1, 5])
def test_a_setting_has_one_beta_and_all_seeds(tmp_path, at_once):
    """Catches: one beta that means two things; seeds taken for settings; a setting told early."""
    search = SettingSearch(job_in(tmp_path, SPACE, 6))
    assert run_all(search, rate_of, at_once=at_once) == 12
    groups = by_setting(drawn_trials(tmp_path))
    assert [sorted(row["seed"] for row in group) for group in groups.values()] == [[0, 1]] * 6
    for trial in told(search):
        beta = "beta_normalized" if trial.params["normalize"] else "beta"
        assert set(trial.params) == {"normalize", beta}
    for group in groups.values():
        low, high = (0.5, 5.0) if group[0]["loss.normalize"] else (0.01, 1.0)
        assert low <= group[0]["loss.beta"] <= high
    values = sorted(search.job.value(group, 0).loss for group in groups.values())
    assert sorted(trial.value for trial in told(search)) == values


def test_a_resumed_search_repeats_nothing_and_goes_on(tmp_path):
    """Catches: draws forgotten, trials run again, other draws than without the interruption."""
    whole = SettingSearch(job_in(tmp_path / "whole", SPACE, 5))
    run_all(whole, rate_of)
    run_all(SettingSearch(job_in(tmp_path / "again", SPACE, 3)), rate_of)
    again = SettingSearch(job_in(tmp_path / "again", SPACE, 5))
    assert run_all(again, rate_of) == 4
    assert len(told(again)) == 5
    first, second = (drawn_trials(tmp_path / name) for name in ("whole", "again"))
    assert first[:6] == second[:6] and len(second) == 10


def test_duplicates_are_answered_and_never_run(tmp_path):
    """Catches: a duplicate that fails on the lease of its original, at any concurrency."""
    space = SpaceConfig(rule=("muffin", "both_sides"), seed=(0,))
    search = SettingSearch(job_in(tmp_path, space, 5))
    rates = {"muffin": 0.2, "both_sides": 0.1}
    assert run_all(search, lambda params: rates[params["data.rule"]], at_once=2) == 2
    assert len(told(search)) > 2  # the duplicates, with the values of their originals
    assert {trial.value for trial in told(search)} == {21 / 51, 11 / 51}


def test_a_setting_with_a_failed_seed_has_no_loss(tmp_path):
    """Catches: the mean of the seeds that survived told as the setting's."""
    space = SpaceConfig(rule=("muffin", "both_sides"), seed=(0, 1))
    search = SettingSearch(job_in(tmp_path, space, 2))

    def rate(trial_params):
        failed = trial_params["data.rule"] == "muffin" and trial_params["seed"] == 1
        return None if failed else 0.3

    assert run_all(search, rate) == 4
    assert {trial.params["rule"] for trial in told(search)} == {"both_sides"}


def test_the_search_finds_the_better_form(tmp_path):
    """Catches: losses told with the wrong sign. Only settings below beta 0.1 are good."""
    space = SpaceConfig(beta=(0.001, 10.0))
    search = SettingSearch(job_in(tmp_path, space, 24))
    run_all(search, lambda trial_params: min(1.0, trial_params["loss.beta"]))
    drawn = [row["loss.beta"] for row in drawn_trials(tmp_path)]
    late = drawn[12:]
    assert sum(beta < 0.1 for beta in late) > len(late) / 2
