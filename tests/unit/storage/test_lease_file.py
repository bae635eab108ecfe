"""The file of a lease on odd file systems: without hard links, without locks, half written."""

import errno
import fcntl
import os
import time
from pathlib import Path

import pytest

from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.storage import lease as leases
from rlhfv_ray.storage.folder import open_folder
from rlhfv_ray.storage.lease import hold_lease, holds_lease
from rlhfv_ray.storage.lease_file import LEASE, holder_of, is_held, open_lease
from tests.conftest import wait_for


def refuse(code: int):
    """Return a function that raises the error of this number."""

    def refused(*args: object, **settings: object) -> None:
        raise OSError(code, os.strerror(code))

    return refused


@pytest.mark.parametrize("text", ["", '{"token": "ol', "null"])
def test_a_lease_that_cannot_be_read_is_taken_over_when_it_is_stale(text, tmp_path, monkeypatch):
    """Catches: a traceback for a lease that a full disk cut off; one taken over at once."""
    monkeypatch.setattr(leases, "STALE_S", 0.2)
    (tmp_path / LEASE).write_text(text)
    assert not holds_lease(tmp_path, "old")
    started = time.monotonic()
    with hold_lease(tmp_path) as token:
        assert holds_lease(tmp_path, token) and time.monotonic() - started > 0.2


def test_one_failed_heartbeat_is_not_the_last(tmp_path, monkeypatch):
    """Catches: a live driver that is taken over because a network file system hiccuped once."""
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.05)
    with hold_lease(tmp_path) as token:
        lease = open_lease(tmp_path, token)
        with monkeypatch.context() as hiccup:
            failed: list[Path] = []

            def fail(path: Path, *args: object) -> None:
                failed.append(path)
                refuse(errno.ESTALE)()

            hiccup.setattr(os, "utime", fail)
            wait_for(lambda: bool(failed), 10)
        before = lease.read()
        wait_for(lambda: lease.read() != before, 10)


def test_a_lease_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    """Catches: a worker that stops because another host wrote the lease in between."""
    lease = open_lease(tmp_path, "me")
    assert lease.claim({"token": "me"}, None)
    fstat, stale = os.fstat, iter([True, True])
    with monkeypatch.context() as network:
        network.setattr(
            os,
            "fstat",
            lambda number: refuse(errno.ESTALE)() if next(stale, False) else fstat(number),
        )
        assert holder_of(lease.read()) == {"token": "me"}


def test_no_hard_links_are_needed(tmp_path, node, monkeypatch):
    """Catches: a lease, or a node's copy of a bucket, that fails on exFAT or a FUSE mount."""
    folder = open_folder(node("a"))
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    with hold_lease(tmp_path / "disk") as token:
        assert holds_lease(tmp_path / "disk", token)
    assert folder.copy_id() == folder.copy_id() != ""


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    """Catches: a bare OSError, or two drivers in one folder, where nothing can be locked."""
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EOPNOTSUPP))
    with pytest.raises(StageFailedError, match="without file locks.*another storage"):
        open_lease(tmp_path, "me").claim({"token": "me"}, None)


def test_a_stopped_process_that_keeps_the_lock_is_named(tmp_path, monkeypatch):
    """Catches: a driver that waits for ever for one that was stopped in the middle of a write."""
    lease = open_lease(tmp_path, "me")
    assert lease.claim({"token": "me"}, None)
    monkeypatch.setattr("rlhfv_ray.storage.lease_file.LOCK_S", 0.2)
    with (
        lease.holding(),
        pytest.raises(StageFailedError, match="locked by another process for 0.2 s"),
    ):
        open_lease(tmp_path, "other").release()
    lease.release()
    assert lease.read() is None and not is_held(lease)
