"""One study: the same line trained in a few ways under several seeds, and what that says about one claim.

The study's folder `<storage>/<name>-<fingerprint>/` holds `config.json`, `study.json`, `table.md`, the figure, and `trials/<name>/` with scores
and outcome of each training. What the ways have in common (pairs, reference log-probs, the base model's answers) is made once; they share it,
and their trainings, with every other study and experiment in the same storage.
"""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.benchmarks.contract import Scores
from experiments.runners.config import StudyConfig
from experiments.runners.experiment import flat, origin
from experiments.runners.scoring import SweepMonitor, score_model
from experiments.runners.study_report import (
    Claim,
    StudyResults,
    arms_figure,
    markdown,
    sentences,
    study_results,
    study_table,
)
from experiments.runners.sweep_report import read_trials
from rlhfv_ray.cluster import check_fits, connect
from rlhfv_ray.config import DDPOConfig, fingerprint, plain
from rlhfv_ray.console import poll, progress_bar
from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.pipeline import Pipeline, plan_pipeline
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.storage.mirror import is_there
from rlhfv_ray.storage.stages import is_done, run_stages
from rlhfv_ray.sweep.search_space import SearchConfig, SpaceConfig, TrialParams
from rlhfv_ray.sweep.trials import Report, SweepJob, end_trial, run_sweep, trials_at_once
from rlhfv_ray.tracking.run import sync_tracking, tracked_run, tracking_uri, ui_command

POLL_S = 2.0
ARM, SEED = "arm", "seed"

Change = Callable[
    [DDPOConfig, Pipeline], DDPOConfig
]  # gets the study's configuration and its pipeline, whose pairs are there


@dataclass(frozen=True)
class Arm:
    """One way to train; without a change, the base model as it is."""

    name: str
    change: Change | None = None


@dataclass(frozen=True)
class Study:
    """What is compared, what should come of it, and how it is drawn."""

    title: str
    arms: tuple[Arm, ...]
    claim: Claim
    read: Callable[[Scores], Mapping[str, float | None]] = (
        Scores.rates
    )  # what is read from an arm's scores
    draw: Callable[[StudyResults, Path], None] = arms_figure


@dataclass(frozen=True)
class Planned:
    """All trainings, as the trials' processes get them."""

    config: StudyConfig
    storage: Path
    configs: Mapping[tuple[str, int], DDPOConfig | None]  # by arm and seed; None: the base model
    read: Callable[[Scores], Mapping[str, float | None]]


def run_study(
    config: StudyConfig, study: Study, storage: Path, *, console: Console
) -> dict[str, Any]:
    """Run a study, or the rest of it; returns what it writes to `study.json`.

    Raises:
        RlhfvError: something the user can mend.
    """
    storage.mkdir(parents=True, exist_ok=True)
    plan_pipeline(config.ddpo, storage, seen=lambda records: None)  # are model and data there?
    connect()
    check_fits(config.ddpo.scale, setting="ddpo.scale")
    concurrent = trials_at_once(config.ddpo.scale, config.concurrent)
    kept = {
        name: value
        for name, value in plain(config).items()
        if name not in ("ddpo", "concurrent", "keep_models")
    }
    ddpo = {
        name: value
        for name, value in plain(config.ddpo).items()
        if name not in ("storage", "scale", "tracking")
    }
    folder = (
        storage
        / f"{config.name}-{fingerprint({**kept, 'ddpo': ddpo, 'arms': [arm.name for arm in study.arms]})}"
    )
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
        planned = plan_study(config, study, storage, console=console)
        trials: list[TrialParams] = [{ARM: name, SEED: seed} for name, seed in planned.configs]
        search = SearchConfig(rungs=1, keep=len(trials) if config.keep_models else 0)
        job = SweepJob(
            folder, config.ddpo, SpaceConfig(), search, functools.partial(run_arm, planned=planned)
        )
        with progress_bar("Trainings", len(trials)) as counter:
            board = SweepMonitor(folder, run, counter, search)
            with poll(board.look, POLL_S):
                run_sweep(job, trials, concurrent=concurrent)
        outcome = conclude(study, folder, console=console)
        for name in ("study.json", "table.md", "config.json"):
            run.log_file(folder / name)
        run.log_file(folder / f"{config.name}.png", "figures")
    synced = sync_tracking(folder)
    uri = tracking_uri(config.ddpo.tracking, storage)
    for what, where in (
        ("study", folder),
        ("figure", folder / f"{config.name}.png"),
        ("MLflow", ui_command(uri) if synced else "not reached; see the warning above"),
    ):
        console.print(f"{what:<14} {where}", highlight=False, soft_wrap=True)
    return outcome


