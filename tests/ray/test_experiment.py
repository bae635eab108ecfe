"""The whole line as users start it: a command, stopped and killed in between, the same command
again, and as a Ray job.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from benchmarks.workers import free_port
from rlhfv_ray.storage.holder import NOBODY
from tests.conftest import wait_for
from tests.ray.conftest import ray_processes, suspend_when, tell, training_result
from tests.ray.real_data import write_benchmarks, write_photo_pairs
from tests.s3_server import BUCKET, S3

ROOT = Path(__file__).parents[2]
SMALL = (
    "--shapes.scenes",
    "60",
    "--shapes.evaluation-scenes",
    "40",
    "--optim.steps",
    "16",
    "--scale.checkpoint-every",
    "2",
    "--scale.workers",
    "2",  # as the jobs have on two nodes: with equal workers, the weights are equal bit by bit
    "--scale.cpus",
    "0.5",
)
UPDATES = list(range(1, 17))
PHOTO_UPDATES = list(range(1, 25))
TRACKED_PHOTOS = 9
AGENTLESS = "No available agent to submit job"  # what Ray says of nodes that have just started
SESSION = re.compile(r"/session_[0-9_-]+")
MANIFEST = "train-*/checkpoints/*/manifest.json"
pytestmark = pytest.mark.ray


def command(storage: Path | str, *more: str) -> list[str]:
    return [
        sys.executable,
        "experiments/ddpo.py",
        "shapes",
        *SMALL,
        "--storage",
        str(storage),
        *more,
    ]


def run(storage: Path, *more: str) -> str:
    done = subprocess.run(
        command(storage, *more), cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def summary(storage: Path) -> dict:
    (path,) = storage.glob("shapes-*/summary.json")
    return without_times(json.loads(path.read_text()))


def without_times(found: dict) -> dict:
    return {name: value for name, value in found.items() if name != "seconds"}


def runs(storage: Path) -> list:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    return client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()]
    )


def logged_files(storage: Path) -> set[str]:
    """Names of all files in MLflow."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    files: set[str] = set()
    for one in runs(storage):
        files.update(file.path for file in client.list_artifacts(one.info.run_id))
    return files


def interrupted_in_training(storage: Path) -> int:
    """Start the experiment, press Ctrl-C once it has written a checkpoint; its exit code."""
    driver = subprocess.Popen(
        command(storage),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    workers = suspend_when(
        lambda: any(storage.glob(MANIFEST)),
        partial(ray_processes, "RayTrainWorker"),
        lambda: driver.poll() is not None,
    )
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does, to all that it started
    tell(workers, "resume")
    return driver.wait(timeout=120)


@pytest.fixture(scope="module")
def real_line(small_model, tmp_path_factory) -> list[str]:
    """Return an experiment's arguments on photos: its model, data, sizes and decoding."""
    pairs = write_photo_pairs(tmp_path_factory.mktemp("photos") / "pairs.parquet")
    return [
        *("experiments/ddpo.py", "paper", "--model.path", str(small_model)),
        *("--data.path", str(pairs), "--model.dtype", "fp32", "--scale.no-gpu"),
        *("--scale.cpus", "0.5", "--scale.workers", "2", "--scale.actors", "1"),
        *("--scale.checkpoint-every", "1", "--optim.batch", "4", "--scale.micro-batch", "1"),
        *("--optim.steps", str(len(PHOTO_UPDATES))),
        *("--generation.max-new-tokens", "12", "--generation.beams", "1"),
    ]


@pytest.fixture(scope="module")
def benchmark_flags(tmp_path_factory) -> list[str]:
    """Return the flags of Object HalBench and POPE on made questions."""
    files = write_benchmarks(tmp_path_factory.mktemp("questions"))
    return ["--benchmarks", "object_halbench", "pope", *files]


class SideBySide(NamedTuple):
    """Two experiments that ran on one machine at a time."""

    shapes: Path  # storage: stopped by Ctrl-C in training, then finished
    photos: Path  # storage: undisturbed, with benchmarks
    rays: set[str]  # session folders of the Rays that were alive at one moment


@pytest.fixture(scope="module")
def side_by_side(installed_wheel, real_line, benchmark_flags, tmp_path_factory) -> SideBySide:
    """Finish the shapes experiment by the console command of an installed wheel, outside of the
    checkout and without a home folder, while the experiment on photos runs.

    The tests of Ray jobs show that both end as alone.
    """
    shapes, photos = tmp_path_factory.mktemp("storage"), tmp_path_factory.mktemp("real")
    assert interrupted_in_training(shapes) == 130
    assert not list(shapes.glob("train-*/model"))
    script = str(installed_wheel / "bin" / "rlhfv-ray")
    environment = {**os.environ, "PYTHONPATH": str(installed_wheel), "HOME": "/proc/none"}
    wheel_line = [script, "train", *command(shapes)[2:]]
    photo_line = [sys.executable, *real_line, *benchmark_flags, "--storage", str(photos)]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen(wheel_line, cwd=shapes, env=environment, **pipes) as first,
        subprocess.Popen(photo_line, cwd=ROOT, **pipes) as second,
        ThreadPoolExecutor(2) as readers,
    ):
        outputs = [readers.submit(driver.communicate) for driver in (first, second)]
        rays: set[str] = set()
        while first.poll() is None and second.poll() is None:
            rays = max(rays, session_folders(first.pid, second.pid), key=len)
            time.sleep(0.5)
        (shapes_printed, shapes_errors), (_, photos_errors) = (out.result() for out in outputs)
    assert first.returncode == 0, shapes_printed + shapes_errors
    assert second.returncode == 0, photos_errors
    assert "goes on from the checkpoint of update" in shapes_printed
    assert shapes_printed.count("skipped") == 3  # corrections, their audit and reference were done
    return SideBySide(shapes, photos, rays)


