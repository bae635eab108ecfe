"""The MLflow run tree of one experiment, fed from a local spool.

Everything for MLflow is first an event with a key: one line of `tracking.jsonl` in the
experiment's folder. A key is never appended twice, so a resumed experiment repeats nothing. A run
that has finished stays so until there is something new to log. A background thread replays the
events (`rlhfv_ray.tracking.replay`), so training neither waits for MLflow nor fails with it.

Metric points are stored in the spool even where `metrics.jsonl` of a training stage has them too.
A sweep deletes the training folders of its worse trials, perhaps before MLflow could be reached.
"""

import contextlib
import getpass
import json
import logging
import math
import os
import signal
import sys
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
from rlhfv_ray.storage.files import file_digest
from rlhfv_ray.storage.folder import display_path, open_folder, publish
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.tracking.replay import (
    SPOOL,
    Event,
    Replay,
    Status,
    how_to_replay,
    read_events,
)
from rlhfv_ray.tracking.target import find_target

LEASE_FOLDER = "tracking.lease"  # held by the process that replays; by a driver while it lives
SYNC_S = 2.0  # between two replays
RETRY_S = 30.0  # between two replays while MLflow does not answer
FLUSH_S = 60.0  # longest wait for the last replay at the end of a run

log = logging.getLogger(__name__)


