"""JOB: trials in parallel by Ray Tune, worse ones stopped early; what became of each is in its own folder.

`<folder>/trials/<name>/` is the record: Tune decides what runs next and what stops, but what a trial has found is written there before
Tune hears of it. The same command again gives Tune the same trials: those that ended tell at once what they found, in the same order, and
the others go on where their stages were. Tune's own snapshot is never read.
"""

import json
import logging
import os
import pickle
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search.optuna import OptunaSearch

from rlhfv_ray.config import DDPOConfig, ScaleConfig
from rlhfv_ray.errors import (
    ConfigError,
    JudgeError,
    RlhfvError,
    StageFailedError,
    StaleReferenceError,
)
from rlhfv_ray.inference.parts import PREPARE_CPUS
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import discard, open_folder
from rlhfv_ray.sweep.search_space import (
    CHOICES,
    SearchConfig,
    SpaceConfig,
    TrialParams,
    name_of,
    params_from_sample,
    scales,
    varied,
)

DRIVER_CPUS = 0.01  # of a trial's own process, which waits for its workers
TRIES = 2  # more, for a trial whose process is lost
ENDED = "outcome.json"
STOP = "stop.pickle"  # an error that every trial would meet
RUNGS, OBJECTIVE = "rungs", "objective"

Report = Callable[
    [int, float], None
]  # tells a look's number and objective; does not come back where the trial is stopped
Trial = Callable[
    [TrialParams, Path, Report], None
]  # runs one trial; its folder holds what it found


@dataclass(frozen=True)
class SweepJob:
    """What the driver tells every trial."""

    folder: Path  # of the sweep
    base: DDPOConfig
    space: SpaceConfig
    search: SearchConfig
    run: Trial


def run_sweep(job: SweepJob, trials: Sequence[TrialParams], *, concurrent: int) -> None:
    """Run all trials that have not ended; each ends as finished, stopped or failed, which its folder's `outcome.json` says.

    Args:
        job: what to run.
        trials: all of them; a Bayesian search makes its own.
        concurrent: how many at a time.

    Raises:
        RlhfvError: one that every trial would meet; the sweep stops at the first.
    """
    (job.folder / STOP).unlink(missing_ok=True)
    for outcome in job.folder.glob(f"trials/*/{ENDED}"):  # failures are tried again
        if json.loads(outcome.read_text())["status"] == "failed":
            outcome.unlink()
    search, bayes = job.search, job.search.kind == "bayes"
    os.environ |= {
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    }
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    last = search.reduction ** (search.rungs - 1)
    # The last look decides nothing.
    asha = (
        ASHAScheduler(time_attr=RUNGS, max_t=last, reduction_factor=search.reduction)
        if search.rungs > 1
        else FIFOScheduler()
    )
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, job=job), trial_resources(job.folder)),
        param_space={}
        if bayes
        else {"params": tune.grid_search([json.dumps(trial_params) for trial_params in trials])},
        tune_config=tune.TuneConfig(
            metric=OBJECTIVE,
            mode="min",
            scheduler=asha,
            search_alg=optuna_search(job) if bayes else None,
            num_samples=search.trials if bayes else 1,
            max_concurrent_trials=concurrent,
            reuse_actors=True,  # a new process imports for seconds
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            **open_folder(job.folder / "tune").ray_storage(),
            callbacks=[Outcomes(job)],
            failure_config=tune.FailureConfig(max_failures=TRIES),
            stop=StopAll(job.folder),
            verbose=0,
        ),
    )
    tuner.fit()
    discard(job.folder / "tune")
    if (job.folder / STOP).exists():
        raise pickle.loads((job.folder / STOP).read_bytes())


def trial_resources(folder: Path) -> dict[str, float]:
    """What Tune reserves for a trial's own process: next to nothing; beside the driver, where the sweep's folder is a mirror."""
    node = ray.util.get_node_ip_address()
    return open_folder(folder).ray_resources(cpus=DRIVER_CPUS, node=node)


