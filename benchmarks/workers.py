"""Cells of whole training jobs, on the shapes world and a CPU.

They measure the cost of Ray, the gain of a second worker, and the host's time per pair. A job runs
in processes of its own, so these cells use the wall clock. Rates are tokens per second of training,
without the start-up.
"""

import functools
import os
import random
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.measure import Row, idle_load, judged
from benchmarks.stage import own_ray
from rlhfv_ray.config import DataConfig, DDPOConfig, ModelConfig, OptimConfig, ScaleConfig
from rlhfv_ray.data import write_pairs
from rlhfv_ray.data.reference_table import load_reference, pair_sizes
from rlhfv_ray.inference.model_check import read_check
from rlhfv_ray.inference.prefetch import prefetched
from rlhfv_ray.inference.reference import compute_reference_logps, reference_inputs
from rlhfv_ray.models import load_processor
from rlhfv_ray.models.batch import collate_pairs, to_device
from rlhfv_ray.records import PreferencePair
from rlhfv_ray.shapes import make_scenes
from rlhfv_ray.shapes.captions import QUESTIONS, careless_caption
from rlhfv_ray.shapes.model import build_model
from rlhfv_ray.shapes.scenes import render
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.training.job import TrainJob
from rlhfv_ray.training.metrics_log import append_records, read_records
from rlhfv_ray.training.sampler import micro_batches
from rlhfv_ray.training.train import train_ddpo
from rlhfv_ray.training.worker import load_engine, train_worker, update

BATCH = 32  # pairs per update, as in the paper
CAPTIONS = 4  # per answer: 98 tokens, about as long as the paper's answers
# Sizes of a shapes model with random weights. Its updates take about a second, as those of the
# smallest real models do.
WIDTH = 256
LAYERS = 6
BUDGET_MS = 1.0  # host time per pair


def worker_cells(*, quick: bool) -> list[Row]:
    """Compare Ray Train with the same loop without it, for one worker and two (g).

    The last cell is the host's share of a step (h).
    """
    jobs = 1 if quick else 3
    steps = 6
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        others = idle_load()  # before the start and after the end of our own Ray
        with own_ray():
            config, reference = prepare(folder, steps)
            rates, losses = measure_jobs(config, reference, folder, jobs=jobs)
            ceiling = side_by_side(config, reference, folder)
            wait_s, collate_s = host_seconds(config, reference, folder / "host")
        others = max(others, idle_load())
    assert losses["ray"] == losses["bare"], "Ray changes the losses"
    loss_gap = max(abs(a - b) for a, b in zip(losses["bare"], losses["two"], strict=True))
    assert loss_gap <= 1e-5, f"losses of one and two workers differ by {loss_gap:.2g}"
    ray_note = f"tokens/s, {jobs} jobs each, the same losses to the bit"
    two_note = (
        f"tokens/s, one global batch of {BATCH}; losses within {loss_gap:.1g}; "
        f"two jobs that share nothing do {ceiling / rates['bare']:.2f} of one"
    )
    host_note = (
        "wait of the step's thread for a pair; the peer is a budget of 1 ms; "
        f"a second thread takes {1000 * collate_s:.1f} ms to make one"
    )
    wait_ms = 1000 * wait_s
    ratio = BUDGET_MS / wait_ms
    rows = [
        rate_row("g Ray Train, steady", rates["ray"], rates["bare"], goal=0.95, note=ray_note),
        rate_row("g two workers, steady", rates["two"], rates["bare"], goal=1.6, note=two_note),
        Row(
            "h host time per pair",
            wait_ms,
            BUDGET_MS,
            ratio,
            1.0,
            ratio >= 1.0,
            unit="ms",
            note=host_note,
        ),
    ]
    return [judged(replace(row, others=others)) for row in rows]


def rate_row(cell: str, ours: float, peer: float, *, goal: float, note: str) -> Row:
    """Compare two rates, of which a higher one is better."""
    return Row(cell, ours, peer, ours / peer, goal, ours / peer >= goal, unit="/s", note=note)


