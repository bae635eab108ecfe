"""The estimate of a chosen setting: by hand, and over simulated sweeps with known truths."""

import numpy as np
import pytest
from scipy.stats import norm

from rlhfv_ray.errors import DataError
from rlhfv_ray.stats import RatioSample
from rlhfv_ray.sweep.estimate import estimate, paired_estimate
from rlhfv_ray.sweep.setting_value import (
    Measure,
    Objective,
    SettingValue,
    ranked,
    setting_value,
    survivors,
)

SETTINGS, SEEDS, PICTURES, FRESH = 100, 3, 200, 600
DIFFICULTY, SEED_SPREAD = 0.7, 0.1  # standard deviations on the probit scale
BASE = {"rate": 0.4, "recall": 0.86}
OBJECTIVE = Objective(Measure("rate", "lower"), Measure("recall", "higher"), within=2.0)


def test_a_mean_of_ratings_has_students_interval():
    """Ratings 1, 3 and 2, 4: pictures have 1.5 and 3.5, 2.5 +- 12.7 * 1."""
    models = [RatioSample([1, 3], [1, 1]), RatioSample([2, 4], [1, 1])]
    mean, interval, _ = estimate(models, is_proportion=False)
    assert mean == 2.5 and interval is not None
    assert (interval.low, interval.high) == (pytest.approx(-10.2, abs=0.1), pytest.approx(15.2062))


def test_a_ratio_of_sums_is_the_ratio_not_the_mean_of_ratios():
    """1 of 1 and 1 of 9 mentions are 2 of 10, not 0.56."""
    assert estimate([RatioSample([1, 1], [1, 9])], is_proportion=True).mean == pytest.approx(0.2)
    assert estimate([RatioSample([0, 0], [0, 0])], is_proportion=True).mean is None


def test_the_same_answers_differ_by_nothing():
    """Catches: a difference that is resolved where there is none; p of 0 by 0."""
    sample = RatioSample([1, 0, 1], [1, 1, 1])
    same = paired_estimate([sample, sample], [sample])
    assert (same.mean, same.p_value, same.is_resolved) == (0.0, 1.0, False)
    always = paired_estimate([RatioSample([0] * 4, [1] * 4)], [RatioSample([1] * 4, [1] * 4)])
    assert (always.mean, always.p_value, always.is_resolved) == (-1.0, 0.0, True)


def test_other_pictures_are_refused():
    """Catches: a paired test on pictures that are not pairs."""
    with pytest.raises(DataError, match="equal pictures"):
        estimate([RatioSample([1], [1]), RatioSample([1, 0], [1, 1])], is_proportion=True)


class World:
    """Settings with known truths; the answers of a model are drawn picture by picture."""

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        self.level = self.draw.uniform(-2.2, -0.3, SETTINGS)  # probit of the rate
        self.recall = self.draw.normal(0.86, 0.02, SETTINGS)
        self.seeds = self.draw.normal(0, SEED_SPREAD, (SETTINGS, SEEDS))
        # What is left to learn at each rung; the last one is the end.
        self.early = [self.draw.normal(mean, mean / 2, SETTINGS) for mean in (0.35, 0.15)]
        self.early.append(np.zeros(SETTINGS))

    def answers(self, setting: int, pictures: np.ndarray, *, rung: int = 2) -> np.ndarray:
        """Return wrong answers, (seeds, pictures)."""
        level = self.level[setting] + self.early[rung][setting] + self.seeds[setting]
        noise = self.draw.normal(size=(SEEDS, len(pictures)))
        return level[:, None] + DIFFICULTY * pictures + noise > 0

    def truth(self, setting: int) -> float:
        """Return the mean rate of the setting's models over all pictures."""
        spread = (1 + DIFFICULTY**2) ** 0.5
        return float(norm.cdf((self.level[setting] + self.seeds[setting]) / spread).mean())

    def value(self, setting: int, pictures: np.ndarray, rung: int) -> SettingValue | None:
        """Return the setting's value on pictures."""
        rates = self.answers(setting, pictures, rung=rung).mean(axis=1)
        recalls = self.draw.normal(self.recall[setting], 0.01, SEEDS)
        pairs = zip(map(float, rates), map(float, recalls), strict=True)
        rows = [{"rate": rate, "recall": recall} for rate, recall in pairs]
        return setting_value(rows, BASE, OBJECTIVE)

    def choose(self) -> tuple[int, float]:
        """Return the setting that the rungs choose, and its value there."""
        early, last = (self.draw.normal(size=count) for count in (PICTURES, FRESH))
        live = list(range(SETTINGS))
        for rung in (0, 1):
            values = {setting: self.value(setting, early, rung) for setting in live}
            live = survivors(values, OBJECTIVE, reduction=2)
        values = {setting: self.value(setting, last, 2) for setting in live}
        best = ranked(values, OBJECTIVE)[0]
        value = values[best]
        assert value is not None
        return best, value.mean / 100


def simulate(sweeps: int) -> np.ndarray:
    """Simulate whole sweeps.

    Returns:
        (sweeps, 5): the interval covers the truth; regret of the choice, of one setting at random
        among those that keep the guard; the estimate's error, that of the value that chose.
    """
    rows = []
    for seed in range(sweeps):
        world = World(seed)
        best, chosen_at = world.choose()
        answers = world.answers(best, world.draw.normal(size=FRESH)).astype(int)
        models = [RatioSample(list(row), [1] * FRESH) for row in answers]
        mean, interval, _ = estimate(models, is_proportion=True)
        assert mean is not None and interval is not None
        truth = world.truth(best)
        allowed = [world.truth(s) for s in range(SETTINGS) if world.recall[s] >= 0.84]
        covers = interval.low <= truth <= interval.high
        at_random = float(np.mean(allowed)) - min(allowed)
        rows.append([covers, truth - min(allowed), at_random, mean - truth, chosen_at - truth])
    return np.array(rows, dtype=float)


def check(table: np.ndarray, *, margin: float) -> None:
    """Check coverage, regret and the winner's curse of simulated sweeps."""
    covered, regret, at_random, error, curse = table.mean(axis=0)
    assert 0.93 - margin <= covered <= 0.97 + margin
    assert regret < 0.01 < 0.1 < at_random
    assert abs(error) < 0.002 + margin / 10
    assert curse < -0.002


@pytest.mark.soak
def test_intervals_cover_the_truth_in_a_thousand_sweeps():
    """Catches: an estimate on pictures that chose; an interval that is too narrow or too wide."""
    check(simulate(1000), margin=0.0)


def test_intervals_cover_the_truth_in_a_hundred_sweeps():
    """The same on a tenth, whose coverage has a standard error of 2 points."""
    check(simulate(100), margin=0.05)
