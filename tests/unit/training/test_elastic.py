"""Elastic training: which numbers of workers, and when they change."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.train

from rlhfv_ray.config import DDPOConfig, OptimConfig, ScaleConfig
from rlhfv_ray.training import elastic
from rlhfv_ray.training.elastic import BatchPolicy, WorkerLog, newest_checkpoint, start_attempts
from rlhfv_ray.training.job import TrainJob

CPUS = 2.0  # of a worker


class Room:
    """The free CPUs of one node, which a test changes."""

    def __init__(self, cpus: float) -> None:
        self.cpus = cpus

    def __call__(self) -> list[dict[str, float]]:
        return [{"CPU": self.cpus}]


@pytest.fixture
def policy(tmp_path, monkeypatch) -> BatchPolicy:
    """A policy of one to six workers for a batch of 24 in groups of 2: 1, 2, 3, 4 and 6."""
    monkeypatch.setattr(elastic, "SETTLED_S", 0.2)
    monkeypatch.setattr(elastic, "POLL_S", 0.01)
    monkeypatch.setattr(elastic, "GROW_POLL_S", 0.0)
    scale = ScaleConfig(workers=(1, 6), micro_batch=2, cpus=CPUS)
    job = TrainJob(
        DDPOConfig(optim=OptimConfig(batch=24), scale=scale), Path(), {}, tmp_path, "token"
    )
    scaling = ray.train.ScalingConfig(
        num_workers=scale.workers, resources_per_worker=scale.resources
    )
    policy = BatchPolicy(job, scaling, free=Room(0))
    # Ray's, which asks the autoscaler for nodes.
    policy._coordinator_client = SimpleNamespace(maybe_send_resource_request=lambda *_: None)
    return policy


def checkpoint(folder: Path, name: str, *, complete: bool = True) -> None:
    """Write the folder of a checkpoint."""
    target = folder / "checkpoints" / name
    target.mkdir(parents=True)
    if complete:
        (target / "manifest.json").write_text("{}")


def grow(policy: BatchPolicy, workers: int) -> int:
    """Ask the policy about a running group; the new number of workers, 0 if it goes on."""
    group = SimpleNamespace(num_workers=workers)
    decision = policy.make_decision_for_running_worker_group(group, None)
    return getattr(decision, "num_workers", 0)


@pytest.mark.parametrize(
    ("cpus", "workers"), [(0, 1), (1.9, 1), (2, 1), (7, 3), (9, 4), (11, 4), (12, 6), (99, 6)]
)
def test_workers_that_are_started_divide_the_batch(policy, cpus, workers):
    """Catches: five workers for a batch of twelve groups; none, so that nothing is waited for."""
    policy.free.cpus = cpus
    decision = policy.make_decision_for_non_running_worker_group()
    assert decision.num_workers == workers
    assert decision.resources_per_worker == {"CPU": CPUS}


def test_room_that_becomes_free_within_seconds_is_used(policy, monkeypatch):
    """Catches: a start with fewer workers because lost ones still held what is free at once."""
    monkeypatch.setattr(elastic, "SETTLED_S", 30.0)
    looks = iter([0, 0, 4, 4, 12])
    policy.free = lambda: [{"CPU": next(looks)}]
    assert policy.make_decision_for_non_running_worker_group().num_workers == 6


def test_workers_are_added_after_the_next_checkpoint(policy, tmp_path):
    """Catches: workers stopped between checkpoints, whose updates are lost; a checkpoint that is
    still being written taken for one.
    """
    checkpoint(tmp_path, "step-000002-1w-aaaa")
    assert grow(policy, 2) == 0  # no room
    policy.free.cpus = 4
    assert grow(policy, 2) == 0 and grow(policy, 2) == 0
    checkpoint(tmp_path, "step-000004-1w-aaaa", complete=False)
    assert newest_checkpoint(tmp_path) == "step-000002-1w-aaaa"
    assert grow(policy, 2) == 0
    (tmp_path / "checkpoints/step-000004-1w-aaaa/manifest.json").write_text("{}")
    assert grow(policy, 2) == 4
    assert grow(policy, 6) == 0  # all of them


def test_a_storage_that_is_away_ends_nothing(policy):
    """Catches: a training that ends because its bucket did not answer once."""
    policy.free.cpus = 4
    names = iter([None, "step-000002-2w-aaaa", None, "step-000004-2w-aaaa"])
    policy.newest = lambda: next(names)
    assert [grow(policy, 2) for _ in range(3)] == [0, 0, 0]
    assert policy.grows_after == "step-000002-2w-aaaa"
    assert grow(policy, 2) == 4


def test_room_that_is_gone_by_the_next_checkpoint_changes_nothing(policy, tmp_path):
    """Catches: workers stopped for room that another job has taken meanwhile; or for room that
    makes no larger allowed number.
    """
    policy.free.cpus = 2  # a fifth worker
    assert grow(policy, 4) == 0 and policy.grows_after is None
    policy.free.cpus = 4
    assert grow(policy, 4) == 0 and policy.grows_after == ""
    policy.free.cpus = 0
    checkpoint(tmp_path, "step-000002-4w-aaaa")
    assert grow(policy, 4) == 0 and policy.grows_after is None


def test_a_look_for_room_is_taken_every_few_seconds(policy, monkeypatch):
    """Catches: a look at every node twice a second, as often as Ray asks."""
    monkeypatch.setattr(elastic, "GROW_POLL_S", 60.0)
    policy.looked_at = time.monotonic()
    policy.free = lambda: pytest.fail("a look")
    assert grow(policy, 1) == 0


def test_an_elastic_job_waits_as_long_in_short_attempts():
    """Catches: twenty minutes for two workers while there is room for one."""
    assert start_attempts(ScaleConfig(workers=2)) == (3, 1200.0)
    assert start_attempts(ScaleConfig(workers=(1, 2))) == (60, 60.0)
    assert start_attempts(ScaleConfig(workers=(1, 2), start_timeout=9)) == (3, 9)


def test_every_change_of_the_workers_is_logged_once(caplog):
    """Catches: a log that does not say who works, or says it at every update; records that are not
    passed on, or that an earlier version wrote.
    """
    passed = []
    log = WorkerLog(passed.extend)
    records = [{"step": 1}, {"step": 2, "workers": {"a": 1, "b": 1}}]
    records += [{"step": 3, "workers": {"a": 1}}, {"step": 4, "workers": {"a": 1}}]
    log(records[:2])
    log(records[2:])
    assert passed == records
    assert [entry.message for entry in caplog.records] == ["From update 3 on, workers: 1 on a."]
