"""Stages of an experiment while they run: a line on the terminal, a child run, a progress bar."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from rlhfv_ray.command_line import leaves
from rlhfv_ray.console import ProgressBar, print_sentence, progress_bar, stage_line
from rlhfv_ray.data.audit_page import AUDIT_FILES
from rlhfv_ray.data.mixture import mixed_rows
from rlhfv_ray.data.reference_table import load_reference, unusable_rows
from rlhfv_ray.inference.model_check import read_check
from rlhfv_ray.models import planned_counts
from rlhfv_ray.pipeline import Pipeline
from rlhfv_ray.storage.stages import Stage, seconds_of
from rlhfv_ray.tracking.run import TrackedRun
from rlhfv_ray.tracking.run_folder import RUN_NAME
from rlhfv_ray.training.checkpoint import saved_step
from rlhfv_ray.training.metrics_log import read_records


class TrainingFeed:
    """Hands training records to a tracked run and to a progress bar, as long as there is one."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.run: TrackedRun | None = None
        self.bar: ProgressBar | None = None

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Take new records, in the order of their updates."""
        if self.run is not None:
            self.run.log_records(records)
        if self.bar is None:  # records of a finished stage, read again
            return
        for record in records:
            self.report(record)
        last = records[-1]
        note = f"loss {last.get('loss', float('nan')):.3f}"
        if "rewards/margins" in last:
            note += f"  margin {last['rewards/margins']:.3f}"
        self.bar.advance(last["step"], note)

    def report(self, record: Mapping[str, Any]) -> None:
        """Print a skipped update and the predicted memory, where the record has them."""
        if record["skipped"]:
            pairs = ", ".join(record["skipped_pairs"])
            self.console.print(f"update {record['step']} skipped, not finite, with pairs {pairs}")
        if record.get("memory/predicted_gib"):  # 0: not known
            every = record["recompute"]
            activations = f"activations of every {every}. layer recomputed" if every else "all kept"
            memory = (
                f"  memory of a worker: {record['memory/predicted_gib']:.2f} GiB; activations: "
                f"{activations}"
            )
            self.console.print(memory, highlight=False)


@dataclass
class StageMonitor:
    """Shows and tracks the stages of an experiment while they run."""

    pipelines: Sequence[Pipeline]  # the experiment's, and those of its controls
    run: TrackedRun
    feed: TrainingFeed
    console: Console
    name: str  # of the run, which the names of its children end with
    stages: int  # number of them
    place: int = 0  # of the stage that runs, from 1

    @contextlib.contextmanager
    def stage(self, stage: Stage, skipped: bool) -> Iterator[None]:
        """Enclose one stage: a line on the terminal, a child run, and a bar for training."""
        state = "done before, skipped" if skipped else "running"
        self.place += 1
        line = stage_line(stage.title, state, self.place, self.stages)
        self.console.print(line, soft_wrap=True)
        folder = stage.folder(self.pipelines[0].storage)
        trained = next((line for line in self.pipelines if stage is line.train), None)
        params = {"folder": folder.name, **flat(stage.inputs)}
        with self.run.stage(stage.title, params=params) as child:
            child.set_tags({RUN_NAME: f"{stage.title}, {self.name}"})
            if not skipped:
                child.reopen()
            training = self.training(child, trained, skipped) if trained else None
            with training or contextlib.nullcontext():
                yield
            child.log_metrics({"seconds": seconds_of(folder)})
            if folder in {pipeline.reference for pipeline in self.pipelines}:
                print_sentence(self.console, f"  self-check: {read_check(folder)}")
                unusable = unusable_rows(folder)
                rows = {"usable": len(load_reference(folder)), "unusable": len(unusable)}
                child.log_metrics({f"rows/{name}": count for name, count in rows.items()})
                child.log_table("unusable_rows", unusable)
                for name in AUDIT_FILES:  # absent of examples, and from older folders
                    if (folder / name).exists():
                        child.log_file(folder / name)

    @contextlib.contextmanager
    def training(self, child: TrackedRun, pipeline: Pipeline, skipped: bool) -> Iterator[None]:
        """Feed records to the child run and a bar while training runs."""
        self.feed.run = child
        config = pipeline.config
        if skipped:
            self.feed(read_records(pipeline.train.folder(pipeline.storage)))
            yield
            return
        counts = planned_counts(config.model)
        self.console.print("\n".join(parameter_lines(counts)), highlight=False)
        for part, (_, trained) in counts.items():
            child.log_metrics({f"parameters/{part}": float(trained)})
        folder = pipeline.train.folder(pipeline.storage)
        if saved := saved_step(folder):
            self.console.print(f"  goes on from the checkpoint of update {saved}", highlight=False)
        elif done := len(read_records(folder)):
            every = config.scale.checkpoint_every
            line = f"  repeats {done} updates; the first checkpoint is that of update {every}"
            self.console.print(line, highlight=False)
        title = f"{config.loss.method} updates"
        with progress_bar(title, updates_of(pipeline)) as self.feed.bar:
            yield
        self.feed.bar = None


def parameter_lines(counts: Mapping[str, tuple[int, int]]) -> list[str]:
    """Return a line for each part of a model: its parameters, and how many of them are trained."""
    return [
        f"  {part:<10} {all_of_it:>15,} parameters, {trained:>15,} trained"
        for part, (all_of_it, trained) in counts.items()
    ]


def updates_of(pipeline: Pipeline) -> int:
    """Return the number of updates of a training whose reference is finished."""
    config = pipeline.config
    pairs = len(mixed_rows(load_reference(pipeline.reference), config.data))
    return config.optim.total_steps(config.data.used(pairs))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested dicts into one dict with dotted names.

    Example:
        >>> flat({"loss": {"beta": 0.1}, "seed": 0})
        {'loss.beta': 0.1, 'seed': 0}
    """
    return dict(leaves(values, prefix))


def without(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return settings without those of some names."""
    return {name: value for name, value in settings.items() if name not in names}
