"""Whole jobs on clusters whose nodes come and go: brought by an autoscaler, or lost for good.

Minutes each, so `make soak` runs them. test_autoscaling.py tests how a job asks for nodes.
"""

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from rlhfv_ray.tracking.replay import SPOOL
from rlhfv_ray.training.metrics_log import read_records
from tests.conftest import wait_for
from tests.ray.autoscaling_cluster import Rehearsal, rehearsal
from tests.ray.conftest import training_result
from tests.ray.test_experiment import AGENTLESS, ROOT, Cluster, command, run, summary

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(2400)]

LONG = ("--optim.steps", "160", "--scale.checkpoint-every", "8")  # time enough for nodes to join


def submitted(cluster: Rehearsal, *entry: str) -> subprocess.CompletedProcess[str]:
    """Submit a job to the rehearsal's head, and wait for its end."""
    line = [f"{cluster.bin}/ray", "job", "submit", f"--address={cluster.dashboard}"]
    for _ in range(30):
        done = subprocess.run(
            [*line, "--working-dir", ".", "--", *entry],
            cwd=ROOT,
            env=cluster.environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        if AGENTLESS not in done.stderr:
            break
    return done


def started_nodes(cluster: Rehearsal) -> int:
    """Return the number of nodes beside the head, which is a node too."""
    lines = [process.info["cmdline"] or [""] for process in psutil.process_iter(["cmdline"])]
    raylets = [line for line in lines if line[0].endswith("/raylet")]
    return sum(cluster.temporary in " ".join(line) for line in raylets) - 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The storage of the experiment by two workers on one machine."""
    storage = tmp_path_factory.mktemp("undisturbed")
    run(storage)
    return storage


@pytest.fixture(scope="module")
def autoscaled(tmp_path_factory) -> Iterator[Rehearsal]:
    """A head without CPUs, whose autoscaler starts up to two nodes of one CPU."""
    home = tmp_path_factory.mktemp("autoscaled")
    with rehearsal(home, {"small": ({"CPU": 1}, 2)}, dashboard=True) as cluster:
        yield cluster


def test_a_training_brings_nodes_and_ends_as_on_one_machine(autoscaled, undisturbed, tmp_path):
    """Catches: a training that finds no node, ends otherwise than on one machine, or leaves nodes
    behind; a cluster that works once; a job that waits for what never comes.
    """
    flags = ("--scale.cpus", "1")
    refused = submitted(
        autoscaled,
        *("python", *command(tmp_path)[1:], *flags),
        *("--scale.workers", "4", "--scale.micro-batch", "4"),
    )
    assert refused.returncode != 0 and started_nodes(autoscaled) == 0
    numbers = "scale.workers = 4 needs 4 x (1 CPU), and there is room for 2"
    assert numbers in " ".join((refused.stdout + refused.stderr).split())
    assert not list(tmp_path.glob(f"*/{SPOOL}"))  # no run that failed
    for storage in (tmp_path / "first", tmp_path / "later"):
        trained = submitted(autoscaled, "python", *command(storage)[1:], *flags)
        assert trained.returncode == 0, trained.stdout + trained.stderr
        assert training_result(storage) == training_result(undisturbed)
        assert summary(storage) == summary(undisturbed)
        (folder,) = storage.glob("train-*")
        assert {sum(one["workers"].values()) for one in read_records(folder)} == {2}
        wait_for(lambda: started_nodes(autoscaled) == 0, 120)


def test_an_evaluation_brings_nodes_and_ends_in_scores(autoscaled, undisturbed, tmp_path):
    """Catches: an evaluation that finds no node, or leaves nodes behind."""
    (model,) = undisturbed.glob("train-*/model")
    scored = submitted(
        autoscaled,
        *("python", "eval/run.py", "--model", "shapes", str(model), "--storage", str(tmp_path)),
        *("--shapes.scenes", "40", "--inference.actors", "2", "--inference.cpus", "1"),
    )
    assert scored.returncode == 0, scored.stdout + scored.stderr
    (scores,) = tmp_path.glob("eval-*/summary.json")
    assert len(json.loads(scores.read_text())["shapes"]["models"]) == 2
    wait_for(lambda: started_nodes(autoscaled) == 0, 120)


def test_a_sweep_brings_nodes_and_ends_in_its_best(autoscaled, tmp_path):
    """Catches: a sweep that finds no node, or leaves nodes behind."""
    swept = submitted(
        autoscaled,
        *("python", "experiments/sweep.py", "shapes-small", "--ddpo.storage", str(tmp_path)),
        *("--ddpo.shapes.scenes", "60", "--ddpo.shapes.evaluation-scenes", "40"),
        *("--ddpo.optim.steps", "6", "--ddpo.scale.workers", "2", "--ddpo.scale.cpus", "0.9"),
        *("--space.beta", "0.1", "--search.rungs", "1"),
    )
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert "CPU hours: " in swept.stdout
    (best,) = tmp_path.glob("shapes-small-*/best.json")
    assert json.loads(best.read_text())["trial_params"]["loss.gamma"] in (1.0, 5.0)
    wait_for(lambda: started_nodes(autoscaled) == 0, 120)


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
