"""`metrics.jsonl`: every update once after any interruption, and readable while it grows."""

import json
import threading
import time

import pytest

from rlhfv_ray.training import metrics_log
from rlhfv_ray.training.metrics_log import (
    METRICS_FILE,
    append_records,
    cut_damaged,
    read_records,
    recorded_loss,
    tail_records,
)


def records(*steps):
    return [{"step": step, "loss": step / 10} for step in steps]


def test_each_update_once(tmp_path):
    """Catches: updates doubled by a resume, or lost because the driver missed a report."""
    append_records(tmp_path, records(1, 2, 3))
    append_records(tmp_path, records(2, 3, 4, 5))
    append_records(tmp_path, records(1, 2, 3, 4, 5, 6))
    append_records(tmp_path, [])
    assert read_records(tmp_path) == records(1, 2, 3, 4, 5, 6)


def test_no_file_is_no_records(tmp_path):
    """Catches: watching a run that has not reported yet."""
    assert read_records(tmp_path) == []


def test_line_being_written_is_left_out(tmp_path):
    """Catches: half a line read as a broken record while the driver writes it."""
    append_records(tmp_path, records(1, 2))
    with (tmp_path / METRICS_FILE).open("a") as stream:
        stream.write('{"step": 3, "lo')
    assert read_records(tmp_path) == records(1, 2)


def test_line_torn_by_a_crash_does_not_spoil_the_next(tmp_path):
    """Catches: a writer killed in a line, after which the record cannot be read any more."""
    append_records(tmp_path, records(1, 2))
    with (tmp_path / METRICS_FILE).open("a") as stream:
        stream.write('{"step": 3, "lo')
    append_records(tmp_path, records(2, 3, 4))
    assert read_records(tmp_path) == records(1, 2, 3, 4)


def test_odd_values_survive(tmp_path):
    """Catches: pair ids that break a line.

    `str.splitlines` takes U+2028 for the end of a line.
    """
    unusual = [{"step": 1, "skipped_pairs": ["a\u2028b", "c\nd", "é😀"], "grad_norm": None}]
    append_records(tmp_path, unusual)
    assert read_records(tmp_path) == unusual
    assert len((tmp_path / METRICS_FILE).read_bytes().splitlines()) == 1


def test_a_report_reads_one_line_and_a_second_only_what_is_new(tmp_path, monkeypatch):
    """Catches: a file read whole at every report, or every second, which grows with the square."""
    monkeypatch.setattr(metrics_log, "POLL_S", 0.1)
    monkeypatch.setattr(metrics_log, "BLOCK", 64)  # lines are longer: the search has to widen
    read = [0]
    loads = json.loads

    def counted(line):
        read[0] += 1
        return loads(line)

    monkeypatch.setattr(metrics_log.json, "loads", counted)
    received = []
    for step in range(1, 201):
        append_records(tmp_path, [{"step": step, "skipped_pairs": ["x" * (step % 150)]}])
    assert read[0] == 199  # the last line, once a report
    with tail_records(tmp_path, received.extend):
        wait_for(lambda: len(received) == 200)
        time.sleep(2.2 * metrics_log.POLL_S)
    assert read[0] == 399
    assert [record["step"] for record in received] == list(range(1, 201))


def test_following_sees_all_once_and_in_order(tmp_path, monkeypatch):
    """Catches: the last records of a run never shown, or records shown twice."""
    monkeypatch.setattr(metrics_log, "POLL_S", 0.1)
    received = []
    with tail_records(tmp_path, lambda new: received.extend(new)):
        append_records(tmp_path, records(1))
        wait_for(lambda: received)
        append_records(tmp_path, records(2, 3))
        wait_for(lambda: len(received) == 3)
        append_records(tmp_path, records(4))
    assert received == records(1, 2, 3, 4)


def test_following_starts_with_what_is_there(tmp_path):
    """Catches: a resumed run whose bar and figures lack the updates before the resume."""
    append_records(tmp_path, records(1, 2))
    received = []
    with tail_records(tmp_path, received.append):
        pass
    assert received == [records(1, 2)]


def test_following_ends_with_its_body(tmp_path):
    """Catches: a watcher that outlives a failed run, or hides its error."""
    before = set(threading.enumerate())
    received = []
    with pytest.raises(RuntimeError, match="lost"), tail_records(tmp_path, received.extend):
        append_records(tmp_path, records(1))
        raise RuntimeError("lost")
    assert received == records(1)
    assert not set(threading.enumerate()) - before


def wait_for(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "nothing was seen"
        time.sleep(0.02)


def test_file_is_json_lines(tmp_path):
    """Catches: a record other tools cannot read."""
    append_records(tmp_path, records(1, 2))
    lines = (tmp_path / METRICS_FILE).read_text().split("\n")
    assert [json.loads(line)["step"] for line in lines[:-1]] == [1, 2]
    assert lines[-1] == ""


@pytest.mark.parametrize(
    "damage", [b"\x00\x00\n", b'{"step": 7}\n', b"[]\n", b'{"loss": 1}\n', b"\n"]
)
@pytest.mark.parametrize("update", [1, 2, 3])
def test_records_are_cut_off_at_a_damaged_line(tmp_path, update, damage):
    """Catches: a run that cannot go on for a line that a full or lost disk left, or that goes on
    behind it, with an update missing.
    """
    append_records(tmp_path, records(1, 2, 3))
    cut_damaged(tmp_path)
    assert read_records(tmp_path) == records(1, 2, 3)
    path = tmp_path / METRICS_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[: update - 1], damage, *lines[update:]]))
    cut_damaged(tmp_path)
    assert read_records(tmp_path) == records(1, 2, 3)[: update - 1]
    append_records(tmp_path, records(1, 2, 3, 4))
    assert read_records(tmp_path) == records(1, 2, 3, 4)


def test_no_records_are_not_damaged(tmp_path):
    """Catches: a first run that fails for lack of a file, or an empty file that is an error."""
    cut_damaged(tmp_path)
    assert not (tmp_path / METRICS_FILE).exists()
    (tmp_path / METRICS_FILE).touch()
    cut_damaged(tmp_path)
    assert read_records(tmp_path) == []


def test_loss_of_a_recorded_update(tmp_path):
    """Catches: the update before or after taken, or a skipped one's loss."""
    skipped = {"step": 3, "loss": 9.0, "skipped": 1}
    append_records(tmp_path, [*records(1, 2), skipped])
    losses = [recorded_loss(tmp_path, step) for step in range(1, 5)]
    assert losses == [0.1, 0.2, None, None]
