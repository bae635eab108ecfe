"""Long trials of patience, `make soak`: a training job whose workers are killed twenty times, a
reference stage whose actors keep dying, a team's MLflow, and drivers that race for a lease.

Minutes each, so they are not among the tests of every commit.
"""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from hypothesis import settings
from mlflow import MlflowClient

from benchmarks.workers import free_port
from rlhfv_ray.config import TrackingConfig
from rlhfv_ray.data import load_pairs, write_pairs
from rlhfv_ray.data.reference_table import load_reference
from rlhfv_ray.inference.parts import read_parts
from rlhfv_ray.inference.reference import compute_reference_logps
from rlhfv_ray.storage.files import file_digest
from rlhfv_ray.storage.folder import resolve_storage
from rlhfv_ray.tracking.run import tracked_run
from rlhfv_ray.training.metrics_log import read_records
from tests.conftest import wait_for
from tests.lease_race import most_holders
from tests.ray.conftest import (
    losses,
    ray_processes,
    train,
    updates,
    weights,
    with_scale,
)
from tests.ray.test_experiment import ROOT, SMALL
from tests.s3_server import S3, s3_server
from tests.unit.endpoint.generated_replies import every_reply_settles

pytestmark = pytest.mark.ray
KILLS, STEPS, ROWS = 20, 60, 10_000
SWEEPS, TRIALS, UPDATES = 4, 8, 100
ROUNDS = 300


def test_twenty_kills_change_nothing(config, reference, tmp_path: Path):
    """Catches: an update lost or done twice at any of many places. Where workers die is drawn once,
    by a seed.
    """
    config = with_scale(
        replace(config, optim=replace(config.optim, steps=STEPS)), max_failures=2 * KILLS
    )
    undisturbed = train(config, reference, tmp_path / "undisturbed")
    folder, killed, draw = tmp_path / "disturbed", [], random.Random(0)

    def kill() -> None:
        for step in sorted(draw.sample(range(1, STEPS), KILLS)):
            wait_for(lambda step=step: len(read_records(folder)) >= step, 300)
            wait_for(lambda: bool(ray_processes("RayTrainWorker")), 300)
            victim = draw.choice(ray_processes("RayTrainWorker"))
            victim.kill()
            killed.append(step)

    train(config, reference, folder, alongside=kill)
    print(f"killed after updates {killed}")
    assert len(killed) >= KILLS - 2  # the last ones may come after the end
    assert updates(folder) == updates(undisturbed) == list(range(1, STEPS + 1))
    assert losses(folder) == losses(undisturbed)
    for name, tensor in weights(undisturbed).items():
        assert torch.equal(weights(folder)[name], tensor), name


STOPPED_AT = (  # files whose appearance says how far a driver is, and the sizes of its successor
    ("corrections-*/part-*.parquet", ("--scale.rows", "7")),
    ("reference-*/part-*.parquet", ("--scale.rows", "9", "--scale.inference-batch", "3")),
    ("train-*/checkpoints/*/manifest.json", ("--scale.rows", "11")),
    ("answers-*/part-*.parquet", ("--scale.rows", "13", "--scale.inference-batch", "5")),
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, Any]:
    """Return the results of a small experiment that nobody disturbed."""
    storage = tmp_path_factory.mktemp("undisturbed")
    assert start_driver(storage).wait(900) == 0
    return results_of(storage)


@pytest.mark.parametrize(("pattern", "sizes"), STOPPED_AT)
def test_stopped_and_replaced_drivers_change_nothing(
    pattern: str, sizes: tuple[str, ...], undisturbed: dict[str, Any], tmp_path: Path
):
    """Catches: a driver that sleeps, is replaced, wakes up, and writes; rows lost or computed in
    another way by a successor with other sizes.

    The driver that is stopped runs under another host name, so that only the heartbeat tells of
    it. Its Ray goes on.
    """
    sleeper = start_driver(tmp_path, host="sleeper")
    wait_for(lambda: any(tmp_path.glob(pattern)), 300)
    sleeper.send_signal(signal.SIGSTOP)
    leases = {path: path.read_text() for path in tmp_path.glob("*-*/lease.json")}
    successor = start_driver(tmp_path, *sizes)
    wait_for(lambda: any_taken_over(leases), 300)
    sleeper.send_signal(signal.SIGCONT)
    assert sleeper.wait(300) == 4
    assert successor.wait(900) == 0
    assert results_of(tmp_path) == undisturbed


