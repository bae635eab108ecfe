"""What sweeps and studies share: a model scored on their benchmark, and the trials' folders followed while they run."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from eval.benchmarks.contract import Scores
from eval.config import ShapesBenchConfig
from eval.evaluation import Candidate, check_services, evaluate_all, plan_evaluation
from experiments.runners.config import ScoredConfig
from experiments.runners.experiment import flat
from experiments.runners.sweep_report import Found, ranked, read_trials
from rlhfv_ray.console import ProgressBar
from rlhfv_ray.storage.mirror import discard, is_there
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
        config.with_shapes(ShapesBenchConfig(scenes=scenes, seed=seed)),
        generation=config.ddpo.generation,
        scale=config.ddpo.scale,
        storage=storage,
    )
    check_services(evaluation, config.ddpo.generation)
    run_stages(list(evaluation.stages), storage)
    (section,) = evaluate_all(evaluation, folder, console=Console(quiet=True))
    (scores,) = section.models.values()
    return scores


class SweepMonitor:
    """Follows the trials' folders: feeds MLflow and the bar, and frees the disk of what is not among the best."""

    def __init__(
        self, folder: Path, run: TrackedRun, counter: ProgressBar, search: SearchConfig
    ) -> None:
        self.folder, self.storage, self.run, self.counter = folder, folder.parent, run, counter
        self.search = search
        self.children: dict[str, TrackedRun] = {}
        self.ended: set[str] = set()

    def look(self) -> None:
        """Bring everything up to date."""
        trials = read_trials(self.folder)
        for trial in trials:
            if trial.name not in self.ended:
                self.follow(trial)
        best = next(iter(ranked(trials, self.search.guard)), None)
        note = f"best so far: {best.title}" if best else ""
        if len(self.ended) > self.counter.done:
            self.counter.advance(len(self.ended), note)
            self.prune(trials)

    def follow(self, trial: Found) -> None:
        """One trial's child run."""
        if trial.name not in self.children:
            self.children[trial.name] = self.run.stage(trial.title, flat(trial.trial_params))
        child = self.children[trial.name]
        for step, found in trial.rungs.items():
            values = {name: value for name, value in found["rates"].items() if value is not None}
            child.log_metrics({**values, "objective": found["objective"]}, step)
        if trial.status:
            if trial.train:
                child.log_records(read_records(self.storage / trial.train))
            child.set_tags(
                {"outcome": trial.status, **({"error": trial.error} if trial.error else {})}
            )
            child.end("FAILED" if trial.status == "failed" else "FINISHED")
            self.ended.add(trial.name)

    def prune(self, trials: list[Found]) -> None:
        """Delete training folders that this sweep made, but those of its best trials and of the ones that run."""
        worse = ranked(trials, self.search.guard)[self.search.keep :]
        for trial in [*worse, *(trial for trial in trials if trial.status == "stopped")]:
            folder = self.storage / trial.train if trial.train else None
            if folder and trial.made and is_there(folder):
                discard(folder / "SUCCESS")  # first of all it stops being a stage
                discard(folder)
