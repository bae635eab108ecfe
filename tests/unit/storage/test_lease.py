"""Leases: one driver at a time writes a folder, on a disk and in a bucket."""

import json
import os
import subprocess
import sys
import time

import pytest

from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.storage import lease as leases
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import is_there
from rlhfv_ray.storage.lease import LEASE, hold_lease, holds_lease, open_lease
from tests.conftest import wait_for


def test_second_driver_is_refused_and_dead_one_taken_over(tmp_path):
    """Catches: two writers in a folder; a folder locked for ever by a killed driver."""
    code = f"""
import time
from pathlib import Path
from rlhfv_ray.storage.lease import hold_lease
with hold_lease(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StageFailedError, match=f"process {holder.pid}"), hold_lease(tmp_path):
        pass
    holder.kill()
    holder.wait()
    assert (tmp_path / LEASE).exists()  # it died without a release
    with hold_lease(tmp_path) as token:
        assert holds_lease(tmp_path, token)
    assert list(tmp_path.iterdir()) == []


def test_reused_process_number_is_no_life_sign(tmp_path):
    """Catches: a dead holder taken for alive because another process has its number now."""
    write_json(
        tmp_path / LEASE,
        {"token": "old", "host": os.uname().nodename, "pid": os.getpid(), "started": 1.0},
    )
    with hold_lease(tmp_path) as token:
        assert holds_lease(tmp_path, token)
        assert not holds_lease(tmp_path, "old")


def test_other_hosts_lease_dies_with_its_heartbeat(tmp_path):
    """Catches: a lease of a lost node that is never, or at once, taken over."""
    write_json(tmp_path / LEASE, {"token": "far", "host": "elsewhere", "pid": 1, "started": 1.0})
    with pytest.raises(StageFailedError, match="elsewhere"), hold_lease(tmp_path):
        pass
    long_ago = time.time() - 120
    os.utime(tmp_path / LEASE, (long_ago, long_ago))
    with hold_lease(tmp_path):
        pass


def test_a_held_lease_shows_its_heartbeat(tmp_path, monkeypatch):
    """Catches: a live driver whose lease expires for other hosts."""
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.05)
    with hold_lease(tmp_path) as token:
        os.utime(tmp_path / LEASE, (1, 1))
        wait_for(lambda: open_lease(tmp_path, token).read()[1] > 1, 10)


def test_one_driver_at_a_time_and_the_dead_are_taken_over(node, monkeypatch):
    """Catches: two writers of a folder; one locked for ever, or taken from a node that lives."""
    storage = node("a") / "folder"
    code = f"""
import time
from pathlib import Path
from rlhfv_ray.storage import lease as leases
leases.HEARTBEAT_S = 0.2
with leases.hold_lease(Path({str(storage)!r})):
    Path({str(storage)!r}, "spool").write_text("so far")
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(StageFailedError, match=f"s3://.* is being written by process {holder.pid}"),
        hold_lease(storage),
    ):
        pass
    wait_for(lambda: is_there(storage / "spool"), 30)  # published by a heartbeat
    holder.kill()
    holder.wait()
    folder = node("b") / "folder"
    with hold_lease(folder) as token:
        assert (folder / "spool").read_text() == "so far"
        assert holds_lease(folder, token) and not holds_lease(folder, "another")
        monkeypatch.setattr(leases.socket, "gethostname", lambda: "elsewhere")
        with pytest.raises(StageFailedError, match="is being written"), hold_lease(folder):
            pass
    lease = open_lease(folder, "far")
    assert lease.path == folder / f".{LEASE}" and not is_there(lease.path)
    assert lease.claim(json.dumps({"token": "far", "host": "gone", "pid": 1, "started": 1.0}))
    monkeypatch.setattr(leases, "STALE_S", -1.0)
    with hold_lease(folder):
        pass


def test_a_lease_that_was_lost_is_not_renewed(node):
    """Catches: a former holder that overwrites its successor's lease, or publishes its files."""
    folder = node("a") / "folder"
    folder.mkdir()
    (folder / "late").write_text("from the former holder")
    former = open_lease(folder, "former")
    successor = open_lease(folder, "successor")
    assert successor.claim('{"token": "successor"}')
    former.beat()
    assert holds_lease(folder, "successor") and not is_there(folder / "late")
    successor.beat()
    assert holds_lease(folder, "successor") and is_there(folder / "late")


def test_of_many_claims_one_succeeds(node):
    """Catches: a lease that two hold."""
    folder = node("a") / "folder"
    code = f"""
from pathlib import Path
from rlhfv_ray.storage.lease import open_lease
print(open_lease(Path({str(folder)!r}), "token").claim("me"))
"""
    claimants = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    outcomes = [claimant.communicate()[0].strip() for claimant in claimants]
    assert sorted(outcomes) == ["False"] * 3 + ["True"]
