"""Cells of whole training jobs, on the shapes world and CPU: what Ray costs, what a second worker brings, what the host does per pair.

A job runs in processes of its own, so these cells are on the wall clock: tokens per second while training goes, start-up not counted.
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

from benchmarks.measure import Row
from rlhfv_ray.config import DataConfig, DDPOConfig, ModelConfig, OptimConfig, ScaleConfig
from rlhfv_ray.data import write_pairs
from rlhfv_ray.data.reference_table import load_reference, pair_lengths
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
from rlhfv_ray.training.metrics_log import append_records, read_records
from rlhfv_ray.training.sampler import micro_batches, prefetched
from rlhfv_ray.training.train import TrainJob, load_engine, train_ddpo, train_worker, update

BATCH = 32  # the paper's; so is the length of answers, about
CAPTIONS = 4  # of the shapes world in an answer: 98 tokens
RAY_CPUS = 2
WIDTH, LAYERS = (
    256,
    6,
)  # of a larger shapes model with random weights: updates of about a second, as the smallest real ones


def worker_cells(*, quick: bool) -> list[Row]:
    """(g) Ray Train against the same loop without it, one worker and two, (h) the host's share of a step."""
    import ray

    rounds, steps = (1, 6) if quick else (3, 6)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ray.init(
            "local",
            num_cpus=RAY_CPUS,
            object_store_memory=200 * 1024**2,
            include_dashboard=False,
            log_to_driver=False,
        )
        try:
            config, reference = prepare(folder, steps)
            rates: dict[str, list[float]] = {"ray": [], "bare": [], "two": []}
            losses: dict[str, list[float]] = {}
            two = replace(config, scale=replace(config.scale, workers=2))
            for turn in range(rounds):
                for name, some, run in (
                    ("bare", config, run_bare),
                    ("ray", config, train_ddpo),
                    ("two", two, run_bare),
                ):
                    rate, losses[name] = trained(some, reference, folder / f"{name}-{turn}", run)
                    rates[name].append(rate)
            ceiling = side_by_side(config, reference, folder)
            host, collating = host_seconds(config, reference, folder / "host")
        finally:
            ray.shutdown()
    assert losses["ray"] == losses["bare"], "Ray changes the losses"
    apart = max(abs(a - b) for a, b in zip(losses["bare"], losses["two"], strict=True))
    assert apart <= 1e-5, f"losses of one and two workers are {apart:.2g} apart"
    through, bare, double = (median(rates[name]) for name in ("ray", "bare", "two"))
    note = f"tokens/s, {rounds} jobs each, the same losses to the bit"
    rows = [
        Row(
            "g Ray Train, steady",
            through,
            bare,
            through / bare,
            0.95,
            through / bare >= 0.95,
            unit="/s",
            note=note,
        )
    ]
    note = f"tokens/s, one global batch of {BATCH}; losses within {apart:.1g}; two jobs that share nothing do {ceiling / bare:.2f} of one"
    rows.append(
        Row(
            "g two workers, steady",
            double,
            bare,
            double / bare,
            1.6,
            double / bare >= 1.6,
            unit="/s",
            note=note,
        )
    )
    note = f"the step's thread waits so long for a pair, against a budget of 1 ms; making one takes {1000 * collating:.1f} ms beside it"
    ratio = 1 / (1000 * host)
    return [
        *rows,
        Row(
            "h host time per pair", 1000 * host, 1.0, ratio, 1.0, ratio >= 1.0, unit="ms", note=note
        ),
    ]


def prepare(folder: Path, steps: int) -> tuple[DDPOConfig, Path]:
    """Pairs of long answers to pictures, and their reference log-probs; needs Ray."""
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
    """Pictures with answers of several captions each, the first of them the picture's own."""
    rng, scenes = random.Random(0), make_scenes(count + CAPTIONS, seed=0)
    for number, scene in enumerate(scenes[:count]):
        chosen, rejected = (
            " ".join(careless_caption(other, rng) for other in scenes[number : number + CAPTIONS])
            for _ in range(2)
        )
        yield PreferencePair(f"long:{number}", render(scene), QUESTIONS[0], chosen, rejected)


def trained(
    config: DDPOConfig, reference: Path, folder: Path, run: Callable[[TrainJob], None]
) -> tuple[float, list[float]]:
    """Run one job: its tokens per second, the median over reports after the first, and its losses."""
    folder.mkdir()
    with hold_lease(folder) as token:
        run(TrainJob(config, reference, reference_inputs(config.model, config.data), folder, token))
    records = read_records(folder)
    later = records[config.scale.log_every :]
    return median(record["system/tokens_per_second"] for record in later), [
        record["loss"] for record in records
    ]


def side_by_side(config: DDPOConfig, reference: Path, folder: Path) -> float:
    """Tokens per second of two jobs of one worker at the same time: what this machine's two CPUs can do at best."""
    with ThreadPoolExecutor(2) as both:
        jobs = [
            both.submit(trained, config, reference, folder / f"side-{number}", run_bare)
            for number in range(2)
        ]
        return sum(job.result()[0] for job in jobs)


def run_bare(job: TrainJob) -> None:
    """The workers' loop in plain processes."""
    world = job.config.scale.workers
    torch.multiprocessing.spawn(bare_worker, args=(world, free_port(), job), nprocs=world)  # pyright: ignore[reportPrivateImportUsage]


def bare_worker(rank: int, world: int, port: int, job: TrainJob) -> None:
    """One rank without Ray; rank 0 writes the records."""
    with group(rank, world, port):
        train_worker(job, functools.partial(write, rank, job.folder))


@contextmanager
def group(rank: int, world: int, port: int) -> Iterator[None]:
    """A gloo group of one thread each."""
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
    """What Ray's controller does with a report."""
    if rank == 0:
        append_records(folder, report["records"])


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def host_seconds(config: DDPOConfig, reference: Path, folder: Path) -> tuple[float, float]:
    """Seconds per pair that a step waits for its batch (made in a thread beside it), and that making a pair takes."""
    folder.mkdir()
    results = folder / "seconds.txt"
    job = TrainJob(config, reference, {}, folder, "")
    torch.multiprocessing.spawn(host_worker, args=(free_port(), job, results), nprocs=1)  # pyright: ignore[reportPrivateImportUsage]
    waited, made = map(float, results.read_text().split())
    return waited, made


def host_worker(rank: int, port: int, job: TrainJob, results: Path) -> None:
    """Train a few updates, with a clock where batches are waited for and made."""
    config = job.config
    with group(rank, 1, port):
        engine, processor = load_engine(config)
        pairs, lengths = load_reference(job.reference), pair_lengths(job.reference)
        collate = functools.partial(
            collate_pairs, processor=processor, rule="both_sides", layout=engine.module.layout
        )
        batches = micro_batches(pairs, lengths, collate, config, start=0, stop=config.optim.steps)
        waits: list[float] = []
        clocked = timed(prefetched(batches), waits)
        for step in range(config.optim.steps):
            update(engine, clocked, job, step=step, rate=1e-5)
        making: list[float] = []
        for batch in timed(
            micro_batches(pairs, lengths, collate, config, start=0, stop=20), making
        ):
            to_device(batch, torch.device("cpu"), torch.float32)
    size = config.scale.micro_batch
    results.write_text(f"{median(waits[2:]) / size} {median(making) / size}")


def timed(batches: Iterator[Any], seconds: list[float]) -> Iterator[Any]:
    """The same batches; how long each was waited for."""
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        seconds.append(time.perf_counter() - start)
        yield batch
