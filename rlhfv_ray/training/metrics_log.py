"""The record of a training run: one JSON line per update, collected on the workers, written by the driver, followed by who watches.

`metrics.jsonl` is the record that everything else (MLflow, progress bar, figures) is fed from. Every update is in it once, in order, also
after a resume that does updates again.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from ray.train import UserCallback
from torch import Tensor

from rlhfv_ray.console import poll
from rlhfv_ray.loss import METRICS, StepLoss, preference_metrics
from rlhfv_ray.records import PairBatch

METRICS_FILE = "metrics.jsonl"
POLL_S = 1.0

Record = Mapping[str, Any]


class MetricsReporter:
    """Collects one record per update; brings them to the driver every few updates."""

    def __init__(
        self,
        records: list[dict[str, Any]],
        report: Callable[[dict[str, Any]], None],
        setting: Mapping[str, float],
    ) -> None:
        self.records = records  # of all updates so far, those before a resume included
        self.report = report  # called by every worker
        self.setting = setting  # what was found out at the start; goes with the first update
        self.sent = 0  # after a resume all are sent again, for the driver may have missed some; it keeps each step once
        self.values: list[Tensor] = []
        self.facts: list[dict[str, Any]] = []
        self.tokens, self.since = 0, time.perf_counter()

    def add(
        self,
        step: int,
        engine: Any,
        losses: Sequence[tuple[PairBatch, StepLoss]],
        suspects: list[str],
    ) -> None:
        """Note one update; its losses stay on the device. `suspects`: pairs for which it was skipped."""
        self.values.append(torch.stack([preference_metrics(loss) for _, loss in losses]).mean(0))
        norm = engine.get_global_grad_norm()
        rate = engine.optimizer.param_groups[0]["lr"]
        fact = {
            "step": step,
            "learning_rate": rate,
            "grad_norm": None if norm is None else float(norm),
        }
        fact |= self.setting
        self.setting = {}
        fact["system/worker_memory_gib"] = round(psutil.Process().memory_info().rss / 2**30, 3)
        if torch.cuda.is_available():
            fact["system/gpu_peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        self.facts.append(
            {
                **fact,
                "skipped": int(bool(suspects)),
                **({"skipped_pairs": suspects} if suspects else {}),
            }
        )
        self.tokens += sum(batch.inputs["input_ids"].numel() for batch, _ in losses)

    def flush(self) -> None:
        """Average over workers and report to the driver; called by every worker."""
        if self.values:
            counts = torch.full(
                (len(self.values), 1), float(self.tokens), device=self.values[0].device
            )
            table = torch.cat([torch.stack(self.values), counts], dim=1)
            dist.all_reduce(table)
            rows = (table / dist.get_world_size()).tolist()
            rate = rows[0][-1] * dist.get_world_size() / (time.perf_counter() - self.since)
            for fact, row in zip(self.facts, rows, strict=True):
                named = {
                    name: value
                    for name, value in zip(METRICS, row, strict=False)
                    if math.isfinite(value)
                }
                self.records.append({**fact, **named, "system/tokens_per_second": round(rate, 1)})
        self.report({"records": self.records[self.sent :]})
        self.sent = len(self.records)
        self.values, self.facts, self.tokens, self.since = [], [], 0, time.perf_counter()


class RecordWriter(UserCallback):
    """Writes the workers' records to `metrics.jsonl`, on the driver's side (Ray Train's controller)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Append rank 0's records of updates that are not there yet."""
        append_records(self.folder, metrics[0]["records"])


def append_records(folder: Path, records: Sequence[Record]) -> None:
    """Append the records of updates later than the last one there."""
    there = read_records(folder)
    last = there[-1]["step"] if there else 0
    fresh = [record for record in records if record["step"] > last]
    with (folder / METRICS_FILE).open("a+b") as stream:
        stream.seek(0)
        stream.truncate(
            stream.read().rfind(b"\n") + 1
        )  # half a line, left by a writer that was killed
        stream.write("".join(json.dumps(record) + "\n" for record in fresh).encode())


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All records of a run; a line still being written is left out."""
    try:
        text = (folder / METRICS_FILE).read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


@contextlib.contextmanager
def tail_records(folder: Path, seen: Callable[[Sequence[Record]], None]) -> Iterator[None]:
    """Call `seen` with new records of a run while the body runs, and once more with the rest after it."""
    count = 0

    def look() -> None:
        nonlocal count
        records = read_records(folder)
        if len(records) > count:
            seen(records[count:])
            count = len(records)

    with poll(look, POLL_S):
        yield
