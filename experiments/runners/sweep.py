"""One sweep: what all trials share, the trials by Ray Tune, and what they found, in one MLflow run with one child per trial.

The sweep's folder `<storage>/<name>-<fingerprint>/` holds `config.json`, `trials.json`, `best.json`, the figures, the base model's scores, and
`trials/<name>/` with the values, looks, scores and outcome of each. Corrections, reference log-probs and the base model's answers are made once,
before the first trial.
"""

import functools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.runners.config import SweepConfig
from experiments.runners.experiment import flat, origin
from experiments.runners.scoring import SweepMonitor, score_model
from experiments.runners.sweep_report import best_of, read_trials, sweep_table, write_figures
from rlhfv_ray.cluster import check_fits, connect
from rlhfv_ray.config import SHAPES, DDPOConfig, fingerprint, plain
from rlhfv_ray.console import poll, progress_bar
from rlhfv_ray.data.reference_table import load_reference
from rlhfv_ray.errors import ConfigError, StageFailedError
from rlhfv_ray.models import planned_counts
from rlhfv_ray.pipeline import Pipeline, plan_pipeline, rung_stage, train_stage
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import discard, display_path, is_there, open_folder
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.storage.stages import Stage, is_done, run_stages, seconds_of
from rlhfv_ray.sweep.search_space import TrialParams, apply_params, arguments_of, plan_trials
from rlhfv_ray.sweep.trials import Report, SweepJob, end_trial, run_sweep, trials_at_once
from rlhfv_ray.tracking.run import TrackedRun, sync_tracking, tracked_run, tracking_uri, ui_command

POLL_S = 2.0
FRESH = 1  # seed of the fresh pictures, less that of the others
CHECKPOINT_BYTES = 12  # of a trained parameter: AdamW's moments and the fp32 weight


def sweep(
    config: SweepConfig, storage: Path, *, recipe: DDPOConfig, console: Console
) -> dict[str, Any]:
    """Run a sweep, or the rest of it; returns what it writes to `best.json`.

    Args:
        config: of the sweep.
        storage: folder of everything.
        recipe: the named configuration that `config.ddpo` is a variation of, for the command that trains the best again.
        console: of the terminal.

    Raises:
        RlhfvError: something the user can mend; before the first trial, as far as it can be known there.
    """
    storage.mkdir(parents=True, exist_ok=True)
    trials = plan_trials(config.space, config.search, config.ddpo)
    pipeline = plan_pipeline(config.ddpo, storage, seen=lambda records: None)
    connect()
    check_fits(config.ddpo.scale, setting="ddpo.scale")
    concurrent = trials_at_once(config.ddpo.scale, config.search.concurrent)
    check_disk(config, storage, concurrent)
    folder = storage / f"{config.name}-{fingerprint(identity(config, pipeline))}"
    with (
        hold_lease(folder),
        tracked_run(
            folder,
            config.ddpo.tracking,
            store=storage,
            name=folder.name,
            params=flat(plain(config)),
            tags=origin(),
        ) as run,
    ):
        write_json(folder / "config.json", plain(config))
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
        with progress_bar("Trials", count) as counter:
            board = SweepMonitor(folder, run, counter, config.search)
            with poll(board.look, POLL_S):
                run_sweep(job, trials, concurrent=concurrent)
        outcome = conclude(shared, folder, run, recipe=recipe, console=console)
    synced = sync_tracking(folder)
    uri = tracking_uri(config.ddpo.tracking, storage)
    for what, where in (
        ("sweep", display_path(folder)),
        ("MLflow", ui_command(uri) if synced else "not reached; see the warning above"),
    ):
        console.print(f"{what:<14} {where}", highlight=False, soft_wrap=True)
    return outcome


@dataclass(frozen=True)
class Shared:
    """What all trials need to know."""

    config: SweepConfig
    storage: Path
    reference: Path
    base: Mapping[int, Mapping[str, float | None]]  # the base model's rates, by number of pictures
    answered_s: float  # how long the base model's answers took


def identity(config: SweepConfig, pipeline: Pipeline) -> dict[str, Any]:
    """What makes it another sweep."""
    ddpo = {
        name: value
        for name, value in plain(config.ddpo).items()
        if name not in ("name", "storage", "scale", "tracking")
    }
    search = {
        name: value
        for name, value in plain(config.search).items()
        if name not in ("concurrent", "keep")
    }
    rest = {
        name: value
        for name, value in plain(config).items()
        if name not in ("name", "ddpo", "search")
    }
    return {"ddpo": ddpo, "search": search, "reference": pipeline.reference.name, **rest}


