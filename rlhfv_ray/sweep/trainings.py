"""Trainings that do not depend on each other, some at a time, each in a process of its own."""

from collections.abc import Callable, Mapping
from pathlib import Path

import ray
from ray.exceptions import RayError

from rlhfv_ray.cluster import unwrap
from rlhfv_ray.errors import ConfigError, JudgeError, RlhfvError, StaleReferenceError
from rlhfv_ray.sweep.trials import TRIES, trial_resources

FOR_ALL = (ConfigError, StaleReferenceError, JudgeError)  # errors that every training would meet


def train_all(
    trainings: Mapping[str, Callable[[], None]], folder: Path, *, concurrent: int
) -> dict[str, str]:
    """Run trainings, a fixed number at a time; a lost process is started again.

    Args:
        trainings: functions by name, which must pickle; each leaves its result in a folder.
        folder: of the study; it decides where the processes may run.
        concurrent: trainings at a time, >= 1.

    Returns:
        The reason of every training that failed, by name; the others finished.

    Raises:
        ConfigError, StaleReferenceError, JudgeError: every training would meet it; the running
            ones are stopped.
    """
    resources = trial_resources(folder)
    cpus = resources.pop("CPU")
    task = ray.remote(num_cpus=cpus, resources=resources, max_retries=TRIES)(_call)
    waiting = list(trainings)
    running: dict[ray.ObjectRef, str] = {}
    reasons: dict[str, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < concurrent:
                name = waiting.pop(0)
                running[task.remote(trainings[name])] = name
            (finished, *_), _ = ray.wait(list(running), num_returns=1)
            name = running.pop(finished)
            reason = _failure(finished)
            if reason is not None:
                reasons[name] = reason
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
    return reasons


def _call(training: Callable[[], None]) -> None:
    training()


def _failure(finished: ray.ObjectRef) -> str | None:
    """Return why a task failed, None if it did not."""
    try:
        ray.get(finished)
    except RayError as error:
        cause = unwrap(error)
        if isinstance(cause, FOR_ALL):
            raise cause from error
        if isinstance(cause, RlhfvError):
            return str(cause)
        return f"lost {TRIES + 1} times: {str(cause).strip().splitlines()[-1]}"
    return None
