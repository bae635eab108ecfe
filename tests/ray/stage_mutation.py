"""Every file of a small finished experiment is deleted, emptied, torn, or has one bit flipped, in
turn; then the next step starts. It must fail with an error that names the file, or make the stage
again with the same result: `python -m tests.ray.stage_mutation` (part of `make soak`).
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from rich.console import Console

from eval.plan import Evaluation
from experiments.runners.config import ExperimentConfig
from experiments.runners.experiment import plan_scores, run_experiment
from rlhfv_ray.config import (
    DataConfig,
    GenerationConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    ScaleConfig,
    ShapesConfig,
)
from rlhfv_ray.data import write_pairs
from rlhfv_ray.data.reference_table import load_reference, pair_sizes, unusable_rows
from rlhfv_ray.errors import RlhfvError
from rlhfv_ray.inference.generate import read_answers
from rlhfv_ray.models import load_processor
from rlhfv_ray.models.loading import model_inputs
from rlhfv_ray.pipeline import Pipeline, finished_reference, plan_pipeline
from rlhfv_ray.shapes.model import BIASED, build_model
from rlhfv_ray.storage.digests import CARD
from rlhfv_ray.storage.files import file_digest
from rlhfv_ray.storage.stages import Stage, run_stages
from rlhfv_ray.tracking.run import sync_tracking
from rlhfv_ray.training.metrics_log import METRICS_FILE, read_records
from tests.conftest import careless_pairs

QUIET = Console(quiet=True)
FINISHED, UNFINISHED, EXPERIMENT = "finished", "unfinished", "experiment"
PAYLOAD, SUCCESS, NO_RESULT = "payload", "SUCCESS", "no result"
NAMED, AGAIN, SAME = "error names it", "made again", "same result"
# What may come of a mutation, by the state of the stage and the kind of file. A flip in the name of
# `SUCCESS`'s own seal leaves its content as it was.
ALLOWED = {
    (FINISHED, PAYLOAD): {NAMED},
    (FINISHED, SUCCESS): {NAMED, AGAIN},
    (FINISHED, NO_RESULT): {SAME},
    (UNFINISHED, PAYLOAD): {NAMED, AGAIN},
    (UNFINISHED, NO_RESULT): {AGAIN},
    (EXPERIMENT, PAYLOAD): {NAMED, AGAIN},
    (EXPERIMENT, NO_RESULT): {AGAIN},
}
# Of a record: what depends on the machine, and what only the first one of a process has.
OF_A_RUN = ("system/tokens_per_second", "system/worker_memory_gib", "memory/predicted_gib")
OF_A_RUN += ("recompute", "micro_batch")


def flipped(content: bytes, name: str) -> bytes:
    """Flip the lowest bit of one byte, whose place follows from the file's name."""
    changed = bytearray(content)
    changed[random.Random(name).randrange(len(content))] ^= 1
    return bytes(changed)


