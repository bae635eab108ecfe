"""One experiment: the pipeline, answers of base and aligned model, their scores side by side, all of it in one MLflow run tree.

The experiment's folder `<storage>/<name>-<fingerprint>/` holds `config.json`, `summary.json`, the figures, the page of answers, and the spool
that MLflow is fed from. What was made is in the stages' folders; `config.json` names them.
"""

import contextlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.benchmarks.shapes import ShapesBenchmark
from eval.reporting.figures import rates_figure, training_figure
from eval.reporting.html import Section, write_page
from eval.reporting.mlflow_log import answer_rows
from eval.reporting.tables import summary, table
from rlhfv_ray.config import SHAPES, DDPOConfig, fingerprint, plain
from rlhfv_ray.console import ProgressBar, progress_bar
from rlhfv_ray.data.reference_table import load_reference, unusable_rows
from rlhfv_ray.inference.generate import answers_stage, read_answers
from rlhfv_ray.models import planned_counts
from rlhfv_ray.models.loading import model_inputs
from rlhfv_ray.pipeline import Pipeline, plan_pipeline, start
from rlhfv_ray.shapes.world import WORLD, write_benchmark
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import display_path
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.storage.stages import Stage, run_stages, seconds_of
from rlhfv_ray.tracking.run import TrackedRun, sync_tracking, tracked_run, tracking_uri, ui_command
from rlhfv_ray.training.metrics_log import read_records

PACKAGES = ("ray", "torch", "transformers", "deepspeed", "datasets", "mlflow", "pillow")


def run_experiment(config: DDPOConfig, storage: Path, *, console: Console) -> dict[str, Any]:
    """Run an experiment, or the rest of one; returns what it writes to `summary.json`.

    Raises:
        RlhfvError: something the user can mend.
    """
    storage.mkdir(parents=True, exist_ok=True)
    feed = TrainingFeed(console)
    pipeline = plan_pipeline(config, storage, seen=feed)
    evaluation = plan_evaluation(pipeline) if config.data.path == SHAPES else None
    stages = [*pipeline.stages, *(evaluation.stages if evaluation else ())]
    names = [stage.folder(storage).name for stage in stages]
    folder = (
        storage
        / f"{config.name}-{fingerprint({'stages': names, 'reference': pipeline.reference.name})}"
    )
    with (
        hold_lease(folder),
        tracked_run(
            folder,
            config.tracking,
            store=storage,
            name=folder.name,
            params=parameters(config),
            tags=origin(),
        ) as run,
    ):
        write_json(folder / "config.json", {"config": plain(config), "stages": names, **origin()})
        run.log_file(folder / "config.json")
        following = Following(pipeline, run, feed, console)
        results = run_stages(stages, storage, around=following.stage)
        outcome: dict[str, Any] = {
            "seconds": {result.stage.title: result.seconds for result in results}
        }
        records = read_records(pipeline.train.folder(storage))
        training_figure(records, folder / "training.png")
        run.log_file(folder / "training.png", "figures")
        if evaluation:
            outcome = report_scores(
                evaluation, outcome["seconds"], folder=folder, run=run, console=console
            )
        write_json(folder / "summary.json", outcome)
        run.log_file(folder / "summary.json")
    show_places(pipeline, folder, synced=sync_tracking(folder), console=console)
    return outcome


@dataclass(frozen=True)
class Evaluation:
    """The stages that answer a benchmark with both models, and where their results will be."""

    stages: tuple[Stage, ...]
    benchmark: ShapesBenchmark
    answers: tuple[Path, Path]  # base, aligned


def plan_evaluation(pipeline: Pipeline) -> Evaluation:
    """Declare the benchmark's stages: its files, the base model's answers, the aligned model's."""
    config, storage = pipeline.config, pipeline.storage
    inputs = {"world": WORLD, "scenes": config.shapes.evaluation_scenes, "seed": config.shapes.seed}
    made = Stage(
        "benchmark",
        inputs,
        lambda folder, _: write_benchmark(
            folder, count=config.shapes.evaluation_scenes, seed=config.shapes.seed
        ),
        title="benchmark",
    )
    benchmark = ShapesBenchmark(made.folder(storage), decoding=plain(config.generation))
    aligned = {"model": pipeline.train.folder(storage).name}
    answers = [
        answers_stage(
            model,
            lambda: benchmark.prompts,
            {"prompts": made.folder(storage).name, **of},
            generation=config.generation,
            scale=config.scale,
            title=f"answers, {which}",
        )
        for which, model, of in (
            ("base", config.model, model_inputs(config.model)),
            ("aligned", pipeline.aligned, aligned),
        )
    ]
    folders = (answers[0].folder(storage), answers[1].folder(storage))
    return Evaluation((made, *answers), benchmark, folders)


