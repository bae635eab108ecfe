"""One sweep: what all trials share, the trials by Ray Tune, and their ranking, in one MLflow run.

The sweep's folder `<storage>/<name>-<fingerprint>/` holds `config.json`, `trials.json`,
`best.json`, the figures, the base model's scores, and `trials/<name>/` with the settings, rungs,
scores and outcome of each trial. Corrections, reference log-probs and the base model's answers are
made once, before the first trial. Each trial is a child run.
"""

import functools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from experiments.runners.config import SweepConfig
from experiments.runners.experiment import origin
from experiments.runners.scoring import SweepMonitor, score_model
from experiments.runners.stage_monitor import flat, without
from experiments.runners.sweep_report import best_of, read_trials, sweep_table, write_figures
from rlhfv_ray.cluster import check_fits, connect
from rlhfv_ray.config import SHAPES, DDPOConfig, changed_settings, fingerprint, plain
from rlhfv_ray.console import poll, progress_bar
from rlhfv_ray.data.reference_table import load_reference
from rlhfv_ray.errors import ConfigError, StageFailedError
from rlhfv_ray.models import planned_counts
from rlhfv_ray.pipeline import Pipeline, plan_pipeline, rung_stage, train_stage
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import discard, display_path, is_there, open_folder
from rlhfv_ray.storage.stages import Stage, is_done, run_stages, seconds_of
from rlhfv_ray.sweep.search_space import TrialParams, apply_params, arguments_of, plan_trials
from rlhfv_ray.sweep.trials import Report, SweepJob, end_trial, run_sweep, trials_at_once
from rlhfv_ray.tracking.run import TrackedRun
from rlhfv_ray.tracking.run_folder import open_run_folder

POLL_S = 2.0
FRESH = 1  # added to the seed for images that decided nothing
CHECKPOINT_BYTES = 12  # of a trained parameter: AdamW's moments and the fp32 weight


def sweep(
    config: SweepConfig, storage: Path, *, recipe: DDPOConfig, console: Console
) -> dict[str, Any]:
    """Run a sweep, or the rest of it; returns what it writes to `best.json`.

    Args:
        config: of the sweep.
        storage: folder of everything.
        recipe: the named configuration that `config.ddpo` varies, for the command that trains
            the best trial again.
        console: of the terminal.

    Raises:
        RlhfvError: something the user can mend, if possible before the first trial.
    """
    storage.mkdir(parents=True, exist_ok=True)
    trials = plan_trials(config.space, config.search, config.ddpo)
    pipeline = plan_pipeline(config.ddpo, storage, seen=lambda records: None)
    connect()
    check_fits(config.ddpo.scale, setting="ddpo.scale")
    concurrent = trials_at_once(config.ddpo.scale, config.search.concurrent)
    check_disk(config, storage, concurrent)
    folder = storage / f"{config.name}-{fingerprint(identity(config, pipeline))}"
    with open_run_folder(
        folder,
        config.ddpo.tracking,
        store=storage,
        params=flat(plain(config)),
        tags=origin(),
        config={"config": plain(config), **origin()},
    ) as opened:
        run = opened.run
        shared = prepare(config, pipeline, folder, console=console)
        count = config.search.trials if config.search.kind == "bayes" else len(trials)
        console.print(forecast(config, shared, count, concurrent), highlight=False, soft_wrap=True)
        job = SweepJob(
            folder,
            config.ddpo,
            config.space,
            config.search,
            functools.partial(run_one, shared=shared),
        )
        with progress_bar("Trials", count) as bar:
            monitor = SweepMonitor(folder, run, bar, config.search)
            with poll(monitor.refresh, POLL_S):
                run_sweep(job, trials, concurrent=concurrent)
        outcome = conclude(shared, folder, run, recipe=recipe, console=console)
    opened.print_locations({"sweep": folder}, console=console)
    return outcome


@dataclass(frozen=True)
class Shared:
    """The results that all trials share."""

    config: SweepConfig
    storage: Path
    reference: Path
    base: Mapping[int, Mapping[str, float | None]]  # the base model's rates, by number of pictures
    answered_s: float  # how long the base model's answers took


def identity(config: SweepConfig, pipeline: Pipeline) -> dict[str, Any]:
    """Return everything that makes this sweep another one than others."""
    settings = without(changed_settings(config), "name", "ddpo", "search")
    return {
        "ddpo": without(changed_settings(config.ddpo), "name", "storage", "scale", "tracking"),
        "search": without(changed_settings(config.search), "concurrent", "keep"),
        "reference": pipeline.reference.name,
        **settings,
    }


