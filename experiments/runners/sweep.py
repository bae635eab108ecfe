"""One sweep: what all trials share, the trials by Ray Tune, and the choice, in one MLflow run.

The sweep's folder `<storage>/<name>-<fingerprint>/` holds `config.json`, `trials.json`,
`settings.json`, `best.json`, the figures, the base model's scores, and `trials/<name>/` with the
values, rungs, scores and outcome of each trial. Corrections, reference log-probs and the base
model's answers are made once, before the first trial. Each trial is a child run.
"""

import functools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from eval.benchmarks.contract import Benchmark
from experiments.runners.config import Part, SweepConfig
from experiments.runners.picture_parts import check_parts, questions_by_part
from experiments.runners.scoring import (
    Measured,
    SweepMonitor,
    delete_training,
    planned_benchmark,
    score_model,
)
from experiments.runners.stage_monitor import flat
from experiments.runners.sweep_outcome import conclude, retrain_command
from experiments.runners.sweep_plan import (
    START_S,
    WARM_START_S,
    cost_line,
    device_line,
    disk_of,
    forecast,
    hours,
    identity,
    keeps_checkpoints,
    objective_of,
    plan_lines,
    with_shared_pace,
)
from rlhfv_ray.cluster import connect
from rlhfv_ray.config import DDPOConfig, fingerprint, plain
from rlhfv_ray.console import poll, progress_bar, stage_line
from rlhfv_ray.data.reference_table import load_reference
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.pipeline import Pipeline, plan_pipeline, rung_stage, train_stage
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import discard, is_there
from rlhfv_ray.storage.stages import is_done, run_stages, seconds_of
from rlhfv_ray.sweep.record import write_rung
from rlhfv_ray.sweep.search_space import TrialParams, apply_params, plan_trials
from rlhfv_ray.sweep.setting_value import Objective, Rates
from rlhfv_ray.sweep.trials import SweepJob, room_for_trials, run_sweep
from rlhfv_ray.tracking.run import TrackedRun
from rlhfv_ray.tracking.run_folder import RUN_NAME, open_run_folder
from rlhfv_ray.tracking.target import find_target

POLL_S = 2.0
PAIRS = 1400  # the paper's, while the number of pairs is not known


def sweep(
    config: SweepConfig, storage: Path, *, recipe: DDPOConfig, console: Console
) -> dict[str, Any]:
    """Run a sweep, or the rest of it; returns what it writes to `best.json`.

    Args:
        config: of the sweep.
        storage: folder of everything.
        recipe: the named configuration that `config.ddpo` varies, for the command that trains
            the best setting again.
        console: of the terminal.

    Raises:
        RlhfvError: something the user can mend, if possible before the first trial.
    """
    storage.mkdir(parents=True, exist_ok=True)
    find_target(config.ddpo.tracking, storage)  # refused before anything starts
    trials = plan_trials(config.space, config.search, config.ddpo)
    pipeline = plan_pipeline(config.ddpo, storage, seen=lambda records: None)
    benchmark = planned_benchmark(config, storage)
    objective = objective_of(config, benchmark)
    check_parts(benchmark)
    connect()
    concurrent, lacking = room_for_trials(
        config.ddpo.scale, config.search.concurrent, dry_run=config.dry_run
    )
    planned = Planned(config, storage, trials, benchmark, pipeline, concurrent)
    if config.dry_run:
        lines = [*planned.lines(), *lacking]
        console.print("\n".join(lines), highlight=False, soft_wrap=True)
        return {}
    folder = storage / f"{config.name}-{fingerprint(identity(config, pipeline.reference.name))}"
    with open_run_folder(
        folder,
        config.ddpo.tracking,
        store=storage,
        params=flat(plain(config)),
        tags={RUN_NAME: f"{config.name} sweep, {len(trials)} trials"},
        config={"config": plain(config)},
    ) as opened:
        shared = prepare(planned, objective, folder, console=console)
        lines = planned.lines(look_s=shared.answered_s)
        console.print("\n".join(lines), highlight=False, soft_wrap=True)
        run_trials(planned, shared, folder, opened.run)
        retrain = functools.partial(
            retrain_command, config=config.ddpo, recipe=recipe, reference=shared.pipeline.reference
        )
        outcome = conclude(
            config, shared.measured, folder, opened.run, retrain=retrain, console=console
        )
    opened.print_locations({"sweep": folder}, console=console)
    return outcome