def check_disk(config: SweepConfig, storage: Path, concurrent: int) -> None:
    """Refuse a sweep whose checkpoints the disk cannot hold.

    Raises:
        ConfigError: with what is needed and what is free.
    """
    counts = planned_counts(config.ddpo.model).values()
    whole, trained = sum(count for count, _ in counts), sum(count for _, count in counts)
    each = (config.ddpo.scale.keep + 1) * CHECKPOINT_BYTES * trained + 2 * 4 * whole
    needed, free = each * (concurrent + config.search.keep), open_folder(storage).free_bytes()
    if needed > free:
        raise ConfigError(
            f"storage {storage}: {needed / 2**30:.1f} GiB are needed for {concurrent} trials at a time and {config.search.keep} kept, "
            f"{free / 2**30:.1f} GiB are free. Lower --search.concurrent, --search.keep or --ddpo.scale.keep."
        )


def prepare(config: SweepConfig, pipeline: Pipeline, folder: Path, *, console: Console) -> Shared:
    """Make what all trials share: pairs, reference log-probs, the base model's scores.

    Raises:
        ConfigError: the benchmark has no such metric or guard.
    """
    for stage in pipeline.stages[:-1]:
        done = is_done(stage.folder(pipeline.storage))
        console.print(
            f"[bold]{stage.title}[/bold]: {'done before, skipped' if done else 'running'}",
            highlight=False,
        )
        run_stages([stage], pipeline.storage)
    started, base = time.monotonic(), {}
    for scenes in pictures(config):
        console.print(f"[bold]base model's scores[/bold] ({config.benchmark})", highlight=False)
        place = folder / f"base-{scenes}"
        scores = score_model(
            config,
            config.ddpo.model.path,
            pipeline.storage,
            place,
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


def pictures(config: SweepConfig) -> list[int]:
    """Of the shapes benchmark, at a trial's looks and at its end."""
    last = config.ddpo.shapes.evaluation_scenes
    return (
        [config.rung_scenes, last]
        if config.search.rungs > 1 and config.benchmark == SHAPES
        else [last]
    )


def forecast(config: SweepConfig, shared: Shared, count: int, concurrent: int) -> str:
    """How many trials, and about how long: an update's forward and backward take three times the reference pass of its pairs."""
    pairs, scale = len(load_reference(shared.reference)), config.ddpo.scale
    steps = config.ddpo.optim.total_steps(config.ddpo.data.used(pairs))
    passes = steps * config.ddpo.optim.batch / pairs * 3 * scale.actors / scale.workers
    hours = count / concurrent * (passes * seconds_of(shared.reference) + shared.answered_s) / 3600
    return (
        f"{count} trials, {concurrent} at a time, about {steps} updates each on {pairs} pairs: {hours:.1f} hours at most, if training keeps "
        "the pace of the reference pass"
    )


def run_one(trial_params: TrialParams, place: Path, report: Report, *, shared: Shared) -> None:
    """One trial: train to the next look, answer, score, tell; what its folder or a stage holds already is not done again."""
    config, storage, started = shared.config, shared.storage, time.monotonic()
    pipeline = plan_pipeline(
        on_reference(config.ddpo, shared.reference), storage, seen=lambda records: None
    )
    trained = apply_params(on_reference(config.ddpo, shared.reference), trial_params)
    train = train_stage(
        trained, pipeline.reference, pipeline.reference_inputs, lambda records: None
    )
    steps = trained.optim.total_steps(trained.data.used(len(load_reference(pipeline.reference))))
    if not (place / "train.json").exists():
        write_json(
            place / "train.json",
            {"folder": train.folder(storage).name, "made": not is_there(train.folder(storage))},
        )
    rungs = config.search.rung_steps(steps)
    for rung, until in enumerate(rungs):
        file, last = place / f"rung-{until:06d}.json", until == rungs[-1]
        if not file.exists():
            if not last and is_done(
                train.folder(storage)
            ):  # trained before, elsewhere: there is no way back to this look
                continue
            look(
                file,
                train if last else rung_stage(pipeline, trained, train, until),
                until,
                last=last,
                shared=shared,
            )
        if last:
            end_trial(place, "finished", seconds=time.monotonic() - started)
        report(rung, json.loads(file.read_text())["objective"])


def look(file: Path, stage: Stage, until: int, *, last: bool, shared: Shared) -> None:
    """Train up to a look, and score the model there."""
    config, storage = shared.config, shared.storage
    run_stages([stage], storage)
    scenes = pictures(config)[-1 if last else 0]
    model = stage.folder(storage) / "model"
    place, seed = file.with_suffix(""), config.ddpo.shapes.seed
    scores = score_model(config, str(model), storage, place, scenes=scenes, seed=seed)
    rates, search = scores.rates(), config.search
    guards = (rates.get(search.guard), shared.base[scenes].get(search.guard))
    intervals = {name: list(interval) for name, interval in scores.intervals().items() if interval}
    objective = search.objective(rates[search.metric], *guards)
    write_json(
        file, {"step": until, "objective": objective, "rates": rates, "intervals": intervals}
    )
    if not last:
        discard(stage.folder(storage))  # training goes on from its own checkpoint


def on_reference(config: DDPOConfig, reference: Path) -> DDPOConfig:
    """The configuration on a finished reference."""
    return replace(config, data=replace(config.data, reference=str(reference)))


def conclude(
    shared: Shared, folder: Path, run: TrackedRun, *, recipe: DDPOConfig, console: Console
) -> dict[str, Any]:
    """Table, figures and the best, in the folder and on the parent run.

    Raises:
        StageFailedError: no trial finished.
    """
    config, trials = shared.config, read_trials(folder)
    write_json(folder / "trials.json", [trial.row() for trial in trials])
    console.print(sweep_table(trials, config.search))
    if not any(trial.status == "finished" for trial in trials):
        reasons = (
            "; ".join(f"{trial.title}: {trial.error}" for trial in trials if trial.error)
            or "none was started"
        )
        raise StageFailedError(f"No trial finished: {reasons}")
    base = shared.base[config.ddpo.shapes.evaluation_scenes]
    best = best_of(trials, config.search.guard)
    outcome = {**best.row(), "base": dict(base), "keeps_guard": best.objective <= 1, "model": None}
    model = shared.storage / best.train / "model"
    if is_there(model):
        outcome["model"] = display_path(model)
        if config.benchmark == SHAPES:
            outcome |= again_on_fresh(shared, str(model), folder)
    outcome["retrain"] = retrain_command(config.ddpo, recipe, best.trial_params, shared.reference)
    write_json(folder / "best.json", outcome)
    for file in write_figures(trials, base, config.search, folder):
        run.log_file(file, "figures")
    for name in ("best.json", "trials.json", "config.json"):
        run.log_file(folder / name)
    run.log_table("trials", [trial.flat_row() for trial in trials])
    run.log_metrics(
        {f"best/{name}": value for name, value in best.rates.items() if value is not None}
    )
    fresh = (
        f"; on fresh pictures {outcome['fresh']['aligned'][config.search.metric]:.1%}"
        if "fresh" in outcome
        else ""
    )
    console.print(
        f"best: {best.title}, {config.search.metric} {best.rates[config.search.metric]:.1%} (base {base[config.search.metric]:.1%}){fresh}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"train it again: {outcome['retrain']}", highlight=False, soft_wrap=True)
    return outcome


def retrain_command(
    config: DDPOConfig, recipe: DDPOConfig, trial_params: TrialParams, reference: Path
) -> str:
    """The command that trains a trial's setting again: what the sweep changed of the recipe, and the trial's values."""
    usual = flat(plain(recipe))
    changed = {name: value for name, value in flat(plain(config)).items() if value != usual[name]}
    words = arguments_of({**changed, **trial_params, "data.reference": display_path(reference)})
    return f"python experiments/ddpo.py {recipe.name} {words}"


def again_on_fresh(shared: Shared, model: str, folder: Path) -> dict[str, Any]:
    """Base and best on pictures that decided nothing: the best of many looks better than it is where it was chosen."""
    scenes, fresh = (
        shared.config.ddpo.shapes.evaluation_scenes,
        shared.config.ddpo.shapes.seed + FRESH,
    )
    paths = {"base": shared.config.ddpo.model.path, "aligned": model}
    scores = {
        name: score_model(
            shared.config, path, shared.storage, folder / f"fresh-{name}", scenes=scenes, seed=fresh
        )
        for name, path in paths.items()
    }
    return {"fresh": {name: one.rates() for name, one in scores.items()}}
