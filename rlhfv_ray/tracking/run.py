"""The MLflow run tree of one experiment, fed from a local spool.

What shall be in MLflow is first an event with a key, one line of `tracking.jsonl` in the experiment's folder. A key
that is there is never appended again, so a resumed experiment repeats nothing. A background thread replays the events
(`rlhfv_ray.tracking.run.replay`): training neither waits for MLflow nor fails with it.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import shlex
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlhfv_ray.config import TrackingConfig, fingerprint
from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.storage.folder import display_path, open_folder, publish
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.tracking.replay import (
    SPOOL,
    Event,
    Replay,
    Status,
    database,
    how_to_replay,
    read_events,
)

LEASE_FOLDER = "tracking.lease"  # held by whoever replays; a driver holds it as long as it lives
SYNC_S, RETRY_S = 2.0, 30.0  # between looks at the spool; after MLflow did not answer
FLUSH_S = 60.0  # longest wait for the rest at the end of a run

log = logging.getLogger(__name__)


def tracking_uri(config: TrackingConfig, store: Path) -> str:
    """Where MLflow keeps the runs: as configured, else a SQLite file in the storage folder; always absolute."""
    uri = config.uri or f"sqlite:///{store / 'mlflow.db'}"
    return f"sqlite:///{database(uri)}" if uri.startswith("sqlite:///") else uri


def ui_command(uri: str) -> str:
    """Name the command that shows the runs of a store; of a server, its address.

    Example:
        >>> ui_command("sqlite:////data/runs/mlflow.db")
        'mlflow ui --backend-store-uri sqlite:////data/runs/mlflow.db --host 127.0.0.1'
    """
    return (
        uri
        if uri.startswith("http")
        else f"mlflow ui --backend-store-uri {shlex.quote(uri)} --host 127.0.0.1"
    )


class Spool:
    """The events of one experiment, in memory and on disk; only its driver appends."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.events: list[Event] = []
        self.keys: set[str] = set()
        self.statuses: dict[str, list[Status]] = {}  # by run, in order
        self.last_step: dict[tuple[str, str], int] = {}  # by run and metric
        self._lock = threading.Lock()
        for event in read_events(folder):
            self._index(event)
        with (folder / SPOOL).open("a+b") as stream:  # end a line torn by a crash
            if stream.tell() and os.pread(stream.fileno(), 1, stream.tell() - 1) != b"\n":
                stream.write(b"\n")

    def append(self, kind: str, run: str, content: Any, *, ident: str | None = None) -> None:
        """Add an event, unless one of its kind, run and `ident` (by default: its content) is there."""
        key = f"{kind}:{run}:{fingerprint({'content': content}) if ident is None else ident}"
        event = {
            "key": key,
            "kind": kind,
            "run": run,
            "time": time.time_ns() // 1_000_000,
            "content": content,
        }
        with self._lock:
            if key in self.keys:
                return
            self._index(event)
            try:
                with (self.folder / SPOOL).open("a") as stream:
                    stream.write(json.dumps(event) + "\n")
            except (
                OSError
            ) as error:  # a full disk: the run has worse to report, and this must not mask it
                log.warning(
                    "%s could not be written (%s): MLflow may lack %s.",
                    self.folder / SPOOL,
                    error,
                    key,
                )

    def append_points(self, run: str, points: Sequence[tuple[str, Any, int]]) -> None:
        """Add metric points (name, value, step) that are finite and of a later step than the metric's last one."""
        usable = [
            (name, float(value), int(step))
            for name, value, step in points
            if isinstance(value, Real)
            and math.isfinite(value)
            and step > self.last_step.get((run, name), step - 1)
        ]
        if usable:
            self.append("metrics", run, usable)

    def set_status(self, run: str, status: Status) -> None:
        """Note a run's new status."""
        self.append("status", run, status, ident=str(len(self.statuses.get(run, []))))

    def _index(self, event: Event) -> None:
        self.events.append(event)
        self.keys.add(event["key"])
        if event["kind"] == "status":
            self.statuses.setdefault(event["run"], []).append(event["content"])
        elif event["kind"] == "metrics":
            self.last_step.update(
                {(event["run"], name): step for name, _, step in event["content"]}
            )


class TrackedRun:
    """A run of the tree. As a context it ends with the body: FINISHED, FAILED, or KILLED."""

    def __init__(
        self, spool: Spool, name: str, *, parent: str = "", params: Mapping[str, Any]
    ) -> None:
        self.spool = spool
        self.path = f"{parent}/{name}" if parent else name
        spool.append(
            "start", self.path, {"name": name, "parent": parent, "uid": uuid.uuid4().hex}, ident=""
        )
        spool.set_status(self.path, "RUNNING")
        if params:
            spool.append("params", self.path, _flatten(params))

    def stage(self, name: str, params: Mapping[str, Any] | None = None) -> "TrackedRun":
        """Start the child run of this name, or continue it."""
        return TrackedRun(self.spool, name, parent=self.path, params=params or {})

    def log_metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Log scalars; a point that is there, and what is not finite, is left out."""
        self.spool.append_points(self.path, [(name, value, step) for name, value in values.items()])

    def log_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Log training records, each with its `step`; steps that are there are left out."""
        points = [
            (name, record[name], record["step"])
            for record in records
            for name in record
            if name != "step"
        ]
        self.spool.append_points(self.path, points)

    def log_file(self, path: Path, folder: str = "") -> None:
        """Log a file as artifact; again only when its content changed."""
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        where = os.path.relpath(path, self.spool.folder)  # so that the storage folder can be moved
        self.spool.append("file", self.path, {"path": where, "folder": folder, "sha256": digest})

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log rows as the table `<name>.json`, which MLflow shows and loads as one."""
        columns = list(dict.fromkeys(column for row in rows for column in row))
        data = [[_finite(row.get(column)) for column in columns] for row in rows]
        table = json.loads(json.dumps({"columns": columns, "data": data}, default=str))
        self.spool.append(
            "table", self.path, {"file": f"{name.removesuffix('.json')}.json", "table": table}
        )

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; the last value stays."""
        if tags:
            self.spool.append("tags", self.path, {name: str(value) for name, value in tags.items()})

    def end(self, status: Status = "FINISHED") -> None:
        """End this run and what is still open below it; a run that has ended keeps its status."""
        below = [
            run
            for run in self.spool.statuses
            if run == self.path or run.startswith(f"{self.path}/")
        ]
        for run in reversed(below):
            if self.spool.statuses[run][-1] == "RUNNING":
                self.spool.set_status(run, status)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end(_status_after(error))


