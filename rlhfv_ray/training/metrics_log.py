"""The record of a training run: one JSON line per update in `metrics.jsonl`.

Workers collect the records, the driver writes them, and MLflow, progress bar and figures read them.
Every update is in the file once and in order, also after a resume that repeats updates.
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ray.train import UserCallback

from rlhfv_ray.console import poll
from rlhfv_ray.errors import StorageError
from rlhfv_ray.storage.folder import display_path, open_folder
from rlhfv_ray.storage.lease import holds_lease

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
POLL_S = 1.0
BLOCK = 2**16  # bytes from the file's end that are searched for its last line

Record = Mapping[str, Any]


class RecordWriter(UserCallback):
    """Writes the workers' records to `metrics.jsonl`, in Ray Train's controller."""

    def __init__(self, folder: Path, token: str) -> None:
        self.folder, self.token = folder, token

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Append rank 0's records of updates that the file does not have yet."""
        write_records(self.folder, self.token, metrics[0]["records"])


def write_records(folder: Path, token: str, records: Sequence[Record]) -> None:
    """Append the records of updates that the file does not have yet.

    A driver that lost its lease appends nothing; its workers stop at their next checkpoint.
    """
    try:
        is_held = holds_lease(folder, token)
    except StorageError:  # nobody can take over what nobody reaches
        is_held = True
    if is_held:
        append_records(folder, records)


def append_records(folder: Path, records: Sequence[Record]) -> None:
    """Append the records of updates later than the last one in the file; only its end is read."""
    with (folder / METRICS_FILE).open("a+b") as stream:
        line, end = _last_line(stream)
        last = json.loads(line)["step"] if line else 0
        fresh = [record for record in records if record["step"] > last]
        stream.truncate(end)  # half a line, left by a writer that was killed
        stream.write("".join(json.dumps(record) + "\n" for record in fresh).encode())


def cut_damaged(folder: Path) -> None:
    """Cut a run's records off at the first line that is no record of the next update.

    Workers send the records of a checkpoint again, and the updates after it are repeated.
    """
    path = folder / METRICS_FILE
    if not path.exists():
        return
    end = 0
    with path.open("r+b") as stream:
        for step, line in enumerate(stream, start=1):
            if not _is_intact(line, step):
                logger.warning("%s is damaged from line %d on", display_path(path), step)
                stream.truncate(end)
                return
            end += len(line)


def _is_intact(line: bytes, step: int) -> bool:
    """Return True if a line is the record of an update."""
    try:
        return json.loads(line)["step"] == step
    except (ValueError, KeyError, TypeError):
        return False


def recorded_loss(folder: Path, step: int) -> float | None:
    """Return the loss that the file has of an update; None without a record, or if it was skipped.

    After a resume, these are updates that are about to be repeated.
    """
    # Never over a file that is here: the driver's may have more than the bucket's.
    open_folder(folder).fetch_missing(folder / METRICS_FILE)
    for record in read_records(folder):
        if record["step"] == step and not record.get("skipped"):
            return record.get("loss")
    return None


def _last_line(stream: BinaryIO) -> tuple[bytes, int]:
    """Return the last complete line, empty if there is none, and the position of its end."""
    size = stream.seek(0, os.SEEK_END)
    block = BLOCK
    while True:
        start = max(0, size - block)
        stream.seek(start)
        text = stream.read(size - start)
        end = text.rfind(b"\n") + 1
        line_start = text.rfind(b"\n", 0, max(0, end - 1)) + 1
        if line_start or not start:
            return text[line_start:end], start + end
        block *= 2


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return all records of a run, except a line that is still being written."""
    return _records_from(folder, 0)[0]


def _records_from(folder: Path, position: int) -> tuple[list[dict[str, Any]], int]:
    """Return the records of the complete lines from a byte position on, and where they end."""
    try:
        with (folder / METRICS_FILE).open("rb") as stream:
            stream.seek(position)
            text = stream.read()
    except FileNotFoundError:
        return [], position
    complete = text[: text.rfind(b"\n") + 1]
    return [json.loads(line) for line in complete.splitlines()], position + len(complete)


@contextlib.contextmanager
def tail_records(folder: Path, on_records: Callable[[Sequence[Record]], None]) -> Iterator[None]:
    """Call `on_records` with a run's new records while the body runs, and once after it."""
    position = 0

    def pass_on_new_records() -> None:
        nonlocal position
        records, position = _records_from(folder, position)
        if records:
            on_records(records)

    with poll(pass_on_new_records, POLL_S):
        yield
