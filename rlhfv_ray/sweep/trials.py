"""JOB: trials in parallel by Ray Tune, with the worse ones stopped early.

Tune decides which trial runs next and which stops, but `<folder>/trials/<name>/` is the record. A
trial writes its results there before it reports them to Tune. The same command again gives Tune the
same trials: those that ended report their recorded results at once, in the same order, and the
others continue from their stages. Tune's own snapshot is never read.
"""

import errno
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
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from rlhfv_ray.cluster import prepare_cpus
from rlhfv_ray.config import DDPOConfig, ScaleConfig
from rlhfv_ray.errors import (
    ConfigError,
    JudgeError,
    RlhfvError,
    StageFailedError,
    StaleReferenceError,
)
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

DRIVER_CPUS = 0.01  # for a trial's own process, which waits for its workers
TRIES = 2  # further attempts for a trial whose process is lost
POLL_S = 1.0
ENDED = "outcome.json"
STOP = "stop.pickle"  # an error that every trial would meet
RUNGS, OBJECTIVE = "rungs", "objective"

# Reports a rung's number, from 0, and its objective; does not return if Tune stops the trial.
Report = Callable[[int, float], None]
# Runs one trial, which writes its results into the given folder.
Trial = Callable[[TrialParams, Path, Report], None]


@dataclass(frozen=True)
class SweepJob:
    """One sweep, as the driver describes it to every trial."""

    folder: Path  # of the sweep
    base: DDPOConfig
    space: SpaceConfig
    search: SearchConfig
    run: Trial


