"""The MLflow run tree on real SQLite stores and a real server, which may be away."""

import base64
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import Run

from benchmarks.workers import free_port
from experiments.sync_tracking import sync
from rlhfv_ray.config import TrackingConfig, plain
from rlhfv_ray.console import program
from rlhfv_ray.tracking import replay as tracking_replay
from rlhfv_ray.tracking import run as tracking
from rlhfv_ray.tracking.replay import SPOOL, STATE
from rlhfv_ray.tracking.run import TrackedRun, sync_tracking, tracked_run
from rlhfv_ray.tracking.target import tracking_uri, ui_command

REPOSITORY = Path(__file__).parents[3]
CONFIG = TrackingConfig(experiment="hallucinations")
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def store(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setattr(tracking, "SYNC_S", 0.05)
    return tmp_path


def track(
    store: Path, *, config: TrackingConfig = CONFIG, params: Mapping[str, Any] | None = None
) -> Any:
    """Return the context of one experiment's run, the same for every call."""
    return tracked_run(
        store / "ddpo-1",
        config,
        store=store,
        name="ddpo",
        params=params or {},
        tags={"who": "test"},
    )


def client(store: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{store / 'mlflow.db'}")


def runs(mlflow: MlflowClient) -> dict[str, Run]:
    """Return the experiment's runs by name; fail if two have the same name."""
    experiment = mlflow.get_experiment_by_name("hallucinations")
    assert experiment is not None
    all_runs = mlflow.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in all_runs}) == len(all_runs)
    return {str(run.info.run_name): run for run in all_runs}


def points(mlflow: MlflowClient, run: str, metric: str) -> list[tuple[int, float]]:
    """Return every stored point of a metric as (step, value)."""
    history = mlflow.get_metric_history(runs(mlflow)[run].info.run_id, metric)
    return sorted((point.step, point.value) for point in history)


def records(last: int) -> list[dict[str, Any]]:
    return [
        {"step": step, "loss": 1 / step, "rewards/margins": step / 2} for step in range(1, last + 1)
    ]


def fill(run: TrackedRun, last: int) -> None:
    run.log_metrics({"pairs": 40})
    with run.stage("train", params={"zero_stage": 2}) as train:
        train.log_records(records(last))
        if last < 8:
            raise RuntimeError("worker died")


def test_a_resumed_run_continues_and_doubles_nothing(store: Path) -> None:
    """Bug: a resume opens new runs, or logs the steps before the checkpoint a second time."""
    with (
        pytest.raises(RuntimeError, match="worker died"),
        track(store, params={"beta": 0.1}) as run,
    ):
        fill(run, 5)
    first = runs(client(store))
    assert {name: run.info.status for name, run in first.items()} == {
        "ddpo": "FAILED",
        "train": "FAILED",
    }
    with track(store, params={"beta": 0.1}) as run:
        deadline = time.monotonic() + 60
        while runs(client(store))["ddpo"].info.status != "RUNNING" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert runs(client(store))["ddpo"].info.status == "RUNNING"
        fill(run, 8)
    second = runs(client(store))
    assert {name: run.info.run_id for name, run in second.items()} == {
        n: run.info.run_id for n, run in first.items()
    }
    assert {run.info.status for run in second.values()} == {"FINISHED"}
    assert points(client(store), "train", "loss") == [(step, 1 / step) for step in range(1, 9)]
    assert points(client(store), "ddpo", "pairs") == [(0, 40)]
    assert second["train"].data.tags["mlflow.parentRunId"] == second["ddpo"].info.run_id
    assert second["ddpo"].data.tags["who"] == "test"
    assert "config_changed" not in second["ddpo"].data.tags


