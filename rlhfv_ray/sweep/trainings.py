"""Trainings that do not depend on each other, some at a time, in processes that keep crews."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from rlhfv_ray.cluster import unwrap
from rlhfv_ray.crew.crew import keep_crew
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
    start: Any = ray.remote(num_cpus=cpus, resources=resources)(TrainingProcess)
    waiting = list(trainings)
    idle: list[Any] = []
    running: dict[ray.ObjectRef, tuple[str, Any]] = {}
    lost: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < concurrent:
                name, process = waiting.pop(0), idle.pop() if idle else start.remote()
                running[process.run.remote(trainings[name])] = name, process
            (finished, *_), _ = ray.wait(list(running), num_returns=1)
            name, process = running.pop(finished)
            try:
                ray.get(finished)
                idle.append(process)
            except RayActorError as error:
                lost[name] += 1
                if lost[name] > TRIES:
                    reasons[name] = f"lost {TRIES + 1} times: {_last_line(error)}"
                else:
                    waiting.insert(0, name)
            except RayError as error:
                idle.append(process)
                reasons[name] = _reason(error)
    finally:
        for process in (*idle, *(process for _, process in running.values())):
            ray.kill(process)
    return reasons


class TrainingProcess:
    """Actor that runs one training after another, with one crew."""

    def run(self, training: Callable[[], None]) -> None:
        """Run one training."""
        keep_crew()
        training()


def _reason(error: RayError) -> str:
    """Return why a training failed; raise an error that every training would meet."""
    cause = unwrap(error)
    if isinstance(cause, FOR_ALL):
        raise cause from error
    return str(cause) if isinstance(cause, RlhfvError) else _last_line(cause)


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1]