@contextlib.contextmanager
def tracked_run(
    folder: Path,
    config: TrackingConfig,
    *,
    store: Path,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
) -> Iterator[TrackedRun]:
    """Track an experiment as an MLflow run, or continue its run, while the body runs.

    Args:
        folder: of the experiment; a folder has one run tree.
        config: where MLflow is.
        store: the storage folder; holds MLflow's files where no server is configured.
        name: of the run.
        params: may be nested; `loss: {beta: 1}` becomes `loss.beta`.
        tags: of the run.
    """
    spool = Spool(folder)
    uri = tracking_uri(config, store)
    artifacts = (
        "" if uri.startswith("http") else str(store.resolve() / "mlartifacts")
    )  # a server knows its own
    target = {"uri": uri, "experiment": config.experiment, "artifacts": artifacts}
    targets = [event["content"] for event in spool.events if event["kind"] == "target"]
    if targets[-1:] != [target]:
        spool.append("target", "", target, ident=str(len(targets)))
    limit = open_folder(store).database_limit()
    if limit and not uri.startswith("http"):
        log.warning(
            "%s: MLflow's store is %s, on this node alone. Runs are recorded at the address all "
            "the same (experiments/sync_tracking.py brings them to any MLflow); --tracking.uri names a server that others reach.",
            *(limit, uri),
        )
    with _syncing(spool), TrackedRun(spool, name, params=params) as run:
        run.set_tags(tags)
        publish(folder / SPOOL)  # from here on a successor, on whichever node, continues this run
        yield run
    publish(folder / SPOOL)


def sync_tracking(folder: Path) -> bool:
    """Replay an experiment's spool into MLflow; runs that a dead driver left open become KILLED.

    Returns:
        Whether MLflow now has everything; if not, a warning said why.
    """
    try:
        with _replaying(folder) as replay:
            if replay.state.get("refused"):
                replay.state = {}  # from the start: to replay twice does no harm
            return replay.sync(read_events(folder), abandoned=True)
    except StageFailedError:
        log.warning(
            "%s is still running, or being replayed; whoever does that sends it to MLflow.",
            display_path(folder),
        )
        return False


@contextlib.contextmanager
def _syncing(spool: Spool) -> Iterator[None]:
    stopped = threading.Event()
    thread = threading.Thread(target=_follow, args=(spool, stopped), name="tracking", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(FLUSH_S)
        if thread.is_alive():
            log.warning(
                "MLflow is slow and does not have everything yet. %s", how_to_replay(spool.folder)
            )


def _follow(spool: Spool, stopped: threading.Event) -> None:
    """Replay until the run has ended, and once more."""
    while True:
        ending = stopped.is_set()
        try:
            with _replaying(spool.folder) as replay:
                _replay_until(stopped, spool, replay)
            return
        except StageFailedError:  # somebody replays what an earlier driver left
            if ending:
                log.warning(
                    "Another process is replaying this run. %s", how_to_replay(spool.folder)
                )
                return
        stopped.wait(SYNC_S)


def _replay_until(stopped: threading.Event, spool: Spool, replay: Replay) -> None:
    while True:
        ending = stopped.is_set()
        replay.sync(list(spool.events))
        if ending or (
            stopped.is_set() and replay.unreached
        ):  # a second try in a row would only cost time
            return
        stopped.wait(RETRY_S if replay.unreached else SYNC_S)


@contextlib.contextmanager
def _replaying(folder: Path) -> Iterator[Replay]:
    with hold_lease(folder / LEASE_FOLDER):
        yield Replay(folder)


def _status_after(error: BaseException | None) -> Status:
    """Tell how a run ends whose body ended so; a signal to end arrives as one of two exceptions."""
    if isinstance(error, SystemExit):
        if error.code in (signal.SIGTERM, 128 + signal.SIGTERM):
            return "KILLED"
        return "FAILED" if error.code else "FINISHED"
    if isinstance(error, KeyboardInterrupt):
        return "KILLED"
    return "FAILED" if error else "FINISHED"


def _flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in params.items():
        flat.update(
            _flatten(value, f"{prefix}{name}.")
            if isinstance(value, Mapping)
            else {prefix + name: str(value)}
        )
    return flat


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