@dataclass(frozen=True)
class Planned:
    """A sweep that was checked, and of which nothing was computed."""

    config: SweepConfig
    storage: Path
    trials: Sequence[TrialParams]
    benchmark: Benchmark
    pipeline: Pipeline
    concurrent: int

    def lines(self, *, look_s: float | None = None) -> list[str]:
        """Return the forecast: trials, disk, configurations, judging, hours where known.

        Args:
            look_s: seconds of the base model's answers and scores on the pictures of one part.
        """
        config = self.config
        reference = self.pipeline.reference
        is_known = is_done(reference)
        pairs = len(load_reference(reference)) if is_known else PAIRS
        counted = forecast(config, self.trials, pairs)
        lines = plan_lines(config, self.trials, counted, self.concurrent)
        if self.benchmark.judged and config.judge.kind == "openai":
            lines.append(cost_line(config, questions_by_part(self.benchmark), counted))
        if not is_known:
            return [
                *lines,
                device_line(config, counted, None),
                f"time: known after the reference pass; counted for {pairs} pairs",
            ]
        scale, batch = config.ddpo.scale, config.ddpo.optim.batch
        update_s = 3 * seconds_of(reference) * batch / pairs * scale.actors / scale.most_workers
        starts = sum(counted.trials)
        cold = starts if scale.is_elastic else min(starts, self.concurrent)
        seconds = counted.seconds(update_s=update_s, look_s=look_s or 0.0, cold=cold)
        looks = f"{look_s:.0f} s per evaluation" if look_s else "evaluations not counted"
        return [
            *lines,
            device_line(config, counted, seconds),
            f"time: about {hours(seconds / self.concurrent)}, with {update_s:.2f} s per update "
            f"(3 x the pace of the reference pass, if it ran on {scale.actors} such actors), "
            f"starts of {START_S:g} s ({cold}) or {WARM_START_S:g} s ({starts - cold}), {looks}",
        ]


@dataclass(frozen=True)
class Shared:
    """The results that all trials share."""

    config: SweepConfig  # with a trial's share of the judge's pace
    storage: Path
    pipeline: Pipeline
    measured: Measured
    answered_s: float  # how long the base model's answers to one part took
    keeps_checkpoints: bool  # of trials that wait for a rung's decision


def prepare(planned: Planned, objective: Objective, folder: Path, *, console: Console) -> Shared:
    """Make what all trials share: pairs, reference log-probs, the base model's scores.

    Raises:
        ConfigError: the base model has no value of the metric or guard; the disk is too small.
    """
    config, pipeline, storage = planned.config, planned.pipeline, planned.storage
    shared = pipeline.stages[:-1]
    for place, stage in enumerate(shared, start=1):
        done = is_done(stage.folder(storage))
        state = "done before, skipped" if done else "running"
        console.print(stage_line(stage.title, state, place, len(shared)), soft_wrap=True)
        run_stages([stage], storage)
    started = time.monotonic()
    parts: tuple[Part, ...] = ("rungs", "choice") if config.search.rungs > 1 else ("choice",)
    rates: dict[str, Rates] = {}
    for part in parts:
        console.print(Text.assemble(("base model's scores", "bold"), f" ({config.benchmark})"))
        rates[part] = score_model(
            config,
            config.ddpo.model.path,
            storage,
            folder / f"base-{part}",
            pictures=config.pictures(part),
        ).rates()
        check_base(rates[part], objective, config.benchmark)
    bases = [rates[part_at(config, rung)] for rung in range(config.search.rungs)]
    counted = forecast(config, planned.trials, len(load_reference(pipeline.reference)))
    disk = disk_of(config, counted, planned.concurrent)
    return Shared(
        with_shared_pace(config, planned.concurrent),
        storage,
        pipeline,
        Measured(bases, objective),
        (time.monotonic() - started) / len(parts),
        keeps_checkpoints(config, storage, disk),
    )


