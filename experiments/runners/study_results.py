"""The values of a study: every arm's metrics over seeds, and differences of arms.

Values are fractions, as in scores. Intervals know that seeds and scenes are drawn
(`rlhfv_ray.hierarchical`). Each seed has its own training and, in the shapes world, its own pairs
and pictures. Numbers that are no rate of scenes, such as a rise, have Student's t over seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from eval.benchmarks.contract import Metric, Scores
from experiments.runners.sweep_report import TrialResult
from rlhfv_ray.hierarchical import over_seeds, scene_error
from rlhfv_ray.stats import Interval, RatioSample

Samples = Mapping[tuple[str, str], tuple[RatioSample, ...]]  # by arm and metric; one per seed


class Mean(NamedTuple):
    """The mean of a metric over seeds."""

    mean: float
    interval: Interval | None  # 95 %
    values: tuple[float, ...]  # one per seed
    p_value: float | None  # of a true mean of 0
    scene_error: float  # standard error of the mean that comes from the scenes


@dataclass(frozen=True)
class StudyResults:
    """All values of a study."""

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]  # those that every arm has under every seed
    values: Mapping[tuple[str, str], tuple[float, ...]]  # by arm and metric; one per seed
    samples: Samples = field(default_factory=dict)  # of metrics that are rates of scenes
    is_shared: bool = False  # all seeds are scored on the same scenes
    # Scene errors of means, by arm and metric; they replace those that the samples give.
    errors: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The names of the metrics."""
        return [metric.name for metric in self.metrics]

    def mean(self, arm: str, metric: str) -> Mean:
        """Return an arm's mean over seeds with its interval; a share's stays within 0 and 1."""
        error = self.errors.get((arm, metric))
        if error is None:
            error = self._scene_error(arm, metric)
        mean = _mean(self.values[arm, metric], error)
        is_share = {known.name: known.is_share for known in self.metrics}
        if mean.interval is None or not is_share[metric]:
            return mean
        return mean._replace(interval=mean.interval.of_share())

    def difference(self, arm: str, than: str, metric: str) -> Mean:
        """Return the difference of two arms, paired by seed and scene: `arm` minus `than`."""
        pairs = zip(self.values[arm, metric], self.values[than, metric], strict=True)
        values = tuple(value - than_value for value, than_value in pairs)
        return _mean(values, self._scene_error(arm, metric, than))

    def _scene_error(self, arm: str, metric: str, than: str = "") -> float:
        samples = self.samples.get((arm, metric), ())
        baselines = self.samples.get((than, metric), ()) if than else ()
        if than and not (samples and baselines):
            return 0.0
        return scene_error(samples, baselines, is_shared=self.is_shared) if samples else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return all means with their values, for `study.json`."""
        arms: dict[str, dict[str, Any]] = {}
        for arm in self.arms:
            arms[arm] = {name: self.mean(arm, name)._asdict() for name in self.names}
        metrics = [metric._asdict() for metric in self.metrics]
        return {"seeds": list(self.seeds), "metrics": metrics, "arms": arms}


def _mean(values: tuple[float, ...], error: float) -> Mean:
    estimate = over_seeds(values, error)
    return Mean(estimate.mean, estimate.interval, values, estimate.p_value, error)


def study_results(
    trials: Sequence[TrialResult],
    arms: Sequence[str],
    scores: Mapping[tuple[str, int], Scores] | None = None,
) -> StudyResults:
    """Collect the trials' values, with arms in the study's order and seeds in ascending order.

    Args:
        trials: all trials of the study.
        arms: their names.
        scores: the scores of each arm and seed, whose scenes the intervals take into account.
    """
    rates: dict[tuple[str, int], Mapping[str, float | None]] = {}
    known: dict[str, Metric] = {}
    metric_names: dict[str, None] = {}  # in the order in which they first appear
    for trial in trials:
        rates[trial.trial_params["arm"], trial.trial_params["seed"]] = trial.rates
        metric_names |= dict.fromkeys(trial.rates)
        known |= {row["name"]: Metric(**row) for row in trial.last["metrics"]}
    seeds = tuple(sorted({seed for _, seed in rates}))
    metrics: list[Metric] = []
    values: dict[tuple[str, str], tuple[float, ...]] = {}
    for name in metric_names:
        by_trial = {trial: trial_rates.get(name) for trial, trial_rates in rates.items()}
        if name in ("n", "missing") or None in by_trial.values():
            continue
        metrics.append(known.get(name, Metric(name, "lower", is_proportion=False)))
        for arm in arms:
            values[arm, name] = tuple(float(by_trial[arm, seed] or 0.0) for seed in seeds)
    if not scores:
        return StudyResults(tuple(arms), seeds, tuple(metrics), values)
    rated = {metric.name for metric in next(iter(scores.values())).metrics}
    samples = {
        (arm, name): tuple(scores[arm, seed].sample(name) for seed in seeds)
        for arm, name in values
        if name in rated
    }
    manifests = {scored.manifest_hash for scored in scores.values()}
    return StudyResults(
        tuple(arms), seeds, tuple(metrics), values, samples, is_shared=len(manifests) == 1
    )