def check_disk(config: SweepConfig, storage: Path, concurrent: int) -> None:
    """Refuse a sweep whose checkpoints the disk cannot hold.

    Raises:
        ConfigError: with what is needed and what is free.
    """
    counts = planned_counts(config.ddpo.model).values()
    total = sum(count for count, _ in counts)
    trained = sum(count for _, count in counts)
    checkpoints = (config.ddpo.scale.keep + 1) * CHECKPOINT_BYTES * trained
    needed = (checkpoints + 2 * 4 * total) * (concurrent + config.search.keep)
    free = open_folder(storage).free_bytes()
    if needed > free:
        raise ConfigError(
            f"storage {storage}: {needed / 2**30:.1f} GiB are needed for {concurrent} trials at a "
            f"time and {config.search.keep} kept, {free / 2**30:.1f} GiB are free. Lower "
            "--search.concurrent, --search.keep or --ddpo.scale.keep."
        )


def prepare(config: SweepConfig, pipeline: Pipeline, folder: Path, *, console: Console) -> Shared:
    """Make what all trials share: pairs, reference log-probs, the base model's scores.

    Raises:
        ConfigError: the benchmark has no such metric or guard.
    """
    for stage in pipeline.stages[:-1]:
        done = is_done(stage.folder(pipeline.storage))
        state = "done before, skipped" if done else "running"
        console.print(Text.assemble((stage.title, "bold"), f": {state}"))
        run_stages([stage], pipeline.storage)
    started = time.monotonic()
    base: dict[int, dict[str, float | None]] = {}
    for scenes in image_counts(config):
        console.print(Text.assemble(("base model's scores", "bold"), f" ({config.benchmark})"))
        scores = score_model(
            config,
            config.ddpo.model.path,
            pipeline.storage,
            folder / f"base-{scenes}",
            scenes=scenes,
            seed=config.ddpo.shapes.seed,
        )
        base[scenes] = scores.rates()
    known = [metric.name for metric in scores.metrics]
    for name, value in (("metric", config.search.metric), ("guard", config.search.guard)):
        if value not in known and (value or name == "metric"):
            raise ConfigError(
                f"search.{name} = {value!r}: {config.benchmark} has {', '.join(known)}."
            )
    return Shared(config, pipeline.storage, pipeline.reference, base, time.monotonic() - started)


def image_counts(config: SweepConfig) -> list[int]:
    """Return the numbers of shapes images at a trial's rungs and at its end."""
    last = config.ddpo.shapes.evaluation_scenes
    fewer = config.search.rungs > 1 and config.benchmark == SHAPES
    return [config.rung_scenes, last] if fewer else [last]


def forecast(config: SweepConfig, shared: Shared, count: int, concurrent: int) -> str:
    """Predict the duration: an update takes three times the reference pass of its pairs."""
    scale = config.ddpo.scale
    pairs = len(load_reference(shared.reference))
    steps = config.ddpo.optim.total_steps(config.ddpo.data.used(pairs))
    passes = steps * config.ddpo.optim.batch / pairs * 3 * scale.actors / scale.workers
    seconds = passes * seconds_of(shared.reference) + shared.answered_s
    return (
        f"{count} trials, {concurrent} at a time, about {steps} updates each on {pairs} pairs: "
        f"{count / concurrent * seconds / 3600:.1f} hours at most, if training keeps the pace of "
        "the reference pass"
    )


def run_one(trial_params: TrialParams, place: Path, report: Report, *, shared: Shared) -> None:
    """Run one trial: train to each rung, answer, score, report; finished rungs are not repeated."""
    config, storage, started = shared.config, shared.storage, time.monotonic()
    base = on_reference(config.ddpo, shared.reference)
    pipeline = plan_pipeline(base, storage, seen=lambda records: None)
    trained = apply_params(base, trial_params)
    train = train_stage(
        trained, pipeline.reference, pipeline.reference_inputs, lambda records: None
    )
    folder = train.folder(storage)
    steps = trained.optim.total_steps(trained.data.used(len(load_reference(pipeline.reference))))
    if not (place / "train.json").exists():
        is_new = not is_there(folder)
        write_json(place / "train.json", {"folder": folder.name, "made": is_new})
    rungs = config.search.rung_steps(steps)
    for rung, step in enumerate(rungs):
        file, last = place / f"rung-{step:06d}.json", step == rungs[-1]
        if not file.exists():
            if not last and is_done(folder):  # trained elsewhere: no way back to this rung
                continue
            stage = train if last else rung_stage(pipeline, trained, train, step)
            train_rung(file, stage, step, last=last, shared=shared)
        if last:
            end_trial(place, "finished", seconds=time.monotonic() - started)
        report(rung, json.loads(file.read_text())["objective"])


