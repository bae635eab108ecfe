"""The scores of a model in a sweep or study, and monitors that follow the trials' folders."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from eval.benchmarks.contract import Benchmark, Scores
from eval.config import ShapesBenchConfig
from eval.evaluation import check_services, check_verdicts, evaluate_all
from eval.plan import Candidate, plan_answers, plan_evaluation
from experiments.runners.config import Pictures, ScoredConfig, SweepConfig
from experiments.runners.picture_parts import PartBenchmark
from experiments.runners.stage_monitor import flat
from experiments.runners.sweep_report import TrialResult, ordered, read_trials, settings_of
from rlhfv_ray.config import SHAPES
from rlhfv_ray.console import ProgressBar
from rlhfv_ray.storage.folder import discard, is_there
from rlhfv_ray.storage.stages import run_stages
from rlhfv_ray.sweep.setting_value import Objective, Rates
from rlhfv_ray.tracking.run import TrackedRun
from rlhfv_ray.training.metrics_log import read_records


class Measured(NamedTuple):
    """Numbers by which the settings of a sweep are compared."""

    bases: Sequence[Rates]  # the base model's rates on the pictures of each rung
    objective: Objective


def planned_benchmark(config: ScoredConfig, storage: Path) -> Benchmark:
    """Return the benchmark of a sweep or study; its files are checked, and no picture is drawn.

    Raises:
        ConfigError, DataError: a setting or a file cannot be used.
    """
    plan = plan_evaluation(
        {},
        (config.benchmark,),
        config.with_shapes(ShapesBenchConfig()),
        generation=config.ddpo.generation,
        scale=config.ddpo.scale,
        storage=storage,
    )
    return plan.benchmarks[0]


def score_model(
    config: ScoredConfig, path: str, storage: Path, folder: Path, *, pictures: Pictures
) -> Scores:
    """Score a model on the benchmark of a sweep or study, and leave the scores in a folder.

    Args:
        config: of the sweep or study.
        path: of the model.
        storage: folder of all stages.
        folder: for the scores.
        pictures: the pictures to score on. Only the questions about them are answered and judged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scenes, seed, part = pictures
    candidates = {Path(path).name: Candidate(path, model=replace(config.ddpo.model, path=path))}
    settings = config.with_shapes(
        ShapesBenchConfig(scenes=scenes, seed=seed, world=config.ddpo.shapes.world, part=part)
    )
    evaluation = plan_evaluation(
        candidates,
        (config.benchmark,),
        settings,
        generation=config.ddpo.generation,
        scale=config.ddpo.scale,
        storage=storage,
    )
    if part and config.benchmark != SHAPES:
        evaluation = plan_answers(
            candidates,
            [PartBenchmark(evaluation.benchmarks[0], part)],
            settings,
            generation=config.ddpo.generation,
            scale=config.ddpo.scale,
            storage=storage,
        )
    check_services(evaluation, config.ddpo.generation)
    run_stages(list(evaluation.stages), storage)
    (section,) = evaluate_all(evaluation, folder, console=Console(quiet=True))
    check_verdicts([section], folder)
    (scores,) = section.models.values()
    return scores


def delete_training(folder: Path) -> None:
    """Delete the folder of a training."""
    discard(folder / "SUCCESS")  # first of all it stops being a stage
    discard(folder)


class TrialMonitor:
    """Follows the folders of trials: feeds MLflow and the progress bar."""

    def __init__(self, folder: Path, run: TrackedRun, bar: ProgressBar) -> None:
        self.folder, self.storage, self.run, self.bar = folder, folder.parent, run, bar
        self.children: dict[str, TrackedRun] = {}
        self.ended: set[str] = set()

    def refresh(self) -> None:
        """Bring MLflow and the bar up to date."""
        trials = read_trials(self.folder)
        for trial in trials:
            if trial.name not in self.ended:
                self.sync_trial(trial)
        if len(self.ended) > self.bar.done:
            self.bar.advance(len(self.ended), self.note(trials))

    def note(self, trials: list[TrialResult]) -> str:
        """Return the text beside the bar."""
        return ""

    def sync_trial(self, trial: TrialResult) -> None:
        """Bring one trial's child run up to date."""
        if trial.name not in self.children:
            self.children[trial.name] = self.run.stage(trial.title, flat(trial.trial_params))
        child = self.children[trial.name]
        for step, rung in trial.rungs.items():
            rates = {name: rate for name, rate in rung["rates"].items() if rate is not None}
            child.log_metrics(rates, step)
        if trial.status:
            if trial.train:
                child.log_records(read_records(self.storage / trial.train))
            error = {"error": trial.error} if trial.error else {}
            child.set_tags({"outcome": trial.status, **error})
            child.end("FAILED" if trial.status == "failed" else "FINISHED")
            self.ended.add(trial.name)

    def delete_training(self, trial: TrialResult) -> None:
        """Delete a trial's training folder, if this run made it."""
        folder = self.storage / trial.train if trial.train else None
        if folder and trial.made and is_there(folder):
            delete_training(folder)


class SweepMonitor(TrialMonitor):
    """Also names the best setting, and frees the disk of all but the best ones."""

    def __init__(
        self,
        folder: Path,
        run: TrackedRun,
        bar: ProgressBar,
        *,
        measured: Measured,
        config: SweepConfig,
    ) -> None:
        super().__init__(folder, run, bar)
        self.measured = measured
        self.keep = max(1, config.search.keep)  # the best one is scored on fresh pictures
        self.seeds = max(1, len(config.space.seed))  # trials of a setting

    def note(self, trials: list[TrialResult]) -> str:
        """Delete the training folders of worse settings; return a line about the best one.

        A setting is compared when all its seeds have ended, and loses all its models or none.
        """
        settings = settings_of(trials, *self.measured)
        ended = {
            name: setting
            for name, setting in settings.items()
            if len(setting.trials) == self.seeds and all(item.status for item in setting.trials)
        }
        order = [
            item for item in ordered(ended, self.measured.objective) if item.outcome == "finished"
        ]
        best = order[: self.keep]
        for setting in ended.values():  # what failed may go on from its checkpoint
            if setting not in best and setting.outcome != "failed":
                for trial in setting.trials:
                    self.delete_training(trial)
        return f"best so far: {best[0].title}" if best else ""
