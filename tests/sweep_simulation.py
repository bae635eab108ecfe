"""Simulated sweeps with known truths: how good the choice and the reported value are, by rule.

    python -m tests.sweep_simulation    # 1,000 sweeps by three rules, two minutes

A sweep has 100 settings with three seeds. The rate of a setting's models is a probit of its level,
its seed and the picture's difficulty. Three rules choose with the same number of updates:

halving         this project's: halving over settings at 1/4 and 1/2 of the updates, the mean over
                seeds decides, an estimate on fresh pictures
random search   50 settings at random, trained to their end; the mean decides, fresh pictures
luckiest seed   the former rule: halving over single seeds, a guard that is a cliff, the mean over
                the seeds that are left decides, and the best seed's rate there is reported
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from rlhfv_ray.stats import Interval, RatioSample, wilson_interval
from rlhfv_ray.sweep.estimate import estimate
from rlhfv_ray.sweep.setting_value import (
    Measure,
    Objective,
    SettingValue,
    ranked,
    setting_value,
    survivors,
)

SETTINGS, SEEDS, PICTURES, FRESH = 100, 3, 200, 600
SAMPLED = 50  # settings at full length that have the updates of a halving over all
DIFFICULTY, SEED_SPREAD = 0.7, 0.1  # standard deviations on the probit scale
RECALL_SPREAD = 0.01  # of a seed's recall around its setting's
BASE = {"rate": 0.4, "recall": 0.86}
OBJECTIVE = Objective(Measure("rate", "lower"), Measure("recall", "higher"), within=2.0)
LEAST_RECALL = 0.84  # what the guard allows


class Choice(NamedTuple):
    """The result of a rule in one sweep; rates are fractions."""

    setting: int
    chosen_at: float  # the setting's rate on the pictures that chose it
    reported: float
    interval: Interval  # of the reported rate
    truth: float  # of the models whose rate is reported


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

    def pictures(self, count: int) -> np.ndarray:
        """Draw the difficulties of pictures."""
        return self.draw.normal(size=count)

    def answers(self, setting: int, pictures: np.ndarray, *, rung: int = 2) -> np.ndarray:
        """Return wrong answers, (seeds, pictures)."""
        level = self.level[setting] + self.early[rung][setting] + self.seeds[setting]
        noise = self.draw.normal(size=(SEEDS, len(pictures)))
        return level[:, None] + DIFFICULTY * pictures + noise > 0

    def measure(self, setting: int, pictures: np.ndarray, rung: int) -> list[dict[str, float]]:
        """Return the rate and recall of every seed on pictures."""
        rates = self.answers(setting, pictures, rung=rung).mean(axis=1)
        recalls = self.draw.normal(self.recall[setting], RECALL_SPREAD, SEEDS)
        pairs = zip(map(float, rates), map(float, recalls), strict=True)
        return [{"rate": rate, "recall": recall} for rate, recall in pairs]

    def value(self, setting: int, pictures: np.ndarray, rung: int) -> SettingValue | None:
        """Return the setting's value on pictures."""
        return setting_value(self.measure(setting, pictures, rung), BASE, OBJECTIVE)

    def truths(self, setting: int) -> np.ndarray:
        """Return the rate of each of the setting's models over all pictures, (seeds,)."""
        spread = (1 + DIFFICULTY**2) ** 0.5
        return norm.cdf((self.level[setting] + self.seeds[setting]) / spread)

    def truth(self, setting: int) -> float:
        """Return the mean rate of the setting's models over all pictures."""
        return float(self.truths(setting).mean())

    def keeps_guard(self, setting: int) -> bool:
        """Return True if the setting's true recall is allowed."""
        return bool(self.recall[setting] >= LEAST_RECALL)


def halving(world: World) -> Choice:
    """Choose by halving over settings, and report the mean over seeds on fresh pictures."""
    early, last = world.pictures(PICTURES), world.pictures(FRESH)
    live = list(range(SETTINGS))
    for rung in (0, 1):
        values = {setting: world.value(setting, early, rung) for setting in live}
        live = survivors(values, OBJECTIVE, reduction=2)
    return _on_fresh(world, {setting: world.value(setting, last, 2) for setting in live})


