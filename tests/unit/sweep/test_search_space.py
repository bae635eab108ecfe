"""Sweeps: the trials of a space, what is refused before the first one, and the objective."""

import importlib.util
from dataclasses import replace

import pytest

from experiments.recipes import SWEEPS, shapes
from rlhfv_ray.config import OptimConfig
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.sweep.search_space import (
    SearchConfig,
    SpaceConfig,
    apply_params,
    arguments_of,
    by_setting,
    name_of,
    plan_trials,
)

BASE = shapes()
BOTH = SpaceConfig(
    beta=(0.1, 0.3), beta_normalized=(0.5,), normalize=(True, False), gamma=(1.0, 5.0)
)


def test_grid_gives_every_form_its_own_betas():
    """Catches: a beta of sums on normalised log-probs; a combination left out or repeated."""
    trials = plan_trials(BOTH, SearchConfig(), BASE)
    tried = {(t["loss.normalize"], t["loss.beta"], t["loss.gamma"]) for t in trials}
    assert tried == {
        (True, 0.5, 1.0),
        (True, 0.5, 5.0),
        (False, 0.1, 1.0),
        (False, 0.1, 5.0),
        (False, 0.3, 1.0),
        (False, 0.3, 5.0),
    }
    assert len(trials) == 6 == len({name_of(trial) for trial in trials})


def test_seeds_repeat_every_setting_and_change_nothing_else():
    """Catches: seeds that are taken for a value to tune."""
    trials = plan_trials(replace(BOTH, seed=(0, 7)), SearchConfig(), BASE)
    first, second = trials[: len(trials) // 2], trials[len(trials) // 2 :]
    assert [t | {"seed": 7} for t in first] == second and {t["seed"] for t in first} == {0}


def test_random_stays_within_the_range_of_its_form_and_can_be_repeated():
    """Catches: linear draws, draws outside the range, other draws in a resumed sweep."""
    space = replace(BOTH, beta=(0.01, 1.0), beta_normalized=(2.0, 20.0))
    search = SearchConfig(kind="random", trials=60, seed=3)
    trials = plan_trials(space, search, BASE)
    assert trials == plan_trials(space, search, BASE)
    assert len({name_of(trial) for trial in trials}) == 60
    sums = [t["loss.beta"] for t in trials if not t["loss.normalize"]]
    assert all(0.01 <= beta <= 1 for beta in sums)
    below_middle = sum(beta < 0.1 for beta in sums) / len(sums)  # 0.1 halves the range's logarithm
    assert 0.25 < below_middle < 0.75
    assert all(2 <= t["loss.beta"] <= 20 for t in trials if t["loss.normalize"])


@pytest.mark.parametrize(
    ("space", "search", "reason"),
    [
        (SpaceConfig(), {}, "nothing varies"),
        (
            SpaceConfig(gamma=(0.5, 2.0)),
            {},
            "Trial gamma 0.5, beta 1: loss.gamma = 0.5: must be >= 1",
        ),
        (SpaceConfig(gamma=(0.5, 2.0)), {"kind": "bayes"}, "loss.gamma = 0.5"),
        (SpaceConfig(gamma=(2.0, 2.0)), {}, "twice"),
        (SpaceConfig(beta_normalized=(0.5,)), {}, "no trial has normalised"),
        (SpaceConfig(beta=(0.1,), normalize=(True,)), {}, "no trial has summed"),
        (SpaceConfig(beta=(0.1,), normalize=(True, False)), {}, "give both"),
        (SpaceConfig(epochs=(1.0, 2.0)), {}, "overrides epochs"),
        (SpaceConfig(seed=(0, 1, 2)), {}, "nothing varies"),
        (SpaceConfig(gamma=(5.0,), beta=(0.1,)), {}, "two values"),
        (
            SpaceConfig(gamma=(1.0, 5.0), seed=(0, 1, 2)),
            {"kind": "random", "trials": 2},
            "3 seeds, but search.trials = 2",
        ),
        (SpaceConfig(learning_rate=(0.0, 1e-5)), {"kind": "random"}, "above 0"),
    ],
)
def test_refused_before_anything_runs(space, search, reason):
    """Catches: a sweep that fails after hours because a trial's values make no sense."""
    with pytest.raises(ConfigError, match=reason):
        plan_trials(space, SearchConfig(**search), BASE)


def test_a_bayesian_search_without_optuna_is_refused(monkeypatch):
    """Catches: a sweep without the extra `bayes` that fails after its references are computed."""
    space, search = SpaceConfig(gamma=(1.0, 5.0)), SearchConfig(kind="bayes")
    assert plan_trials(space, search, BASE)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rlhfv-ray\[bayes\]'"):
        plan_trials(space, search, BASE)
    assert plan_trials(space, replace(search, kind="grid"), BASE)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rungs", 0), ("reduction", 1), ("keep", -1), ("trials", 0), ("within", -1.0)],
)
def test_a_search_that_makes_no_sense_is_refused(field, value):
    """Catches: a range check that was forgotten."""
    with pytest.raises(ConfigError, match=f"search.{field}"):
        SearchConfig(**{field: value})


def test_a_trial_is_its_configuration():
    """Catches: a value that changes nothing, or another field."""
    trial_params = {
        "loss.beta": 0.3,
        "loss.normalize": True,
        "data.rule": "muffin",
        "optim.epochs": 2.0,
        "seed": 4,
    }
    config = apply_params(replace(BASE, optim=OptimConfig(batch=16)), trial_params)
    assert (
        config.loss.beta,
        config.loss.normalize,
        config.data.rule,
        config.optim.epochs,
        config.seed,
    ) == tuple(trial_params.values())
    assert replace(config, seed=0, loss=BASE.loss, data=BASE.data).optim == OptimConfig(
        batch=16, epochs=2.0
    )
    assert (
        arguments_of(trial_params)
        == "--loss.beta 0.3 --loss.normalize --data.rule muffin --optim.epochs 2.0 --seed 4"
    )


def test_rungs_are_shares_of_the_updates():
    """Catches: rungs that fall together for a short training, so that a later one has no number."""
    search = SearchConfig(rungs=3, reduction=2)
    assert (search.rung_steps(100), search.rung_steps(1)) == ([25, 50, 100], [1, 1, 1])


def test_settings_are_trials_without_their_seed():
    """Catches: seeds counted as settings; an order that depends on the seeds."""
    trials = plan_trials(replace(BOTH, seed=(0, 7)), SearchConfig(), BASE)
    groups = by_setting(trials)
    assert len(groups) == 6 and all(len(group) == 2 for group in groups.values())
    assert [group[0] for group in groups.values()] == trials[:6]


@pytest.mark.parametrize("name", SWEEPS)
def test_presets_are_sweeps(name):
    """Catches: a preset that its own check refuses."""
    preset = SWEEPS[name]()
    assert len(plan_trials(preset.space, preset.search, preset.ddpo)) >= 8
