"""The scores of a model in a sweep or study, and monitors that follow the trials' folders."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from eval.benchmarks.contract import Scores
from eval.config import ShapesBenchConfig
from eval.evaluation import Candidate, check_services, evaluate_all, plan_evaluation
from experiments.runners.config import ScoredConfig
from experiments.runners.stage_monitor import flat
from experiments.runners.sweep_report import TrialResult, ranked, read_trials
from rlhfv_ray.console import ProgressBar
from rlhfv_ray.storage.folder import discard, is_there
from rlhfv_ray.storage.stages import run_stages
from rlhfv_ray.sweep.search_space import SearchConfig
from rlhfv_ray.tracking.run import TrackedRun
from rlhfv_ray.training.metrics_log import read_records


def score_model(
    config: ScoredConfig, path: str, storage: Path, folder: Path, *, scenes: int, seed: int
) -> Scores:
    """Score a model on the benchmark of a sweep or study, and leave the scores in a folder.

    Args:
        config: of the sweep or study.
        path: of the model.
        storage: folder of all stages.
        folder: for the scores.
        scenes: number of pictures, for the shapes benchmark.
        seed: of these pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    evaluation = plan_evaluation(
        {Path(path).name: Candidate(path, model=replace(config.ddpo.model, path=path))},
        (config.benchmark,),
        config.with_shapes(
            ShapesBenchConfig(scenes=scenes, seed=seed, world=config.ddpo.shapes.world)
        ),
        generation=config.ddpo.generation,
        scale=config.ddpo.scale,
        storage=storage,
    )
    check_services(evaluation, config.ddpo.generation)
    run_stages(list(evaluation.stages), storage)
    (section,) = evaluate_all(evaluation, folder, console=Console(quiet=True))
    (scores,) = section.models.values()
    return scores


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
            numbers = {**rung["rates"], "objective": rung.get("objective")}
            child.log_metrics({k: v for k, v in numbers.items() if v is not None}, step)
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
            discard(folder / "SUCCESS")  # first of all it stops being a stage
            discard(folder)


class SweepMonitor(TrialMonitor):
    """Also names the best trial, and frees the disk of all but the best ones."""

    def __init__(
        self, folder: Path, run: TrackedRun, bar: ProgressBar, search: SearchConfig
    ) -> None:
        super().__init__(folder, run, bar)
        self.search = search

    def note(self, trials: list[TrialResult]) -> str:
        """Delete the training folders of worse trials; return a line about the best trial."""
        ranking = ranked(trials, self.search.guard)
        stopped = [trial for trial in trials if trial.status == "stopped"]
        for trial in [*ranking[self.search.keep :], *stopped]:
            self.delete_training(trial)
        return f"best so far: {ranking[0].title}" if ranking else ""
