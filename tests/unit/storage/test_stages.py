"""Stages: made once, by one driver at a time."""

import json
import os
import subprocess
import sys
import time

import pytest

from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.lease import LEASE, hold_lease, holds_lease
from rlhfv_ray.storage.stages import Stage, is_done, run_stages


def stage(calls, inputs=None):
    return Stage(
        "work", inputs or {"seed": 1}, lambda folder, token: calls.append(folder), title="work"
    )


def test_done_stage_is_skipped_and_other_inputs_are_not(tmp_path):
    """Catches: work done twice, or a result reused for other inputs."""
    calls = []
    first = run_stages([stage(calls)], tmp_path)[0]
    again = run_stages([stage(calls)], tmp_path)[0]
    other = run_stages([stage(calls, {"seed": 2})], tmp_path)[0]
    assert (first.skipped, again.skipped, other.skipped) == (False, True, False)
    assert first.folder == again.folder != other.folder
    assert len(calls) == 2
    assert json.loads((first.folder / "config.json").read_text()) == {"seed": 1}


def test_failed_stage_is_not_done_and_lets_go(tmp_path):
    """Catches: SUCCESS after a failure; a lease that outlives its stage."""

    def fail(folder, token):
        raise StageFailedError("no")

    failing = Stage("work", {"seed": 1}, fail, title="work")
    with pytest.raises(StageFailedError):
        run_stages([failing], tmp_path)
    folder = failing.folder(tmp_path)
    assert not is_done(folder)
    assert not (folder / LEASE).exists()


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
    assert (tmp_path / LEASE).exists()  # it died without letting go
    with hold_lease(tmp_path) as token:
        assert holds_lease(tmp_path, token)
    assert not (tmp_path / LEASE).exists()


def test_reused_process_number_is_no_life_sign(tmp_path):
    """Catches: a dead holder taken for alive because its process number was given to another process."""
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