def part_at(config: SweepConfig, rung: int) -> Part:
    """Return the part of the pictures of a rung: the last one chooses, earlier ones prune."""
    return "choice" if rung == config.search.rungs - 1 else "rungs"


def check_base(rates: Rates, objective: Objective, benchmark: str) -> None:
    """Check that the base model has a value of the metric and of the guard.

    Raises:
        ConfigError: it has none, so no trial can be compared with it.
    """
    for option, measure in (("metric", objective.metric), ("guard", objective.guard)):
        if measure is not None and measure.shown(rates) is None:
            raise ConfigError(
                f"search.{option} = {measure.name!r}: the base model has none on {benchmark}, as "
                "nothing was counted. Choose another score, or use more pictures."
            )


def run_trials(planned: Planned, shared: Shared, folder: Path, run: TrackedRun) -> None:
    """Run all trials, and keep MLflow, the disk and the progress bar up to date."""
    config = planned.config
    job = SweepJob(
        folder,
        config.ddpo,
        config.space,
        config.search,
        functools.partial(run_one, shared=shared),
        shared.measured.objective,
        shared.measured.bases,
    )
    is_bayes = config.search.kind == "bayes"
    if is_bayes:
        from rlhfv_ray.sweep.bayes import SettingSearch  # of an extra
    seeds = max(1, len(config.space.seed))
    count = config.search.trials * seeds if is_bayes else len(planned.trials)
    with progress_bar("Trials", count) as bar:
        monitor = SweepMonitor(folder, run, bar, measured=shared.measured, config=config)
        with poll(monitor.refresh, POLL_S):
            run_sweep(
                job,
                planned.trials,
                concurrent=planned.concurrent,
                searcher=SettingSearch(job) if is_bayes else None,
            )


def run_one(trial_params: TrialParams, folder: Path, rung: int, *, shared: Shared) -> None:
    """Run one trial up to a rung: train, answer, score, and write the scores to its folder."""
    config, storage = shared.config, shared.storage
    pipeline = shared.pipeline  # planned once: its digests are of all data and weights
    trained = apply_params(config.ddpo, trial_params)
    train = train_stage(
        trained, pipeline.reference, pipeline.reference_inputs, lambda records: None
    )
    train_folder = train.folder(storage)
    pairs = len(load_reference(pipeline.reference))
    step = config.search.rung_steps(trained.optim.total_steps(trained.data.used(pairs)))[rung]
    if not (folder / "train.json").exists():
        is_new = not is_there(train_folder)
        write_json(folder / "train.json", {"folder": train_folder.name, "made": is_new})
    # What was trained to its end before, perhaps by another sweep, has no earlier state.
    is_whole = rung == config.search.rungs - 1 or is_done(train_folder)
    stage = train if is_whole else rung_stage(pipeline, trained, train, step)
    run_stages([stage], storage)
    part = part_at(config, rung)
    scores = score_model(
        config,
        str(stage.folder(storage) / "model"),
        storage,
        folder / f"rung-{rung}",
        pictures=config.pictures(part),
    )
    intervals = {name: list(interval) for name, interval in scores.intervals().items() if interval}
    write_rung(folder, rung, scores.rates(), step=step, intervals=intervals)
    if not is_whole:
        discard(stage.folder(storage))  # training continues from its own checkpoint
        made = json.loads((folder / "train.json").read_text())["made"]
        if made and not shared.keeps_checkpoints:
            delete_training(train_folder)  # if the trial goes on, it is trained again
