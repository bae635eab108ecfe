"""Leases: one driver at a time writes a folder, on a disk and in a bucket."""

import os
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.storage import holder as holders
from rlhfv_ray.storage import lease as leases
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import is_there
from rlhfv_ray.storage.holder import NOBODY, this_process
from rlhfv_ray.storage.lease import held_lease, hold_lease, holds_lease
from rlhfv_ray.storage.lease_file import LEASE, BucketLease, holder_of, open_lease
from tests.conftest import wait_for
from tests.lease_race import most_holders

ROUNDS = 20


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
    assert not (tmp_path / LEASE).exists()


def test_a_process_knows_the_lease_around_a_path(tmp_path):
    """Catches: parts below a stage's folder that are written under no lease."""
    assert held_lease(tmp_path) is None
    with hold_lease(tmp_path) as token, hold_lease(tmp_path / "inner") as inner:
        assert held_lease(tmp_path / "answers-0") == open_lease(tmp_path, token)
        assert held_lease(tmp_path / "inner") == open_lease(tmp_path / "inner", inner)
    assert held_lease(tmp_path) is None


def test_who_lost_one_lease_takes_no_further_one(tmp_path):
    """Catches: a driver that slept, lost its run to another one, and goes on with the next stage,
    so that the other one ends with an error.
    """
    run, stage = tmp_path / "run", tmp_path / "stage"
    with pytest.raises(StageFailedError, match="run was taken over"), hold_lease(run):
        write_json(run / LEASE, {**this_process(), "token": "another"})
        with pytest.raises(StageFailedError, match="run was taken over"), hold_lease(stage):
            pytest.fail("the stage was begun")
    assert not stage.exists()


def test_reused_process_number_is_no_life_sign(tmp_path):
    """Catches: a dead holder taken for alive because another process has its number now."""
    write_json(tmp_path / LEASE, {**this_process(), "token": "old", "started": 1.0})
    with hold_lease(tmp_path) as token:
        assert holds_lease(tmp_path, token)
        assert not holds_lease(tmp_path, "old")


def test_a_holder_out_of_sight_is_judged_by_its_heartbeat(tmp_path, monkeypatch):
    """Catches: a lost node's lease that is never, or at once, taken over; another host's clock."""
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(leases, "STALE_S", 60.0)
    lease = tmp_path / LEASE
    write_json(lease, {"token": "far", "host": "elsewhere", "pid": 1, "started": 1.0})
    beats = threading.Timer(0.5, os.utime, (lease, (1, 1)))  # by a clock that stands at 1970
    beats.start()
    with pytest.raises(StageFailedError, match="elsewhere"), hold_lease(tmp_path):
        pass
    beats.join()
    monkeypatch.setattr(leases, "STALE_S", 1.0)
    started = time.monotonic()
    with hold_lease(tmp_path):
        assert time.monotonic() - started > 1.0


def test_a_held_lease_shows_its_heartbeat(tmp_path, monkeypatch):
    """Catches: a live driver whose lease expires for other hosts."""
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.05)
    with hold_lease(tmp_path) as token:
        before = open_lease(tmp_path, token).read()
        wait_for(lambda: open_lease(tmp_path, token).read() != before, 10)


@pytest.mark.slow
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
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.2)
    with hold_lease(folder) as token:
        assert (folder / "spool").read_text() == "so far"
        assert holds_lease(folder, token) and not holds_lease(folder, "another")
        monkeypatch.setattr(holders.socket, "gethostname", lambda: "elsewhere")
        with pytest.raises(StageFailedError, match="is being written"), hold_lease(folder):
            pass
    lease = open_lease(folder, "far")
    released = lease.read()
    assert lease.path == folder / f".{LEASE}" and holder_of(released) == NOBODY
    assert lease.claim({"token": "far", "host": "gone", "pid": 1, "started": 1.0}, released)
    monkeypatch.setattr(leases, "STALE_S", 0.5)
    with hold_lease(folder):
        pass


def test_a_lease_that_was_lost_is_not_renewed(node):
    """Catches: a former holder that overwrites its successor's lease, or publishes its files."""
    folder = node("a") / "folder"
    folder.mkdir()
    (folder / "late").write_text("from the former holder")
    former = open_lease(folder, "former")
    successor = open_lease(folder, "successor")
    assert successor.claim({"token": "successor"}, None)
    former.beat()
    assert holds_lease(folder, "successor") and not is_there(folder / "late")
    successor.beat()
    assert holds_lease(folder, "successor") and is_there(folder / "late")


def test_a_release_takes_nothing_from_a_successor(node):
    """Catches: a former holder that slept after its look at the lease, and deletes another's."""
    folder = node("a") / "folder"
    successor = open_lease(folder, "successor")

    class Slept(BucketLease):
        def read(self):
            seen = super().read()
            assert successor.claim({"token": "successor"}, seen)
            return seen

    former = open_lease(folder, "former")
    assert isinstance(former, BucketLease) and former.claim({"token": "former"}, None)
    Slept(former.file, former.token).release()
    assert holds_lease(folder, "successor")


@pytest.mark.slow
def test_of_many_claims_one_succeeds(node):
    """Catches: a lease that two hold."""
    folder = node("a") / "folder"
    code = f"""
from pathlib import Path
from rlhfv_ray.storage.lease_file import open_lease
print(open_lease(Path({str(folder)!r}), "token").claim({{"token": "me"}}, None))
"""
    claimants = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    outcomes = [claimant.communicate()[0].strip() for claimant in claimants]
    assert sorted(outcomes) == ["False"] * 3 + ["True"]


@pytest.mark.slow
def test_a_dead_holder_has_one_successor_on_a_disk(tmp_path):
    """Catches: two of four drivers that start together and both take over a dead one's lease."""
    assert most_holders(tmp_path, rounds=ROUNDS) == [1] * ROUNDS


@pytest.mark.slow
def test_a_dead_holder_has_one_successor_in_a_bucket(node, monkeypatch):
    """Catches: two successors of a dead driver where a lease cannot be locked."""
    storage = node("a")
    monkeypatch.setenv("TMPDIR", tempfile.gettempdir())  # drivers have the same mirror
    assert most_holders(storage, rounds=ROUNDS) == [1] * ROUNDS
