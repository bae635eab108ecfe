"""Send the spool of `rlhfv_ray.tracking.run` to MLflow. No other module talks to MLflow.

Events may be replayed twice: a tag identifies the run, a metric point carries the time of its
event (MLflow keeps equal points once), params are compared, and artifacts are overwritten. The
state file only records how far a replay came. Runs and experiments are always addressed by id:
MLflow's fluent functions leave `MLFLOW_EXPERIMENT_ID` in the environment, which then overrides
every other choice.
"""

import contextlib
import fcntl
import itertools
import json
import logging
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhfv_ray.console import program
from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.redaction import redact
from rlhfv_ray.storage.files import sealed, unsealed, write_json
from rlhfv_ray.storage.folder import display_path, fetch
from rlhfv_ray.tracking.lineage import send_dataset, send_model
from rlhfv_ray.tracking.target import database, holds_run, with_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

SPOOL, STATE = "tracking.jsonl", "tracking_state.json"
REQUEST_S = 5  # timeout of one HTTP request
MAX_NAME_LENGTH = 250  # characters of a metric's name that MLflow takes
MAX_VALUE_LENGTH = 6000  # characters of a param that MLflow keeps; it cuts longer ones silently
UID = "rlhfv_ray.uid"  # tag that identifies a run
LOGIN_HINT = (
    "The server asks who you are: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN."
)
# Kinds that older servers do not know, which answer with this error.
NEWER_KINDS, UNKNOWN_TO_SERVER = ("dataset", "model"), "ENDPOINT_NOT_FOUND"
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
Event = dict[str, Any]  # key, kind, run, time (ms), content

log = logging.getLogger(__name__)


def read_events(folder: Path) -> list[Event]:
    """Return the events of an experiment's spool, each key once, without lines torn by a crash."""
    events: dict[str, Event] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / SPOOL).read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                event = json.loads(line)
                events.setdefault(event["key"], event)
    return list(events.values())


def how_to_replay(folder: Path) -> str:
    """Return the advice for a user whose runs are not in MLflow yet."""
    command = f"{program('rlhfv-ray')} sync {display_path(folder.parent)}"
    return f"Nothing is lost: `{command}` replays what is missing."


class Replay:
    """Replays events in order. Only the holder of the experiment's tracking lease may use it."""

    def __init__(self, folder: Path, *, uri: str = "") -> None:
        """Read the state.

        Args:
            folder: of the experiment.
            uri: of MLflow with its secrets; empty: the recorded one.
        """
        self.folder, self.uri = folder, uri
        self.unreached = False  # True after a failed replay, which has warned once
        self.state: dict[str, Any] = {}
        self._client: MlflowClient | None = None
        with contextlib.suppress(FileNotFoundError, ValueError):  # all is sent again, once
            self.state = unsealed((folder / STATE).read_text())

    def sync(self, events: Sequence[Event], *, abandoned: bool = False) -> bool:
        """Send the events that MLflow lacks. Errors become a warning.

        Args:
            events: all events of the experiment.
            abandoned: True if no driver is left; runs that are still open then become KILLED.

        Returns:
            True if MLflow now has everything.
        """
        try:
            if not self._is_complete(events, abandoned=abandoned):
                self._replay(events, abandoned=abandoned)
        # Errors of any client, database or cloud store: none of them may stop a training run.
        except Exception as error:  # noqa: BLE001
            if not self.unreached:
                log.warning(
                    "MLflow cannot be used now: %s %s", _short(error), how_to_replay(self.folder)
                )
            self.unreached = True
            return False
        self.unreached = False
        return not self.state["refused"]

    def _is_complete(self, events: Sequence[Event], *, abandoned: bool) -> bool:
        """Return True if MLflow needs not be asked: it has everything, and nothing is left open."""
        if self.state.get("position") != len(events):
            return False
        if not abandoned:
            return True
        is_open = "RUNNING" in _last_statuses(events).values()
        uri = self.uri or self.state["target"]["uri"]
        return not is_open and holds_run(uri, next(iter(self.state["runs"].values()), ""))

    def _replay(self, events: Sequence[Event], *, abandoned: bool) -> None:
        targets = [event["content"] for event in events if event["kind"] == "target"]
        client = self._connect(targets[-1])
        try:
            for group in _grouped(events[self.state["position"] :]):
                self._send(client, group)
                self.state["position"] += len(group)
        finally:
            write_json(self.folder / STATE, sealed(self.state))
        if not abandoned:
            return
        for run, status in _last_statuses(events).items():
            if status == "RUNNING":
                run_id = self.state["runs"][run]
                client.set_terminated(run_id, "KILLED", end_time=events[-1]["time"])

    def _connect(self, target: Mapping[str, str]) -> "MlflowClient":
        if self._client is None or self.state.get("target") != target:
            uri = self.uri or with_secrets(target["uri"])
            client, experiment_id = _open_store({**target, "uri": uri})
            if self.state.get("target") != target or _is_lost(client, self.state["runs"]):
                self.state = {"target": dict(target), "runs": {}, "position": 0, "refused": []}
            self.state["experiment_id"] = experiment_id
            self._client = client
        return self._client

    def _send(self, client: "MlflowClient", group: Sequence[Event]) -> None:
        from mlflow.exceptions import MlflowException

        event = group[0]
        if event["kind"] == "start":
            run_id = self._find_run(client, event) or self._start_run(client, event)
            self.state["runs"][event["run"]] = run_id
        if event["kind"] not in SENDERS:
            return
        try:
            SENDERS[event["kind"]](client, self.state["runs"][event["run"]], group, self.folder)
        except (MlflowException, FileNotFoundError) as error:
            code = getattr(error, "error_code", "INVALID_STATE")
            is_newer = event["kind"] in NEWER_KINDS and code == UNKNOWN_TO_SERVER
            if code not in REFUSALS and not is_newer:
                raise
            self._refuse(client, group, error)

    def _refuse(self, client: "MlflowClient", group: Sequence[Event], error: Exception) -> None:
        """Set aside the events that MLflow will never accept, so that later ones are sent."""
        if len(group) > 1:
            for event in group:
                self._send(client, [event])
            return
        if not self.state["refused"]:
            log.warning("MLflow will lack %s: %s", group[0]["key"], _short(error))
        self.state["refused"].append(group[0]["key"])

    def _find_run(self, client: "MlflowClient", event: Event) -> str | None:
        query = f"tags.`{UID}` = '{event['content']['uid']}'"
        runs = client.search_runs([self.state["experiment_id"]], query, max_results=1)
        return runs[0].info.run_id if runs else None

    def _start_run(self, client: "MlflowClient", event: Event) -> str:
        content = event["content"]
        tags = {UID: content["uid"]}
        if content["parent"]:
            tags["mlflow.parentRunId"] = self.state["runs"][content["parent"]]
        run = client.create_run(
            self.state["experiment_id"],
            start_time=event["time"],
            tags=tags,
            run_name=content["name"],
        )
        return run.info.run_id