def start_driver(storage: Path, *flags: str, host: str = "") -> subprocess.Popen:
    """Start a small experiment, with leases that expire after three seconds."""
    command = [sys.executable, "experiments/ddpo.py", "shapes", *SMALL, "--storage", str(storage)]
    if host:
        command = ["unshare", "--uts", "sh", "-c", f'hostname {host}; exec "$@"', "sh", *command]
    return subprocess.Popen(
        [*command, *flags],
        cwd=ROOT,
        env={**os.environ, "RLHFV_HEARTBEAT_S": "0.5", "RLHFV_STALE_S": "3"},
        start_new_session=True,
    )


def any_taken_over(leases: dict[Path, str]) -> bool:
    """Return True once a lease has another holder."""
    return any(
        path.exists() and json.loads(path.read_text())["token"] != json.loads(before)["token"]
        for path, before in leases.items()
    )


def results_of(storage: Path) -> dict[str, Any]:
    """Return the digest of every exported weight file, and all rows of every stage with parts.

    The successor cuts the stages that it begins itself by its own sizes, so that their files are
    others.
    """
    weights = sorted(storage.glob("train-*/model/*.safetensors"))
    stages = sorted({path.parent for path in storage.glob("*/part-*.parquet")})
    return {
        **{str(path.relative_to(storage)): file_digest(path) for path in weights},
        **{stage.name: read_parts(stage).to_pylist() for stage in stages},
    }


def test_a_thousand_generated_replies_settle_and_are_paid_as_the_server_counts():
    """Catches: what a hundred replies at each commit do not show."""
    settings(max_examples=1000, deadline=None)(every_reply_settles)()


def test_ten_thousand_rows_outlive_their_actors(config, cluster, pairs_file, tmp_path: Path):
    """Catches: rows lost or doubled when actors die again and again."""
    some = list(load_pairs(pairs_file))
    many = (replace(some[number % len(some)], id=f"row:{number}") for number in range(ROWS))
    write_pairs(many, tmp_path / "many.parquet")
    data, folder = replace(config.data, path=str(tmp_path / "many.parquet")), tmp_path / "reference"
    folder.mkdir()
    scale = replace(config.scale, rows=100, inference_batch=32, actors=2)
    killed, over, draw = [], threading.Event(), random.Random(0)

    def kill() -> None:
        while not over.wait(draw.uniform(4, 10)):
            actors = ray_processes("MapBatches(_compute)")
            if actors:
                draw.choice(actors).kill()
                killed.append(time.monotonic())

    helper = threading.Thread(target=kill, daemon=True)
    helper.start()
    try:
        compute_reference_logps(config.model, data, scale, folder)
    finally:
        over.set()
        helper.join()
    print(f"{len(killed)} actors killed")
    assert len(killed) >= 3
    assert list(load_reference(folder)["id"]) == [f"row:{number}" for number in range(ROWS)]


