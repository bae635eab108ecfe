"""Measure the work on many rows: `python benchmarks/rows.py [--jobs]`.

Without a model, everything else of a reference pass and a training: parts are written, checked as
for a resume, gathered, and read as training reads them. Cells are microseconds of process time a
row. With `--jobs`, the whole jobs under Ray, with a small model: an epoch over all rows. Cells are
microseconds of the clock a row, without the starts. Work that is linear has the same time in every
column.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.stage import own_ray, prepare, stage_seconds
from rlhfv_ray.config import DataConfig, DDPOConfig, OptimConfig, ScaleConfig
from rlhfv_ray.data.reference_table import (
    SCHEMA,
    from_row,
    load_reference,
    pair_sizes,
    reference_digest,
)
from rlhfv_ray.inference.parts import has_part, write_part
from rlhfv_ray.inference.reference import collect_unusable, part_table, reference_inputs
from rlhfv_ray.records import ChangedTokens, ReferencePair
from rlhfv_ray.segments import Rule
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.training.job import TrainJob
from rlhfv_ray.training.metrics_log import METRICS_FILE
from rlhfv_ray.training.sampler import global_batch_indices
from rlhfv_ray.training.train import train_ddpo

PART = 64  # rows
BATCH = 32
WORDS = 40  # tokens of each answer


def main() -> None:
    """Measure every number of rows, and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 4_000, 16_000, 64_000])
    parser.add_argument("--jobs", action="store_true", help="run whole jobs with a small model")
    settings = parser.parse_args()
    counts, measure = settings.rows, jobs_measured if settings.jobs else measured
    columns = {count: measure(count) for count in counts}
    print(f"| us per row | {' | '.join(f'{count:,}' for count in counts)} |")
    print(f"|---|{'---:|' * len(counts)}")
    for work in columns[counts[0]]:
        cells = " | ".join(f"{1e6 * columns[count][work] / count:.0f}" for count in counts)
        print(f"| {work} | {cells} |")


def measured(count: int) -> dict[str, float]:
    """Return the process time of each kind of work on so many rows, in seconds."""
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        numbers = range(-(-count // PART))
        timed(times, "parts are written", lambda: write_parts(folder, count))
        timed(times, "parts are checked", lambda: [has_part(folder, part) for part in numbers])
        timed(times, "rows are gathered", lambda: collect_unusable(folder, DataConfig()))
        timed(times, "digest of the parts", lambda: reference_digest(folder))
        pairs = timed(times, "pairs are loaded", lambda: load_reference(folder))
        timed(times, "sizes are read", lambda: pair_sizes(folder))
        timed(times, "an epoch's batches", lambda: read_epoch(pairs, count))
    return times


def jobs_measured(count: int) -> dict[str, float]:
    """Return the time of a reference stage and of an epoch's updates on so many rows, in seconds.

    Starts and ends are what the jobs take beside that.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = prepare(folder, count, width=32, layers=2)
        reference, trained = folder / "reference", folder / "train"
        stage, parts = stage_seconds(work, reference)
        inputs = reference_inputs(work.model, work.data)
        write_json(reference / "config.json", inputs)
        steps = count // BATCH
        config = DDPOConfig(
            model=work.model,
            data=work.data,
            optim=OptimConfig(learning_rate=1e-5, batch=BATCH, steps=steps),
            scale=ScaleConfig(micro_batch=BATCH, memory_gib=8, checkpoint_every=steps),
        )
        trained.mkdir()
        start = time.time()
        with own_ray(), hold_lease(trained) as token, first_report(trained) as reported:
            train_ddpo(TrainJob(config, reference, inputs, trained, token))
        job, last = time.time() - start, (trained / METRICS_FILE).stat().st_mtime
        updates = (last - reported[0]) * steps / (steps - config.scale.log_every)
    return {
        "parts of a reference stage": parts,
        "start and end of the stage": stage - parts,
        "updates of an epoch": updates,
        "start and end of the training": job - updates,
    }


@contextmanager
def first_report(folder: Path) -> Iterator[list[float]]:
    """Note when a training's first records are there."""
    times: list[float] = []

    def watch() -> None:
        while not (folder / METRICS_FILE).exists():
            time.sleep(0.02)
        times.append(time.time())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield times
    watcher.join()


def timed(times: dict[str, float], work: str, do: Callable[[], Any]) -> Any:
    """Do the work, and note its process time."""
    start = time.process_time()
    result = do()
    times[work] = time.process_time() - start
    return result


def write_parts(folder: Path, count: int) -> None:
    """Write the parts of a reference with pairs that all differ."""
    draw = np.random.default_rng(0)
    for first in range(0, count, PART):
        pairs = [
            make_pair(number, draw.integers(9, 999, size=2 * WORDS).tolist())
            for number in range(first, min(first + PART, count))
        ]
        write_part(part_table(pairs, SCHEMA), folder, first // PART)


def make_pair(number: int, ids: list[int]) -> ReferencePair:
    """Return a pair with a small picture that is no picture."""
    return ReferencePair(
        id=f"row-{number}",
        image=number.to_bytes(4, "big") * 256,
        prompt_ids=list(range(30)),
        chosen_ids=ids[:WORDS],
        rejected_ids=ids[WORDS:],
        changed={rule: ChangedTokens([True] * WORDS, [True] * WORDS) for rule in get_args(Rule)},
        chosen_logps=[-1.0] * WORDS,
        rejected_logps=[-1.0] * WORDS,
    )


def read_epoch(pairs: Any, count: int) -> None:
    """Read every pair once, in the batches of one epoch."""
    for step in range(count // BATCH):
        for row in global_batch_indices(count, BATCH, seed=0, step=step):
            from_row(pairs[row])


if __name__ == "__main__":
    main()
