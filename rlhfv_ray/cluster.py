"""Starts or joins Ray, checks that a job fits the cluster, and unwraps Ray's errors."""

import contextlib
import logging
import os
import re
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import ray
import ray.data

# Ray has no public functions for the record of `ray start`, and for jobs without a dashboard.
from ray._private.services import find_bootstrap_address
from ray._private.state import available_resources_per_node, jobs
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from rlhfv_ray.autoscaling import (
    Resources,
    autoscaling_state,
    bundle_text,
    count_placed,
    is_infeasible,
    launches_text,
    living_nodes,
    possible_room,
)
from rlhfv_ray.config import ScaleConfig
from rlhfv_ray.errors import MENDED_BY_USERS, ConfigError, RlhfvError, StageFailedError

logger = logging.getLogger(__name__)

STDERR = 2  # file descriptor
LEVEL_LINE = b"Set ray log level from environment variable"
NEVER_RAN = "The actor never ran"  # in Ray's error for an actor that it thinks nobody needs
OBJECT_STORE_BYTES = 512 * 1024**2  # for a Ray started here; a cluster keeps its own setting
OWN_RAY = {  # environment of a Ray started here, which this command alone uses
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Processes wait for the next stage's tasks, with what they imported. Ray would end them when
    # they had been idle for a second, and there were more of them than CPUs.
    "RAY_idle_worker_killing_time_threshold_ms": str(24 * 3600 * 1000),
    "RAY_prestart_worker_first_driver": "0",  # a process for each CPU before any task asks for it
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # of cloud nodes
    "RLHFV_PRIVATE_RAY": "1",  # for `is_private`, also in the processes that this Ray starts
}
ANSWER_S = 10.0  # a Ray that does not answer within this time is gone
QUIET_S = 5.0  # resources that are free again within this time need no message
POLL_S = 1.0


def connect() -> None:
    """Join the Ray cluster that people started, or start one for this process alone.

    RAY_ADDRESS names a cluster, as it does inside a Ray job. Without it, the one that `ray start`
    recorded on this machine is joined. A Ray that another command started for itself is left alone:
    it ends with that command. Workers' output stays in Ray's logs: the driver prints what users
    need to know.

    Raises:
        ConfigError: the cluster of RAY_ADDRESS does not answer, or the temporary folder's name is
            too long for Ray's sockets.
    """
    if ray.is_initialized():
        return
    settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    address = cluster_address()
    if address:
        os.environ.pop("RLHFV_PRIVATE_RAY", None)  # of a Ray that started this command
        try:
            with without_level_line(), answer_to_sigterm():
                ray.init(address, **settings)
        except (ConnectionError, RuntimeError) as error:  # RuntimeError: of another version
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"The Ray at {address} cannot be joined: {reason}. Give the address of another "
                "cluster in RAY_ADDRESS; RAY_ADDRESS=local starts one for this command alone."
            ) from error
        return
    for name, value in OWN_RAY.items():
        os.environ.setdefault(name, value)
    if not os.access(os.path.expanduser("~"), os.W_OK):  # where Ray would keep a token of its own
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    settings |= {
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,  # ten processes that nobody looks at
    }
    try:
        with without_level_line(), answer_to_sigterm():
            ray.init("local", **settings)
    except OSError as error:
        if "AF_UNIX" not in str(error):
            raise
        folder = tempfile.gettempdir()
        raise ConfigError(
            f"TMPDIR = {folder!r} has {len(folder)} characters, and Ray puts sockets below it, "
            "whose names may have 107 in all: give TMPDIR one of at most 40."
        ) from error


@contextlib.contextmanager
def without_level_line() -> Iterator[None]:
    """Keep a line of Ray's on the log level of `OWN_RAY` off the terminal.

    Ray's C++ code writes it to the process's standard error, where Python cannot filter it. Every
    other line of the body is written after it.
    """
    sys.stderr.flush()
    terminal = os.dup(STDERR)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), STDERR)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, STDERR)
            os.close(terminal)
            written.seek(0)
            lines = [line for line in written if LEVEL_LINE not in line]
            os.write(STDERR, b"".join(lines))


