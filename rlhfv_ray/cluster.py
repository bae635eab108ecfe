"""Starts or joins Ray, checks that a job fits the cluster, and unwraps Ray's errors."""

import logging
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError

from rlhfv_ray.config import ScaleConfig
from rlhfv_ray.errors import ConfigError, RlhfvError, StageFailedError

logger = logging.getLogger(__name__)

PREPARE_CPUS = 0.25  # for the task that reads and encodes while the actors compute
NEVER_RAN = "The actor never ran"  # in Ray's error for an actor that it thinks nobody needs
OBJECT_STORE_BYTES = 512 * 1024**2  # for a Ray started here; a cluster keeps its own setting


def connect() -> None:
    """Join the Ray cluster of RAY_ADDRESS or of this machine; start one here if there is none.

    Workers' output stays in Ray's logs: the driver prints what users need to know.

    Raises:
        ConfigError: the temporary folder's name is too long for Ray's sockets.
    """
    if ray.is_initialized():
        return
    settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        ray.init("auto", **settings)
    except ConnectionError:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        try:
            ray.init("local", object_store_memory=OBJECT_STORE_BYTES, **settings)
        except OSError as error:
            if "AF_UNIX" not in str(error):
                raise
            folder = tempfile.gettempdir()
            raise ConfigError(
                f"TMPDIR = {folder!r} has {len(folder)} characters, and Ray puts sockets below it, "
                "whose names may have 107 in all: give TMPDIR one of at most 40."
            ) from error


def check_fits(
    scale: ScaleConfig, *, who: Sequence[str] = ("workers", "actors"), setting: str = "scale"
) -> None:
    """Check that the cluster, when empty, can hold the training workers and the actors.

    Args:
        scale: the number of workers and actors, and their CPUs and GPUs.
        who: "workers", "actors" or both: those that the job needs.
        setting: name of the setting that holds `scale`, for the message.

    Raises:
        ConfigError: it cannot; the message has what is needed and what the cluster has.
    """
    capacity = ray.cluster_resources()
    needs = {"workers": (scale.workers, 0.0), "actors": (scale.actors, PREPARE_CPUS)}
    for name in who:
        count, extra_cpus = needs[name]
        required = {"CPU": count * scale.cpus + extra_cpus, "GPU": float(count if scale.gpu else 0)}
        for resource, amount in required.items():
            if amount > capacity.get(resource, 0.0):
                raise ConfigError(
                    f"{setting}.{name} = {count} needs {amount:g} {resource}s but the Ray cluster "
                    f"has {capacity.get(resource, 0.0):g}. Use fewer {name} (--{setting}.{name}), "
                    f"fewer --{setting}.cpus each, or a larger cluster."
                )


def unwrap(error: BaseException) -> BaseException:
    """Return the error of ours that a Ray error carries or stands for; else the error itself."""
    cause: BaseException | None = error
    while cause is not None:
        # Ray's copy of an error of ours is both, and its text is a traceback.
        if isinstance(cause, RlhfvError) and not isinstance(cause, RayError):
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