def _last_statuses(events: Sequence[Event]) -> dict[str, Status]:
    return {event["run"]: event["content"] for event in events if event["kind"] == "status"}


def _open_store(target: Mapping[str, str]) -> tuple["MlflowClient", str]:
    """Open the store and the experiment in it; create both if they do not exist."""
    import mlflow
    from mlflow import environment_variables, telemetry

    # Defaults, not environment variables: those would reach child processes and override the
    # user's own settings.
    environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT.default = REQUEST_S  # MLflow's own: 120 s
    # MLflow's own: 7 retries with minutes of back-off. The replay retries by itself.
    environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.default = 0
    environment_variables.MLFLOW_DISABLE_TELEMETRY.default = True
    # URLs and messages about database tables would be printed into the progress bars.
    environment_variables.MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.default = True
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    telemetry.set_telemetry_client()  # makes MLflow read its telemetry setting again
    with _creating(target["uri"]):
        client = mlflow.MlflowClient(tracking_uri=target["uri"])
        return client, _experiment_id(client, target)


@contextlib.contextmanager
def _creating(uri: str) -> Iterator[None]:
    """Hold a lock while a SQLite store is opened.

    Several processes that create its tables at the same time break it.
    """
    if not uri.startswith("sqlite:///"):
        yield
        return
    lock = database(uri).with_name(f"{database(uri).name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _experiment_id(client: "MlflowClient", target: Mapping[str, str]) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(target["experiment"])
    if experiment:
        if experiment.lifecycle_stage == "deleted":
            _restore(client, target["experiment"], experiment.experiment_id)
        return experiment.experiment_id
    try:
        return client.create_experiment(
            target["experiment"], artifact_location=target["artifacts"] or None
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was first
            raise
        return _experiment_id(client, target)


def _restore(client: "MlflowClient", name: str, experiment_id: str) -> None:
    """Restore a deleted experiment, which would take no run."""
    from mlflow.exceptions import MlflowException

    try:
        client.restore_experiment(experiment_id)
    except MlflowException as error:
        raise StageFailedError(
            f"MLflow's experiment {name!r} is deleted and could not be restored. Run `mlflow "
            f"experiments restore --experiment-id {experiment_id}`, or give another "
            f"--tracking.experiment. ({error})"
        ) from error
    log.warning("MLflow's experiment %r was deleted. It is restored, to take this run.", name)


def _is_lost(client: "MlflowClient", runs: Mapping[str, str]) -> bool:
    """Return True if the store no longer knows the runs, because its database was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        for run_id in list(runs.values())[:1]:
            client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return True
    return False


def clean_name(name: str) -> str:
    """Return the name of a metric or a tag as MLflow takes it.

    Example:
        >>> clean_name("recall@5"), clean_name("/loss//total/"), clean_name("train/loss")
        ('recall_5', 'loss/total', 'train/loss')
    """
    parts = (re.sub(r"[^\w.\- ]", "_", part) for part in name.split("/"))
    cleaned = "/".join(part for part in parts if part.strip(". "))
    return (cleaned or "unnamed")[:MAX_NAME_LENGTH]


def _grouped(events: Sequence[Event]) -> list[list[Event]]:
    """Group consecutive metric events of one run.

    One request for each event would take minutes after an outage.
    """
    groups = itertools.groupby(
        events, key=lambda event: (event["run"], event["kind"] == "metrics" or event["key"])
    )
    return [list(group) for _, group in groups]


def _send_metrics(
    client: "MlflowClient", run_id: str, events: Sequence[Event], folder: Path
) -> None:
    from mlflow.entities import Metric

    metrics, renamed = [], {}
    for event in events:
        for name, value, step in event["content"]:
            cleaned = clean_name(name)
            if cleaned != name:
                renamed[name] = cleaned
            metrics.append(Metric(cleaned, value, event["time"], step))
    for batch in _batches(metrics, 1000):
        client.log_batch(run_id, metrics=batch, synchronous=True)
    if renamed:
        notes = json.dumps(renamed)[:MAX_VALUE_LENGTH]
        client.set_tag(run_id, "renamed_metrics", notes)
        log.warning("MLflow does not take some names of metrics; they are renamed: %s", notes)


def _send_params(
    client: "MlflowClient", run_id: str, events: Sequence[Event], folder: Path
) -> None:
    """Log new params. MLflow never lets a param change, so a changed value becomes a tag."""
    from mlflow.entities import Param

    params = _without_long(client, run_id, events[0]["content"])
    logged = client.get_run(run_id).data.params
    for batch in _batches([name for name in params if name not in logged], 100):
        client.log_batch(
            run_id, params=[Param(name, params[name]) for name in batch], synchronous=True
        )
    changed = [name for name, value in params.items() if logged.get(name, value) != value]
    if changed:
        changes = ", ".join(f"{name}: {logged[name]} -> {params[name]}" for name in changed)
        client.set_tag(run_id, "config_changed", changes[:MAX_VALUE_LENGTH])


def _send_tags(client: "MlflowClient", run_id: str, events: Sequence[Event], folder: Path) -> None:
    from mlflow.entities import RunTag

    tags = _without_long(client, run_id, events[0]["content"])
    for batch in _batches(list(tags), 100):
        client.log_batch(
            run_id, tags=[RunTag(name, tags[name]) for name in batch], synchronous=True
        )


def _send_file(client: "MlflowClient", run_id: str, events: Sequence[Event], folder: Path) -> None:
    content = events[0]["content"]
    path = Path(os.path.normpath(folder / content["path"]))
    if not path.exists():
        fetch(path)  # it stands in a stage's folder, which this node may never have needed
    path = path.resolve(strict=True)
    client.log_artifact(run_id, str(path), content["folder"] or None)


def _send_table(client: "MlflowClient", run_id: str, events: Sequence[Event], folder: Path) -> None:
    """Log a table. `MLflowClient.log_table` would append to an existing one."""
    file = events[0]["content"]["file"]
    entry = {"path": file, "type": "table"}
    client.log_dict(run_id, events[0]["content"]["table"], file)
    tables = json.loads(client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
    if entry not in tables:
        client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([*tables, entry]))


def _send_status(
    client: "MlflowClient", run_id: str, events: Sequence[Event], folder: Path
) -> None:
    if events[0]["content"] == "RUNNING":
        client.update_run(run_id, status="RUNNING")
    else:
        client.set_terminated(run_id, events[0]["content"], end_time=events[0]["time"])


SENDERS: dict[str, Callable[["MlflowClient", str, Sequence[Event], Path], None]] = {
    "metrics": _send_metrics,
    "params": _send_params,
    "tags": _send_tags,
    "file": _send_file,
    "table": _send_table,
    "dataset": send_dataset,
    "model": send_model,
    "status": _send_status,
}


def _without_long(client: "MlflowClient", run_id: str, values: Mapping[str, str]) -> dict[str, str]:
    """Log values that MLflow would cut as artifacts; return all values, with notes for those."""
    fitting = dict(values)
    for name, value in values.items():
        if len(value) > MAX_VALUE_LENGTH:
            client.log_text(run_id, value, f"long/{name}.txt")
            fitting[name] = f"see artifact long/{name}.txt"
    return fitting


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _short(error: Exception) -> str:
    text = redact(f"{type(error).__name__}: {error}")
    short = textwrap.shorten(text, 250, placeholder=" ...")
    # MLflow's client writes the status of a server's reply into the message alone.
    if re.search(r"error code 40[13]\b", text):
        return f"{short} {LOGIN_HINT}"
    return short