def plan_study(config: StudyConfig, study: Study, storage: Path, *, console: Console) -> Planned:
    """Make what arms share, seed by seed, and from it every arm's configuration, all checked before the first training."""
    configs: dict[tuple[str, int], DDPOConfig | None] = {}
    for seed in config.seeds:
        base = replace(
            config.ddpo,
            seed=seed,
            shapes=replace(config.ddpo.shapes, seed=config.ddpo.shapes.seed + seed),
        )
        pipeline = make_shared(base, storage, console=console)
        for arm in study.arms:
            trained = arm.change(base, pipeline) if arm.change else None
            if trained is not None:
                make_shared(trained, storage, console=console)
            configs[arm.name, seed] = trained
    by_arm = {
        (arm.name, seed): configs[arm.name, seed] for arm in study.arms for seed in config.seeds
    }
    return Planned(config, storage, by_arm, study.read)


def make_shared(config: DDPOConfig, storage: Path, *, console: Console) -> Pipeline:
    """Make all stages of a pipeline but its training, as far as it is not there."""
    pipeline = plan_pipeline(config, storage, seen=lambda records: None)
    for stage in pipeline.stages[:-1]:
        if not is_done(stage.folder(storage)):
            console.print(f"[bold]{stage.title}[/bold], seed {config.seed}", highlight=False)
        run_stages([stage], storage)
    return pipeline


def run_arm(trial_params: TrialParams, place: Path, report: Report, *, planned: Planned) -> None:
    """One arm under one seed: train, answer, score, note."""
    config, storage, started = (
        planned.configs[trial_params[ARM], trial_params[SEED]],
        planned.storage,
        time.monotonic(),
    )
    path, step = planned.config.ddpo.model.path, 0
    if not list(place.glob("rung-*.json")):
        if config is not None:
            pipeline = plan_pipeline(config, storage, seen=lambda records: None)
            folder = pipeline.train.folder(storage)
            if not (place / "train.json").exists():
                write_json(
                    place / "train.json", {"folder": folder.name, "made": not is_there(folder)}
                )
            run_stages([pipeline.train], storage)
            path, step = pipeline.aligned.path, 1
        shapes = planned.config.ddpo.shapes
        scores = score_model(
            planned.config,
            path,
            storage,
            place / "scores",
            scenes=shapes.evaluation_scenes,
            seed=shapes.seed + trial_params[SEED],
        )
        rates = dict(planned.read(scores))
        metrics = [metric._asdict() for metric in scores.metrics]
        write_json(
            place / f"rung-{step:06d}.json",
            {"step": step, "objective": 0.0, "rates": rates, "intervals": {}, "metrics": metrics},
        )
    end_trial(place, "finished", seconds=time.monotonic() - started)
    report(0, 0.0)


def conclude(study: Study, folder: Path, *, console: Console) -> dict[str, Any]:
    """Table, figure and sentences, in the folder and on the terminal.

    Raises:
        StageFailedError: an arm failed.
    """
    trials = read_trials(folder)
    failed = [
        f"{trial.title}: {trial.error or 'not finished'}"
        for trial in trials
        if trial.status != "finished"
    ]
    if failed:
        raise StageFailedError(
            f"{len(failed)} trainings did not finish. {'; '.join(failed)}. Run the same command again."
        )
    found = study_results(trials, [arm.name for arm in study.arms])
    said = sentences(study.title, study.claim, found)
    outcome = {"title": study.title, "sentences": said, **found.as_json()}
    write_json(folder / "study.json", outcome)
    (folder / "table.md").write_text(markdown(study.title, found, said), encoding="utf-8")
    study.draw(found, folder / f"{folder.name.rpartition('-')[0]}.png")
    console.print(study_table(study.title, found))
    for sentence in said:
        console.print(sentence, highlight=False, soft_wrap=True)
    return outcome