class TrainingFeed:
    """Hands training records to the run and the bar of the moment."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.run: TrackedRun | None = None
        self.counter: ProgressBar | None = None

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> None:
        """New records, in order."""
        if self.run is not None:
            self.run.log_records(records)
        if self.counter is None:  # records of a finished stage, read again
            return
        for record in records:
            self.report(record)
        last = records[-1]
        note = f"loss {last.get('loss', float('nan')):.3f}"
        if "rewards/margins" in last:
            note += f"  margin {last['rewards/margins']:.3f}"
        self.counter.advance(last["step"], note)

    def report(self, record: Mapping[str, Any]) -> None:
        """What of a new record a person should read."""
        if record["skipped"]:
            pairs = ", ".join(record["skipped_pairs"])
            self.console.print(f"update {record['step']} skipped, not finite, with pairs {pairs}")
        if "memory/foretold_gib" in record:
            every = record["recompute"]
            again = (
                f"activations of every {every}. layer computed again"
                if every
                else "all activations kept"
            )
            self.console.print(
                f"  {record['memory/foretold_gib']:.2f} GiB a worker; {again}", highlight=False
            )


@dataclass
class Following:
    """What is shown and tracked while stages run."""

    pipeline: Pipeline
    run: TrackedRun
    feed: TrainingFeed
    console: Console
    started: bool = False

    @contextlib.contextmanager
    def stage(self, stage: Stage, skipped: bool) -> Iterator[None]:
        """Around one stage: a line on the terminal, a child run in MLflow, a bar for training."""
        self.console.print(
            f"[bold]{stage.title}[/bold]: {'done before, skipped' if skipped else 'running'}",
            highlight=False,
        )
        if not skipped and not self.started:
            start(self.pipeline.config)
            self.started = True
        folder = stage.folder(self.pipeline.storage)
        with self.run.stage(
            stage.title, params={"folder": folder.name, **flat(stage.inputs)}
        ) as child:
            if stage is self.pipeline.train:
                with self.training(child, skipped):
                    yield
            else:
                yield
            child.log_metrics({"seconds": seconds_of(folder)})
            if folder == self.pipeline.reference:
                rejected = unusable_rows(folder)
                child.log_metrics(
                    {"rows/usable": len(load_reference(folder)), "rows/unusable": len(rejected)}
                )
                child.log_table("unusable_rows", rejected)

    @contextlib.contextmanager
    def training(self, child: TrackedRun, skipped: bool) -> Iterator[None]:
        """Feed records to MLflow and a bar while training runs."""
        self.feed.run = child
        config, pairs = self.pipeline.config, len(load_reference(self.pipeline.reference))
        steps = config.optim.total_steps(config.data.used(pairs))
        if skipped:
            self.feed(read_records(self.pipeline.train.folder(self.pipeline.storage)))
            yield
            return
        counts = planned_counts(self.pipeline.config.model)
        for part, (whole, trained) in counts.items():
            self.console.print(
                f"  {part:<10} {whole:>15,} parameters, {trained:>15,} trained", highlight=False
            )
        child.log_metrics(
            {f"parameters/{part}": float(trained) for part, (_, trained) in counts.items()}
        )
        with progress_bar(
            "SFT updates" if config.loss.is_sft else "DDPO updates", steps
        ) as self.feed.counter:
            yield
        self.feed.counter = None


def report_scores(
    evaluation: Evaluation,
    seconds: Mapping[str, float],
    *,
    folder: Path,
    run: TrackedRun,
    console: Console,
) -> dict[str, Any]:
    """Score both models' answers, compare them, and leave table, figures and page; returns what goes to `summary.json`."""
    which = ("base", "aligned")
    answers = map(read_answers, evaluation.answers)
    models = {
        name: evaluation.benchmark.score(some, {})
        for name, some in zip(which, answers, strict=True)
    }
    found = summary(models)
    outcome = {
        **found["models"],
        "comparison": found["comparisons"]["aligned"],
        "seconds": dict(seconds),
    }
    rates_figure(models, folder / "rates.png")
    section = Section(
        "shapes", models, evaluation.benchmark.prompts, {"Base and aligned": folder / "rates.png"}
    )
    training = {"Training": folder / "training.png"}
    write_page(folder / "report.html", [section], title="Base and aligned model", figures=training)
    run.log_file(folder / "rates.png", "figures")
    run.log_file(folder / "report.html", "report")
    for name, scores in models.items():
        run.log_metrics(
            {
                f"{name}/{metric}": rate
                for metric, rate in scores.rates().items()
                if rate is not None
            }
        )
        run.log_table(f"answers_{name}", answer_rows(scores))
    run.log_metrics(
        {name: value for name, value in outcome["comparison"].items() if isinstance(value, float)}
    )
    console.print(table(models))
    return outcome


def parameters(config: DDPOConfig) -> dict[str, Any]:
    """The configuration as flat names, as people write them on the command line."""
    return flat(plain(config))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as dotted names.

    Example:
        >>> flat({"loss": {"beta": 0.1}, "seed": 0})
        {'loss.beta': 0.1, 'seed': 0}
    """
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= (
            flat(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {f"{prefix}{name}": value}
        )
    return out


def origin() -> dict[str, str]:
    """Versions, and the commit where there is one."""
    found = {f"version.{name}": importlib.metadata.version(name) for name in PACKAGES}
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    return {
        **found,
        "version.python": platform.python_version(),
        "git_commit": commit.stdout.strip() or "none",
    }


def show_places(pipeline: Pipeline, folder: Path, *, synced: bool, console: Console) -> None:
    """Say where everything is."""
    uri = tracking_uri(pipeline.config.tracking, pipeline.storage)
    places = {
        "aligned model": display_path(Path(pipeline.aligned.path)),
        "report": display_path(folder / "report.html"),
        "summary": display_path(folder / "summary.json"),
        "MLflow": ui_command(uri) if synced else "not reached; see the warning above",
    }
    for what, where in places.items():
        console.print(f"{what:<14} {where}", highlight=False, soft_wrap=True)
