"""Checks and predictions of a sweep before its first trial: objective, disk, hours, cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from eval.benchmarks.contract import Benchmark, Metric
from experiments.runners.config import Part, SweepConfig
from experiments.runners.stage_monitor import without
from rlhfv_ray.config import changed_settings
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.models import planned_counts
from rlhfv_ray.storage.folder import open_folder
from rlhfv_ray.sweep.search_space import TrialParams, apply_params, arguments_of, title_of
from rlhfv_ray.sweep.setting_value import Measure, Objective

RULE = 2  # of the choice; a sweep by another rule is another sweep
CHECKPOINT_BYTES = 12  # of a trained parameter: AdamW's moments and the fp32 weight
START_S = 20.0  # a trial's start at a rung in new processes: imports, weights
WARM_START_S = 4.0  # in processes that trained another trial before
VERDICT_TOKENS = 1000, 150  # of a usual verdict: prompt, reply
# Settings of a server that change no verdict.
PACE = (
    *("key_env", "key_file", "requests_per_minute", "tokens_per_minute", "concurrency", "actors"),
    *("timeout_s", "attempts", "price_in", "price_out", "max_cost"),
)


def objective_of(config: SweepConfig, benchmark: Benchmark) -> Objective:
    """Return what a sweep improves, and its guard, with the directions of the benchmark.

    Raises:
        ConfigError: the benchmark has no such metric or guard, or it has no better direction.
    """
    search = config.search
    metric = _measure("metric", search.metric, benchmark)
    if not search.guard:
        return Objective(metric, None, search.within)
    if search.guard == search.metric:
        raise ConfigError(
            f"search.guard = {search.guard!r} is the metric itself; give another score, or '' for "
            "no guard."
        )
    guard = _measure("guard", search.guard, benchmark, taken=search.metric)
    return Objective(metric, guard, search.within)


def _measure(option: str, name: str, benchmark: Benchmark, *, taken: str = "") -> Measure:
    directed = {
        metric.name: metric
        for metric in benchmark.metrics
        if metric.better and metric.name != taken
    }
    if name in directed:
        metric: Metric = directed[name]
        return Measure(name, "lower" if metric.better == "lower" else "higher", metric.scale)
    known = ", ".join(f"{metric.name} ({metric.better})" for metric in directed.values())
    has_no_direction = any(metric.name == name for metric in benchmark.metrics)
    reason = "no value of it is better than another" if has_no_direction else "no such score"
    hint = ", or --search.guard ''" if option == "guard" else ""
    raise ConfigError(
        f"search.{option} = {name!r}: {reason} on {benchmark.name}. Choose one of {known}{hint}."
    )


def identity(config: SweepConfig, reference: str) -> dict[str, Any]:
    """Return everything that makes this sweep another one than others.

    The number of trials at a time, the budget, the pace and the keys of servers are no part of it:
    the same sweep goes on with another budget.
    """
    settings = without(changed_settings(config), "name", "ddpo", "search", "judge", "dry_run")
    judge = without(changed_settings(config.judge), *PACE)
    return {
        "rule": RULE,
        "ddpo": without(changed_settings(config.ddpo), "name", "storage", "scale", "tracking"),
        "search": without(changed_settings(config.search), "concurrent", "keep"),
        "reference": reference,
        **({"judge": judge} if judge else {}),
        **settings,
    }


def with_shared_pace(config: SweepConfig, concurrent: int) -> SweepConfig:
    """Return the settings of one trial, so that all trials together keep the judge's pace.

    What all calls may cost (`judge.max_cost`) is counted on disk, for all trials together.
    """
    judge = config.judge
    shared = replace(
        judge,
        requests_per_minute=judge.requests_per_minute / concurrent,
        tokens_per_minute=judge.tokens_per_minute / concurrent,
        concurrency=max(1, judge.concurrency // concurrent),
    )
    return replace(config, judge=shared)


class Forecast(NamedTuple):
    """Trials, updates and evaluations of a sweep, if no trial fails."""

    trials: tuple[int, ...]  # at each rung
    updates: int  # of all trials together
    looks: int  # evaluations of all trials together

    def seconds(self, *, update_s: float, look_s: float, cold: int) -> float:
        """Return how long all trials take, one after the other.

        Args:
            update_s: seconds of an update.
            look_s: seconds of an evaluation.
            cold: number of starts in new processes.
        """
        starts = cold * START_S + (sum(self.trials) - cold) * WARM_START_S
        return self.updates * update_s + self.looks * look_s + starts


class Disk(NamedTuple):
    """Disk space of the checkpoints and models of a sweep, in bytes."""

    least: float  # if a trial's checkpoints are deleted at each rung, and trained again
    all: float  # if the checkpoints of all trials wait for the rung's decision


def disk_of(config: SweepConfig, counted: Forecast, concurrent: int) -> Disk:
    """Return how much of the disk a sweep needs."""
    counts = planned_counts(config.ddpo.model).values()
    total = sum(count for count, _ in counts)
    trained = sum(count for _, count in counts)
    of_a_trial = (config.ddpo.scale.keep + 1) * CHECKPOINT_BYTES * trained + 2 * 4 * total
    kept_models = max(1, config.search.keep) * max(1, len(config.space.seed))
    waiting = counted.trials[0] if config.search.rungs > 1 else 0
    least = of_a_trial * (concurrent + kept_models)
    return Disk(least, max(least, of_a_trial * waiting))


def keeps_checkpoints(config: SweepConfig, storage: Path, disk: Disk) -> bool:
    """Return True if the disk can hold the checkpoints of all trials of a rung.

    Raises:
        ConfigError: it cannot even hold those of the trials that run at a time.
    """
    free = open_folder(storage).free_bytes()
    if disk.least > free:
        raise ConfigError(
            f"storage {storage}: {disk.least / 2**30:.1f} GiB are needed for the trials that run "
            f"at a time and {config.search.keep} kept settings, {free / 2**30:.1f} GiB are free. "
            "Lower --search.concurrent, --search.keep or --ddpo.scale.keep."
        )
    return disk.all <= free


def forecast(config: SweepConfig, trials: Sequence[TrialParams], pairs: int) -> Forecast:
    """Count the trials, updates and looks of a sweep.

    Args:
        config: of the sweep.
        trials: all of them; of a Bayesian search, the corners of its space.
        pairs: pairs in the training data.
    """
    per_rung: list[float] = [0.0] * config.search.rungs  # updates of a mean trial at each rung
    for trial_params in trials:
        ddpo = apply_params(config.ddpo, trial_params)
        steps = config.search.rung_steps(ddpo.optim.total_steps(ddpo.data.used(pairs)))
        for rung, (start, stop) in enumerate(zip([0, *steps], steps, strict=False)):
            per_rung[rung] += (stop - start) / len(trials)
    counts = _trials_per_rung(config, len(trials))
    updates = sum(count * mean for count, mean in zip(counts, per_rung, strict=True))
    return Forecast(tuple(counts), round(updates), sum(counts))


def _trials_per_rung(config: SweepConfig, planned: int) -> list[int]:
    """Return the number of trials at each rung; a Bayesian search draws its own settings."""
    seeds = max(1, len(config.space.seed))
    settings = config.search.trials if config.search.kind == "bayes" else planned // seeds
    counts = [settings * seeds]
    for _ in range(config.search.rungs - 1):
        settings = math.ceil(settings / config.search.reduction)
        counts.append(settings * seeds)
    return counts


def plan_lines(
    config: SweepConfig, trials: Sequence[TrialParams], counted: Forecast, concurrent: int
) -> list[str]:
    """Return the lines that tell what a sweep will do: trials, disk, first and last configuration.

    Args:
        config: of the sweep.
        trials: all of them; of a Bayesian search, the corners of its space.
        counted: its forecast.
        concurrent: trials at a time.
    """
    counts = ", ".join(map(str, counted.trials))
    seeds = max(1, len(config.space.seed))
    disk = disk_of(config, counted, concurrent)
    ends = "corners of the space" if config.search.kind == "bayes" else "trials"
    return [
        f"trials: {counted.trials[0] // seeds} settings x {seeds} seeds, {concurrent} at a time; "
        f"by rung: {counts}; {counted.updates} updates and {counted.looks} evaluations in all",
        f"disk: {disk.least / 2**30:.2f} to {disk.all / 2**30:.2f} GiB for checkpoints and models",
        f"first of the {ends}: {title_of(trials[0])}   ({arguments_of(trials[0])})",
        f"last of the {ends}: {title_of(trials[-1])}   ({arguments_of(trials[-1])})",
    ]


def device_line(config: SweepConfig, counted: Forecast, seconds: float | None) -> str:
    """Return the line on the GPU hours (CPU hours without GPUs) that all trials take together.

    Args:
        config: of the sweep.
        counted: its forecast.
        seconds: of all trials, one after the other; None while nothing was measured.
    """
    scale = config.ddpo.scale
    unit = "GPU" if scale.gpu else "CPU"
    devices = max(scale.most_workers, scale.actors) * scale.resources[unit]  # of a trial
    if seconds is None:
        hours_each = counted.updates * devices / 3600
        return (
            f"{unit} hours: {hours_each:.1f} for each second of an update ({counted.updates} "
            f"updates on {devices:g} {unit}s), and those of the evaluations"
        )
    return f"{unit} hours: about {seconds * devices / 3600:.1f}, with {devices:g} {unit}s a trial"


def cost_line(config: SweepConfig, questions: Mapping[Part, int], counted: Forecast) -> str:
    """Return the line on the cost of judging.

    Args:
        config: of the sweep.
        questions: of the benchmark, by part.
        counted: the sweep's forecast.
    """
    judge = config.judge
    *early, last = counted.trials
    models: dict[Part, int] = {"choice": last + 1, "fresh": max(1, len(config.space.seed)) + 1}
    if early:
        models["rungs"] = sum(early) + 1  # and the base model, as in every part
    calls = judge.votes * sum(questions[part] * count for part, count in models.items())
    cost = calls * judge.cost(*VERDICT_TOKENS)
    unknown = "of unknown price (--judge.price-in, --judge.price-out)"
    price = f"about {cost:.2f} USD" if cost else unknown
    limit = f"; judge.max_cost stops at {judge.max_cost:g} USD" if judge.max_cost else ""
    return f"judging: {calls} verdicts at most, {price}{limit}"


def hours(seconds: float) -> str:
    """Return a duration as people say it.

    Example:
        >>> hours(154), hours(9000)
        ('3 minutes', '2.5 hours')
    """
    return (
        f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{math.ceil(seconds / 60)} minutes"
    )