@pytest.mark.parametrize("kind", ["disk", "bucket"])
def test_three_hundred_dead_holders_have_one_successor_each(kind, tmp_path: Path, monkeypatch):
    """Catches: two of four drivers that start together and both take over a dead one's lease."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # drivers have the same mirror
    with s3_server() as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        storage = resolve_storage(s3.address("race")) if kind == "bucket" else tmp_path / "disk"
        assert most_holders(storage, rounds=ROUNDS) == [1] * ROUNDS


def test_four_sweeps_lose_nothing_in_one_postgresql(tmp_path: Path):
    """Catches: runs, points, params or artifacts lost or doubled where four sweeps write at a time
    to the server of docs/cluster.md, which keeps its artifacts in a bucket.
    """
    with s3_server() as s3, postgresql(tmp_path) as database, mlflow_server(database, s3) as uri:
        writers = [
            multiprocessing.get_context("spawn").Process(
                target=write_a_sweep, args=(tmp_path, uri, one)
            )
            for one in range(SWEEPS)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(300)
        assert [writer.exitcode for writer in writers] == [0] * SWEEPS
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("team")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id], max_results=1000)
        parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        assert {run.info.run_name for run in parents} == {
            f"sweep {one}" for one in range(SWEEPS)
        } and len(parents) == SWEEPS
        assert len(runs) == SWEEPS * (1 + TRIALS)
        assert {run.info.status for run in runs} == {"FINISHED"}
        for run in runs:
            if run not in parents:
                points = client.get_metric_history(run.info.run_id, "loss")
                assert [
                    point.step for point in sorted(points, key=lambda point: point.step)
                ] == list(range(1, UPDATES + 1))
                assert run.data.params.keys() == {"loss.beta", "loss.gamma"}
                assert [file.path for file in client.list_artifacts(run.info.run_id)] == [
                    "best.json"
                ]


def write_a_sweep(folder: Path, uri: str, number: int) -> None:
    """One sweep's worth of runs, as a driver tracks them."""
    config = TrackingConfig(uri=uri, experiment="team")
    store = folder / f"sweep-{number}"
    with tracked_run(
        store, config, store=folder, name=f"sweep {number}", params={}, tags={}
    ) as sweep:
        (store / "best.json").write_text("{}")
        for trial in range(TRIALS):
            with sweep.stage(f"trial {trial}", {"loss": {"beta": number, "gamma": trial}}) as run:
                for first in range(1, UPDATES + 1, 10):
                    run.log_records(
                        [{"step": step, "loss": 1 / step} for step in range(first, first + 10)]
                    )
                    time.sleep(0.02)
                run.log_file(store / "best.json")


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """A new PostgreSQL on loopback (Debian's package `postgresql`), which does not run as root; its
    address for MLflow.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    home, port, who = Path(f"/tmp/pg{os.getpid()}"), free_port(), []
    home.mkdir()
    if os.geteuid() == 0:
        shutil.chown(home, "postgres")
        who = ["runuser", "-u", "postgres", "--"]

    def call(name: str, *more: str) -> None:
        subprocess.run(
            [*who, str(found[-1] / name), *more], check=True, cwd=home, stdout=subprocess.DEVNULL
        )

    try:
        call("initdb", "-D", f"{home}/data", "--auth=trust", "--username=mlflow")
        options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1"
        call("pg_ctl", "start", "-w", "-D", f"{home}/data", "-l", f"{home}/log", "-o", options)
        call("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow")
        yield f"postgresql://mlflow@127.0.0.1:{port}/mlflow"
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            call("pg_ctl", "stop", "-m", "immediate", "-D", f"{home}/data")
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def mlflow_server(database: str, s3: S3) -> Iterator[str]:
    """The server of docs/cluster.md, until the body has ended; its address."""
    port = free_port()
    command = [
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--backend-store-uri",
        database,
    ]
    command += ["--artifacts-destination", s3.address("mlartifacts")]
    environment = {
        **os.environ,
        **s3.environment,
        "MLFLOW_S3_ENDPOINT_URL": s3.environment["AWS_ENDPOINT_URL"],
    }
    server = subprocess.Popen(
        [sys.executable, "-m", *command], env=environment, start_new_session=True
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(uri), 120)
        yield uri
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(uri: str) -> bool:
    try:
        return requests.get(f"{uri}/health", timeout=1).ok
    except requests.RequestException:
        return False