MUTATIONS: dict[str, Callable[[bytes, str], bytes | None]] = {
    "deleted": lambda content, name: None,
    "emptied": lambda content, name: b"",
    "torn": lambda content, name: content[: len(content) // 2],
    "one bit": lambda content, name: flipped(content, name) if content else content,
}


class Case(NamedTuple):
    """One mutation of one file."""

    state: str  # of the stage
    stage: str  # title
    file: str  # relative to the storage
    mutation: str

    @property
    def kind(self) -> str:
        """Return what the file means to a later step."""
        name = Path(self.file).name
        if name == "SUCCESS":
            return SUCCESS
        is_hidden = any(part.startswith(".") for part in Path(self.file).parts)
        is_no_result = is_hidden or "/checkpoints/" in self.file or self.file.endswith(CARD)
        return NO_RESULT if is_no_result else PAYLOAD

    @property
    def remakes(self) -> bool:
        """Return true if the stage is made again, which takes seconds."""
        return self.state != FINISHED or (self.kind == SUCCESS and self.mutation == "deleted")


@dataclass(frozen=True)
class Made:
    """A finished experiment, a copy of its storage, and what later steps read from it."""

    config: ExperimentConfig
    storage: Path
    pristine: Path
    pipeline: Pipeline
    evaluation: Evaluation
    results: dict[str, Any]

    @property
    def stages(self) -> list[Stage]:
        """Return all stages in their order."""
        return [*self.pipeline.stages, *self.evaluation.stages]

    def restore(self) -> None:
        """Bring all folders back to what they were; MLflow keeps its database open."""
        for copy in self.pristine.glob("*-*"):
            shutil.rmtree(self.storage / copy.name)
            shutil.copytree(copy, self.storage / copy.name)


def small_experiment(folder: Path) -> ExperimentConfig:
    """Return an experiment of four updates and six pictures, with a model and pairs of its own."""
    torch.manual_seed(0)
    processor = load_processor(BIASED)
    build_model(processor, width=32, layers=2).save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    write_pairs(careless_pairs(16), folder / "pairs.parquet")
    return ExperimentConfig(
        storage=str(folder / "storage"),
        model=ModelConfig(path=str(folder / "base"), dtype="fp32"),
        data=DataConfig(path=str(folder / "pairs.parquet"), rule="both_sides"),
        shapes=ShapesConfig(evaluation_scenes=6),
        loss=LossConfig(beta=0.1, gamma=5.0, normalize=False),
        optim=OptimConfig(learning_rate=1e-3, batch=4, steps=4),
        scale=ScaleConfig(micro_batch=2, cpus=0.5, rows=8, checkpoint_every=2, log_every=1),
        generation=GenerationConfig(max_new_tokens=12),
        benchmarks=("shapes",),
    )


def make(folder: Path) -> Made:
    """Run the small experiment to its end, and keep a copy of it."""
    config = small_experiment(folder)
    storage, pristine = Path(config.storage), folder / "pristine"
    run_experiment(config, storage, console=QUIET)
    pipeline = plan_pipeline(config.ddpo, storage, seen=lambda records: None)
    evaluation = plan_scores(config, pipeline, {})
    read_all(pipeline, evaluation)  # leaves its copies of the pairs
    shutil.copytree(storage, pristine)
    results = read_all(pipeline, evaluation)
    results["model inputs"] = model_inputs(pipeline.aligned)
    return Made(config, storage, pristine, pipeline, evaluation, results)


def read_all(pipeline: Pipeline, evaluation: Evaluation) -> dict[str, Any]:
    """Return everything that later steps read from finished stages, without times."""
    storage, reference = pipeline.storage, pipeline.reference
    trained = pipeline.train.folder(storage)
    results: dict[str, Any] = {
        "pairs": load_reference(reference)[:],
        "lengths": pair_sizes(reference),
        "unusable": unusable_rows(reference),
        "records": [without_facts(record) for record in read_records(trained)],
        "model": digests(trained / "model"),
    }
    for stage in evaluation.drawn:
        results[stage.title] = digests(stage.folder(storage) / "images")
    for stage in evaluation.answers.values():
        results[stage.title] = read_answers(stage.folder(storage))
    return results


def digests(folder: Path) -> dict[str, str]:
    """Return the digests of a folder's files, without the card, which the evaluation writes."""
    paths = [path for path in sorted(folder.iterdir()) if not str(path).endswith(CARD)]
    return {path.name: file_digest(path) for path in paths}


def without_facts(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in OF_A_RUN}


def all_cases(made: Made) -> Iterator[Case]:
    """Yield every mutation of every file of every stage, and of the experiment's own folder."""
    folders = [made.pristine / stage.folder(made.storage).name for stage in made.stages]
    for state in (FINISHED, UNFINISHED):
        for stage, folder in zip(made.stages, folders, strict=True):
            for path in files_of(folder):
                cases = mutations_of(state, stage.title, path, made)
                yield from filter(is_promised, cases)
    (folder,) = made.pristine.glob(f"{made.config.name}-*")
    for path in files_of(folder):
        yield from mutations_of(EXPERIMENT, "experiment", path, made)


def is_promised(case: Case) -> bool:
    """Return False for what an unfinished stage has nothing of, or does not notice."""
    name = Path(case.file).name
    if case.state == FINISHED:
        return True
    # The record of a training that goes on is checked for its form alone.
    is_unseen = (name, case.mutation) == (METRICS_FILE, "one bit")
    return name != "SUCCESS" and "/." not in case.file and not is_unseen


def files_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def mutations_of(state: str, title: str, path: Path, made: Made) -> Iterator[Case]:
    name, content = path.relative_to(made.pristine).as_posix(), path.read_bytes()
    for mutation, change in MUTATIONS.items():
        if change(content, name) != content:  # an empty file cannot be torn
            yield Case(state, title, name, mutation)


def outcome_of(case: Case, made: Made) -> str:
    """Apply a mutation, start the next step, and return what came of it."""
    made.restore()
    path = made.storage / case.file
    content = MUTATIONS[case.mutation](path.read_bytes(), case.file)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    success = made.storage / Path(case.file).parts[0] / "SUCCESS"
    if case.state == UNFINISHED:
        success.unlink()
    before = success.read_bytes() if success.exists() else b""
    steps = {EXPERIMENT: experiment_steps, UNFINISHED: stage_steps, FINISHED: later_steps}
    outcomes = [outcome_of_step(step, case) for step in steps[case.state](case, made)]
    if any(outcome not in (NAMED, SAME) for outcome in outcomes):
        return next(outcome for outcome in outcomes if outcome not in (NAMED, SAME))
    if outcomes[-1] == NAMED:  # by the stage; other steps may have seen nothing
        return NAMED
    if case.state == EXPERIMENT:
        return AGAIN
    return SAME if success.read_bytes() == before else AGAIN


def outcome_of_step(step: Callable[[], bool], case: Case) -> str:
    """Return what came of one step, which returns True if its result is the same as ever."""
    try:
        return SAME if step() else "ANOTHER RESULT"
    except RlhfvError as error:
        return NAMED if Path(case.file).name in str(error) else f"ERROR WITHOUT NAME: {error}"
    except Exception as error:  # noqa: BLE001  # anything else is a traceback for the user
        return f"TRACEBACK: {error!r}"


def stage_steps(case: Case, made: Made) -> list[Callable[[], bool]]:
    """Return the step of all commands that use stages: run what is missing, check the rest."""

    def run() -> bool:
        run_stages(made.stages, made.storage)
        found = read_all(made.pipeline, made.evaluation)
        return all(found[name] == made.results[name] for name in found)

    return [run]


def later_steps(case: Case, made: Made) -> list[Callable[[], bool]]:
    """Return every step that uses a finished stage: those for one kind, then that for all."""
    steps = stage_steps(case, made)
    if case.file.startswith("reference-"):
        pipeline = made.pipeline
        inputs = pipeline.reference_inputs
        steps.insert(0, lambda: finished_reference(pipeline.reference, inputs) is not None)
    if case.file.startswith("train-"):  # `eval/run.py --model train-.../model`
        aligned = made.pipeline.aligned
        steps.insert(0, lambda: model_inputs(aligned) == made.results["model inputs"])
    return steps


def experiment_steps(case: Case, made: Made) -> list[Callable[[], bool]]:
    """Return the same command again, which writes scores and report anew."""
    (folder,) = made.storage.glob(f"{made.config.name}-*")
    copy = made.pristine / folder.name

    def run() -> bool:
        outcome = run_experiment(made.config, made.storage, console=QUIET)
        scores = [path.relative_to(copy) for path in copy.glob("*/*.json")]
        same = all((copy / name).read_bytes() == (folder / name).read_bytes() for name in scores)
        whole = bool(outcome["base"]) and (folder / "report.html").exists()
        return same and whole and sync_tracking(folder)  # MLflow has everything, once

    return [run]


def tried(cases: Sequence[Case], made: Made, *, printed: bool = False) -> list[tuple[Case, str]]:
    """Try mutations; return the forbidden ones with what came of them, and print a table."""
    counts: Counter[tuple[str, str, str]] = Counter()
    forbidden = []
    for case in cases:
        started = time.monotonic()
        outcome = outcome_of(case, made)
        allowed = outcome in ALLOWED[case.state, case.kind]
        if not allowed:
            forbidden.append((case, outcome))
        counts[case.state, case.kind, outcome if allowed else "FORBIDDEN"] += 1
        if printed and (not allowed or time.monotonic() - started > 1):
            print(f"{time.monotonic() - started:5.1f} s  {outcome}: {' '.join(case)}", flush=True)
    print(f"{'stage':<12}{'file':<12}{'came of it':<18}{'mutations':>9}")
    for (state, kind, outcome), count in sorted(counts.items()):
        print(f"{state:<12}{kind:<12}{outcome:<18}{count:>9}")
    print(f"{len(cases)} mutations, {len(forbidden)} forbidden")
    for case, outcome in forbidden:
        print(f"FORBIDDEN  {' '.join(case)}: {outcome}")
    return forbidden


def main() -> int:
    """Try all mutations, or every n-th; the exit code is 1 if one is forbidden."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="try every n-th mutation only")
    parser.add_argument("--state", choices=[FINISHED, UNFINISHED, EXPERIMENT], help="of the stage")
    chosen = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder:
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        made = make(Path(folder))
        cases = [case for case in all_cases(made) if chosen.state in (None, case.state)]
        forbidden = tried(cases[:: chosen.every], made, printed=True)
        ray.shutdown()
    return 1 if forbidden else 0


if __name__ == "__main__":
    sys.exit(main())
