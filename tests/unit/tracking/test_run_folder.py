"""One folder with its lease, its MLflow run and its config, on a real SQLite store."""

import getpass
import io
import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.console import Console

from rlhfv_ray.config import TrackingConfig
from rlhfv_ray.console import program
from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.storage.lease_file import LEASE
from rlhfv_ray.storage.mirror import mirror_path
from rlhfv_ray.tracking import replay as tracking_replay
from rlhfv_ray.tracking import run as tracking
from rlhfv_ray.tracking.origin import origin
from rlhfv_ray.tracking.run_folder import RunFolder, open_run_folder

CONFIG = TrackingConfig(experiment="hallucinations")


@pytest.fixture
def store(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setattr(tracking, "SYNC_S", 0.05)
    return tmp_path


def opened_folder(store: Path, config: TrackingConfig = CONFIG) -> Any:
    return open_run_folder(
        store / "study-1",
        config,
        store=store,
        params={"loss": {"beta": 0.1}},
        tags={"kind": "study"},
        config={"seeds": [0, 1]},
    )


def only_run(store: Path) -> Run:
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("hallucinations")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def artifact(store: Path, run: Run, name: str) -> Path:
    return store / "mlartifacts" / run.info.run_id / "artifacts" / name


def printed(folder: RunFolder, **locations: Path | str) -> list[str]:
    console = Console(file=io.StringIO(), record=True, width=40)
    folder.print_locations(locations, console=console)
    return console.export_text().splitlines()


def test_a_run_leaves_its_folder_config_run_and_location(store: Path) -> None:
    """Catches: a config that is not logged, a lease that stays, or a wrong location."""
    with opened_folder(store) as opened:
        assert (store / "study-1" / LEASE).exists()
        opened.run.log_metrics({"pairs": 40})
    assert not (store / "study-1" / LEASE).exists()
    written = {"seeds": [0, 1], **origin()}
    assert json.loads((store / "study-1" / "config.json").read_text()) == written
    run = only_run(store)
    assert (run.info.run_name, run.info.status) == ("study-1", "FINISHED")
    assert (run.data.params, run.data.metrics) == ({"loss.beta": "0.1"}, {"pairs": 40})
    assert run.data.tags["kind"] == "study"
    assert run.data.tags["mlflow.source.git.commit"] == origin()["git_commit"]
    assert json.loads(artifact(store, run, "config.json").read_text()) == written
    assert run.data.tags.items() >= origin().items()
    database = f"sqlite:///{store.resolve() / 'mlflow.db'}"
    assert printed(opened, report=store / "report.html") == [
        f"report         {store / 'report.html'}",
        f"MLflow         {program('mlflow')} ui --backend-store-uri {database} --host 127.0.0.1",
        f"run in MLflow  http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/"
        f"{run.info.run_id}?workflowType=machine_learning",
    ]
    assert run.data.tags["mlflow.user"] == getpass.getuser()
    assert run.data.tags["mlflow.source.name"] == Path(sys.argv[0]).name


def test_after_an_error_the_run_is_tracked_and_the_folder_is_free(store: Path) -> None:
    """Catches: an error that keeps the lease, leaves the run open, or loses metrics."""
    with pytest.raises(RuntimeError, match="worker died"), opened_folder(store) as opened:
        opened.run.log_metrics({"pairs": 40})
        raise RuntimeError("worker died")
    failed = only_run(store)
    assert (failed.info.status, failed.data.metrics) == ("FAILED", {"pairs": 40})
    assert artifact(store, failed, "config.json").exists()
    with opened_folder(store) as opened:
        opened.run.log_metrics({"pairs": 40})
    finished = only_run(store)  # the same run goes on
    assert (finished.info.run_id, finished.info.status) == (failed.info.run_id, "FINISHED")


def test_a_second_driver_is_refused_and_changes_nothing(store: Path) -> None:
    """Catches: a config or a run written by a driver that does not hold the folder."""
    with opened_folder(store):
        before = (store / "study-1" / "config.json").read_text()
        with (
            pytest.raises(StageFailedError, match="is being written by process"),
            open_run_folder(
                store / "study-1", CONFIG, store=store, params={}, tags={}, config={"seeds": [7]}
            ),
        ):
            raise AssertionError("both drivers hold the folder")
        assert (store / "study-1" / "config.json").read_text() == before
    assert only_run(store).info.status == "FINISHED"


def test_the_location_says_when_mlflow_was_not_reached(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: people sent to a server that has nothing, or a run that fails with its tracking."""
    monkeypatch.setattr(tracking_replay, "REQUEST_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with opened_folder(store, TrackingConfig(uri=address)) as opened:
            opened.run.log_metrics({"pairs": 40})
    assert printed(opened) == ["MLflow         not reached; see the warning above"]


def test_a_mirror_is_printed_as_its_address(store: Path) -> None:
    """Catches: a path of this node's temporary folder, which nobody else can open."""
    with opened_folder(store) as opened:
        pass
    lines = printed(opened, study=mirror_path("s3://bucket/runs") / "study-1", model="base")
    assert lines[:2] == ["study          s3://bucket/runs/study-1", "model          base"]