def random_search(world: World) -> Choice:
    """Choose among settings at random, and report the mean over seeds on fresh pictures."""
    last = world.pictures(FRESH)
    tried = world.draw.choice(SETTINGS, SAMPLED, replace=False).tolist()
    return _on_fresh(world, {setting: world.value(setting, last, 2) for setting in tried})


def _on_fresh(world: World, values: Mapping[int, SettingValue | None]) -> Choice:
    best = ranked(values, OBJECTIVE)[0]
    value = values[best]
    answers = world.answers(best, world.pictures(FRESH)).astype(int)
    models = [RatioSample(list(row), [1] * FRESH) for row in answers]
    mean, interval, _ = estimate(models, is_proportion=True)
    assert value is not None and mean is not None and interval is not None
    return Choice(best, value.mean / 100, mean, interval, world.truth(best))


def luckiest_seed(world: World) -> Choice:
    """Choose by halving over single seeds, and report the best one on the pictures that chose."""
    early, last = world.pictures(PICTURES), world.pictures(FRESH)
    live = [(setting, seed) for setting in range(SETTINGS) for seed in range(SEEDS)]
    for rung in (0, 1):
        losses = _losses(world, live, early, rung)
        live = sorted(live, key=losses.__getitem__)[: len(live) // 2]
    losses = _losses(world, live, last, 2)
    groups: dict[int, list[float]] = {}
    for (setting, _), loss in losses.items():
        groups.setdefault(setting, []).append(loss)
    means = {setting: float(np.mean(group)) for setting, group in groups.items()}
    best = min(means, key=means.__getitem__)
    lucky = min((trial for trial in live if trial[0] == best), key=losses.__getitem__)
    rate = losses[lucky] % 1.0
    interval = wilson_interval(round(rate * FRESH), FRESH)
    assert interval is not None
    return Choice(best, rate, rate, interval, float(world.truths(best)[lucky[1]]))


def _losses(
    world: World, trials: list[tuple[int, int]], pictures: np.ndarray, rung: int
) -> dict[tuple[int, int], float]:
    """Return the former loss of single trials: the rate, and 1 more if recall is too low."""
    measured = {setting: world.measure(setting, pictures, rung) for setting, _ in trials}
    losses: dict[tuple[int, int], float] = {}
    for setting, seed in trials:
        rates = measured[setting][seed]
        losses[setting, seed] = rates["rate"] + (rates["recall"] < LEAST_RECALL)
    return losses


RULES: Mapping[str, Callable[[World], Choice]] = {
    "halving": halving,
    "random search": random_search,
    "luckiest seed": luckiest_seed,
}


class Summary(NamedTuple):
    """Means over simulated sweeps; fractions."""

    covered: float  # the interval covers the truth
    error: float  # reported - truth
    curse: float  # rate on the pictures that chose - the setting's truth
    regret: float  # the setting's truth - that of the best setting that keeps the guard
    broken: float  # the chosen setting's true recall is too low
    at_random: float  # regret of one setting at random among those that keep the guard


def simulate(rule: Callable[[World], Choice], sweeps: int) -> Summary:
    """Simulate sweeps by a rule, each in a world of its own seed."""
    rows = []
    for seed in range(sweeps):
        world = World(seed)
        choice = rule(world)
        truth = world.truth(choice.setting)
        allowed = [world.truth(item) for item in range(SETTINGS) if world.keeps_guard(item)]
        row = Summary(
            covered=choice.interval.low <= choice.truth <= choice.interval.high,
            error=choice.reported - choice.truth,
            curse=choice.chosen_at - truth,
            regret=truth - min(allowed),
            broken=not world.keeps_guard(choice.setting),
            at_random=float(np.mean(allowed)) - min(allowed),
        )
        rows.append(row)
    return Summary(*map(float, np.array(rows, dtype=float).mean(axis=0)))


def main(sweeps: int = 1000) -> None:
    """Print the summary of every rule."""
    print(f"{sweeps} sweeps of {SETTINGS} settings with {SEEDS} seeds; points of the rate, or %")
    columns = ("covered %", "error", "curse", "regret", "guard broken %", "regret at random")
    print(f"{'rule':<16}", *(f"{column:>16}" for column in columns))
    for name, rule in RULES.items():
        numbers = [100 * number for number in simulate(rule, sweeps)]
        print(f"{name:<16}", *(f"{number:>16.2f}" for number in numbers))


if __name__ == "__main__":
    main()
