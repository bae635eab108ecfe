"""Elastic training: as many workers as there is room for, among the counts that divide the batch.

Ray Train's policy takes any count, also one that does not divide the batch. It counts a lost node
for up to 20 s and what other jobs hold for ever, and it stops workers between two checkpoints, so
that their updates are lost.
"""

import functools
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray._private.state import available_resources_per_node  # no public function has it
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

from rlhfv_ray.autoscaling import Resources, count_placed
from rlhfv_ray.cluster import answers
from rlhfv_ray.config import ScaleConfig
from rlhfv_ray.errors import StorageError
from rlhfv_ray.storage.folder import is_there, names_in
from rlhfv_ray.training.checkpoint import MANIFEST
from rlhfv_ray.training.job import TrainJob
from rlhfv_ray.training.metrics_log import Record

logger = logging.getLogger(__name__)

ANSWER_S = 2.0  # a node whose raylet does not answer within this time is lost
SETTLED_S = 4.0  # the room after a loss is known when it has not changed for so long
POLL_S = 0.5
GROW_POLL_S = 5.0  # between two looks for more room
PLACEMENT_S = 60.0  # for workers whose room is there, unless another job took it


def start_attempts(scale: ScaleConfig) -> tuple[int, float]:
    """Return how often to try to start workers, and the seconds of each attempt.

    An elastic job waits as long in all, in short attempts: the next one may have another number.
    """
    if not scale.is_elastic or scale.start_timeout <= PLACEMENT_S:
        return scale.start_attempts, scale.start_timeout
    return math.ceil(scale.start_attempts * scale.start_timeout / PLACEMENT_S), PLACEMENT_S


class BatchPolicy(ElasticScalingPolicy):
    """Ray Train's policy of an elastic job.

    After a loss it starts as many workers as there is room for, and waits for the least if there is
    less. It adds workers only when a checkpoint has been written.

    Args:
        job: the training.
        scaling_config: Ray Train's, with the least and the most workers.
        free: returns the free resources of every node; the cluster's.
    """

    def __init__(
        self,
        job: TrainJob,
        scaling_config: ray.train.ScalingConfig,
        *,
        free: Callable[[], Sequence[Resources]] | None = None,
    ) -> None:
        super().__init__(scaling_config)  # type: ignore[arg-type]  # a class chosen at import
        self.counts = job.config.worker_counts
        self.bundle = job.config.scale.resources
        self.newest = functools.partial(newest_checkpoint, job.folder)
        self.free = free or free_resources
        self.looked_at = 0.0
        self.grows_after: str | None = None  # the newest checkpoint when more room was seen

    def make_decision_for_non_running_worker_group(self) -> ResizeDecision:
        """Start the workers that there is room for. If there is too little, Ray waits for the least
        as it does for a fixed number, and asks again.
        """
        self._maybe_send_resource_request()
        self.grows_after = None
        return self._get_resize_decision(self.count_for(self.settled_room()) or self.counts[0])

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> NoopDecision | ResizeDecision:
        """Add workers where there is room for more, after the next checkpoint."""
        self._maybe_send_resource_request()
        workers = worker_group_state.num_workers
        if self.grows_after is None:
            if self.can_grow(workers) and workers < self.counts[-1]:
                self.grows_after = self.newest()
        elif self.newest() not in (self.grows_after, None):
            self.grows_after = None
            larger = self.count_for(workers + self.room())
            if larger > workers:
                return self._get_resize_decision(larger)
        return NoopDecision()

    def can_grow(self, workers: int) -> bool:
        """Return True if a look, every few seconds, shows room for more workers than run now."""
        if time.monotonic() - self.looked_at < GROW_POLL_S:
            return False
        self.looked_at = time.monotonic()
        return self.count_for(workers + self.room()) > workers

    def count_for(self, room: int) -> int:
        """Return the largest allowed number of workers up to `room`; 0 if there is none."""
        return max((count for count in self.counts if count <= room), default=0)

    def settled_room(self) -> int:
        """Return the room for workers once it is enough for all of them, or does not change.

        What lost workers held becomes free within seconds.
        """
        room, since = self.room(), time.monotonic()
        while room < self.counts[-1] and time.monotonic() - since < SETTLED_S:
            time.sleep(POLL_S)
            if (now := self.room()) != room:
                room, since = now, time.monotonic()
        return room

    def room(self) -> int:
        """Return the number of workers that fit into what is free now."""
        return count_placed([self.bundle] * self.counts[-1], self.free())


class WorkerLog:
    """Passes records on, and logs every change of the number of workers."""

    def __init__(self, on_records: Callable[[Sequence[Record]], None]) -> None:
        self.on_records = on_records
        self.count = 0

    def __call__(self, records: Sequence[Record]) -> None:
        """Take new records, in the order of their updates."""
        for record in records:
            workers = record.get("workers", {})  # earlier versions recorded none
            count = sum(workers.values())
            if self.count and count != self.count:
                nodes = ", ".join(f"{number} on {node}" for node, number in workers.items())
                logger.warning("From update %d on, workers: %s.", record["step"], nodes)
            self.count = count
        self.on_records(records)


def free_resources() -> list[Resources]:
    """Return the free resources of every node that answers.

    Ray counts a node that lost its power until some health checks have failed.
    """
    free = available_resources_per_node()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] in free]
    addresses = [f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}" for node in nodes]
    with ThreadPoolExecutor(32) as threads:
        alive = list(threads.map(functools.partial(answers, timeout=ANSWER_S), addresses))
    return [free[node["NodeID"]] for node, is_alive in zip(nodes, alive, strict=True) if is_alive]


def newest_checkpoint(folder: Path) -> str | None:
    """Return the name of a training's newest complete checkpoint; empty if there is none.

    None stands for a storage that cannot be reached now, which is no reason to end the training.
    """
    checkpoints = folder / "checkpoints"
    try:
        names = [name for name in names_in(checkpoints) if is_there(checkpoints / name / MANIFEST)]
    except StorageError:
        return None
    return max(names, default="")
