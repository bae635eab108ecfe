"""The whole line as users start it: a command, stopped and killed in between, the same command again, and as a Ray job."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.ray.conftest import wait_for

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
    "1",  # two are tested in test_train.py and test_worker.py
)
MANIFEST = "train-*/checkpoints/*/manifest.json"
pytestmark = pytest.mark.ray


def command(storage: Path, *more: str) -> list[str]:
    return [sys.executable, "experiments/ddpo.py", "shapes", *SMALL, "--storage", str(storage), *more]


def run(storage: Path, *more: str) -> str:
    done = subprocess.run(command(storage, *more), cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def summary(storage: Path) -> dict:
    (path,) = storage.glob("shapes-*/summary.json")
    found = json.loads(path.read_text())
    found.pop("seconds")
    return found


def runs(storage: Path) -> list:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def stop_in_training(storage: Path, number: signal.Signals) -> int:
    """Start the experiment, send a signal once it has written a checkpoint, as a terminal does to all it started; its exit code."""
    before = set(storage.glob(MANIFEST))
    driver = subprocess.Popen(
        command(storage), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(lambda: driver.poll() is not None or bool(set(storage.glob(MANIFEST)) - before), 300)
    family = psutil.Process(driver.pid).children(recursive=True)
    if number == signal.SIGINT:
        os.killpg(driver.pid, number)
    else:
        driver.send_signal(number)
    code = driver.wait(timeout=120)
    for process in family:  # what a killed driver could not end
        if process.is_running():
            process.kill()
    return code


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The storage of one small experiment: stopped by Ctrl-C in training, its driver killed in training, then left alone.

    That it ends where one without a fault ends is for `test_ray_job_gives_the_same_summary` to show.
    """
    storage = tmp_path_factory.mktemp("storage")
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        assert stop_in_training(storage, number) == code
        assert not list(storage.glob("train-*/model"))
    assert run(storage).count("skipped") == 2  # corrections and reference were done
    return storage


def test_summary_report_model_and_runs(finished):
    """Catches: a missing piece of what an experiment promises to leave; runs left open or doubled after a kill."""
    found = summary(finished)
    names = {"response_rate", "response_rate_all", "mention_rate", "object_recall", "words", "n"}
    for which in ("base", "aligned"):
        assert names <= found[which].keys()
        assert found[which]["n"] == 40
        assert 0 <= found[which]["object_recall"] <= 1
    assert {"relative_reduction", "p_value"} <= found["comparison"].keys()
    (folder,) = finished.glob("shapes-*")
    assert {"config.json", "report.html", "rates.png", "training.png"} <= {path.name for path in folder.iterdir()}
    (record, *_) = (json.loads(line) for line in next(finished.glob("train-*/metrics.jsonl")).open())
    assert record["loss"] == pytest.approx(0.6931471805599453, abs=1e-6)
    tracked = runs(finished)
    parents = [one for one in tracked if "mlflow.parentRunId" not in one.data.tags]
    assert len(parents) == 1
    assert len(tracked) == 7  # and a child for each of six stages
    assert {one.info.status for one in tracked} == {"FINISHED"}
    assert parents[0].data.params["loss.gamma"] == "5.0"
    assert parents[0].data.metrics["base/object_recall"] == pytest.approx(found["base"]["object_recall"])


def test_same_command_again_skips_everything(finished):
    """Catches: finished stages made again; a second MLflow run of the same experiment."""
    before = {one.info.run_id: len(one.data.metrics) for one in runs(finished)}
    printed = run(finished)
    assert printed.count("skipped") == 6
    assert "running" not in printed
    assert {one.info.run_id: len(one.data.metrics) for one in runs(finished)} == before


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory):
    """A cluster of two nodes with one CPU each, as `ray start` makes it, and how to submit jobs to it."""
    home = tmp_path_factory.mktemp("home")
    bin_folder = str(Path(sys.executable).parent)
    settings = {
        **os.environ,
        "HOME": str(home),
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
    }
    temporary = Path(f"/tmp/rr{os.getpid()}")  # short: Ray puts sockets there
    size = ["--num-cpus=1", "--object-store-memory=150000000"]
    head = [
        bin_folder + "/ray",
        "start",
        "--head",
        "--port=26379",
        "--dashboard-port=28265",
        "--include-dashboard=true",
    ]
    node = [bin_folder + "/ray", "start", "--address=127.0.0.1:26379"]

    def submit(*entry: str) -> subprocess.CompletedProcess[str]:
        line = [
            *(bin_folder + "/ray", "job", "submit"),
            "--address=http://127.0.0.1:28265",
            "--working-dir",
            ".",
            "--",
            *entry,
        ]
        return subprocess.run(line, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=500, check=False)

    try:
        for number, start in enumerate((head, node)):
            start = [*start, *size, f"--temp-dir={temporary}{number}"]  # nodes of one machine share no folder
            subprocess.run(start, env=settings, check=True, capture_output=True, timeout=120)
        yield submit
    finally:
        for process in psutil.process_iter(["cmdline"]):
            if str(temporary) in " ".join(process.info["cmdline"] or []):
                process.kill()


def test_ray_job_on_two_nodes_gives_the_same_summary(finished, two_nodes, tmp_path):
    """Catches: work lost or doubled by Ctrl-C or a kill; code that only works from the checkout, with a Ray of its own, or on one node.

    Each node has one CPU, so that both hold a worker.
    """
    storage = tmp_path / "storage"
    done = two_nodes(
        "python", "experiments/ddpo.py", "shapes", *SMALL, "--scale.workers", "2", "--storage", str(storage)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "aligned model" in done.stdout
    assert {json.loads(path.read_text())["world_size"] for path in storage.glob(MANIFEST)} == {2}
    assert summary(storage) == summary(finished)


def test_doctor_finds_what_is_wrong_on_both_nodes(two_nodes, tmp_path):
    """Catches: a doctor that looks at one node, that cannot fail, or that shows the key. Four problems are planted on either node."""
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
    sick = two_nodes("python", "-m", "rlhfv_ray.doctor", "doctor", "--json", *planted)
    assert sick.returncode != 0, sick.stdout + sick.stderr
    findings = told(sick.stdout)["findings"]
    bad = [one["what"] for one in findings if one["status"] == "bad"]
    assert {what: bad.count(what) for what in ("storage", "judge's key", "MLflow", "GPUs")} == dict.fromkeys(
        ("storage", "judge's key", "MLflow", "GPUs"), 2
    )
    assert all(one["fix"] for one in findings if one["status"] != "good")
    well = two_nodes(
        "python", "-m", "rlhfv_ray.doctor", "doctor", "--json", "--storage", str(tmp_path), "--free-gib", "0.1"
    )
    assert told(well.stdout)["ok"] and well.returncode == 0, well.stdout
    assert not list(tmp_path.glob(".doctor-*"))


def told(printed: str) -> dict:
    """The first JSON object in a job's log, which is printed again where the job failed."""
    return json.JSONDecoder().raw_decode(printed[printed.index("{\n") :])[0]
