"""The MLflow store and experiment of a run, by MLflow's own conventions.

The flags win, then `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME`, then a SQLite file in the
storage folder. Secrets in an address stay in this process: the spool has the address without them.
"""

import contextlib
import os
import re
import shlex
import sqlite3
from pathlib import Path
from typing import NamedTuple

from rlhfv_ray.config import TrackingConfig
from rlhfv_ray.console import program
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.redaction import HIDDEN, redact

URI, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
DEFAULT_EXPERIMENT = "rlhfv-ray"
SQLITE = "sqlite:///"
SERVERS = ("http://", "https://", "databricks", "uc:")  # choose the place of artifacts themselves
LOCAL_UI = "http://127.0.0.1:5000"  # where `ui_command` listens
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


class Target(NamedTuple):
    """Where the runs of an experiment go."""

    uri: str  # with its secrets
    experiment: str
    artifacts: str  # folder of a new experiment's artifacts; empty: the server chooses
    sources: tuple[str, ...]  # environment variables that decided

    def as_json(self) -> dict[str, str]:
        """Return it without secrets, as the spool keeps it."""
        artifacts = self.artifacts
        return {"uri": redact(self.uri), "experiment": self.experiment, "artifacts": artifacts}


def find_target(config: TrackingConfig, store: Path) -> Target:
    """Return where runs go.

    Raises:
        ConfigError: the address or the experiment's name cannot be used; the message has the fix.
    """
    uri = config.uri or os.environ.get(URI, "") or f"{SQLITE}{store / 'mlflow.db'}"
    experiment = config.experiment or os.environ.get(EXPERIMENT, "") or DEFAULT_EXPERIMENT
    sources = []
    if not config.uri and os.environ.get(URI):
        sources.append(URI)
    if not config.experiment and os.environ.get(EXPERIMENT):
        sources.append(EXPERIMENT)
    _check(uri, experiment, sources)
    if uri.startswith(SQLITE):
        uri = f"{SQLITE}{database(uri)}"
    artifacts = "" if uri.startswith(SERVERS) else str(store.resolve() / "mlartifacts")
    return Target(uri, experiment, artifacts, tuple(sources))


def _check(uri: str, experiment: str, sources: list[str]) -> None:
    option = URI if URI in sources else "tracking.uri"
    if not re.match(r"databricks$|[A-Za-z][\w+]*:", uri) or uri.startswith("file:"):
        raise ConfigError(
            f"{option} = {redact(uri)!r}: MLflow's stores in folders of files are not supported. "
            f"Give a SQLite file (sqlite:///{uri.removeprefix('file:').lstrip('/')}/mlflow.db), "
            "another database, or a server."
        )
    if not uri.startswith((*SERVERS, *DATABASES)):
        raise ConfigError(
            f"{option} = {redact(uri)!r}: unknown kind of store. Give http(s)://, databricks, "
            f"sqlite:///FILE, or another database ({', '.join(DATABASES[1:])})."
        )
    if uri.startswith("databricks") and not experiment.startswith("/"):
        raise ConfigError(
            f"tracking.experiment = {experiment!r}: Databricks names experiments by their path, "
            f"e.g. --tracking.experiment /Users/me@example.com/{experiment}."
        )


def tracking_uri(config: TrackingConfig, store: Path) -> str:
    """Return MLflow's tracking URI. The path of a SQLite file is always absolute.

    Raises:
        ConfigError: the address cannot be used.
    """
    return find_target(config, store).uri


def database(uri: str) -> Path:
    """Return the absolute path of a SQLite store's file."""
    return Path(uri.removeprefix(SQLITE)).resolve()


def holds_run(uri: str, run_id: str) -> bool:
    """Return True if a SQLite store has a run, in an experiment that is not deleted.

    It is asked directly, because MLflow takes seconds to load. False where only MLflow can tell: of
    another store, or of a database that cannot be read.
    """
    if not uri.startswith(SQLITE) or not database(uri).is_file():
        return False
    query = (
        "SELECT 1 FROM runs JOIN experiments USING (experiment_id) "
        "WHERE runs.run_uuid = ? AND experiments.lifecycle_stage = 'active'"
    )
    try:
        with contextlib.closing(sqlite3.connect(database(uri))) as connection:
            return connection.execute(query, (run_id,)).fetchone() is not None
    except sqlite3.Error:
        return False


def with_secrets(uri: str) -> str:
    """Return an address of a spool with the secrets of `MLFLOW_TRACKING_URI`, if it has any.

    Raises:
        ConfigError: the variable does not hold this address.
    """
    if HIDDEN not in uri:
        return uri
    given = os.environ.get(URI, "")
    if redact(given) != uri:
        raise ConfigError(
            f"{uri} was recorded without its password. Set {URI} to the whole address, and run "
            "the command again."
        )
    return given


def ui_command(uri: str) -> str:
    """Return the command that shows the runs of a store; for a server, return its address.

    A password in the address is not shown.

    Example:
        >>> ui_command("sqlite:////data/runs/mlflow.db").removeprefix(program("mlflow"))
        ' ui --backend-store-uri sqlite:////data/runs/mlflow.db --host 127.0.0.1'
    """
    uri = redact(uri)
    return (
        uri
        if uri.startswith(SERVERS)
        else f"{program('mlflow')} ui --backend-store-uri {shlex.quote(uri)} --host 127.0.0.1"
    )


def run_page(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run in MLflow's training view; empty where its form is not known.

    Of a store without a server it is the page of `ui_command`, which listens on port 5000.

    Example:
        >>> run_page("sqlite:////data/runs/mlflow.db", "1", "5f2c")
        'http://127.0.0.1:5000/#/experiments/1/runs/5f2c?workflowType=machine_learning'
        >>> run_page("databricks", "1", "5f2c")
        ''
    """
    server = redact(uri) if uri.startswith(SERVERS) else LOCAL_UI
    if not server.startswith("http"):
        return ""
    # Without the query, MLflow 3 may open its view of traces, which has no curves.
    view = "workflowType=machine_learning"
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?{view}"


def describe_target(target: Target) -> str:
    """Return where the runs are, as people read it, and which variables decided that.

    Example:
        >>> describe_target(Target("http://tracker:5000", "study", "", ("MLFLOW_TRACKING_URI",)))
        'http://tracker:5000   (experiment study; from MLFLOW_TRACKING_URI)'
    """
    location = ui_command(target.uri)
    if not target.sources:
        return location
    return f"{location}   (experiment {target.experiment}; from {' and '.join(target.sources)})"