def run_sweep(job: SweepJob, trials: Sequence[TrialParams], *, concurrent: int) -> None:
    """Run all trials that have not ended.

    Each trial ends as finished, stopped or failed, as its folder's `outcome.json` records.

    Args:
        job: the sweep.
        trials: all of them; a Bayesian search draws its own.
        concurrent: number of trials that run at a time.

    Raises:
        RlhfvError: an error that every trial would meet; the sweep stops at the first.
    """
    (job.folder / STOP).unlink(missing_ok=True)
    for outcome in job.folder.glob(f"trials/*/{ENDED}"):  # failed trials run again
        if json.loads(outcome.read_text())["status"] == "failed":
            outcome.unlink()
    os.environ |= {
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    }
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    search = job.search
    is_bayes = search.kind == "bayes"
    grid = {"params": tune.grid_search([json.dumps(trial_params) for trial_params in trials])}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, job=job), trial_resources(job.folder)),
        param_space={} if is_bayes else grid,
        tune_config=tune.TuneConfig(
            metric=OBJECTIVE,
            mode="min",
            scheduler=trial_scheduler(search),
            search_alg=optuna_search(job) if is_bayes else None,
            num_samples=search.trials if is_bayes else 1,
            max_concurrent_trials=concurrent,
            reuse_actors=True,  # a new process takes seconds to import
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


def trial_scheduler(search: SearchConfig) -> TrialScheduler:
    """Return ASHA over the rungs before the last, which decides nothing; FIFO for one rung."""
    if search.rungs == 1:
        return FIFOScheduler()
    last_rung = search.reduction ** (search.rungs - 1)
    return ASHAScheduler(time_attr=RUNGS, max_t=last_rung, reduction_factor=search.reduction)


def trial_resources(folder: Path) -> dict[str, float]:
    """Return the resources that Tune reserves for a trial's own process: a hundredth of a CPU.

    If the sweep's folder is a mirror, the process must run on the driver's node.
    """
    node = ray.util.get_node_ip_address()
    return open_folder(folder).ray_resources(cpus=DRIVER_CPUS, node=node)


def trials_at_once(scale: ScaleConfig, wanted: int) -> int:
    """Return the number of trials to run at a time, so that none waits for another's resources.

    Args:
        scale: resources of each trial.
        wanted: number to run; 0: as many as fit into the cluster.

    Raises:
        ConfigError: more are wanted than fit.
    """
    available = ray.cluster_resources()
    actors = scale.actors * scale.cpus + prepare_cpus(scale)
    cpus = max(scale.workers * scale.cpus, actors) + DRIVER_CPUS
    fit = int(available.get("CPU", 0) / cpus)
    if scale.gpu:
        fit = min(fit, int(available.get("GPU", 0) / max(scale.workers, scale.actors)))
    if max(1, wanted) > fit:
        raise ConfigError(
            f"search.concurrent = {wanted or 1}: a trial needs {cpus:g} CPUs, so {fit} fit at a "
            "time. Lower it, or --ddpo.scale.workers, or --ddpo.scale.cpus."
        )
    return wanted or fit


def optuna_search(job: SweepJob) -> OptunaSearch:
    """Return Optuna's TPE over the space.

    It first repeats the samples of earlier runs of this sweep, whose trials answer from their
    records.
    """
    space: dict[str, Any] = {
        name: tune.choice(list(values))
        for name, values in varied(job.space).items()
        if name in CHOICES
    }
    space |= {name: tune.uniform(0, 1) for name in scales(job.space)}
    samples = job.folder.glob("trials/*/sample.json")
    oldest_first = sorted(samples, key=lambda path: path.stat().st_mtime_ns)
    points = [json.loads(path.read_text()) for path in oldest_first]
    return OptunaSearch(
        space, metric=OBJECTIVE, mode="min", seed=job.search.seed, points_to_evaluate=points or None
    )


def run_trial(sample: dict[str, Any], job: SweepJob) -> None:
    """Run one trial, in a process of its own.

    An error that every trial would meet stops the sweep; any other error ends this trial.
    """
    trial_params = params_of(sample, job)
    folder = job.folder / "trials" / name_of(trial_params)
    folder.mkdir(parents=True, exist_ok=True)
    if "params" not in sample and not (folder / "sample.json").exists():
        write_json(folder / "sample.json", sample)
    write_json(folder / "params.json", trial_params)

    def report(rung: int, objective: float) -> None:
        tune.report({RUNGS: job.search.reduction**rung, OBJECTIVE: objective})

    started = time.monotonic()
    try:
        job.run(trial_params, folder, report)
    except (ConfigError, StaleReferenceError, JudgeError) as error:
        stop_all(job.folder, error)
    except RlhfvError as error:
        end_trial(folder, "failed", error=str(error), seconds=time.monotonic() - started)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        stop_all(
            job.folder,
            StageFailedError(
                f"{job.folder}: the disk is full. Free some space, and run the same command again."
            ),
        )


def params_of(sample: dict[str, Any], job: SweepJob) -> TrialParams:
    """Return a trial's values from Tune's sample: a grid's are complete, Optuna's are positions."""
    if "params" in sample:
        return json.loads(sample["params"])
    return params_from_sample(job.space, job.base, sample)


def end_trial(folder: Path, status: str, *, error: str = "", seconds: float = 0.0) -> None:
    """Record how a trial ended, unless that is recorded already."""
    if not (folder / ENDED).exists():
        write_json(folder / ENDED, {"status": status, "error": error, "seconds": round(seconds, 1)})


def stop_all(folder: Path, error: RlhfvError) -> None:
    """Stop the sweep with an error, and wait until Tune has stopped it."""
    temporary = folder / f".{STOP}.{uuid.uuid4().hex[:8]}"
    temporary.write_bytes(pickle.dumps(error))
    temporary.replace(folder / STOP)
    while ray.is_initialized():
        tune.report({RUNGS: 0, OBJECTIVE: float("inf")})  # Tune calls the stopper after a report
        time.sleep(POLL_S)


class StopAll(tune.Stopper):
    """Ends a sweep after an error that every trial would meet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return false: no single trial is stopped here."""
        return False

    def stop_all(self) -> bool:
        """Return true after such an error."""
        return (self.folder / STOP).exists()


class Outcomes(TrialProgressCallback):
    """Records Tune's decision about a trial that did not record its own end.

    It replaces Tune's progress callback, and prints nothing.
    """

    def __init__(self, job: SweepJob) -> None:
        super().__init__()
        self.job = job

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Do nothing: the trial's folder has the result."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record that a rung stopped the trial. A trial that recorded its own end keeps it, and
        nothing is recorded once the sweep is stopping.
        """
        if not (self.job.folder / STOP).exists():
            self.record(trial, "stopped", "")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record that the trial's process was lost too often."""
        # The file, because Tune's get_error() may not have the error yet.
        lines = Path(trial.error_file).read_text().strip().splitlines()
        self.record(trial, "failed", f"lost {TRIES + 1} times: {lines[-1]}")

    def record(self, trial: Any, status: str, error: str) -> None:
        """Write the outcome into the trial's folder."""
        folder = self.job.folder / "trials" / name_of(params_of(trial.config, self.job))
        folder.mkdir(parents=True, exist_ok=True)
        end_trial(folder, status, error=error)
