"""The value of a setting on cases by hand: what a person would choose."""

import math

import pytest

from rlhfv_ray.sweep.setting_value import (
    Measure,
    Objective,
    indistinct,
    ranked,
    setting_value,
    survivors,
)

LOWER = Objective(Measure("rate", "lower"))
GUARDED = Objective(Measure("rate", "lower"), Measure("recall", "higher"), within=2)
ACCURACY = Objective(Measure("accuracy", "higher"))
RATING = Objective(Measure("rating", "higher", 1.0), Measure("recall", "higher"), within=2)
LOW_GUARD = Objective(Measure("accuracy", "higher"), Measure("rate", "lower"), within=2)
WORDS = Objective(Measure("rate", "lower"), Measure("rating", "higher", 1.0), within=2)
BASE = {"rate": 0.4, "recall": 0.85, "accuracy": 0.6, "rating": 3.0}
NAN = math.nan


def seeds(measure, *values, **others):
    """One seed per value; None stands for a seed that failed."""
    return [None if value is None else {measure: value, **others} for value in values]


def guarded(measure, values, guard, guards):
    return [{measure: a, guard: b} for a, b in zip(values, guards, strict=True)]


# Name of the case: objective, seeds by setting, the order that a person would give.
CASES = {
    "the mean decides, not the luckiest seed": (
        LOWER,
        {"A": seeds("rate", 0.10, 0.30), "B": seeds("rate", 0.12, 0.125)},
        "BA",
    ),
    "more is better for an accuracy": (
        ACCURACY,
        {"A": seeds("accuracy", 0.5), "B": seeds("accuracy", 0.8)},
        "BA",
    ),
    "ratings from 0 to 6": (
        RATING,
        {
            "A": seeds("rating", 5.0, recall=0.85),
            "B": seeds("rating", 2.0, recall=0.85),
            "C": seeds("rating", 6.0, recall=0.85),
        },
        "CAB",
    ),
    "ratings: who breaks the guard loses": (
        RATING,
        {"A": seeds("rating", 6.0, recall=0.2), "B": seeds("rating", 3.2, recall=0.84)},
        "BA",
    ),
    "a guard of which less is better": (
        LOW_GUARD,
        {"A": seeds("accuracy", 0.9, rate=0.6), "B": seeds("accuracy", 0.7, rate=0.3)},
        "BA",
    ),
    "a guard that gets better is kept": (
        LOW_GUARD,
        {"A": seeds("accuracy", 0.9, rate=0.1), "B": seeds("accuracy", 0.7, rate=0.4)},
        "AB",
    ),
    "within counts in the guard's own unit: 2 rating points": (
        WORDS,
        {"A": seeds("rate", 0.1, rating=1.2), "B": seeds("rate", 0.3, rating=3.0)},
        "AB",
    ),
    "one seed in three misses the guard by 0.1 point; the other setting is 15 times worse": (
        GUARDED,
        {
            "A": guarded("rate", [0.02, 0.02, 0.02], "recall", [0.829, 0.84, 0.85]),
            "B": seeds("rate", 0.3, 0.3, 0.3, recall=0.85),
        },
        "AB",
    ),
    "the mean misses the guard by 0.1 point": (
        GUARDED,
        {"A": seeds("rate", 0.02, recall=0.829), "B": seeds("rate", 0.3, recall=0.85)},
        "AB",
    ),
    "silence does not win": (
        GUARDED,
        {"A": seeds("rate", 0.0, recall=0.2), "B": seeds("rate", 0.39, recall=0.84)},
        "BA",
    ),
    "of two that break the guard, the one that breaks it less": (
        GUARDED,
        {"A": seeds("rate", 0.0, recall=0.2), "B": seeds("rate", 0.0, recall=0.6)},
        "BA",
    ),
    "equal rates: the better guard": (
        GUARDED,
        {"A": seeds("rate", 0.2, recall=0.84), "B": seeds("rate", 0.2, recall=0.9)},
        "BA",
    ),
    "all equal: the order of the plan": (
        LOWER,
        {"A": seeds("rate", 0.1, 0.2, 0.3), "B": seeds("rate", 0.3, 0.2, 0.1)},
        "AB",
    ),
    "one seed failed: after all that have every seed": (
        LOWER,
        {"A": seeds("rate", 0.01, None), "B": seeds("rate", 0.3, 0.3)},
        "BA",
    ),
    "a seed that is not a number has failed": (
        LOWER,
        {"A": seeds("rate", 0.01, NAN), "B": seeds("rate", 0.3, 0.3), "C": seeds("rate", NAN)},
        "BA",
    ),
    "a seed without the guard has failed": (
        GUARDED,
        {"A": seeds("rate", 0.01, recall=None), "B": seeds("rate", 0.3, recall=0.85)},
        "B",
    ),
    "only settings with failed seeds: fewer failures first": (
        LOWER,
        {"A": seeds("rate", 0.01, None, None), "B": seeds("rate", 0.3, 0.3, None)},
        "BA",
    ),
    "all failed: nothing is chosen": (
        LOWER,
        {"A": seeds("rate", None, None), "B": [{"rate": None}]},
        "",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_order_is_the_one_that_a_person_gives(name):
    """Catches: the luckiest seed, a wrong direction or unit, a guard that is a cliff."""
    objective, settings, order = CASES[name]
    values = {key: setting_value(rows, BASE, objective) for key, rows in settings.items()}
    assert "".join(ranked(values, objective)) == order


def test_a_base_model_of_zero_has_a_ratio():
    """Catches: a division by the base model's rate of 0."""
    one, two = (setting_value(seeds("rate", rate), {"rate": 0.0}, LOWER) for rate in (0.01, 0.02))
    assert one is not None and two is not None
    assert (one.loss, two.loss) == (pytest.approx(2.0), pytest.approx(3.0))


def test_the_mean_has_an_interval_over_seeds():
    """Two seeds, 10 and 30: t is 12.7, s / sqrt(2) is 10, and the guard misses by 3 points."""
    rows = guarded("rate", [0.1, 0.3], "recall", [0.8, 0.8])
    value = setting_value(rows, BASE, GUARDED)
    assert value is not None and value.interval is not None
    assert value.mean == pytest.approx(20) and value.interval.high == pytest.approx(147.06, abs=0.1)
    assert (value.violation, value.guard) == (pytest.approx(3.0), pytest.approx(80.0))
    assert value.loss == pytest.approx(21 / 41 + 3 / 2)
    assert setting_value(rows[:1], BASE, GUARDED).interval is None  # pyright: ignore


def test_of_twenty_settings_ten_survive_with_all_their_seeds():
    """Catches: seeds that are stopped by themselves; a count that chance decides."""
    values = {n: setting_value(seeds("rate", 0.2, 0.2, 0.2), BASE, LOWER) for n in range(20)}
    assert survivors(values, LOWER, reduction=2) == list(range(10))
    assert len(survivors({1: values[1], 2: values[2], 3: None}, LOWER, reduction=2)) == 2
    assert survivors({1: None}, LOWER, reduction=2) == []


def test_settings_within_the_interval_of_the_best_are_named():
    """Catches: a runner-up that the data do not tell from the best, and nobody hears of."""
    rates = {"best": (0.1, 0.14), "near": (0.13, 0.135), "far": (0.6, 0.61)}
    values = {key: setting_value(seeds("rate", *row), BASE, LOWER) for key, row in rates.items()}
    assert indistinct(values, LOWER) == ["near"]  # 12 +- 12.7 * 2 points
    assert indistinct({}, LOWER) == []
