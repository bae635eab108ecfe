"""Trials of a sweep: read from folders, ranked, tabled and drawn, on numbers by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiments.runners.sweep_report import (
    TrialResult,
    best_of,
    importances,
    ranked,
    read_trials,
    write_figures,
)
from rlhfv_ray.sweep.search_space import SearchConfig

SEARCH = SearchConfig()  # response_rate guarded by object_recall


def trial(beta: float, seed: int, rate: float, **changes: Any) -> TrialResult:
    rung = {
        "step": 8,
        "rates": {"response_rate": rate, "object_recall": changes.pop("recall", 0.8)},
        "intervals": {"response_rate": [rate - 0.05, rate + 0.05]},
        "objective": rate,
    }
    fields: dict[str, Any] = {"status": "finished", "error": "", "seconds": 1.0, **changes}
    return TrialResult(
        f"{beta}-{seed}",
        trial_params={"loss.beta": beta, "loss.gamma": 5.0, "seed": seed},
        rungs={8: rung},
        train="",
        made=False,
        **fields,
    )


def test_settings_are_ranked_by_their_mean_over_seeds() -> None:
    """Catches: a setting chosen for one lucky seed. Means: beta 0.1 0.25, beta 0.5 0.20."""
    lucky = [trial(0.1, 0, 0.05), trial(0.1, 1, 0.45)]
    steady = [trial(0.5, 0, 0.22), trial(0.5, 1, 0.18)]
    stopped = trial(0.9, 0, 0.01, status="stopped")
    order = [(t.trial_params["loss.beta"], t.objective) for t in ranked([*lucky, *steady], "")]
    assert order == [(0.5, 0.18), (0.5, 0.22), (0.1, 0.05), (0.1, 0.45)]
    assert best_of([*lucky, *steady, stopped], "") == steady[1]


def test_a_setting_with_fewer_finished_seeds_is_not_the_best() -> None:
    """Catches: the one seed that finished compared with the mean of two."""
    steady = [trial(0.5, 0, 0.22), trial(0.5, 1, 0.18)]
    half = [trial(0.1, 0, 0.05), trial(0.1, 1, 0.0, status="failed")]
    assert best_of([*half, *steady], "") == steady[1]


def test_equal_objectives_are_ordered_by_the_guard() -> None:
    """Catches: the lower recall preferred."""
    low = trial(0.1, 0, 0.2, recall=0.7)
    high = trial(0.5, 0, 0.2, recall=0.9)
    assert ranked([low, high], "object_recall") == [high, low]


def test_trials_are_read_with_their_rungs_and_outcome(tmp_path: Path) -> None:
    """Catches: a rung read in the wrong order; a running or empty folder that stops the report."""
    finished = tmp_path / "trials" / "b"
    running = tmp_path / "trials" / "a"
    for folder, beta in ((finished, 0.1), (running, 0.5)):
        folder.mkdir(parents=True)
        (folder / "params.json").write_text(json.dumps({"loss.beta": beta}))
    for step in (4, 16):
        rung = {"step": step, "rates": {"response_rate": 1 / step}, "objective": 1 / step}
        (finished / f"rung-{step:06d}.json").write_text(json.dumps(rung))
    outcome = {"status": "finished", "seconds": 2.5}
    (finished / "outcome.json").write_text(json.dumps(outcome))
    (finished / "train.json").write_text(json.dumps({"folder": "train-1", "made": True}))
    (tmp_path / "trials" / "empty").mkdir()
    first, second = read_trials(tmp_path)
    assert (first.name, first.status, first.seconds) == ("b", "finished", 2.5)
    assert (first.train, first.made, first.error) == ("train-1", True, "")
    assert list(first.rungs) == [4, 16] and first.objective == 1 / 16
    assert (second.name, second.status, second.objective) == ("a", "", float("inf"))
    assert second.row()["objective"] is None  # infinity is no JSON


def test_figures_are_drawn_from_finished_trials(tmp_path: Path) -> None:
    """Catches: a figure that fails on one seed, on stopped trials, or without finished ones."""
    base = {"response_rate": 0.5, "object_recall": 0.8}
    trials = [
        *(trial(beta, seed, beta / 2 + seed / 100) for beta in (0.1, 0.5) for seed in (0, 1)),
        trial(0.9, 0, 0.6, status="stopped"),
    ]
    paths = write_figures(trials, base, SEARCH, tmp_path)
    assert [path.name for path in paths] == ["pareto.png", "beta_gamma.png", "importance.png"]
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width > 500


def test_importance_is_that_of_the_param_that_decides() -> None:
    """Catches: shares of the wrong param. The objective depends on beta alone."""
    trials = [trial(beta, seed, beta) for beta in (0.1, 0.5) for seed in (0, 1)]
    shares = importances(trials)
    assert list(shares) == ["loss.beta", "seed"]  # the largest first; gamma does not vary
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["loss.beta"] > 0.9  # not 1: fANOVA's forest is fitted to random subsamples
    assert importances([trial(0.1, 0, 0.2), trial(0.5, 0, 0.2)]) == {}
