"""Whole jobs on clusters whose nodes come and go. Minutes each, so `make soak` runs them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file

from rlhfv_ray.training.metrics_log import read_records
from tests.conftest import wait_for
from tests.ray.test_experiment import Cluster, command, run

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(2400)]

LONG = ("--optim.steps", "160", "--scale.checkpoint-every", "8")  # time enough for nodes to join


def test_an_elastic_job_outlives_its_node(tmp_path, tmp_path_factory):
    """Catches: a job that gives up, or waits, when one of its two nodes is lost for good; one that
    does not use a node that joins; updates lost or done otherwise.
    """
    undisturbed, storage = tmp_path / "undisturbed", tmp_path / "storage"
    run(undisturbed, *LONG)
    cluster = Cluster(tmp_path_factory.mktemp("home"), {})

    def counts() -> list[int]:
        records = [record for folder in storage.glob("train-*") for record in read_records(folder)]
        return [sum(record["workers"].values()) for record in records]

    elastic = ("--scale.cpus", "1", "--scale.workers", "1", "2")
    entry = ["python", *command(storage)[1:], *LONG, *elastic]
    try:
        cluster.start(0, head=True)
        cluster.start(1)
        with ThreadPoolExecutor(1) as threads:
            job = threads.submit(cluster.submit, *entry)
            wait_for(lambda: job.done() or len(counts()) >= 20, 300)
            assert counts()[-1] == 2
            cluster.kill(1)
            wait_for(lambda: job.done() or counts()[-1] == 1, 300)
            cluster.start(2)
            done = job.result()
    finally:
        cluster.kill()
    assert done.returncode == 0, done.stdout + done.stderr
    workers = counts()
    print(f"workers: {[(count, workers.count(count)) for count in (1, 2)]} {workers}")
    changes = [now for before, now in zip([0, *workers], workers, strict=False) if now != before]
    assert changes == [2, 1, 2] and len(workers) == 160
    ours, theirs = (
        load_file(next(folder.glob("train-*/model/model.safetensors")))
        for folder in (storage, undisturbed)
    )
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-4, rtol=0)
    assert f"From update {workers.index(1) + 1} on, workers: 1 on" in done.stdout + done.stderr
