"""The one place that starts or joins Ray, checks that a job fits, and unwraps Ray's errors."""

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

PREPARE_CPUS = 0.25  # of a task that reads and encodes while the actors compute
NEVER_RAN = "The actor never ran"  # Ray, of one that nobody is said to need
OBJECT_STORE_BYTES = 512 * 1024**2  # of a Ray started here; a cluster's own setting stands


def connect() -> None:
    """Join the Ray cluster there is (RAY_ADDRESS, or one on this machine), else start one here.

    Workers' output stays in Ray's logs: what users need to know the driver says.

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
            place = tempfile.gettempdir()
            raise ConfigError(
                f"TMPDIR = {place!r} has {len(place)} characters, and Ray puts sockets below it, whose names may have 107 in all: give TMPDIR "
                "one of at most 40."
            ) from error


def check_fits(
    scale: ScaleConfig, *, who: Sequence[str] = ("workers", "actors"), setting: str = "scale"
) -> None:
    """Check that the cluster can hold the training workers, and the actors, at all.

    Args:
        scale: how many of them, and their CPUs and GPUs.
        who: which of both are needed.
        setting: under which the user gives them.

    Raises:
        ConfigError: it cannot, with what is wanted and what is there.
    """
    there = ray.cluster_resources()
    needs = {"workers": (scale.workers, 0.0), "actors": (scale.actors, PREPARE_CPUS)}
    for what, (count, spare) in ((name, needs[name]) for name in who):
        wanted = {"CPU": count * scale.cpus + spare, "GPU": float(count if scale.gpu else 0)}
        for resource, amount in wanted.items():
            if amount > there.get(resource, 0.0):
                raise ConfigError(
                    f"{setting}.{what} = {count} needs {amount:g} {resource}s but the Ray cluster has {there.get(resource, 0.0):g}. "
                    f"Use fewer {what} (--{setting}.{what}), fewer --{setting}.cpus each, or a larger cluster."
                )


def unwrap(error: BaseException) -> BaseException:
    """The error of ours that a Ray error carries, as it was raised there, or that it means; else the Ray error itself."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RlhfvError) and not isinstance(
            seen, RayError
        ):  # Ray's copy is both, and says a traceback
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    if NEVER_RAN in str(error):
        mode = os.environ.get("RAY_AUTH_MODE", "not set")
        return StageFailedError(
            f"Ray ended an actor before it ran. Was the cluster started with another RAY_AUTH_MODE than this process has ({mode})? Ray lets "
            "such a process in and then ends its actors: give both the same. Otherwise run the same command again."
        )
    return error


def configure_data() -> None:
    """Keep Ray Data's own bars and messages out of the terminal."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours counts parts
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
