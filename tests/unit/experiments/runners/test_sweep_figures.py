"""Figures of a sweep: drawn from what is there, and importance only where it is stable."""

import importlib.util
import random
from pathlib import Path

from PIL import Image

from experiments.runners.sweep_figures import importances, pareto_front, write_figures
from experiments.runners.sweep_report import settings_of
from rlhfv_ray.sweep.setting_value import Measure, Objective
from tests.unit.experiments.runners.test_sweep_report import BASE, BASES, OBJECTIVE, trial


def test_figures_are_drawn_from_finished_trials(tmp_path: Path) -> None:
    """Catches: a figure that fails on one seed, on stopped trials, or without finished ones."""
    trials = [
        *(trial(beta, seed, beta / 2 + seed / 100) for beta in (0.1, 0.5) for seed in (0, 1)),
        trial(0.9, 0, 0.6, status="stopped"),
        trial(0.7, 0, None, status="failed"),
    ]
    paths = write_figures(settings_of(trials, BASES, OBJECTIVE), BASE, OBJECTIVE, tmp_path)
    assert [path.name for path in paths] == ["pareto.png", "beta_gamma.png"]
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width > 500
    assert write_figures({}, BASE, OBJECTIVE, tmp_path) == []


def test_the_front_follows_the_directions() -> None:
    """Catches: a front of the worst trials where more of the metric or less of a guard is good."""
    points = [(0.8, 0.1), (0.9, 0.2), (0.7, 0.3)]
    ratings = Objective(Measure("rating", "higher", 1.0), Measure("rate", "lower"))
    assert pareto_front(points, ratings) == [(0.7, 0.3)]


def test_importance_is_that_of_the_parameter_that_decides() -> None:
    """Catches: shares of the wrong parameter, seeds as a parameter, a share without its interval.

    The loss depends on beta alone, over ten settings.
    """
    rows = [
        ({"loss.beta": beta, "loss.gamma": gamma, "seed": 0}, beta)
        for beta in (0.1, 0.2, 0.3, 0.4, 0.5)
        for gamma in (1.0, 5.0)
    ]
    shares = importances(rows)
    assert set(shares) == {"loss.beta", "loss.gamma"}
    share, low, high = shares["loss.beta"]
    assert share > 0.9 and 0.7 < low <= share <= high <= 1.0


def test_without_optuna_a_sweep_says_what_is_not_drawn(monkeypatch, caplog) -> None:
    """Catches: a sweep that ends with a traceback where the extra `bayes` is not installed."""
    rows = [({"loss.beta": beta, "loss.gamma": beta % 2}, beta) for beta in range(10)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert importances(rows) == {}
    assert "pip install 'rlhfv-ray[bayes]'" in caplog.text


def test_noise_has_no_importance() -> None:
    """Catches: a parameter that explains most of pure noise, from four settings or from eight."""
    draw = random.Random(0)
    settings = [(beta, gamma) for beta in (0.1, 0.2, 0.3, 0.4) for gamma in (1.0, 5.0)]
    rows = [({"loss.beta": beta, "loss.gamma": gamma}, draw.random()) for beta, gamma in settings]
    assert importances(rows) == {}
    assert importances([({"loss.beta": beta}, beta) for beta in (0.1, 0.2, 0.3, 0.4)]) == {}
    assert importances([({"loss.beta": 0.1}, 1.0)] * 8) == {}