def test_a_finished_run_keeps_its_times_and_its_source(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a second command that reads the results, and makes a run of minutes one of days,
    or its own user and script the run's.
    """
    with track(store) as run:
        fill(run, 8)
    first = runs(client(store))
    time.sleep(0.05)
    monkeypatch.setattr(sys, "argv", ["another.py"])
    with track(store) as run:
        fill(run, 8)
    for name, again in runs(client(store)).items():
        assert again.info.status == "FINISHED"
        assert again.info.end_time == first[name].info.end_time
        assert again.data.tags == first[name].data.tags


def test_only_news_reopens_a_finished_run(store: Path) -> None:
    """Catches: a second command that writes forty events to say nothing; a run that gets new
    scores, or fails, and is shown as finished meanwhile.
    """
    spool = store / "ddpo-1" / SPOOL
    with track(store) as run:
        fill(run, 8)
    before = spool.read_bytes()
    with track(store) as run:
        fill(run, 8)
    assert spool.read_bytes() == before
    with track(store) as run:
        fill(run, 8)
        with run.stage("answers") as child:
            child.reopen()  # it runs, and changes nothing
            assert run.spool.statuses["ddpo"][-1] == "RUNNING"
            assert run.spool.statuses["ddpo/answers"] == ["RUNNING"]
            assert run.spool.statuses["ddpo/train"][-1] == "FINISHED"
    with track(store) as run:
        run.stage("train").log_metrics({"loss": 0.1}, step=9)
        assert run.spool.statuses["ddpo/train"][-1] == "RUNNING"
    assert {run.info.status for run in runs(client(store)).values()} == {"FINISHED"}
    with pytest.raises(RuntimeError), track(store):
        raise RuntimeError("a file is damaged")
    statuses = {name: run.info.status for name, run in runs(client(store)).items()}
    assert statuses == {"ddpo": "FAILED", "train": "FINISHED", "answers": "FINISHED"}


@pytest.mark.slow
def test_a_command_with_nothing_new_loads_no_mlflow(store: Path, empty_database: Path) -> None:
    """Catches: two seconds of imports to send nothing; a store that lost its runs and stays so."""
    body = """
import sys
from pathlib import Path
from rlhfv_ray.config import TrackingConfig
from rlhfv_ray.tracking.run import sync_tracking, tracked_run

store = Path(sys.argv[1])
config = TrackingConfig(experiment="hallucinations")
with tracked_run(store / "ddpo-1", config, store=store, name="ddpo", params={}, tags={}) as run:
    run.log_metrics({"pairs": 40})
assert sync_tracking(store / "ddpo-1")
print("mlflow" in sys.modules)
"""

    def command() -> str:
        words = [sys.executable, "-c", body, str(store)]
        done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert [command(), command()] == ["True", "False"]
    mlflow = client(store)
    mlflow.delete_experiment(runs(mlflow)["ddpo"].info.experiment_id)
    assert [command(), command()] == ["True", "False"]
    shutil.copy(empty_database, store / "mlflow.db")
    assert [command(), command()] == ["True", "False"]
    assert points(client(store), "ddpo", "pairs") == [(0, 40)]


def test_data_and_model_are_listed_with_the_run_and_not_twice(store: Path) -> None:
    """Catches: a run without its data and model; a replay that doubles them; a model whose
    weights are copied to MLflow.
    """
    model = store / "train-1" / "model"
    for _ in range(2):
        with track(store) as run:
            data = {"digest": "d" * 64, "rows": 40, "source": "/data/pairs.parquet"}
            run.log_dataset("pairs.parquet", **data, use="training")
            run.log_model("beta 0.1", model, {"loss": {"beta": 0.1}})
        (store / "ddpo-1" / STATE).unlink()
    assert sync_tracking(store / "ddpo-1"), "MLflow is said to lack what it has"
    mlflow = client(store)
    run = runs(mlflow)["ddpo"]
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("pairs.parquet", "d" * 36)
    assert json.loads(used.dataset.profile) == {"num_rows": 40}
    (made,) = mlflow.search_logged_models([run.info.experiment_id])
    assert [output.model_id for output in run.outputs.model_outputs] == [made.model_id]
    assert (made.name, made.status, made.params) == ("beta 0_1", "READY", {"loss.beta": "0.1"})
    assert made.tags["folder"] == str(model)
    files = [file for file in Path(made.artifact_location).rglob("*") if file.is_file()]
    assert [file.name for file in files] == ["MLmodel"]
    assert '"question"' in files[0].read_text() and '"answer"' in files[0].read_text()


def test_a_lost_state_doubles_nothing(store: Path) -> None:
    """Bug: a crash between MLflow's answer and the state's file doubles runs and points."""
    with track(store, params={"beta": 0.1}) as run:
        fill(run, 8)
    before = runs(client(store))
    (store / "ddpo-1" / STATE).unlink()
    assert sync_tracking(store / "ddpo-1")
    assert {name: run.info.run_id for name, run in runs(client(store)).items()} == {
        name: run.info.run_id for name, run in before.items()
    }
    assert len(points(client(store), "train", "loss")) == 8


def test_a_damaged_state_is_made_again(store: Path) -> None:
    """Catches: the id of a run with one bit flipped, whose events MLflow then refuses for ever."""
    with track(store) as run:
        fill(run, 8)
    path = store / "ddpo-1" / STATE
    content = path.read_text()
    for run_id in json.loads(content)["runs"].values():
        path.write_text(content.replace(run_id, run_id[:-1] + chr(ord(run_id[-1]) ^ 1)))
        assert sync_tracking(store / "ddpo-1")
        assert path.read_text() == content


def test_replaying_at_once_doubles_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: two replays of one folder both see that a run is missing, and both make it."""
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_follow", lambda spool, stopped: None)
        with track(store) as run:
            fill(run, 8)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(sync_tracking, [store / "ddpo-1"] * 4))
    assert any(done)
    assert len(points(client(store), "train", "loss")) == 8