def session_folders(*drivers: int) -> set[str]:
    """Return the session folders of the Rays that drivers started and that run now."""
    folders: set[str] = set()
    for driver in drivers:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in children(psutil.Process(driver)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    folders.update(SESSION.findall(" ".join(process.cmdline())))
    return folders


@pytest.fixture(scope="module")
def finished(side_by_side) -> Path:
    """The storage of a small experiment of the shapes world."""
    return side_by_side.shapes


@pytest.fixture(scope="module")
def undisturbed(side_by_side) -> Path:
    """The storage of an experiment on photos, with benchmarks, that nothing disturbed."""
    return side_by_side.photos


def test_two_experiments_at_a_time_have_a_ray_each(side_by_side):
    """Catches: a command that joins another's private Ray, starves there, or dies with it."""
    assert len(side_by_side.rays) == 2


def test_summary_report_model_and_runs(finished):
    """Catches: a missing piece of what an experiment promises to leave; runs or updates left open
    or doubled after a kill.
    """
    found = summary(finished)
    names = {"response_rate", "response_rate_all", "mention_rate", "object_recall", "words", "n"}
    for which in ("base", "aligned"):
        assert names <= found[which].keys()
        assert found[which]["n"] == 40
        assert 0 <= found[which]["object_recall"] <= 1
    assert {"relative_reduction", "p_value"} <= found["comparison"].keys()
    (folder,) = finished.glob("shapes-*")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert {"config.json", "report.html", "training.svg", "shapes/rates.svg"} <= names
    (record, *_) = (
        json.loads(line) for line in next(finished.glob("train-*/metrics.jsonl")).open()
    )
    assert record["loss/preference"] == pytest.approx(0.6931471805599453, abs=1e-6)
    assert training_result(finished).updates == UPDATES
    tracked = runs(finished)
    parents = [one for one in tracked if "mlflow.parentRunId" not in one.data.tags]
    assert len(parents) == 1
    assert len(tracked) == 10  # and a child for each of seven stages and two models
    assert {one.info.status for one in tracked} == {"FINISHED"}
    assert {"audit.html", "audit.json"} <= logged_files(finished)
    assert parents[0].data.params["loss.gamma"] == "5.0"
    parent = parents[0].data
    assert float(parent.params["base.object_recall"]) == found["base"]["object_recall"]
    assert not [name for name in parent.metrics if name.startswith("base")]
    rate = parent.metrics["aligned response rate percent"]
    assert rate == pytest.approx(100 * found["aligned"]["response_rate"])
    # By this one MLflow compares runs: the first in its store, and by name.
    assert min(parent.metrics) == next(iter(parent.metrics)) == "aligned response rate percent"
    assert "rewards/margins" in parent.metrics
    assert {one.info.run_name for one in tracked} >= {
        title := "shapes beta 1 gamma 5 seed 30",
        f"training, {title}",
        f"aligned, {title}",
    }
    used = [dataset.dataset for dataset in parents[0].inputs.dataset_inputs]
    assert sorted(data.name for data in used) == ["pairs.parquet", "shapes"]  # and a benchmark
    assert len(parents[0].outputs.model_outputs) == 1


def test_same_command_again_skips_everything(finished):
    """Catches: finished stages made again; a second MLflow run of the same experiment."""
    before = {one.info.run_id: len(one.data.metrics) for one in runs(finished)}
    printed = run(finished)
    assert printed.count("skipped") == 7
    assert "running" not in printed
    assert {one.info.run_id: len(one.data.metrics) for one in runs(finished)} == before


def test_without_benchmarks_the_report_exists_and_the_next_command_is_printed(
    undisturbed, real_line
):
    """Catches: a printed path of a report that does not exist; a run that says nothing of how to
    score its models.
    """
    line = [sys.executable, *real_line, "--storage", str(undisturbed)]
    line += ["--data.max-rejected", "0.5"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("--data.max-rejected is now called --data.max-unusable") == 1
    assert done.stdout.count("skipped") == 2  # reference and training
    report = done.stdout.split("report  ")[1].split()[0]
    text = Path(report).read_text()
    assert "Configuration" in text and "loss.gamma" in text and "unusable rows" in text
    assert "audit.html" in text
    (model,) = undisturbed.glob("train-*/model")
    last = done.stdout.strip().splitlines()[-1]
    assert "rlhfv-ray eval --model " in last and str(model) in last
    assert "--generation.max-new-tokens 12" in last


class Cluster:
    """Nodes of one CPU each, as `ray start` makes them, each with a temporary folder of its own,
    and the jobs submitted to them.
    """

    ADDRESS = "http://127.0.0.1:28265"

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self.bin = str(Path(sys.executable).parent)
        self.temporary = f"/tmp/rr{os.getpid()}-"  # short: Ray puts sockets there
        # The same name on all nodes, and another folder: each node sees only its own files.
        self.own = home / "tmp"
        self.own.mkdir()
        self.settings = {
            **os.environ,
            **environment,
            "HOME": str(home),
            "TMPDIR": str(self.own),
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "disabled",
        }

    def start(self, node: int, *, head: bool = False) -> None:
        where = ("--head", "--port=26379", "--dashboard-port=28265", "--include-dashboard=true")
        user = () if os.geteuid() == 0 else ("--map-root-user",)  # who may mount
        apart = (
            "unshare",
            *user,
            "--mount",
            "sh",
            "-c",
            f'mount -t tmpfs -o size=2g node {self.own} && exec "$@"',
            "sh",
        )
        line = [
            *apart,
            f"{self.bin}/ray",
            "start",
            *(where if head else ("--address=127.0.0.1:26379",)),
        ]
        line += [
            f"--dashboard-agent-listen-port={free_port()}",  # another cluster may have Ray's
            "--num-cpus=1",
            "--object-store-memory=150000000",
            f"--temp-dir={self.temporary}{node}.",
        ]  # nodes share no folder
        subprocess.run(line, env=self.settings, check=True, capture_output=True, timeout=120)

    def processes(self, *nodes: int) -> set[psutil.Process]:
        """Return all processes of some nodes, or of all nodes."""
        marks = [f"{self.temporary}{node}." for node in nodes] or [self.temporary]
        marked = [
            process
            for process in psutil.process_iter(["cmdline"])
            if any(mark in " ".join(process.info["cmdline"] or []) for mark in marks)
        ]
        return {child for process in marked for child in children(process)} | set(marked)

    def kill(self, *nodes: int) -> list[str]:
        """Kill all processes of some nodes, as if their machines had lost power; what they were."""
        titles = []
        for process in self.processes(*nodes):
            with contextlib.suppress(psutil.NoSuchProcess):
                titles.append(" ".join(process.cmdline()))
                process.kill()
        return titles

    def training_workers(self) -> list[psutil.Process]:
        """Return the processes that train on this cluster; other tests train at the same time."""
        workers = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "ray::RayTrainWorker" in " ".join(process.cmdline()):
                    workers.append(process)
        return workers

    def submit(
        self, *entry: str, number: int | None = None, wait: bool = True
    ) -> subprocess.CompletedProcess[str]:
        number = next(self.numbers) if number is None else number
        line = [
            f"{self.bin}/ray",
            "job",
            "submit",
            f"--address={self.ADDRESS}",
            *([] if wait else ["--no-wait"]),
        ]
        line += ["--submission-id", f"job-{number}", "--working-dir", ".", "--", *entry]
        for _ in range(30):
            done = subprocess.run(
                line,
                cwd=ROOT,
                env=self.settings,
                capture_output=True,
                text=True,
                timeout=500,
                check=False,
            )
            if AGENTLESS not in done.stderr:
                break
        return done

    numbers = itertools.count()


def children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.fixture(scope="module")
def cluster_of_two(bucket, tmp_path_factory):
    """A cluster of two nodes."""
    cluster = Cluster(tmp_path_factory.mktemp("home"), bucket.environment)
    try:
        cluster.start(0, head=True)
        cluster.start(1)
        yield cluster
    finally:
        cluster.kill()


def stop_job(cluster: Cluster, number: int) -> None:
    """Stop a job, by its number, and wait until it has ended."""
    url = f"{cluster.ADDRESS}/api/jobs/job-{number}"

    def reply(request: urllib.request.Request) -> dict:
        return json.loads(urllib.request.urlopen(request, timeout=60).read())

    assert reply(urllib.request.Request(f"{url}/stop", method="POST")) == {"stopped": True}
    wait_for(lambda: reply(urllib.request.Request(url))["status"] == "STOPPED", 60)


def test_ray_job_on_two_nodes_that_share_a_folder(finished, cluster_of_two, tmp_path):
    """Catches: two nodes on shared storage that do each other's work, or wait for each other; a
    stopped job that leaves processes behind, or loses or doubles work.

    A worker fills a node. The experiment that this one is compared with ran on one machine.
    """
    entry = ["python", *command(tmp_path / "storage")[1:], "--scale.cpus", "1"]
    first = next(cluster_of_two.numbers)
    assert cluster_of_two.submit(*entry, number=first, wait=False).returncode == 0
    deadline = time.monotonic() + 300
    workers = suspend_when(
        lambda: any((tmp_path / "storage").glob(MANIFEST)),
        cluster_of_two.training_workers,
        lambda: time.monotonic() > deadline,
    )
    assert len(workers) == 2
    stop_job(cluster_of_two, first)
    tell(workers, "resume")
    wait_for(lambda: not cluster_of_two.training_workers(), 60)
    assert not list((tmp_path / "storage").glob("train-*/model"))
    done = cluster_of_two.submit(*entry)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {
        json.loads(path.read_text())["world_size"] for path in (tmp_path / "storage").glob(MANIFEST)
    } == {2}
    assert summary(tmp_path / "storage") == summary(finished)
    assert training_result(tmp_path / "storage") == training_result(finished)


def test_a_driver_with_another_auth_mode_learns_what_is_wrong(cluster_of_two, tmp_path):
    """Catches: Ray's word that an actor never ran, which says nothing of the reason."""
    line = command(tmp_path / "storage")
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_ADDRESS": "127.0.0.1:26379"}
    done = subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode != 0 and "RAY_AUTH_MODE" in done.stderr, done.stdout + done.stderr


def synced(cluster: Cluster, storage: str) -> list:
    """MLflow's runs as a machine has them that was no node, and had nothing before."""
    line = [sys.executable, "experiments/sync_tracking.py", storage]
    done = subprocess.run(
        line, cwd=ROOT, env=cluster.settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "MLflow has everything" in done.stdout, (
        done.stdout + done.stderr
    )
    return runs(S3.mirror(cluster.own, storage))


def test_doctor_finds_what_is_wrong_on_both_nodes(bucket, cluster_of_two, tmp_path):
    """Catches: a doctor that looks at one node, that cannot fail, or that shows the key. Four
    problems are planted on either node.
    """
    (tmp_path / "file").write_text("no folder")
    planted = (
        "--storage",
        str(tmp_path / "file"),
        "--judge-key-env",
        "NO_SUCH_KEY",
        "--tracking-uri",
        "http://127.0.0.1:9",
        "--gpu",
    )
    sick = cluster_of_two.submit("python", "-m", "rlhfv_ray.doctor", "doctor", "--json", *planted)
    assert sick.returncode != 0 and "{\n" in sick.stdout, sick.stdout + sick.stderr
    findings = told(sick.stdout)["findings"]
    bad = [one["what"] for one in findings if one["status"] == "bad"]
    assert {
        what: bad.count(what) for what in ("storage", "judge's key", "MLflow", "GPUs")
    } == dict.fromkeys(("storage", "judge's key", "MLflow", "GPUs"), 2)
    assert all(one["fix"] for one in findings if one["status"] != "good")
    for storage in (str(tmp_path), bucket.address("doctor")):
        call = (
            "python",
            "-m",
            "rlhfv_ray.doctor",
            "doctor",
            "--json",
            "--free-gib",
            "0.1",
            "--storage",
            storage,
        )
        well = cluster_of_two.submit(*call)
        assert told(well.stdout)["ok"] and well.returncode == 0, well.stdout
    assert not list(tmp_path.glob(".doctor-*"))


def told(printed: str) -> dict:
    """The first JSON object in a job's log, which is printed again where the job failed."""
    return json.JSONDecoder().raw_decode(printed[printed.index("{\n") :])[0]


def lose_all_in_training(cluster: Cluster, bucket: S3, stored: Callable[[str], set[str]]) -> None:
    """Take a node from a job in training and give it another one, let its bucket go away for a
    while, and in the end kill all nodes.
    """

    def next_checkpoint() -> None:
        before = stored(MANIFEST)
        wait_for(lambda: bool(stored(MANIFEST) - before), 300)
        assert not stored("train-*/SUCCESS")

    next_checkpoint()
    assert len(cluster.training_workers()) == 2
    assert any("RayTrainWorker" in title for title in cluster.kill(1))
    cluster.start(2)
    next_checkpoint()  # on the node that came
    bucket.go_away(25)
    next_checkpoint()
    died = cluster.kill(0, 2)
    assert any("gcs_server" in title for title in died)
    assert any("experiments/ddpo.py" in title for title in died)


@pytest.mark.timeout(1500)
def test_real_data_outlives_bucket_nodes_and_head(
    undisturbed, real_line, benchmark_flags, cluster_of_two, bucket
):
    """Catches: an experiment on users' data that ends without scores; work, weights, updates or
    scores lost, doubled or changed by a bucket that does not answer for a while, a node that goes
    and one that comes, and a head that is started anew; what a new cluster needs and the bucket
    lacks; code that works only from the checkout, or with a Ray of its own.

    Photos, Object HalBench in rule mode and POPE, as a Ray job. Each node has one CPU, so that both
    hold a worker, and a disk of its own: what outlives them is in the bucket.
    """
    cluster, storage, objects = cluster_of_two, bucket.address("real"), bucket.objects()
    entry = ["python", *real_line, *benchmark_flags, "--scale.cpus", "1", "--storage", storage]

    def stored(pattern: str) -> set[str]:
        return set(objects.glob(f"{BUCKET}/real/{pattern}"))

    assert cluster.submit(*entry, wait=False).returncode == 0
    lose_all_in_training(cluster, bucket, stored)
    cluster.start(3, head=True)
    cluster.start(4)
    done = cluster.submit(*entry)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"aligned model  {storage}/train-" in done.stdout
    assert "report         s3://" in done.stdout
    assert {json.loads(objects.cat_file(path))["world_size"] for path in stored(MANIFEST)} == {2}
    (path,) = stored("paper-*/summary.json")
    scores = json.loads(objects.cat_file(path))["benchmarks"]
    assert list(scores) == ["object_halbench", "pope"]
    for benchmark in scores.values():
        assert [*benchmark["models"]] == ["base", "aligned"]
        assert {model["n"] for model in benchmark["models"].values()} == {6}
    tracked = synced(cluster, storage)
    assert {one.info.status for one in tracked} == {"FINISHED"} and len(tracked) == TRACKED_PHOTOS
    metrics = {name for one in tracked for name in one.data.metrics}
    assert {"pope/accuracy", "object_halbench/response_rate_all"} <= metrics
    summaries = [json.loads(path.read_text()) for path in undisturbed.glob("paper-*/summary.json")]
    (expected,) = [found["benchmarks"] for found in summaries if "benchmarks" in found]
    assert scores == expected
    result = training_result(f"{BUCKET}/real", objects)
    assert result == training_result(undisturbed)
    assert result.updates == PHOTO_UPDATES
    assert not stored("*/ray/**")
    leases = [name for name in objects.find(f"{BUCKET}/real") if "lease" in name]
    assert [json.loads(objects.cat_file(name)) for name in leases] == [NOBODY] * len(leases)
