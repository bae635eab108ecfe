"""Drivers that race for folders whose leases a dead driver left, again and again."""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized, SynchronizedArray
from pathlib import Path
from typing import Any

from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.storage.holder import this_process
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.storage.lease_file import open_lease

DRIVERS = 4
HELD_S = 0.05
# No process has this number. The host is today's, so that the holder is known to be dead.
DEAD = {"token": "dead", "pid": 2**22 - 1, "started": 1.0}


def most_holders(storage: Path, *, rounds: int) -> list[int]:
    """Return the largest number of drivers that held the lease at one time, for each round."""
    for number in range(rounds):
        folder = storage / f"round-{number}"
        folder.mkdir(parents=True)
        assert open_lease(folder, "dead").claim({**this_process(), **DEAD}, None)
    context = multiprocessing.get_context("spawn")
    barrier, inside = context.Barrier(DRIVERS), context.Value("i", 0)
    peaks = context.Array("i", rounds)
    drivers = [
        context.Process(target=drive, args=(storage, barrier.wait, inside, peaks))
        for _ in range(DRIVERS)
    ]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert [driver.exitcode for driver in drivers] == [0] * DRIVERS
    return list(peaks)


def drive(
    storage: Path,
    wait: Callable[[], Any],
    inside: "Synchronized[int]",
    peaks: "SynchronizedArray[int]",
) -> None:
    """Ask for every round's lease at the same time as all other drivers."""
    for number in range(len(peaks)):
        wait()
        try:
            with hold_lease(storage / f"round-{number}"):
                with inside.get_lock():
                    inside.value += 1
                    peaks[number] = max(peaks[number], inside.value)
                time.sleep(HELD_S)
                with inside.get_lock():
                    inside.value -= 1
        except StageFailedError:
            pass
        wait()
