"""The process that holds a lease: how it is named, and what can be known about its life.

A process number means something only under one boot of one machine, in one PID namespace. All
three are part of a holder's name. Containers can share a host name and still have numbers of
their own.
"""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

NOBODY = {"released": True}  # in place of a holder


def this_process() -> dict[str, Any]:
    """Return the name of this process, unique among all processes of all hosts."""
    return {**_place(), "pid": os.getpid(), "started": _started(psutil.Process())}


def is_alive(holder: Mapping[str, Any]) -> bool | None:
    """Return True for a living process, False for a dead one, None for one that cannot be seen.

    Processes of other hosts and of other containers cannot be seen. Neither can those of other
    users where /proc hides them.
    """
    if holder == NOBODY:
        return False
    if any(holder.get(name) != value for name, value in _place().items()):
        return None
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it exists, and belongs to another user
        pass
    try:
        process = psutil.Process(holder["pid"])
        is_same = abs(_started(process) - holder["started"]) < 1.5  # s; boot time is in whole ones
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return None


def _place() -> dict[str, str]:
    """Return where this process's number is valid; empty texts on a system without /proc."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "pid_namespace": os.readlink(namespace) if namespace.exists() else "",
    }


def _started(process: psutil.Process) -> float:
    """Return a process's start in seconds since boot: setting the wall clock does not move it."""
    return process.create_time() - psutil.boot_time()
