"""One study: one configuration trained in a few ways under several seeds, to test one claim.

The study's folder `<storage>/<name>-<fingerprint>/` holds `config.json`, `study.json`,
`table.md`, the figure, and `trials/<name>/` with scores and outcome of each training. Pairs,
reference log-probs and the base model's answers are made once for all arms. Arms also share their
trainings with every other study and experiment in the same storage.
"""

import functools
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from eval.benchmarks.contract import Scores
from eval.reporting.score_files import holds_scores, load_scores
from experiments.runners.config import Pictures, StudyConfig
from experiments.runners.contrasts import contrasts_of
from experiments.runners.controls import kept_gains, with_controls
from experiments.runners.scoring import TrialMonitor, score_model
from experiments.runners.stage_monitor import flat, without
from experiments.runners.study_arms import Study
from experiments.runners.study_report import markdown, sentences, study_table
from experiments.runners.study_results import study_results
from experiments.runners.sweep_report import TrialResult, read_trials
from rlhfv_ray.cluster import connect
from rlhfv_ray.config import DDPOConfig, changed_settings, fingerprint, plain
from rlhfv_ray.console import ProgressBar, poll, print_sentence, progress_bar
from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.pipeline import Pipeline, plan_pipeline
from rlhfv_ray.shapes.controls import Control
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import is_there
from rlhfv_ray.storage.stages import is_done, run_stages
from rlhfv_ray.sweep.record import ENDED, end_trial
from rlhfv_ray.sweep.search_space import name_of
from rlhfv_ray.sweep.trainings import train_all
from rlhfv_ray.sweep.trials import room_for_trials
from rlhfv_ray.tracking.run import TrackedRun
from rlhfv_ray.tracking.run_folder import HEADLINE, RUN_NAME, open_run_folder

POLL_S = 2.0
ARM, SEED = "arm", "seed"


@dataclass(frozen=True)
class Planned:
    """All trainings of a study, as their processes receive them."""

    config: StudyConfig
    storage: Path
    pipelines: Mapping[tuple[str, int], Pipeline | None]  # by arm and seed; None: the base model
    read: Callable[[Scores], Mapping[str, float | None]]


def run_study(
    config: StudyConfig, study: Study, storage: Path, *, console: Console
) -> dict[str, Any]:
    """Run a study, or the rest of it; returns what it writes to `study.json`. A dry run returns
    nothing.

    Raises:
        RlhfvError: something the user can mend.
    """
    study = with_controls(study, config.controls)
    storage.mkdir(parents=True, exist_ok=True)
    folder = storage / f"{config.name}-{fingerprint(identity_of(config, study, storage))}"
    connect()
    concurrent, lacking = room_for_trials(
        config.ddpo.scale, config.concurrent, dry_run=config.dry_run
    )
    if config.dry_run:
        lines = [*forecast(config, study, folder, concurrent=concurrent), *lacking]
        console.print("\n".join(lines), highlight=False, soft_wrap=True)
        return {}
    with open_run_folder(
        folder,
        config.ddpo.tracking,
        store=storage,
        params=flat(plain(config)),
        tags={RUN_NAME: f"{config.name} study, {len(config.seeds)} seeds"},
        config={"config": plain(config)},
    ) as opened:
        run = opened.run
        planned = plan_study(config, study, storage, console=console)
        trial_folders = {
            pair: folder / "trials" / training_name(*pair) for pair in planned.pipelines
        }
        open_places = {
            str(trial_folder): functools.partial(run_arm, pair, trial_folder, planned=planned)
            for pair, trial_folder in trial_folders.items()
            if not is_finished(trial_folder)
        }
        with progress_bar("Trainings", len(trial_folders)) as bar:
            monitor = StudyMonitor(folder, run, bar, keep_models=config.keep_models)
            with poll(monitor.refresh, POLL_S):
                failed = train_all(open_places, folder, concurrent=concurrent)
                for trial_folder, reason in failed.items():
                    end_trial(Path(trial_folder), "failed", error=reason)
        outcome = conclude(study, folder, config.controls, console=console)
        for name in ("study.json", "table.md"):
            run.log_file(folder / name)
        run.set_tags({HEADLINE: " ".join(outcome["sentences"][:1])})
        run.log_file(folder / f"{config.name}.png", "figures")
    locations = {"study": folder, "figure": folder / f"{config.name}.png"}
    opened.print_locations(locations, console=console)
    return outcome