def trials_at_once(scale: ScaleConfig, wanted: int) -> int:
    """How many trials fit into the cluster, so that none waits for what another holds; `wanted` of them, if that is not 0.

    Raises:
        ConfigError: more are wanted than fit.
    """
    there = ray.cluster_resources()
    cpus = max(scale.workers * scale.cpus, scale.actors * scale.cpus + PREPARE_CPUS) + DRIVER_CPUS
    fit = int(there.get("CPU", 0) / cpus)
    if scale.gpu:
        fit = min(fit, int(there.get("GPU", 0) / max(scale.workers, scale.actors)))
    if max(1, wanted) > fit:
        raise ConfigError(
            f"search.concurrent = {wanted or 1}: a trial needs {cpus:g} CPUs, so {fit} fit at a time. Lower it, or --ddpo.scale.workers, or "
            "--ddpo.scale.cpus."
        )
    return wanted or fit


def optuna_search(job: SweepJob) -> OptunaSearch:
    """Optuna's TPE over the space; what earlier runs of this sweep tried comes first again, to be answered from its record."""
    space: dict[str, Any] = {
        name: tune.choice(list(values))
        for name, values in varied(job.space).items()
        if name in CHOICES
    }
    space |= {name: tune.uniform(0, 1) for name in scales(job.space)}
    tried = sorted(
        job.folder.glob("trials/*/sample.json"), key=lambda path: path.stat().st_mtime_ns
    )
    points = [json.loads(path.read_text()) for path in tried]
    return OptunaSearch(
        space, metric=OBJECTIVE, mode="min", seed=job.search.seed, points_to_evaluate=points or None
    )


def run_trial(sample: dict[str, Any], job: SweepJob) -> None:
    """One trial, in a process of its own."""
    trial_params = knobs_in(sample, job)
    place = job.folder / "trials" / name_of(trial_params)
    place.mkdir(parents=True, exist_ok=True)
    if "params" not in sample and not (place / "sample.json").exists():
        write_json(place / "sample.json", sample)
    write_json(place / "knobs.json", trial_params)
    started = time.monotonic()
    try:
        job.run(
            trial_params,
            place,
            lambda rung, objective: tune.report(
                {RUNGS: job.search.reduction**rung, OBJECTIVE: objective}
            ),
        )
    except (ConfigError, StaleReferenceError, JudgeError) as error:
        stop_all(job.folder, error)
    except RlhfvError as error:
        end_trial(place, "failed", error=str(error), seconds=time.monotonic() - started)
    except OSError as error:
        if error.errno != 28:  # a full disk
            raise
        stop_all(
            job.folder,
            StageFailedError(
                f"{job.folder}: the disk is full. Free some space, and run the same command again."
            ),
        )


def knobs_in(sample: dict[str, Any], job: SweepJob) -> TrialParams:
    """A trial's values, from what Tune hands it."""
    return (
        json.loads(sample["params"])
        if "params" in sample
        else params_from_sample(job.space, job.base, sample)
    )


def end_trial(place: Path, status: str, *, error: str = "", seconds: float = 0.0) -> None:
    """Note how a trial ended, unless that is known."""
    if not (place / ENDED).exists():
        write_json(place / ENDED, {"status": status, "error": error, "seconds": round(seconds, 1)})


def stop_all(folder: Path, error: RlhfvError) -> None:
    """Stop the sweep with an error."""
    temporary = folder / f".{STOP}.{uuid.uuid4().hex[:8]}"
    temporary.write_bytes(pickle.dumps(error))
    temporary.replace(folder / STOP)
    while ray.is_initialized():  # until Tune has seen it
        tune.report({RUNGS: 0, OBJECTIVE: float("inf")})
        time.sleep(1)


class StopAll(tune.Stopper):
    """Ends a sweep that has met an error for all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never ends a single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether there was such an error."""
        return (self.folder / STOP).exists()


class Outcomes(TrialProgressCallback):
    """Notes what Tune decided about a trial that did not note its own end; in the place of Tune's own, it prints nothing."""

    def __init__(self, job: SweepJob) -> None:
        super().__init__()
        self.job = job

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """The trial's folder has it."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It was stopped at a look, unless it says otherwise, or the whole sweep ends."""
        if not (self.job.folder / STOP).exists():
            self.note(trial, "stopped", "")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its process was lost too often."""
        lines = (
            Path(trial.error_file).read_text().strip().splitlines()
        )  # Tune's get_error() may not have it yet
        self.note(trial, "failed", f"lost {TRIES + 1} times: {lines[-1]}")

    def note(self, trial: Any, status: str, error: str) -> None:
        """Into the trial's folder."""
        place = self.job.folder / "trials" / name_of(knobs_in(trial.config, self.job))
        place.mkdir(parents=True, exist_ok=True)
        end_trial(place, status, error=error)
