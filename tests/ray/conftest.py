"""A Ray of two CPUs for all tests, and small data and models for the pipeline's jobs."""

import contextlib
import hashlib
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
import pytest
import ray
import torch
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load_file

from rlhfv_ray.cluster import OWN_RAY
from rlhfv_ray.config import (
    DataConfig,
    DDPOConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    ScaleConfig,
)
from rlhfv_ray.data import write_pairs
from rlhfv_ray.inference.reference import compute_reference_logps, reference_inputs
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.training.checkpoint import latest_checkpoint
from rlhfv_ray.training.job import TrainJob
from rlhfv_ray.training.metrics_log import read_records
from rlhfv_ray.training.train import train_ddpo
from tests.conftest import careless_pairs


@pytest.fixture(scope="package")
def bucket():
    """A server of the S3 protocol, shared by the files of this folder."""
    # Heavy, and workers import this file when they unpickle a test's functions.
    from tests.s3_server import s3_server

    with s3_server() as s3:
        yield s3


@pytest.fixture(scope="package")
def cluster(bucket):
    """A local Ray, shared by the files of this folder; its processes find the bucket."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (bucket.environment | OWN_RAY).items():
            patch.setenv(name, value)
        ray.init(
            "local",
            num_cpus=2,
            num_gpus=1,  # in name only, for what is scheduled in another way beside GPUs
            object_store_memory=200 * 1024**2,
            include_dashboard=False,
            log_to_driver=False,
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory) -> Path:
    """Forty pairs in RLHF-V's format."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    write_pairs(careless_pairs(40), path)
    return path


@pytest.fixture(scope="session")
def config(small_model, pairs_file) -> DDPOConfig:
    """Twelve updates of four pairs, a checkpoint every three."""
    return DDPOConfig(
        model=ModelConfig(path=str(small_model), dtype="fp32"),
        data=DataConfig(path=str(pairs_file), rule="both_sides"),
        loss=LossConfig(beta=0.1, gamma=5.0, normalize=False),
        optim=OptimConfig(learning_rate=1e-3, batch=4, steps=12),
        scale=ScaleConfig(
            workers=2, micro_batch=2, cpus=0.5, rows=5, checkpoint_every=3, keep=2, log_every=2
        ),
    )


@pytest.fixture(scope="package")
def reference(cluster, config, tmp_path_factory) -> Path:
    """Reference log-probs of the pairs."""
    folder = tmp_path_factory.mktemp("reference")
    compute_reference_logps(config.model, config.data, config.scale, folder)
    write_json(folder / "config.json", reference_inputs(config.model, config.data))
    return folder


def train(
    config: DDPOConfig,
    reference: Path,
    folder: Path,
    *,
    alongside: Callable[[], None] | None = None,
) -> Path:
    """Train into a folder as the stage does, with `alongside` running in a thread."""
    folder.mkdir(exist_ok=True)
    with hold_lease(folder) as token:
        helper = threading.Thread(target=alongside or (lambda: None), daemon=True)
        helper.start()
        inputs = reference_inputs(config.model, config.data)
        train_ddpo(TrainJob(config, reference, inputs, folder, token))
        helper.join(timeout=1)
    return folder


@pytest.fixture(scope="package")
def ray_run(config, reference, tmp_path_factory) -> Path:
    """The run that others are compared with: two workers of Ray Train, ZeRO 2, no fault."""
    return train(config, reference, tmp_path_factory.mktemp("ray_run"))


def with_scale(config: DDPOConfig, **changes) -> DDPOConfig:
    """Return the configuration with other scale settings."""
    return replace(config, scale=replace(config.scale, **changes))


def ray_processes(name: str) -> list[psutil.Process]:
    """Return the processes of this Ray whose title starts with `ray::name`."""
    processes = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if " ".join(process.cmdline()).startswith(f"ray::{name}"):
                processes.append(process)
    return processes


def tell(processes: Sequence[psutil.Process], to: Literal["resume", "suspend", "kill"]) -> None:
    """Resume, suspend or kill processes; some may have ended."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            getattr(process, to)()


def suspend_when(
    ready: Callable[[], bool],
    find: Callable[[], Sequence[psutil.Process]],
    over: Callable[[], bool],
) -> Sequence[psutil.Process]:
    """Suspend the processes that `find` returns once something is ready, and return them.

    They stand still at each look: a machine that is slow to run this thread must not let them end.
    Returns none of them if it is over first.
    """
    while not over():
        found = find()
        tell(found, "suspend")
        if found and ready():
            return found
        tell(found, "resume")
        time.sleep(0.02)
    return []


@contextlib.contextmanager
def killing(name: str, ready: Callable[[], bool], *, most: int | None = None) -> Iterator[None]:
    """Kill all processes of a task or an actor, or at most `most`, once something is ready."""

    def kill() -> None:
        found = suspend_when(ready, partial(ray_processes, name), over.is_set)
        killed.extend(found[:most])
        tell(killed, "kill")
        tell(found, "resume")

    over = threading.Event()
    killed: list[psutil.Process] = []
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()
    assert killed


def end_family(driver: subprocess.Popen) -> None:
    """Kill a driver and all that it started."""
    family = psutil.Process(driver.pid).children(recursive=True)
    for process in (psutil.Process(driver.pid), *family):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    driver.wait(60)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the exported model."""
    return load_file(folder / "model" / "model.safetensors")


def is_amid(folder: Path) -> bool:
    """Return True if a training of twelve updates has a checkpoint, and not yet its last one."""
    found = latest_checkpoint(folder)
    return found is not None and found[1].step < 12


def updates(folder: Path) -> list[int]:
    """Return the number of every update."""
    return [record["step"] for record in read_records(folder)]


def losses(folder: Path) -> list[float]:
    """Return the loss of every update."""
    return [record["loss"] for record in read_records(folder)]


def assert_same(ours: Path, theirs: Path, *, atol: float) -> None:
    """Assert that two runs have the same updates and losses, and end with the same weights."""
    assert updates(ours) == updates(theirs)
    assert losses(ours) == pytest.approx(losses(theirs), abs=atol)
    our_weights, their_weights = weights(ours), weights(theirs)
    assert our_weights.keys() == their_weights.keys()
    for name, tensor in their_weights.items():
        torch.testing.assert_close(our_weights[name], tensor, atol=atol, rtol=0)


class TrainingResult(NamedTuple):
    """What a training leaves, to compare with another run's."""

    weights: str  # SHA-256 of the exported weights
    updates: list[int]  # numbers of the updates, line by line of the record


def training_result(storage: Path | str, files: AbstractFileSystem | None = None) -> TrainingResult:
    """Return the result of the only training in a storage, on a disk or in a bucket."""
    files = files or LocalFileSystem()
    (model,) = files.glob(f"{storage}/train-*/model/model.safetensors")
    (record,) = files.glob(f"{storage}/train-*/metrics.jsonl")
    lines = files.cat_file(record).splitlines()
    digest = hashlib.sha256(files.cat_file(model)).hexdigest()
    return TrainingResult(digest, [json.loads(line)["step"] for line in lines])