def test_params_never_change(store: Path) -> None:
    """Bug: a changed setting on resume makes MLflow raise, or a long one is cut without a word."""
    long = "x" * 7000
    with track(store, params={"loss": {"beta": 0.1}, "files": long}):
        pass
    with track(store, params={"loss": {"beta": 0.5}, "files": long, "seed": 1}) as run:
        run.log_metrics({"pairs": 1})
    run = runs(client(store))["ddpo"]
    assert run.data.params == {
        "loss.beta": "0.1",
        "files": "see artifact long/files.txt",
        "seed": "1",
    }
    assert run.data.tags["config_changed"] == "loss.beta: 0.1 -> 0.5"
    assert run.data.metrics == {"pairs": 1}
    path = client(store).download_artifacts(run.info.run_id, "long/files.txt", str(store))
    assert Path(path).read_text() == long


def test_what_is_not_finite_is_left_out(store: Path) -> None:
    """Bug: MLflow keeps inf as 1.8e308, which ruins every chart, and a text stops the batch."""
    with track(store) as run:
        run.log_metrics({"a": NAN, "b": -INF, "c": None, "d": "text", "e": 1.5, "f": True})
        run.log_records(
            [
                {"step": 1, "grad_norm": None, "loss": NAN},
                {"step": 2, "grad_norm": 2.0, "loss": 0.5},
            ]
        )
    assert runs(client(store))["ddpo"].data.metrics == {
        "e": 1.5,
        "f": 1,
        "grad_norm": 2.0,
        "loss": 0.5,
    }
    assert points(client(store), "ddpo", "loss") == [(2, 0.5)]


def test_a_corrected_score_replaces_the_former_one(store: Path) -> None:
    """Catches: an evaluation scored again, whose former number stays in MLflow."""
    for rate in (0.5, 0.5, 0.25, 0.25):
        with track(store) as run:
            run.log_metrics({"response_rate": rate})
    assert points(client(store), "ddpo", "response_rate") == [(0, 0.25), (0, 0.5)]
    assert runs(client(store))["ddpo"].data.metrics["response_rate"] == 0.25