def forecast(config: StudyConfig, study: Study, folder: Path, *, concurrent: int) -> list[str]:
    """Return what a study will do, in lines: its trainings, their length, what is done of them."""
    trained = [arm.name for arm in study.arms if arm.change]
    untrained = [arm.name for arm in study.arms if not arm.change]
    optim, seeds = config.ddpo.optim, len(config.seeds)
    length = f"{optim.steps} updates" if optim.steps else f"{optim.epochs:g} epochs"
    finished = sum(trial.status == "finished" for trial in read_trials(folder))
    return [
        f"{len(trained)} arms x {seeds} seeds: {len(trained) * seeds} trainings, {concurrent} at a "
        f"time, of {length} unless an arm says otherwise, {optim.batch} pairs an update",
        f"trained: {'; '.join(trained)}",
        *([f"scored as it is, without training: {'; '.join(untrained)}"] if untrained else []),
        f"seeds: {', '.join(map(str, config.seeds))}; benchmark: {config.benchmark}",
        f"finished so far: {finished} of {len(study.arms) * seeds} scored models",
    ]


def identity_of(config: StudyConfig, study: Study, storage: Path) -> dict[str, Any]:
    """Return everything that a study's results depend on.

    The names of the reference stages stand for the content of base models and rows.

    Raises:
        ConfigError, DataError: a model or the data cannot be used.
    """
    pipelines = [
        plan_pipeline(config.seeded(seed), storage, seen=lambda records: None)
        for seed in config.seeds
    ]
    return {
        **without(
            changed_settings(config), "ddpo", "bases", "concurrent", "keep_models", "dry_run"
        ),
        "ddpo": without(changed_settings(config.ddpo), "storage", "scale", "tracking"),
        "arms": [arm.name for arm in study.arms],
        "references": [pipeline.reference.name for pipeline in pipelines],
    }


def plan_study(config: StudyConfig, study: Study, storage: Path, *, console: Console) -> Planned:
    """Make the stages that arms share, and check every arm's configuration before any training."""
    pipelines: dict[tuple[str, int], Pipeline | None] = {}
    for seed in config.seeds:
        base = config.seeded(seed)
        pipeline = make_shared(base, storage, console=console)
        for arm in study.arms:
            pipelines[arm.name, seed] = (
                make_shared(arm.change(base, pipeline), storage, console=console)
                if arm.change
                else None
            )
    pairs = itertools.product([arm.name for arm in study.arms], config.seeds)
    return Planned(config, storage, {pair: pipelines[pair] for pair in pairs}, study.read)


def make_shared(config: DDPOConfig, storage: Path, *, console: Console) -> Pipeline:
    """Run all stages of a pipeline before its training."""
    pipeline = plan_pipeline(config, storage, seen=lambda records: None)
    for stage in pipeline.stages[:-1]:
        if not is_done(stage.folder(storage)):
            console.print(Text.assemble((stage.title, "bold"), f", seed {config.seed}"))
        run_stages([stage], storage)
    return pipeline


def training_name(arm: str, seed: int) -> str:
    """Return the folder's name of one arm under one seed."""
    return name_of({ARM: arm, SEED: seed})


def is_finished(trial_folder: Path) -> bool:
    """Return True if a training run has finished. The record of a failed one is deleted, so that it
    runs again.
    """
    outcome = trial_folder / ENDED
    if outcome.exists() and json.loads(outcome.read_text())["status"] == "failed":
        outcome.unlink()
    return outcome.exists()


