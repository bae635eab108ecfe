"""The best trial of a sweep, on objectives by hand."""

import pytest

from experiments.runners.sweep_report import Found, best_of, ranked

GUARD = "object_recall"


def trial(
    gamma: float, seed: int, objective: float, *, guard: float = 0.8, status: str = "finished"
) -> Found:
    rung = {"objective": objective, "rates": {GUARD: guard}, "intervals": {}}
    return Found(
        name=f"{gamma:g}-{seed}",
        trial_params={"loss.gamma": gamma, "seed": seed},
        rungs={10: rung},
        status=status,
        error="",
        seconds=1.0,
        train="",
        made=True,
    )


def names(trials: list[Found]) -> list[str]:
    return [trial.name for trial in trials]


def test_lowest_objective_is_best():
    """Catches: the worst trial returned, or one that was stopped or failed."""
    trials = [
        trial(1, 0, 0.3),
        trial(2, 0, 0.2),
        trial(3, 0, 0.4),
        trial(4, 0, 0.0, status="stopped"),
        trial(5, 0, 0.1, status="failed"),
    ]
    assert names(ranked(trials, GUARD)) == ["2-0", "1-0", "3-0"]
    assert best_of(trials, GUARD).name == "2-0"
    assert best_of(trials[::-1], GUARD).name == "2-0"


def test_mean_over_seeds_ranks_settings():
    """Catches: a sweep won by one lucky seed. Means: gamma 1 (0.1 + 0.5) / 2, gamma 2 0.25."""
    trials = [trial(1, 0, 0.1), trial(1, 1, 0.5), trial(2, 0, 0.3), trial(2, 1, 0.2)]
    assert names(ranked(trials, GUARD)) == ["2-1", "2-0", "1-0", "1-1"]
    assert best_of(trials, GUARD).name == "2-1"


def test_settings_with_most_finished_seeds_compete():
    """Catches: a setting preferred because all of its bad seeds failed.

    Gamma 1 has one finished seed, with the lowest objective; gammas 2 and 3 have two each.
    """
    trials = [
        trial(1, 0, 0.05),
        trial(1, 1, 0.9, status="failed"),
        trial(2, 0, 0.3),
        trial(2, 1, 0.3),
        trial(3, 0, 0.2),
        trial(3, 1, 0.25),
    ]
    assert best_of(trials, GUARD).name == "3-0"


@pytest.mark.parametrize("guards", [(0.7, 0.9), (0.9, 0.7)])
def test_higher_guard_decides_between_equal_objectives(guards):
    """Catches: a tie decided by the order of the trials, or in favour of the lower guard."""
    trials = [trial(gamma, 0, 0.2, guard=guard) for gamma, guard in enumerate(guards, start=1)]
    assert best_of(trials, GUARD).rates[GUARD] == 0.9