def test_tables_and_files_come_back(store: Path) -> None:
    """Bug: a table grows with every resume, an old report stays, or files go astray."""
    rows = [{"benchmark": "chair", "rate": 0.25}, {"benchmark": "mmhal", "rate": NAN, "n": 96}]
    report = store / "report.html"
    for text in ("old", "old", "new"):
        report.write_text(text)
        with track(store) as run:
            run.log_table("scores", rows)
            run.log_file(report, "reports")
    mlflow, run_id = client(store), runs(client(store))["ddpo"].info.run_id
    assert (
        store / "mlartifacts" / run_id / "artifacts" / "reports" / "report.html"
    ).read_text() == "new"
    table = json.loads(
        Path(mlflow.download_artifacts(run_id, "scores.json", str(store))).read_text()
    )
    assert table == {
        "columns": ["benchmark", "rate", "n"],
        "data": [["chair", 0.25, None], ["mmhal", None, 96]],
    }
    assert json.loads(runs(mlflow)["ddpo"].data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "scores.json", "type": "table"}
    ]
    kinds = [
        json.loads(line)["kind"] for line in (store / "ddpo-1" / SPOOL).read_text().splitlines()
    ]
    assert (kinds.count("table"), kinds.count("file")) == (1, 2)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("boom"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(signal.SIGTERM), "KILLED"),
        (SystemExit(3), "FAILED"),
        (SystemExit(0), "FINISHED"),
    ],
)
def test_the_end_of_the_body_is_the_end_of_the_run(
    store: Path, error: BaseException, status: str
) -> None:
    """Bug: a run stays RUNNING for ever, or the tracker's own trouble hides the body's."""

    def body() -> None:
        with track(store) as run:
            run.stage("train")
            run.stage("encode").end()
            raise error

    with pytest.raises(type(error)) as caught:
        body()
    assert caught.value is error
    statuses = {name: run.info.status for name, run in runs(client(store)).items()}
    assert statuses == {"ddpo": status, "train": status, "encode": "FINISHED"}


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_running(store: Path) -> None:
    """Bug: after kill -9 the run stays RUNNING, the lease stays held, or a torn line breaks all."""
    body = """
import os, sys
from pathlib import Path
from rlhfv_ray.tracking.run import *

store = Path(sys.argv[1])
config = TrackingConfig(experiment="hallucinations")
run = tracked_run(store / "ddpo-1", config, store=store, name="ddpo", params={}, tags={})
with run as parent:
    parent.stage("train").log_records([{"step": 1, "loss": 1.0}])
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", body, str(store)], cwd=REPOSITORY, check=False)
    with (store / "ddpo-1" / SPOOL).open("a") as spool:
        spool.write('{"key": "metr')
    assert sync_tracking(store / "ddpo-1")
    assert {run.info.status for run in runs(client(store)).values()} == {"KILLED"}
    with track(store) as run:
        fill(run, 8)
    assert {run.info.status for run in runs(client(store)).values()} == {"FINISHED"}
    assert points(client(store), "train", "loss") == [
        (1, 1.0),
        *[(step, 1 / step) for step in range(2, 9)],
    ]


def test_the_environment_is_neither_believed_nor_changed(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: MLFLOW_EXPERIMENT_ID, once in the environment, sends runs to the wrong experiment."""
    wrong = client(store).create_experiment("wrong")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", wrong)
    before = {name: value for name, value in os.environ.items() if "MLFLOW" in name}
    with track(store) as run:
        run.log_metrics({"pairs": 1})
    assert {name: value for name, value in os.environ.items() if "MLFLOW" in name} == before
    assert client(store).search_runs([wrong]) == []
    assert list(runs(client(store))) == ["ddpo"]


