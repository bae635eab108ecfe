"""A crew on real Ray: it trains and answers as Ray Train and Ray Data do, and outlives nothing."""

import gc
import json
import os
import pickle
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from torch.multiprocessing.spawn import spawn

from benchmarks.workers import free_port
from rlhfv_ray.config import DDPOConfig, GenerationConfig
from rlhfv_ray.crew.crew import crew_kept, keeps_crew, with_crew
from rlhfv_ray.inference.generate import generate_answers
from rlhfv_ray.inference.reference import reference_inputs
from rlhfv_ray.records import Prompt
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.sweep.trainings import train_all
from rlhfv_ray.training.job import TrainJob
from rlhfv_ray.training.warm import Seat, train_rank
from tests.conftest import careless_pairs, wait_for
from tests.ray.conftest import (
    assert_same,
    is_amid,
    killing,
    ray_processes,
    train,
    updates,
    with_scale,
)

pytestmark = pytest.mark.ray
GREEDY = GenerationConfig(max_new_tokens=12)
# Trainings in their order: one crew, a killed process, one whose loss is not finite.
SAME = ("first", "after another", "killed", "after a failure")


def answers(config: DDPOConfig, folder: Path) -> list[str]:
    """Answer eight prompts with the model that a training left."""
    prompts = [
        Prompt(f"p{number}", pair.image, pair.question)
        for number, pair in enumerate(careless_pairs(8))
    ]
    given = generate_answers(
        replace(config.model, path=str(folder / "model")),
        prompts,
        folder / "answers",
        generation=GREEDY,
        scale=replace(config.scale, rows=3),
        title="answers",
    )
    return [answer.text for answer in given]


def trained(config: DDPOConfig, reference: Path, folder: Path) -> None:
    """Train and answer in this process's crew; leave the answers and the crew's process ids."""
    train(config, reference, folder)
    texts = answers(config, folder)
    calls = [os.getpid] * config.scale.most_workers
    pids = with_crew(config.scale, "ids", lambda crew: sorted(crew.each(len(calls), calls)))
    (folder / "result.json").write_text(json.dumps({"answers": texts, "pids": pids}))


@pytest.fixture(scope="module")
def run_folder(cluster, config, reference, tmp_path_factory) -> Path:
    """Trainings of one process, one after another; while one of them runs, a rank is killed."""
    folder = tmp_path_factory.mktemp("crew")
    wild = replace(config, optim=replace(config.optim, learning_rate=1e30))
    configs = {
        "first": config,
        "another": with_scale(config, zero_stage=3),
        "after another": config,
        "killed": config,
        "wild": wild,
        "after a failure": config,
    }

    trainings = {
        name: partial(trained, given, reference, folder / name) for name, given in configs.items()
    }
    with killing("Member", lambda: is_amid(folder / "killed"), most=1):
        failed = train_all(trainings, folder, concurrent=1)
    assert set(failed) == {"wild"} and "not finite" in failed["wild"]
    return folder


def pids(folder: Path, name: str) -> list[int]:
    return json.loads((folder / name / "result.json").read_text())["pids"]


def test_every_training_equals_ray_trains_to_the_bit(run_folder, ray_run):
    """Catches: weights, optimizer states, random numbers or records that one training leaves to the
    next; updates lost or repeated after a process died.
    """
    for name in SAME:
        assert_same(run_folder / name, ray_run, atol=0)
    assert updates(run_folder / "another") == updates(ray_run)


def test_the_answers_are_ray_datas(run_folder, ray_run, config, tmp_path):
    """Catches: answers of the model of an earlier training."""
    shutil.copytree(ray_run / "model", tmp_path / "model")
    expected = answers(config, tmp_path)
    for name in SAME:
        texts = json.loads((run_folder / name / "result.json").read_text())["answers"]
        assert texts == expected


def test_processes_stay_until_one_of_them_fails(run_folder):
    """Catches: a crew for every training; a broken crew for the next one; processes that keep the
    tensors of ZeRO 3, or outlive the study.
    """
    first, second, third, last = (pids(run_folder, name) for name in SAME)
    assert second == pids(run_folder, "another")  # since its training at ZeRO 3
    assert len({*first, *second, *third, *last}) == 8
    wait_for(lambda: not ray_processes("Member"), 30)


def test_a_driver_has_a_crew_inside_its_block_alone(config, reference, ray_run, tmp_path):
    """Catches: control trainings of an experiment that differ from Ray Train's, start their
    processes anew, or leave a crew that holds its CPUs.
    """
    with crew_kept():
        for name in ("permuted", "blank"):
            trained(config, reference, tmp_path / name)
    assert not keeps_crew(config.scale)
    wait_for(lambda: not ray_processes("Member"), 30)
    assert pids(tmp_path, "permuted") == pids(tmp_path, "blank")
    for name in ("permuted", "blank"):
        assert_same(tmp_path / name, ray_run, atol=0)


def repeat(rank: int, port: int, pickled: bytes, count: int, path: Path) -> None:
    """Train a job again and again in one process; write its memory and tensors after each."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    job: TrainJob = pickle.loads(pickled)
    seat = Seat(0, 1, 1, f"tcp://127.0.0.1:{port}")
    rows = []
    for _ in range(count):
        with hold_lease(job.folder) as token:
            train_rank(replace(job, token=token), seat)
        shutil.rmtree(job.folder)
        tensors = sum(isinstance(item, torch.Tensor) for item in gc.get_objects())
        rows.append((psutil.Process().memory_info().rss / 2**20, tensors))
    path.write_text(json.dumps(rows))


def memory_after(config: DDPOConfig, reference: Path, folder: Path, count: int) -> list[list[int]]:
    """Return MiB and tensors of a process after each of `count` trainings."""
    short = replace(config, optim=replace(config.optim, steps=2))
    job = TrainJob(
        with_scale(short, workers=1),
        reference,
        reference_inputs(config.model, config.data),
        folder / "run",
        "",
    )
    rows = folder / "rows.json"
    spawn(repeat, args=(free_port(), pickle.dumps(job), count, rows), nprocs=1)
    return json.loads(rows.read_text())


@pytest.mark.soak
def test_memory_does_not_grow_over_fifty_trainings(config, reference, tmp_path):
    """Catches: memory that each training takes a little of."""
    rows = memory_after(config, reference, tmp_path, 50)
    print(rows)
    assert rows[-1][0] - rows[9][0] < 0.05 * rows[9][0]
