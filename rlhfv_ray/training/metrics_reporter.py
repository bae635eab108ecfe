"""The measurements of a worker's updates, on the way to the driver."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from rlhfv_ray.loss import METRICS, StepLoss, preference_metrics
from rlhfv_ray.records import PairBatch


class MetricsReporter:
    """Collects one record per update, and reports them to the driver every few updates.

    After a resume, all records so far are reported at once: the driver may have missed some, and
    perhaps no update is left. It keeps each update once.
    """

    def __init__(
        self,
        records: list[dict[str, Any]],
        report: Callable[[dict[str, Any]], None],
        start_facts: Mapping[str, float],
        workers: Mapping[str, int],
    ) -> None:
        self.records = records  # of all updates so far, those before a resume included
        self.report = report  # called by every worker
        self.start_facts = start_facts  # known before the first update; go into its record
        self.workers = workers  # by node; their number may change when training resumes
        self.sent = 0  # records
        self.values: list[Tensor] = []
        self.facts: list[dict[str, Any]] = []
        self.tokens, self.since = 0, time.perf_counter()
        if records:
            self.flush()

    def add(
        self,
        step: int,
        engine: Any,
        losses: Sequence[tuple[PairBatch, StepLoss]],
        suspects: list[str],
    ) -> None:
        """Record one update; its losses stay on the device.

        Args:
            step: updates done, this one included.
            engine: of this worker.
            losses: the batches of the update with their losses.
            suspects: pairs for which the update was skipped; empty if it was not.
        """
        # One (M,) vector per batch, averaged: see `METRICS`.
        self.values.append(torch.stack([preference_metrics(loss) for _, loss in losses]).mean(0))
        norm = engine.get_global_grad_norm()
        fact = {
            "step": step,
            "learning_rate": engine.optimizer.param_groups[0]["lr"],
            "grad_norm": None if norm is None else float(norm),
            **self.start_facts,
            "workers": self.workers,
            "system/worker_memory_gib": round(psutil.Process().memory_info().rss / 2**30, 3),
        }
        self.start_facts = {}
        if torch.cuda.is_available():
            fact["system/gpu_peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        fact["skipped"] = int(bool(suspects))
        if suspects:
            fact["skipped_pairs"] = suspects
        self.facts.append(fact)
        self.tokens += sum(batch.inputs["input_ids"].numel() for batch, _ in losses)

    def flush(self) -> None:
        """Average over workers and report to the driver; called by every worker."""
        if self.values:
            self.records.extend(self._averaged_records())
        self.report({"records": self.records[self.sent :]})
        self.sent = len(self.records)
        self.values, self.facts, self.tokens, self.since = [], [], 0, time.perf_counter()

    def _averaged_records(self) -> list[dict[str, Any]]:
        """Return the records of the updates since the last flush, averaged over workers."""
        world = dist.get_world_size()
        values = torch.stack(self.values)  # (U, M), U updates
        tokens = torch.full((len(values), 1), float(self.tokens), device=values.device)  # (U, 1)
        table = torch.cat([values, tokens], dim=1)  # (U, M + 1): one reduction for all
        dist.all_reduce(table)
        rows = (table / world).tolist()
        tokens_per_second = rows[0][-1] * world / (time.perf_counter() - self.since)
        records = []
        for fact, row in zip(self.facts, rows, strict=True):
            metrics = {
                name: value
                for name, value in zip(METRICS, row, strict=False)  # the row also has the tokens
                if math.isfinite(value)
            }
            throughput = {"system/tokens_per_second": round(tokens_per_second, 1)}
            records.append({**fact, **metrics, **throughput})
        return records