def test_one_refused_event_does_not_block_the_rest(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bug: an event that MLflow will never take stops every later one for ever."""
    with track(store) as run:
        run.set_tags({"no\nname": "1"})
        run.log_metrics({"pairs": 1})
    assert runs(client(store))["ddpo"].data.metrics == {"pairs": 1}
    (warning,) = caplog.records
    assert "MLflow will lack tags:ddpo" in warning.getMessage()
    assert not sync_tracking(store / "ddpo-1")


def test_a_bad_name_costs_only_itself(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: one name that MLflow does not take loses all metrics of its batch."""
    with track(store) as run:
        run.log_metrics({"no\nname": 1, "recall@5": 2, "loss//total": 3, "pairs": 4})
    logged = runs(client(store))["ddpo"].data
    assert logged.metrics == {"no_name": 1, "recall_5": 2, "loss/total": 3, "pairs": 4}
    assert json.loads(logged.tags["renamed_metrics"])["recall@5"] == "recall_5"
    (warning,) = caplog.records
    assert "recall_5" in warning.getMessage()


def test_a_deleted_experiment_is_restored(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: every run is lost because somebody deleted the experiment in the UI."""
    name = client(store).create_experiment("hallucinations")
    client(store).delete_experiment(name)
    with track(store) as run:
        run.log_metrics({"pairs": 1})
    assert runs(client(store))["ddpo"].data.metrics == {"pairs": 1}
    (warning,) = caplog.records
    assert "'hallucinations' was deleted. It is restored" in warning.getMessage()


def test_the_environment_names_store_and_experiment_and_flags_win(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: MLflow's own variables are ignored without a word."""
    elsewhere = f"sqlite:///{store / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from the environment")
    with track(store / "other", config=TrackingConfig()) as run:
        run.log_metrics({"pairs": 1})
    with track(store / "flag", config=TrackingConfig(experiment="from a flag")):
        pass
    assert not list(store.glob("*/mlflow.db"))
    by_name = {
        item.name: item.experiment_id
        for item in client(store).search_experiments()
        if item.name != "Default"
    }
    assert set(by_name) == {"from the environment", "from a flag"}
    for experiment_id in by_name.values():
        assert len(client(store).search_runs([experiment_id])) == 1


def test_a_deleted_database_is_filled_again(store: Path, empty_database: Path) -> None:
    """Bug: the state says that MLflow has everything although the database is a new one."""
    with track(store) as run:
        fill(run, 8)
    shutil.copy(empty_database, store / "mlflow.db")
    assert sync_tracking(store / "ddpo-1")
    assert len(points(client(store), "train", "loss")) == 8


def test_a_database_is_named_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: a relative store is another file for the driver, for `mlflow ui` and for the replay."""
    monkeypatch.chdir(tmp_path)
    own = f"sqlite:///{tmp_path.resolve()}/own.db"
    assert (
        tracking_uri(TrackingConfig(), Path("runs"))
        == f"sqlite:///{tmp_path.resolve()}/runs/mlflow.db"
    )
    assert tracking_uri(TrackingConfig(uri="sqlite:///own.db"), Path("runs")) == own
    assert ui_command(own) == f"{program('mlflow')} ui --backend-store-uri {own} --host 127.0.0.1"
    assert ui_command("http://tracker:5000") == "http://tracker:5000"
    assert ui_command("http://me:pass@tracker:5000") == "http://***@tracker:5000"
    assert "***@host/db" in ui_command("postgresql://me:pass@host/db")


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def server_command(store: Path, port: int) -> list[str]:
    backend = f"sqlite:///{store / 'mlflow.db'}"
    options = [
        "--backend-store-uri",
        backend,
        "--artifacts-destination",
        str(store / "served"),
        "--workers",
        "1",
    ]
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        *options,
    ]


@pytest.fixture
def served(server_command: list[str], port: int) -> Iterator[Any]:
    """Return a function that starts the server."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        environment = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }  # starts in half the time
        started.append(
            subprocess.Popen(
                server_command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL
            )
        )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                assert requests.get(f"http://127.0.0.1:{port}/health", timeout=1).ok
                return
            except requests.RequestException:
                time.sleep(0.2)
        raise TimeoutError("mlflow server did not start")

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def count_connections(server: socket.socket) -> int:
    """Count the connections that a server has not accepted yet."""
    server.setblocking(False)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            count += 1
    return count


@pytest.mark.slow
def test_a_server_that_never_answers_costs_one_request(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Bug: a hung server is asked again for every event, or MLflow's 120 s are waited for."""
    monkeypatch.setattr(tracking_replay, "REQUEST_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        started = time.monotonic()
        with track(
            store, config=TrackingConfig(uri=f"http://127.0.0.1:{mute.getsockname()[1]}")
        ) as run:
            fill(run, 8)
        assert time.monotonic() - started < 60
        assert count_connections(mute) <= 2
    assert len(caplog.records) == 1


class Gate(BaseHTTPRequestHandler):
    """A proxy before MLflow that asks for a name and a password."""

    server_port = 0  # MLflow's
    expected = "Basic " + base64.b64encode(b"me:s3cret-word").decode()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != self.expected:
            self.send_response(401)
            self.end_headers()
            return
        kind = {"Content-Type": self.headers.get("Content-Type", "application/json")}
        reply = requests.request(
            self.command,
            f"http://127.0.0.1:{self.server_port}{self.path}",
            data=body,
            headers=kind,
            timeout=10,
        )
        self.send_response(reply.status_code)
        self.send_header("Content-Type", reply.headers.get("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(reply.content)))
        self.end_headers()
        self.wfile.write(reply.content)

    do_GET = do_POST = do_PATCH = do_PUT = answer

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing."""


def test_a_refused_login_names_the_variables_and_loses_nothing(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bug: a server with basic authentication says 401, and nobody learns what to set."""
    gate = ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    threading.Thread(target=gate.serve_forever, args=(0.02,), daemon=True).start()
    config = TrackingConfig(uri=f"http://me:wrong-word@127.0.0.1:{gate.server_port}")
    with track(store, config=config) as run:
        run.log_metrics({"pairs": 1})
    gate.shutdown()
    (warning,) = caplog.records
    assert "401" in warning.getMessage() and "MLFLOW_TRACKING_PASSWORD" in warning.getMessage()
    assert "Nothing is lost" in warning.getMessage() and "wrong-word" not in caplog.text


@pytest.mark.soak
def test_a_password_in_the_address_is_used_and_written_nowhere(
    store: Path, port: int, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: the password of a tracking server stands in the spool, a parameter or an artifact."""
    served()
    monkeypatch.setattr(Gate, "server_port", port)
    gate = ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    threading.Thread(target=gate.serve_forever, args=(0.02,), daemon=True).start()
    address = f"127.0.0.1:{gate.server_port}"
    config = TrackingConfig(uri=f"http://me:s3cret-word@{address}", experiment="hallucinations")
    with track(store, config=config, params=plain(config)) as run:
        run.log_metrics({"pairs": 1})
    logged = runs(MlflowClient(f"http://127.0.0.1:{port}"))["ddpo"]
    assert logged.data.metrics == {"pairs": 1}
    assert logged.data.params["uri"] == f"http://***@{address}"
    for path in (store / "ddpo-1").rglob("*"):
        assert not path.is_file() or b"s3cret-word" not in path.read_bytes()
    spool = store / "ddpo-1" / STATE
    spool.unlink()
    assert not sync_tracking(store / "ddpo-1")  # nobody knows the password any more
    monkeypatch.setenv("MLFLOW_TRACKING_URI", config.uri)
    assert sync_tracking(store / "ddpo-1")
    gate.shutdown()


@pytest.mark.soak
def test_a_server_with_basic_authentication_is_reached_by_the_environment(
    store: Path,
    port: int,
    served: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Bug: only the flag's address is used; MLflow's user and password variables are ignored; a
    wrong password loses the run.
    """
    served()
    monkeypatch.setattr(Gate, "server_port", port)
    gate = ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    threading.Thread(target=gate.serve_forever, args=(0.02,), daemon=True).start()
    address = f"127.0.0.1:{gate.server_port}"
    mlflow = MlflowClient(f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "hallucinations")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:s3cret-word@{address}")
    with track(store, config=TrackingConfig()) as run:
        run.log_metrics({"pairs": 1})
    assert runs(mlflow)["ddpo"].data.metrics == {"pairs": 1}
    assert not caplog.records
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address}")
    with track(store, config=TrackingConfig()) as run:  # no password
        run.log_metrics({"pairs": 2})
    assert runs(mlflow)["ddpo"].data.metrics == {"pairs": 1}
    assert "s3cret" not in caplog.text and "MLFLOW_TRACKING_USERNAME" in caplog.text
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret-word")
    assert sync_tracking(store / "ddpo-1")
    assert runs(mlflow)["ddpo"].data.metrics == {"pairs": 2}
    gate.shutdown()


@pytest.mark.slow
def test_an_outage_costs_nothing_and_is_made_good(
    store: Path,
    port: int,
    served: Any,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bug: MLflow's retries hold the run for minutes, its error ends it, or events are lost."""
    config = TrackingConfig(uri=f"http://127.0.0.1:{port}", experiment="hallucinations")
    report = store / "report.html"
    report.write_text("scores")
    started = time.monotonic()
    with caplog.at_level(logging.WARNING), track(store, config=config, params={"beta": 0.1}) as run:
        fill(run, 8)
        run.log_file(report)
        run.log_table("scores", [{"rate": 0.5}])
    assert time.monotonic() - started < 60
    (warning,) = caplog.records
    assert f"rlhfv-ray sync {store}" in warning.getMessage()
    assert sync(store) == 1
    served()
    assert sync(store) == sync(store) == 0
    mlflow = MlflowClient(config.uri)
    by_name = runs(mlflow)
    assert {name: run.info.status for name, run in by_name.items()} == {
        "ddpo": "FINISHED",
        "train": "FINISHED",
    }
    assert len(points(mlflow, "train", "loss")) == 8
    names = {file.path for file in mlflow.list_artifacts(by_name["ddpo"].info.run_id)}
    assert names == {"report.html", "scores.json"}
    assert capsys.readouterr().out.splitlines()[-1] == f"{store / 'ddpo-1'}: MLflow has everything"
