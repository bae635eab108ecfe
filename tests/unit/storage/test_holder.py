"""The process that holds a lease: seen to live, seen to be dead, or out of sight."""

import subprocess
import sys
import time

import psutil
import pytest

from rlhfv_ray.storage import holder as holders
from rlhfv_ray.storage.holder import is_alive, this_process
from tests.conftest import wait_for


def test_this_process_lives_and_an_ended_one_does_not():
    """Catches: a dead holder that blocks its folder, also while no parent has noticed its end."""
    assert is_alive(this_process()) is True
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(child.pid).create_time() - psutil.boot_time()
    holder = {**this_process(), "pid": child.pid, "started": started}
    assert is_alive(holder) is True
    child.kill()
    wait_for(lambda: is_alive(holder) is False, 10)  # a zombie
    child.wait()
    assert is_alive(holder) is False


@pytest.mark.parametrize("name", ["host", "boot", "pid_namespace"])
def test_a_process_number_of_another_place_says_nothing(name):
    """Catches: a container with the same host name whose living driver is taken for dead."""
    dead = {**this_process(), "pid": 2**22 - 1}
    assert is_alive(dead) is False
    assert is_alive({**dead, name: "another"}) is None
    assert is_alive({}) is None  # a lease that cannot be read


def test_a_hidden_process_is_out_of_sight(monkeypatch):
    """Catches: a living driver of another user taken for dead where /proc hides it."""

    def hide(pid: int | None = None) -> psutil.Process:
        raise psutil.NoSuchProcess(pid or 0)

    holder = this_process()
    monkeypatch.setattr(holders.psutil, "Process", hide)
    assert is_alive(holder) is None


def test_a_wall_clock_that_is_set_ends_no_life(monkeypatch):
    """Catches: a living driver taken for dead because the clock was put forward."""
    holder = this_process()
    boot_time, hour = psutil.boot_time(), 3600
    create_time = psutil.Process().create_time()
    monkeypatch.setattr(psutil, "boot_time", lambda: boot_time + hour)
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: create_time + hour)
    assert is_alive(holder) is True
    assert abs(holder["started"] - (create_time - boot_time)) < 1 < time.monotonic()