@contextlib.contextmanager
def answer_to_sigterm() -> Iterator[None]:
    """Keep this process's answer to SIGTERM, which `ray.init` replaces at its start.

    Ray's prints a stack trace of its C++ code, and ends with the code 15.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit as stopped:
        if stopped.code == signal.SIGTERM:
            handler(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


def is_private() -> bool:
    """Return True if this process is of a Ray that one command started for itself alone."""
    return "RLHFV_PRIVATE_RAY" in os.environ


def cluster_address() -> str:
    """Return the address of the cluster to join; empty if there is none.

    Raises:
        ConfigError: the cluster of RAY_ADDRESS does not answer.
    """
    given = os.environ.get("RAY_ADDRESS", "")
    if given not in ("", "auto"):
        if given != "local" and not answers(given, ANSWER_S):
            raise ConfigError(
                f"RAY_ADDRESS = {given!r}: no Ray answers there within {ANSWER_S:g} s. Start that "
                "cluster or correct the address. Without RAY_ADDRESS, this command starts a Ray "
                "of its own."
            )
        return "" if given == "local" else given
    recorded = find_bootstrap_address(None) or ""
    if recorded and not answers(recorded, ANSWER_S):
        logger.warning(
            "The Ray at %s, which `ray start` recorded on this machine, does not answer. This "
            "command starts a Ray of its own; `ray stop` removes the record.",
            recorded,
        )
        return ""
    return recorded


def answers(address: str, timeout: float) -> bool:
    """Return True if a gRPC server, as Ray's head is one, answers at `host:port` within seconds.

    An address of another form (ray://...) is left to Ray.
    """
    if not re.fullmatch(r"[^/]+:\d+", address) or os.environ.get("RAY_USE_TLS", "0") != "0":
        return True
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=timeout)
        except grpc.FutureTimeoutError:
            return False
    return True


def wait_for_resources(purpose: str, bundles: Sequence[Resources], *, timeout: float) -> None:
    """Wait until the cluster can place these bundles at once; say what is waited for.

    The wait itself asks for the resources, so that an autoscaler starts nodes for it: a placement
    group is withdrawn with this process, while `request_resources` would outlive it and keep nodes
    that nobody uses.

    Args:
        purpose: what needs them, for the message.
        bundles: resources by name, for each process.
        timeout: seconds to wait for nodes that are not there. What other jobs hold is waited for
            without an end.

    Raises:
        ConfigError: nodes do not come in time, or no node type can give what is needed.
    """
    # A group outlives an actor that is killed in here (a trial), and would keep what it holds from
    # the actor's successor until the job ends. So none is made where there is room.
    if _has_room(bundles):
        return
    group = placement_group([dict(bundle) for bundle in bundles])
    try:
        if not group.wait(QUIET_S):
            _wait_for_group(group, purpose, bundles, timeout)
    finally:
        remove_placement_group(group)


def _has_room(bundles: Sequence[Resources]) -> bool:
    """Return True if the nodes have as much of every resource free as the bundles ask for."""
    return count_placed(bundles, list(available_resources_per_node().values())) == len(bundles)


def _wait_for_group(
    group: PlacementGroup, purpose: str, bundles: Sequence[Resources], timeout: float
) -> None:
    """Wait for a placement group, and log every change of what it waits for."""
    counts = Counter(map(bundle_text, bundles))
    needs = " and ".join(f"{count} x ({text})" for text, count in counts.items())
    deadline = time.monotonic() + timeout
    logged = ""
    while not group.wait(POLL_S):
        placed = count_placed(bundles, living_nodes())
        if placed == len(bundles):  # all nodes are there, and others use them
            deadline = time.monotonic() + timeout
            message = f"{purpose} waits until {needs} are free. {_other_jobs()}"
        else:
            state = autoscaling_state()
            report = launches_text(state)
            lacking = f"{purpose} needs {needs}, and the nodes have room for {placed}."
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{lacking} No other nodes came within {timeout:g} s (scale.start_timeout). "
                    f"{report} Look at `ray status` and at the quota and capacity of the zone, use "
                    "fewer workers or actors, or raise --scale.start-timeout; then run the same "
                    "command again."
                )
            if is_infeasible(group, state) and not _running_beside():
                raise ConfigError(
                    f"{lacking} The autoscaler has no node type for the rest. Use fewer workers or "
                    "actors, fewer --scale.cpus each, or allow more nodes in the cluster's file."
                )
            message = f"{lacking} It waits up to {timeout:g} s for more nodes. {report}"
        if message != logged:
            logger.warning(message.strip())
            logged = message


def _running_beside() -> list[str]:
    """Return the drivers that run on the cluster beside this one."""
    own = ray.get_runtime_context().get_job_id()
    return [
        f"{job.get('Entrypoint') or 'a driver'} (process {job['DriverPid']} on "
        f"{job['DriverIPAddress']})"
        for job in jobs()
        if not job["IsDead"] and job["JobID"] != own
    ]


def _other_jobs() -> str:
    """Return a sentence with the drivers that run on the cluster beside this one."""
    running = _running_beside()
    return f"Running beside it: {'; '.join(running)}." if running else "No other job is running."


def check_fits(
    scale: ScaleConfig, *, who: Sequence[str] = ("workers", "actors"), setting: str = "scale"
) -> None:
    """Check that the cluster, when empty, can hold the training workers and the actors.

    Nodes that an autoscaler may start count as if they were there.

    Args:
        scale: the number of workers and actors, and their CPUs and GPUs.
        who: "workers", "actors" or both: those that the job needs.
        setting: name of the setting that holds `scale`, for the message.

    Raises:
        ConfigError: it cannot; the message has all that is needed and what the cluster may have.
    """
    actor_bundles = [scale.resources] * scale.actors
    if scale.gpu:
        actor_bundles.append({"CPU": prepare_cpus(scale)})
    counts = {"workers": scale.least_workers, "actors": scale.actors}
    needs = {"workers": [scale.resources] * counts["workers"], "actors": actor_bundles}
    rooms = {name: possible_room(needs[name]) for name in who}
    # All that is too little is told at once: a start of Ray for each would cost people minutes.
    lacking = {
        name: min(room, counts[name] - 1)
        for name, (room, _) in rooms.items()
        if room is not None and room < len(needs[name])
    }
    if not lacking:
        return
    too_little = "; ".join(
        f"{setting}.{name} = {counts[name]} needs {counts[name]} x "
        f"({bundle_text(scale.resources)}), and there is room for {room}"
        for name, room in lacking.items()
    )
    _, source = rooms[next(iter(lacking))]
    fewer = " and ".join(f"--{setting}.{name}" for name in lacking)
    is_without_gpu = scale.gpu and any(rooms[name][0] == 0 for name in lacking)
    no_gpu = f" Without a GPU: --{setting}.no-gpu." if is_without_gpu else ""
    raise ConfigError(
        f"{too_little}: {source}. Use fewer {' and '.join(lacking)} ({fewer}), fewer "
        f"--{setting}.cpus each, or a larger cluster.{no_gpu}"
    )


def prepare_cpus(scale: ScaleConfig) -> float:
    """Return the CPUs of the task that reads and encodes while actors on GPUs compute.

    Actors on CPUs read and encode themselves.
    """
    return 0.25 if scale.gpu else 0.0


def unwrap(error: BaseException) -> BaseException:
    """Return the error in a Ray error that users can mend; without one, itself."""
    cause: BaseException | None = error
    while cause is not None:
        # Ray's copy of an error of ours is both, and its text is a traceback.
        is_mended = isinstance(cause, OSError) and cause.errno in MENDED_BY_USERS
        if (isinstance(cause, RlhfvError) or is_mended) and not isinstance(cause, RayError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    if NEVER_RAN in str(error):
        mode = os.environ.get("RAY_AUTH_MODE", "not set")
        return StageFailedError(
            "Ray ended an actor before it ran. Was the cluster started with another RAY_AUTH_MODE "
            f"than this process has ({mode})? Ray lets such a process in and then ends its "
            "actors: give both the same. Otherwise run the same command again."
        )
    return error


def configure_data() -> None:
    """Keep Ray Data's own progress bars and messages out of the terminal."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # our own bar counts parts
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