class Spool:
    """The events of one experiment, in memory and on disk. Only its driver appends."""

    def __init__(self, folder: Path, *, uri: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.uri = uri  # of MLflow, with the secrets that are not written
        self.events: list[Event] = []
        self.keys: set[str] = set()
        self.statuses: dict[str, list[Status]] = {}  # by run, in order
        self.finish_times: dict[str, int] = {}  # by run, ms: when it was finished first
        # Step and value of the last point, by run and metric.
        self.last_points: dict[tuple[str, str], tuple[int, float]] = {}
        self._lock = threading.RLock()
        for event in read_events(folder):
            self._index(event)
        # A line torn by a crash gets its end, so that the next event starts a new line.
        with (folder / SPOOL).open("a+b") as stream:
            if stream.tell() and os.pread(stream.fileno(), 1, stream.tell() - 1) != b"\n":
                stream.write(b"\n")

    def append(
        self, kind: str, run: str, content: Any, *, ident: str | None = None, at: int | None = None
    ) -> None:
        """Add an event, unless one of the same kind, run and `ident` exists.

        It reopens a finished run. `ident` defaults to a fingerprint of the content, and `at`, in
        ms, to now.
        """
        key = f"{kind}:{run}:{fingerprint({'content': content}) if ident is None else ident}"
        event = {
            "key": key,
            "kind": kind,
            "run": run,
            "time": time.time_ns() // 1_000_000 if at is None else at,
            "content": content,
        }
        with self._lock:
            if key in self.keys:
                return
            if kind != "status":
                self.reopen(run)
            self._index(event)
            try:
                with (self.folder / SPOOL).open("a") as stream:
                    stream.write(json.dumps(event) + "\n")
            except OSError as error:  # on a full disk, the run's own error must not be masked
                log.warning(
                    "%s could not be written (%s): MLflow may lack %s.",
                    *(self.folder / SPOOL, error, key),
                )

    def append_points(
        self, run: str, points: Sequence[tuple[str, Any, int]], *, corrects: bool = False
    ) -> None:
        """Add the metric points (name, value, step) that are finite and later than the metric's
        last recorded step; or, if they correct it, at that step with another value.
        """
        usable: list[tuple[str, float, int]] = []
        for name, value, step in points:
            if not isinstance(value, Real) or not math.isfinite(value):
                continue
            last_step, last_value = self.last_points.get((run, name), (step - 1, math.nan))
            is_correction = corrects and step == last_step and float(value) != last_value
            if step > last_step or is_correction:
                usable.append((name, float(value), int(step)))
        if usable:
            self.append("metrics", run, usable)

    def set_status(self, run: str, status: Status) -> None:
        """Add a run's new status.

        A run that was finished before has finished at that time: a later command that only reads
        its results does not make it longer.
        """
        at = self.finish_times.get(run) if status == "FINISHED" else None
        self.append("status", run, status, ident=str(len(self.statuses.get(run, []))), at=at)

    def reopen(self, run: str) -> None:
        """Set a run and those above it to RUNNING again, if they had finished."""
        parts = run.split("/")
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            if self.status(path) == "FINISHED":
                self.set_status(path, "RUNNING")

    def status(self, run: str) -> Status | None:
        """Return a run's last status, or None if it has not started."""
        return self.statuses[run][-1] if run in self.statuses else None

    def _index(self, event: Event) -> None:
        self.events.append(event)
        self.keys.add(event["key"])
        if event["kind"] == "status":
            self.statuses.setdefault(event["run"], []).append(event["content"])
            if event["content"] == "FINISHED":
                self.finish_times.setdefault(event["run"], event["time"])
        elif event["kind"] == "metrics":
            for name, value, step in event["content"]:
                self.last_points[event["run"], name] = (step, value)


class TrackedRun:
    """A run of the tree. As a context manager it ends with the body: FINISHED, FAILED or KILLED."""

    def __init__(
        self, spool: Spool, name: str, *, parent: str = "", params: Mapping[str, Any]
    ) -> None:
        self.spool = spool
        self.path = f"{parent}/{name}" if parent else name
        spool.append(
            "start", self.path, {"name": name, "parent": parent, "uid": uuid.uuid4().hex}, ident=""
        )
        if spool.status(self.path) != "FINISHED":
            spool.set_status(self.path, "RUNNING")
        if params:
            self.log_params(params)

    def stage(self, name: str, params: Mapping[str, Any] | None = None) -> "TrackedRun":
        """Start the child run with this name, or continue it."""
        return TrackedRun(self.spool, name, parent=self.path, params=params or {})

    def reopen(self) -> None:
        """Show the run as running, though it had finished and has nothing new to log yet."""
        self.spool.reopen(self.path)

    def log_metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Log scalars, without values that are not finite.

        A value that was logged before is not logged again. Another value at the same step is: of
        two points of one step, MLflow shows the later one.
        """
        points = [(name, value, step) for name, value in values.items()]
        self.spool.append_points(self.path, points, corrects=True)

    def log_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Log training records, each with its `step`, without steps that were logged before."""
        points: list[tuple[str, Any, int]] = []
        for record in records:
            points += [(name, record[name], record["step"]) for name in record if name != "step"]
        self.spool.append_points(self.path, points)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log params that are known only now; they may be nested."""
        self.spool.append("params", self.path, _flatten(params))

    def log_file(self, path: Path, folder: str = "") -> None:
        """Log a file as an artifact, again only when its content changed."""
        relative = os.path.relpath(path, self.spool.folder)  # so that the storage can be moved
        described = {"path": relative, "folder": folder, "sha256": file_digest(path)}
        self.spool.append("file", self.path, described)

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log rows as the table `<name>.json`, which MLflow shows and loads as a table."""
        columns: dict[str, None] = {}  # in the order in which they first appear
        for row in rows:
            columns |= dict.fromkeys(row)
        data = [list(map(_finite_or_none, map(row.get, columns))) for row in rows]
        table = json.loads(json.dumps({"columns": list(columns), "data": data}, default=str))
        self.spool.append(
            "table", self.path, {"file": f"{name.removesuffix('.json')}.json", "table": table}
        )

    def log_dataset(self, name: str, *, digest: str, rows: int, source: str, use: str) -> None:
        """Log data that this run used.

        Args:
            name: of the data.
            digest: of its content.
            rows: number of its rows.
            source: its path or address.
            use: `training` or `evaluation`.
        """
        described = {"name": name, "digest": digest, "rows": rows, "source": source, "use": use}
        self.spool.append("dataset", self.path, described)

    def log_model(self, name: str, folder: Path, params: Mapping[str, Any]) -> None:
        """Log a model that this run made. Its files stay in their folder."""
        described = {"name": name, "folder": display_path(folder), "params": _flatten(params)}
        self.spool.append("model", self.path, described, ident=name)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags. The last value of a tag replaces earlier ones."""
        if tags:
            self.spool.append("tags", self.path, {name: str(value) for name, value in tags.items()})

    def end(self, status: Status = "FINISHED") -> None:
        """End this run and its open children; children that have ended keep their status.

        A run that had finished, and fails now, has failed.
        """
        if status != "FINISHED":
            self.reopen()
        for run in reversed(list(self.spool.statuses)):
            in_tree = run == self.path or run.startswith(f"{self.path}/")
            if in_tree and self.spool.status(run) == "RUNNING":
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
        folder: of the experiment; one folder has one run tree.
        config: where MLflow is.
        store: the storage folder, which holds MLflow's files where no server is configured.
        name: of the run.
        params: may be nested; `loss: {beta: 1}` becomes `loss.beta`.
        tags: of the run.
    """
    destination = find_target(config, store)
    spool = Spool(folder, uri=destination.uri)
    target = destination.as_json()
    targets = [event["content"] for event in spool.events if event["kind"] == "target"]
    if targets[-1:] != [target]:
        spool.append("target", "", target, ident=str(len(targets)))
    limit = open_folder(store).database_limit()
    if limit and destination.artifacts:
        log.warning(
            "%s: MLflow's store is %s, on this node alone. Runs are recorded at the address all "
            "the same (`rlhfv-ray sync` brings them to any MLflow); --tracking.uri "
            "names a server that others reach.",
            *(limit, target["uri"]),
        )
    with _syncing(spool), TrackedRun(spool, name, params=params) as run:
        spool.append("tags", run.path, _source_tags(), ident="source")  # of the first command
        run.set_tags(tags)
        publish(folder / SPOOL)  # from here on, a successor on any node continues this run
        yield run
    publish(folder / SPOOL)


def sync_tracking(folder: Path, *, uri: str = "") -> bool:
    """Replay an experiment's spool into MLflow. Runs that a dead driver left open become KILLED.

    Args:
        folder: of the experiment.
        uri: of MLflow with its secrets; empty: the recorded one, with those of
            `MLFLOW_TRACKING_URI`.

    Returns:
        True if MLflow now has everything; otherwise a warning gives the reason.
    """
    try:
        with _replaying(folder, uri=uri) as replay:
            if replay.state.get("refused"):
                replay.state = {}  # start again; replaying an event twice does no harm
            return replay.sync(read_events(folder), abandoned=True)
    except StageFailedError:
        log.warning(
            "%s is still running, or another process replays it; that process sends it to MLflow.",
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
    """Replay until the run has ended, and then once more."""
    while True:
        ending = stopped.is_set()
        try:
            with _replaying(spool.folder, uri=spool.uri) as replay:
                _replay_until(stopped, spool, replay)
            return
        except StageFailedError:  # another process replays what an earlier driver left
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
        # A second attempt right after a failed one would only cost time.
        if ending or (stopped.is_set() and replay.unreached):
            return
        stopped.wait(RETRY_S if replay.unreached else SYNC_S)


@contextlib.contextmanager
def _replaying(folder: Path, *, uri: str = "") -> Iterator[Replay]:
    with hold_lease(folder / LEASE_FOLDER):
        yield Replay(folder, uri=uri)


def _status_after(error: BaseException | None) -> Status:
    """Return the status of a run by how its body ended; SIGTERM and Ctrl-C arrive as exceptions."""
    if isinstance(error, SystemExit):
        if error.code in (signal.SIGTERM, 128 + signal.SIGTERM):
            return "KILLED"
        return "FAILED" if error.code else "FINISHED"
    if isinstance(error, KeyboardInterrupt):
        return "KILLED"
    return "FAILED" if error else "FINISHED"


def _source_tags() -> dict[str, str]:
    """Return who started the run and with which command, by MLflow's own names."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    command = Path(sys.argv[0]).name
    kind = "JOB" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else "LOCAL"
    return {"mlflow.user": user, "mlflow.source.name": command, "mlflow.source.type": kind}


def _flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)
    return flat


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
