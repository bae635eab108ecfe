"""Checkpoints that are written while training goes on."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import torch.distributed as dist

from rlhfv_ray.errors import CheckpointError
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.training.checkpoint import (
    MANIFEST,
    Writer,
    latest_checkpoint,
    load_checkpoint,
    weights_of,
)
from rlhfv_ray.training.saver import CheckpointSaver
from tests.unit.training.saving import equal, save_checkpoint, update

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(new_engine, small_model):
    """An engine after one update."""
    engine = new_engine(small_model)
    update(engine)
    return engine


@pytest.fixture
def writer(tmp_path):
    with hold_lease(tmp_path) as token:
        yield Writer(tmp_path, token, keep=3)


@pytest.fixture
def saver(trained, writer):
    saver = CheckpointSaver(trained, writer)
    yield saver
    dist.destroy_process_group(saver.group)


@pytest.mark.parametrize("zero", [1, 3])
def test_updates_beside_it_are_not_in_a_checkpoint(zero, new_engine, small_model, tmp_path):
    """Catches: weights, moments or records of later updates in the files, or other digests."""
    engine, again = new_engine(small_model, zero), new_engine(small_model, zero)
    update(engine)
    records = [{"step": 1}]
    manifests = []
    with hold_lease(tmp_path) as token:
        writer = Writer(tmp_path, token, keep=1)
        save_checkpoint(engine, writer, step=1, records=records)
        manifests.append(latest_checkpoint(tmp_path)[1])
        before = weights_of(engine)
        saver = CheckpointSaver(engine, writer)
        saver.save(1, records)
        records.append({"step": 2})
        for token in (10, 11, 12):
            update(engine, token)
        saver.close()
        manifests.append(latest_checkpoint(tmp_path)[1])
    assert manifests[0] == manifests[1]
    assert not equal(weights_of(engine), before)
    assert load_checkpoint(again, tmp_path) == (1, [{"step": 1}])
    assert equal(weights_of(again), before)
    for token in (10, 11, 12):
        update(again, token)
    assert equal(weights_of(again), weights_of(engine))


def test_a_lease_lost_meanwhile_ends_training_at_the_next_report(saver, writer):
    """Catches: an error that stays in its thread, or a checkpoint of a driver that was replaced."""
    saver.save(1, [])
    saver.wait()
    saver.writer = replace(writer, token="former")
    saver.save(2, [])
    while saver.is_busy:
        pass
    with pytest.raises(CheckpointError, match="taken over by another driver"):
        saver.check()
    assert latest_checkpoint(writer.folder)[1].step == 1
    saver.writer = writer
    saver.save(3, [])  # the error was told once
    saver.wait()
    assert latest_checkpoint(writer.folder)[1].step == 3


def test_a_checkpoint_waits_for_the_one_before(saver, writer):
    """Catches: two threads in one process group, or an older manifest published last."""
    for step in (1, 2, 3, 4):
        saver.save(step, [{"step": step}])
    saver.wait()
    steps = [folder.name[:11] for folder in sorted(writer.checkpoints.iterdir())]
    assert steps == ["step-000002", "step-000003", "step-000004"]
    assert all((folder / MANIFEST).exists() for folder in writer.checkpoints.iterdir())


def test_without_memory_for_a_copy_training_waits(saver, writer, monkeypatch):
    """Catches: a copy that ends a worker for lack of memory, or numbers that change in writing."""
    memory = SimpleNamespace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    saver.save(1, [])
    assert not saver.is_busy
    assert latest_checkpoint(writer.folder)[1].step == 1


def test_a_checkpoint_is_due_by_the_clock(trained, writer):
    """Catches: minutes taken for seconds, a clock that no checkpoint sets back, or 0 as always."""
    by_updates = CheckpointSaver(trained, writer)
    assert not by_updates.check()
    by_updates.close()
    saver = CheckpointSaver(trained, writer, minutes=2)
    saver.since -= 119
    assert not saver.check()
    saver.since -= 1
    assert saver.check()
    saver.save(1, [])
    assert not saver.check()
    saver.close()


def save_on_a_rank(rank: int, folder: Path, token: str) -> None:
    """Save two checkpoints on one of two ranks; the second of rank 1 has no folder to go to."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    module = torch.nn.Linear(4, 4)
    files = SimpleNamespace(save=None)
    steps: list[int] = []

    def save(target: str, **_) -> None:
        """As DeepSpeed does: every rank writes its own file."""
        steps.append(1)
        name = f"rank-{rank}.pt" if len(steps) == 1 or rank == 0 else "missing/rank-1.pt"
        files.save(state_dict=module.state_dict(), path=f"{target}/{name}")

    engine = SimpleNamespace(
        module=module,
        device="cpu",
        checkpoint_engine=files,
        save_checkpoint=save,
        zero_optimization_stage=lambda: 1,
    )
    saver = CheckpointSaver(engine, Writer(folder, token, keep=3))
    saver.save(1, [])
    saver.save(2, [])
    with pytest.raises(FileNotFoundError, match="missing"):
        saver.wait()
    dist.destroy_process_group()


def test_one_worker_s_error_is_every_worker_s(tmp_path):
    """Catches: a worker that waits for one that failed, or a manifest without one worker's file."""
    with hold_lease(tmp_path) as token:
        torch.multiprocessing.spawn(save_on_a_rank, (tmp_path, token), nprocs=2)
        target, manifest = latest_checkpoint(tmp_path)
    assert (manifest.step, manifest.world_size) == (1, 2)
    assert sorted(manifest.files) == ["rank-0.pt", "rank-1.pt", "records.jsonl"]
    assert not list(tmp_path.glob(f"checkpoints/step-000002-*/{MANIFEST}"))
    shutil.rmtree(target)