class StudyMonitor(TrialMonitor):
    """Also deletes each trained model once it is scored, unless models are kept."""

    def __init__(
        self, folder: Path, run: TrackedRun, bar: ProgressBar, *, keep_models: bool
    ) -> None:
        super().__init__(folder, run, bar)
        self.keep_models = keep_models

    def note(self, trials: list[TrialResult]) -> str:
        """Delete what is not kept."""
        for trial in trials:
            if trial.status == "finished" and not self.keep_models:
                self.delete_training(trial)
        return ""


def run_arm(pair: tuple[str, int], trial_folder: Path, *, planned: Planned) -> None:
    """Train one arm under one seed, score it, and write the scores to its folder."""
    arm, seed = pair
    trial_folder.mkdir(parents=True, exist_ok=True)
    write_json(trial_folder / "params.json", {ARM: arm, SEED: seed})
    started = time.monotonic()
    config = planned.config.seeded(seed)
    pipeline, path, step = planned.pipelines[pair], config.model.path, 0
    if pipeline is not None:
        folder = pipeline.train.folder(planned.storage)
        if not (trial_folder / "train.json").exists():
            train = {"folder": folder.name, "made": not is_there(folder)}
            write_json(trial_folder / "train.json", train)
        run_stages([pipeline.train], planned.storage)
        path, step = pipeline.aligned.path, 1
    scores = score_model(
        planned.config,
        path,
        planned.storage,
        trial_folder / "scores",
        pictures=Pictures(config.shapes.evaluation_scenes, config.shapes.seed),
    )
    metrics = [metric._asdict() for metric in scores.metrics]
    result = {"step": step, "rates": dict(planned.read(scores)), "metrics": metrics}
    write_json(trial_folder / f"rung-{step:06d}.json", result)
    end_trial(trial_folder, "finished", seconds=time.monotonic() - started)


def trial_scores(folder: Path, trial: TrialResult) -> Scores:
    """Return the scores that a finished trial left in its folder."""
    files = (folder / "trials" / trial.name / "scores").glob("*/*.json")  # a ledger is beside them
    (path,) = [file for file in files if holds_scores(file)]
    return load_scores(path)


def conclude(
    study: Study, folder: Path, controls: Sequence[Control], *, console: Console
) -> dict[str, Any]:
    """Write table, figure and sentences to the folder, and print table and sentences.

    Raises:
        StageFailedError: an arm failed.
    """
    trials = read_trials(folder)
    open_trials = [trial for trial in trials if trial.status != "finished"]
    if open_trials:
        reasons = [f"{trial.title}: {trial.error or 'not finished'}" for trial in open_trials]
        raise StageFailedError(
            f"{len(reasons)} trainings did not finish. {'; '.join(reasons)}. Run the same command "
            "again."
        )
    scores = {
        (trial.trial_params[ARM], trial.trial_params[SEED]): trial_scores(folder, trial)
        for trial in trials
    }
    results = study_results(trials, [arm.name for arm in study.arms], scores)
    contrasts = contrasts_of(study.claim, results)
    verdicts = sentences(study.title, contrasts, results)
    base = next((arm.name for arm in study.arms if arm.change is None), "")
    verdicts += kept_gains(study.claim, results, base, controls) if base else []
    outcome = {
        "title": study.title,
        "sentences": verdicts,
        "contrasts": [contrast.as_json() for contrast in contrasts],
        **results.as_json(),
    }
    write_json(folder / "study.json", outcome)
    (folder / "table.md").write_text(markdown(study.title, results, verdicts), encoding="utf-8")
    study.draw(results, folder / f"{folder.name.rpartition('-')[0]}.png")
    console.print(study_table(study.title, results))
    for sentence in verdicts:
        print_sentence(console, sentence)
    return outcome
