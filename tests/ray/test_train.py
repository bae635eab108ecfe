"""Training on real Ray Train and DeepSpeed: Ray's part, and faults.

test_worker.py tests the worker's loop itself.
"""

import contextlib
import functools
import shutil
import threading
import time

import psutil
import pytest
import ray
import torch
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from rlhfv_ray.crew.group_watch import POLL_S, GroupWatch
from rlhfv_ray.errors import CheckpointError
from rlhfv_ray.models import load_policy
from rlhfv_ray.training.checkpoint import MANIFEST, latest_checkpoint
from rlhfv_ray.training.elastic import GROW_POLL_S, newest_checkpoint
from rlhfv_ray.training.metrics_log import read_records
from tests.conftest import small_disk, wait_for
from tests.ray.conftest import (
    assert_same,
    is_amid,
    killing,
    ray_processes,
    suspend_when,
    tell,
    train,
    with_scale,
)

pytestmark = pytest.mark.ray


def test_run_leaves_records_checkpoints_and_a_model(ray_run, config, small_model):
    """Catches: updates missing, a first loss off ln 2, a model that did not change or load."""
    records = read_records(ray_run)
    assert [record["step"] for record in records] == list(range(1, 13))
    assert records[0]["loss"] == pytest.approx(0.6931471805599453, abs=1e-6)
    assert records[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert records[-1]["loss"] < records[0]["loss"]
    assert all(
        record["grad_norm"] > 0 and record["system/tokens_per_second"] > 0 for record in records
    )
    _, manifest = latest_checkpoint(ray_run)
    assert (manifest.step, manifest.world_size, manifest.zero_stage) == (12, 2, 2)
    assert len(list((ray_run / "checkpoints").iterdir())) == config.scale.keep
    model, _ = load_policy(ray_run / "model", device="cpu")
    start, _ = load_policy(small_model, device="cpu")
    moved = [
        not torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True)
    ]
    assert sum(moved) > 0.9 * len(moved)


class Controller:
    """Holds a placement group, as Ray Train's controller does."""

    def hold(self) -> PlacementGroup:
        """Return the group, once it has its CPU."""
        group = placement_group([{"CPU": 0.5}])
        ray.get(group.ready())
        return group


def test_what_a_killed_controller_held_is_freed(cluster):
    """Catches: a trial after a killed one that waits for its CPUs for ever."""
    controller = ray.remote(Controller).options(num_cpus=0).remote()
    group = ray.get(controller.hold.remote())
    watch = ray.remote(GroupWatch).options(num_cpus=0).remote(controller._actor_id.hex())
    ray.get(watch.register_placement_group.remote(group))
    time.sleep(2 * POLL_S)
    assert ray.util.placement_group_table(group)["state"] == "CREATED"  # its controller lives
    ray.kill(controller)
    wait_for(lambda: ray.util.placement_group_table(group)["state"] == "REMOVED", 20)


def test_killed_worker_changes_nothing(ray_run, config, reference, tmp_path):
    """Catches: updates lost or repeated after a worker dies.

    One of two workers is killed once a checkpoint exists.
    """
    folder = tmp_path / "run"
    with killing("RayTrainWorker", lambda: is_amid(folder), most=1):
        train(config, reference, folder)
    assert_same(folder, ray_run, atol=0)
    assert [record["step"] for record in read_records(folder)] == list(range(1, 13))


def test_an_elastic_job_grows_when_there_is_room(ray_run, config, reference, tmp_path, caplog):
    """Catches: a job that waits for its most workers, never grows, loses updates when it does, or
    does not say who worked.

    Another job has one of the two CPUs at first. The worker is stopped for a while after two
    checkpoints, because updates here take less time than a look for room. soak.py loses nodes.
    """
    folder, over = tmp_path / "run", threading.Event()
    workers = functools.partial(ray_processes, "RayTrainWorker")
    other = placement_group([{"CPU": 1}])
    assert other.wait(30)

    def make_room():
        worker = suspend_when(lambda: bool(newest_checkpoint(folder)), workers, over.is_set)
        seen = newest_checkpoint(folder)
        remove_placement_group(other)
        time.sleep(2 * GROW_POLL_S + 2)
        tell(worker, "resume")
        worker = suspend_when(lambda: newest_checkpoint(folder) != seen, workers, over.is_set)
        time.sleep(6)
        tell(worker, "resume")

    elastic = with_scale(config, workers=(1, 2), cpus=1)
    try:
        train(elastic, reference, folder, alongside=make_room)
    finally:
        over.set()
    assert_same(folder, ray_run, atol=1e-4)
    counts = [sum(record["workers"].values()) for record in read_records(folder)]
    assert counts[0] == 1 and counts[-1] == 2 and counts == sorted(counts)
    assert "workers: 2 on" in caplog.text


@pytest.mark.soak
def test_workers_killed_in_writing_a_checkpoint_change_nothing(
    ray_run, config, reference, tmp_path
):
    """Catches: half a checkpoint taken for a complete one.

    All workers are killed while the newest checkpoint has no manifest yet.
    """
    folder = tmp_path / "run"
    torn = []

    def kill():
        workers = []
        while not torn:
            if not any(process.is_running() for process in workers):
                # takes longer than a checkpoint does, so it comes first
                workers = ray_processes("RayTrainWorker")
            newest = max((folder / "checkpoints").glob("step-*"), default=None)
            if workers and newest is not None and not (newest / MANIFEST).exists():
                for process in workers:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                psutil.wait_procs(workers, 10)
                torn.extend(
                    [newest] if newest.exists() and not (newest / MANIFEST).exists() else []
                )

    often = with_scale(config, checkpoint_every=1, max_failures=20)
    train(often, reference, folder, alongside=kill)
    assert torn
    assert_same(folder, ray_run, atol=0)
    assert [record["step"] for record in read_records(folder)] == list(range(1, 13))


def test_resumed_run_equals_uninterrupted_even_past_a_torn_checkpoint(
    ray_run, config, reference, tmp_path
):
    """Catches: optimizer state, order of pairs or schedule lost on resume.

    Also: a damaged checkpoint taken for an intact one.
    """
    folder = tmp_path / "run"
    shutil.copytree(ray_run, folder)
    shutil.rmtree(folder / "model")
    (folder / "metrics.jsonl").unlink()
    newest, _ = latest_checkpoint(folder)
    shard = max((newest / "engine").iterdir(), key=lambda path: path.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:-100])
    assert latest_checkpoint(folder)[1].step == 9
    train(config, reference, folder)
    assert_same(folder, ray_run, atol=0)


def test_a_disk_that_fills_costs_nothing_but_time(ray_run, config, reference, tmp_path):
    """Catches: a full disk that is retried, leaves half a checkpoint or loses the intact one.

    The disk has room for one checkpoint, not for two.
    """
    newest, _ = latest_checkpoint(ray_run)
    size = sum(path.stat().st_size for path in newest.rglob("*"))
    with small_disk(tmp_path, int(6 * size)) as disk:
        filler = disk / "filler"
        folder = disk / "run"
        filler.write_bytes(b"x" * (shutil.disk_usage(disk).free - int(1.8 * size)))
        with pytest.raises(
            CheckpointError, match=r"GiB free, and a checkpoint takes .* Free some disk space"
        ):
            train(config, reference, folder)
        assert latest_checkpoint(folder)[1].step == 3
        assert len(list((folder / "checkpoints").iterdir())) == 1
        filler.unlink()
        train(config, reference, folder)
        assert_same(folder, ray_run, atol=0)