def train_rung(file: Path, stage: Stage, step: int, *, last: bool, shared: Shared) -> None:
    """Train up to a rung, and write the scores of the model there."""
    config, storage = shared.config, shared.storage
    run_stages([stage], storage)
    scenes = image_counts(config)[-1 if last else 0]
    scores = score_model(
        config,
        str(stage.folder(storage) / "model"),
        storage,
        file.with_suffix(""),
        scenes=scenes,
        seed=config.ddpo.shapes.seed,
    )
    rates, search = scores.rates(), config.search
    guards = (rates.get(search.guard), shared.base[scenes].get(search.guard))
    intervals = {name: list(interval) for name, interval in scores.intervals().items() if interval}
    result = {"step": step, "objective": search.objective(rates[search.metric], *guards)}
    write_json(file, {**result, "rates": rates, "intervals": intervals})
    if not last:
        discard(stage.folder(storage))  # training continues from its own checkpoint


def on_reference(config: DDPOConfig, reference: Path) -> DDPOConfig:
    """Return the configuration with a finished reference folder."""
    return replace(config, data=replace(config.data, reference=str(reference)))


def conclude(
    shared: Shared, folder: Path, run: TrackedRun, *, recipe: DDPOConfig, console: Console
) -> dict[str, Any]:
    """Write table, figures and the best trial to the folder and to the parent run.

    Raises:
        StageFailedError: no trial finished.
    """
    config, trials = shared.config, read_trials(folder)
    write_json(folder / "trials.json", [trial.row() for trial in trials])
    console.print(sweep_table(trials, config.search))
    if not any(trial.status == "finished" for trial in trials):
        reasons = [f"{trial.title}: {trial.error}" for trial in trials if trial.error]
        raise StageFailedError(f"No trial finished: {'; '.join(reasons) or 'none was started'}")
    base = shared.base[config.ddpo.shapes.evaluation_scenes]
    best = best_of(trials, config.search.guard)
    outcome = {**best.row(), "base": dict(base), "keeps_guard": best.objective <= 1, "model": None}
    model = shared.storage / best.train / "model"
    if is_there(model):
        outcome["model"] = display_path(model)
        if config.benchmark == SHAPES:
            outcome |= scores_on_fresh(shared, str(model), folder)
    outcome["retrain"] = retrain_command(config.ddpo, recipe, best.trial_params, shared.reference)
    write_json(folder / "best.json", outcome)
    for file in write_figures(trials, base, config.search, folder):
        run.log_file(file, "figures")
    for name in ("best.json", "trials.json", "config.json"):
        run.log_file(folder / name)
    run.log_table("trials", [trial.flat_row() for trial in trials])
    rates = {name: rate for name, rate in best.rates.items() if rate is not None}
    run.log_metrics({f"best/{name}": rate for name, rate in rates.items()})
    metric = config.search.metric
    sentence = f"best: {best.title}, {metric} {best.rates[metric]:.1%} (base {base[metric]:.1%})"
    if "fresh" in outcome:
        sentence += f"; on fresh images {outcome['fresh']['aligned'][metric]:.1%}"
    console.print(sentence, highlight=False, soft_wrap=True)
    console.print(f"train it again: {outcome['retrain']}", highlight=False, soft_wrap=True)
    return outcome


def retrain_command(
    config: DDPOConfig, recipe: DDPOConfig, trial_params: TrialParams, reference: Path
) -> str:
    """Return the shell command that trains and scores a model with a trial's settings again."""
    usual = flat(plain(recipe))
    settings = flat(plain(config))
    changed = {name: value for name, value in settings.items() if value != usual[name]}
    words = arguments_of({**changed, **trial_params, "data.reference": display_path(reference)})
    return f"python experiments/ddpo.py {recipe.name} {words}"


def scores_on_fresh(shared: Shared, model: str, folder: Path) -> dict[str, Any]:
    """Score base and best on images that decided nothing.

    The best of many looks better on the images that chose it than it is.
    """
    shapes = shared.config.ddpo.shapes
    paths = {"base": shared.config.ddpo.model.path, "aligned": model}
    rates = {}
    for name, path in paths.items():
        scores = score_model(
            shared.config,
            path,
            shared.storage,
            folder / f"fresh-{name}",
            scenes=shapes.evaluation_scenes,
            seed=shapes.seed + FRESH,
        )
        rates[name] = scores.rates()
    return {"fresh": rates}
