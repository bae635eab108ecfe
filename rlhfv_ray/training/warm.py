"""Training in the processes of a crew, for trials: the same loop as in Ray Train's workers.

The processes join one process group and keep it. Each training loads its model and makes its
DeepSpeed engine anew. ZeRO stage 3 keeps tensors of its engine for good, so the processes end after
it.
"""

import contextlib
import functools
import gc
import os
import queue
import socket
from collections import Counter
from datetime import timedelta
from typing import Any, NamedTuple

import ray

from rlhfv_ray.crew.crew import Crew, end_crew, with_crew
from rlhfv_ray.training.job import TrainJob
from rlhfv_ray.training.metrics_log import Record, write_records

COLLECTIVE_TIMEOUT_S = 600
POLL_S = 0.5
_reported: queue.SimpleQueue[list[Record]] = queue.SimpleQueue()  # by rank 0, in its process


class Seat(NamedTuple):
    """The place of a process in its process group."""

    rank: int
    world: int
    local_world: int  # processes of the same node
    address: str  # where rank 0 listens


def train_warm(job: TrainJob) -> None:
    """Train with this process's crew; a lost process's unsaved updates are repeated.

    Raises:
        RlhfvError: as raised by a worker.
        StageFailedError: workers were lost more often than `scale.max_failures`.
    """
    with_crew(job.config.scale, "Training", functools.partial(_train, job))
    if job.config.scale.zero_stage == 3:
        end_crew()  # DeepSpeed's stage 3 keeps tensors as long as the process lives


def _train(job: TrainJob, crew: Crew) -> None:
    """Train once with all workers, and write their records as they come."""
    world = job.config.scale.most_workers
    workers, nodes = crew.members[:world], crew.nodes[:world]
    address: Any = ray.get(workers[0].call.remote(free_address))
    on_node = Counter(nodes)
    running = [
        worker.call.remote(train_rank, job, Seat(rank, world, on_node[node], address))
        for rank, (worker, node) in enumerate(zip(workers, nodes, strict=True))
    ]
    while running:
        ended, running = ray.wait(running, timeout=POLL_S)
        records = ray.get(workers[0].call.remote(take_reported))
        if records:
            write_records(job.folder, job.token, records)
        ray.get(ended)


def free_address() -> str:
    """Return an address of this node that no process listens on."""
    host = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def train_rank(job: TrainJob, seat: Seat) -> None:
    """Run one rank of a training, in a process that may have run others."""
    import torch

    from rlhfv_ray.inference.parts import forget_model
    from rlhfv_ray.training.worker import import_deepspeed, train_worker

    forget_model()  # of the answers before: training needs its memory
    import_deepspeed()
    if not gc.get_freeze_count():
        gc.freeze()  # modules only: a model that is frozen is never collected
    _join(seat, gpu=job.config.scale.gpu)
    try:
        train_worker(job, functools.partial(_report, is_kept=seat.rank == 0))
    finally:
        gc.collect()  # engines have cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def take_reported() -> list[Record]:
    """Return the records that rank 0 has reported since the last call."""
    records: list[Record] = []
    with contextlib.suppress(queue.Empty):
        while True:
            records += _reported.get_nowait()
    return records


def _report(metrics: dict[str, Any], *, is_kept: bool) -> None:
    if is_kept:
        _reported.put(metrics["records"])


def _join(seat: Seat, *, gpu: bool) -> None:
    """Join the crew's process group, unless an earlier training has."""
    import torch.distributed as dist

    if dist.is_initialized():
        return
    # Ray shows each process its own GPU alone, which therefore is the first.
    places = {"RANK": seat.rank, "WORLD_SIZE": seat.world, "LOCAL_RANK": 0 if gpu else seat.rank}
    places["LOCAL_WORLD_SIZE"] = seat.local_world
    os.environ.update({name: str(value) for name, value in places.items()})
    dist.init_process_group(
        "nccl" if gpu else "gloo",
        init_method=seat.address,
        rank=seat.rank,
        world_size=seat.world,
        timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
    )
