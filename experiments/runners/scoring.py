"""What sweeps and studies share: a model scored on their benchmark, and the trials' folders followed while they run."""

from pathlib import Path

from rich.console import Console

from eval.benchmarks.contract import Scores
from eval.config import EvalConfig, InferenceConfig, LoadConfig, ShapesBenchConfig
from eval.evaluation import evaluate, plan_evaluation
from experiments.runners.config import ScoredConfig
from experiments.runners.experiment import flat
from experiments.runners.sweep_report import TrialResult, ranked, read_trials
from rlhfv_ray.console import ProgressBar
from rlhfv_ray.storage.mirror import discard, is_there
from rlhfv_ray.storage.stages import run_stages
from rlhfv_ray.sweep.search_space import SearchConfig
from rlhfv_ray.tracking.run import TrackedRun
from rlhfv_ray.training.metrics_log import read_records


def evaluation_of(config: ScoredConfig, path: str, *, scenes: int, seed: int) -> EvalConfig:
    """The evaluation of one model on the benchmark of a sweep or study."""
    model, scale = config.ddpo.model, config.ddpo.scale
    names = ("judge", "object_halbench", "mmhal_bench", "llava_bench", "pope", "amber")
    return EvalConfig(
        model=(path,),
        benchmarks=(config.benchmark,),
        generation=config.ddpo.generation,
        loading=LoadConfig(
            model.dtype, model.attention, model.allow_pickle, model.trust_remote_code
        ),
        inference=InferenceConfig(
            scale.actors, scale.gpu, scale.cpus, scale.rows, scale.inference_batch
        ),
        shapes=ShapesBenchConfig(scenes=scenes, seed=seed),
        **{name: getattr(config, name) for name in names},
    )


def score_model(
    config: ScoredConfig, path: str, storage: Path, folder: Path, *, scenes: int, seed: int
) -> Scores:
    """A model's scores, also left in a folder; `scenes` and `seed` say which pictures of the shapes world."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = plan_evaluation(evaluation_of(config, path, scenes=scenes, seed=seed), storage)
    run_stages(list(plan.answers.values()), storage)
    (benchmark,) = plan.benchmarks
    (scores,) = evaluate(plan, benchmark, folder, console=Console(quiet=True)).models.values()
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

    def follow(self, trial: TrialResult) -> None:
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

    def prune(self, trials: list[TrialResult]) -> None:
        """Delete training folders that this sweep made, but those of its best trials and of the ones that run."""
        worse = ranked(trials, self.search.guard)[self.search.keep :]
        for trial in [*worse, *(trial for trial in trials if trial.status == "stopped")]:
            folder = self.storage / trial.train if trial.train else None
            if folder and trial.made and is_there(folder):
                discard(folder / "SUCCESS")  # first of all it stops being a stage
                discard(folder)