def measure_jobs(
    config: DDPOConfig, reference: Path, folder: Path, *, jobs: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Run the loop alone, under Ray Train, and with two workers, by turns.

    Returns:
        Median tokens per second, and the losses of the last job, both by the name of the variant.
    """
    two = replace(config, scale=replace(config.scale, workers=2))
    variants = {"bare": (config, run_bare), "ray": (config, train_ddpo), "two": (two, run_bare)}
    rates: dict[str, list[float]] = {name: [] for name in variants}
    losses: dict[str, list[float]] = {}
    for turn in range(jobs):
        for name, (variant, run) in variants.items():
            rate, losses[name] = trained(variant, reference, folder / f"{name}-{turn}", run)
            rates[name].append(rate)
    return {name: median(values) for name, values in rates.items()}, losses


def prepare(folder: Path, steps: int) -> tuple[DDPOConfig, Path]:
    """Write pairs of long answers and their reference log-probs. Ray must be running."""
    write_pairs(long_pairs(320), folder / "pairs.parquet")
    processor = load_processor("shapes")
    torch.manual_seed(0)
    build_model(processor, width=WIDTH, layers=LAYERS).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    config = DDPOConfig(
        model=ModelConfig(path=str(folder / "model"), dtype="fp32"),
        data=DataConfig(path=str(folder / "pairs.parquet"), rule="both_sides"),
        optim=OptimConfig(learning_rate=1e-5, batch=BATCH, steps=steps),
        scale=ScaleConfig(
            micro_batch=BATCH // 4,
            zero_stage=1,
            checkpoint_every=steps,
            recompute=0,
            memory_gib=8,
            log_every=2,
        ),
    )
    reference = folder / "reference"
    reference.mkdir()
    compute_reference_logps(config.model, config.data, config.scale, reference)
    write_json(reference / "config.json", reference_inputs(config.model, config.data))
    return config, reference


def long_pairs(count: int) -> Iterator[PreferencePair]:
    """Yield pictures with answers of several captions each.

    The first caption of an answer describes its picture.
    """
    rng = random.Random(0)
    scenes = make_scenes(count + CAPTIONS, seed=0)
    for number, scene in enumerate(scenes[:count]):
        captioned = scenes[number : number + CAPTIONS]
        chosen = " ".join(careless_caption(neighbour, rng) for neighbour in captioned)
        rejected = " ".join(careless_caption(neighbour, rng) for neighbour in captioned)
        yield PreferencePair(f"long:{number}", render(scene), QUESTIONS[0], chosen, rejected)


def trained(
    config: DDPOConfig, reference: Path, folder: Path, run: Callable[[TrainJob], None]
) -> tuple[float, list[float]]:
    """Run one job.

    Returns:
        Tokens per second, as the median over all reports but the first, and the losses.
    """
    folder.mkdir()
    with hold_lease(folder) as token:
        run(TrainJob(config, reference, reference_inputs(config.model, config.data), folder, token))
    records = read_records(folder)
    steady = records[config.scale.log_every :]
    rate = median(record["system/tokens_per_second"] for record in steady)
    return rate, [record["loss"] for record in records]


def side_by_side(config: DDPOConfig, reference: Path, folder: Path) -> float:
    """Return the total tokens per second of two jobs of one worker that run at the same time.

    This is the best that the machine's two CPUs can do.
    """
    with ThreadPoolExecutor(2) as threads:
        jobs = [
            threads.submit(trained, config, reference, folder / f"side-{number}", run_bare)
            for number in range(2)
        ]
        return sum(job.result()[0] for job in jobs)


def run_bare(job: TrainJob) -> None:
    """Run the workers' loop in plain processes."""
    world = job.config.scale.most_workers
    arguments = (world, free_port(), job)
    spawn(bare_worker, args=arguments, nprocs=world)


def bare_worker(rank: int, world: int, port: int, job: TrainJob) -> None:
    """Run one rank without Ray; rank 0 writes the records."""
    with group(rank, world, port):
        train_worker(job, functools.partial(write, rank, job.folder))


@contextmanager
def group(rank: int, world: int, port: int) -> Iterator[None]:
    """Join a gloo process group, with one thread per process, until the body ends."""
    torch.set_num_threads(1)
    settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {name: str(value) for name, value in settings.items()} | {"DS_ACCELERATOR": "cpu"}
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def write(rank: int, folder: Path, report: dict[str, Any]) -> None:
    """Append a report's records to the log, as Ray's controller does."""
    if rank == 0:
        append_records(folder, report["records"])


def free_port() -> int:
    """Return a free port that stays free until it is used: Linux gives others those from 32768."""
    port = random.SystemRandom().randrange(20_000, 26_000)
    with socket.socket() as probe:
        is_taken = probe.connect_ex(("127.0.0.1", port)) == 0
    return free_port() if is_taken else port


def host_seconds(config: DDPOConfig, reference: Path, folder: Path) -> tuple[float, float]:
    """Measure the host's time per pair, in seconds.

    Returns:
        The time that a step waits for its batch, which a second thread makes, and the time that
        making the batch takes.
    """
    folder.mkdir()
    results = folder / "seconds.txt"
    job = TrainJob(config, reference, {}, folder, "")
    spawn(host_worker, args=(free_port(), job, results), nprocs=1)
    wait_s, collate_s = map(float, results.read_text().split())
    return wait_s, collate_s


def host_worker(rank: int, port: int, job: TrainJob, results: Path) -> None:
    """Train a few updates, and time the waits for batches and the making of batches."""
    config = job.config
    with group(rank, 1, port):
        engine, processor = load_engine(config, read_check(job.reference))
        pairs, sizes = load_reference(job.reference), pair_sizes(job.reference)
        collate = functools.partial(
            collate_pairs, processor=processor, rule="both_sides", layout=engine.module.layout
        )
        batches = micro_batches(pairs, sizes, collate, config, start=0, stop=config.optim.steps)
        waits: list[float] = []
        timed_batches = timed(prefetched(batches), waits)
        for step in range(config.optim.steps):
            update(engine, timed_batches, job, step=step, rate=1e-5)
        collating: list[float] = []
        batches = micro_batches(pairs, sizes, collate, config, start=0, stop=20)
        for batch in timed(batches, collating):
            to_device(batch, torch.device("cpu"), torch.float32)
    size = config.scale.micro_batch
    # The first waits include the start of the thread that makes the batches.
    results.write_text(f"{median(waits[2:]) / size} {median(collating) / size}")


def timed(batches: Iterator[Any], seconds: list[float]) -> Iterator[Any]:
    """Yield the same batches, and append the seconds that each took to `seconds`."""
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        seconds.append(time.perf_counter() - start)
        yield batch
