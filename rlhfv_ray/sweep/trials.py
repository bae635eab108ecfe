"""JOB: successive halving over settings, whose trials run in parallel on Ray Tune.

At each rung every remaining setting is trained and evaluated with all its seeds. Then one in
`reduction` goes on (Jamieson and Talwalkar, AISTATS 2016), and the others stop with all their
seeds. A Bayesian search draws its settings at the first rung, by the values of those before.

`<folder>/trials/<name>/` is the record: `rung-<n>.json` has the rates of a trial at a rung, and
`outcome.json` its end. Every decision is made from the record, so it does not depend on the order
in which trials end. The same command again repeats nothing that is recorded. Tune's own snapshot is
never read.
"""

import errno
import itertools
import json
import logging
import os
import pickle
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher

from rlhfv_ray.autoscaling import possible_totals
from rlhfv_ray.cluster import check_fits, prepare_cpus
from rlhfv_ray.config import DDPOConfig, ScaleConfig
from rlhfv_ray.crew.crew import keep_crew
from rlhfv_ray.errors import (
    ConfigError,
    JudgeError,
    RlhfvError,
    StageFailedError,
    StaleReferenceError,
)
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import discard, open_folder
from rlhfv_ray.sweep.record import (
    ENDED,
    drawn_trials,
    end_trial,
    forget_unfinished,
    read_rung,
    trial_folder,
)
from rlhfv_ray.sweep.search_space import (
    SearchConfig,
    SpaceConfig,
    TrialParams,
    by_setting,
)
from rlhfv_ray.sweep.setting_value import (
    Objective,
    Rates,
    SettingValue,
    setting_value,
    survivors,
)

DRIVER_CPUS = 0.01  # for a trial's own process, which waits for its workers
TRIES = 2  # further attempts for a trial whose process is lost
POLL_S = 1.0
STOP = "stop.pickle"  # an error that every trial would meet
REPORTED = "rung"  # the metric that Tune asks for; it decides nothing

# Runs one trial up to a rung, and writes its rates with `write_rung` into the given folder.
Trial = Callable[[TrialParams, Path, int], None]


@dataclass(frozen=True)
class SweepJob:
    """One sweep, as the driver describes it to every trial."""

    folder: Path  # of the sweep
    base: DDPOConfig
    space: SpaceConfig
    search: SearchConfig
    run: Trial
    objective: Objective
    base_rates: Sequence[Rates]  # the base model's, on the pictures of each rung

    def trial_folder(self, trial_params: TrialParams) -> Path:
        """Return the folder of a trial."""
        return trial_folder(self.folder, trial_params)

    def value(self, trials: Sequence[TrialParams], rung: int) -> SettingValue | None:
        """Return the value of a setting at a rung, from the record of its trials."""
        seeds = [read_rung(self.trial_folder(trial_params), rung) for trial_params in trials]
        return setting_value(seeds, self.base_rates[rung], self.objective)


def run_sweep(
    job: SweepJob,
    trials: Sequence[TrialParams],
    *,
    concurrent: int,
    searcher: Searcher | None = None,
) -> list[TrialParams]:
    """Run all trials that have not ended, rung by rung.

    Each trial ends as finished, stopped or failed, as its folder's `outcome.json` records.

    Args:
        job: the sweep.
        trials: all of them.
        concurrent: number of trials that run at a time.
        searcher: draws the trials instead, at the first rung.

    Returns:
        All trials.

    Raises:
        RlhfvError: an error that every trial would meet; the sweep stops at the first.
    """
    (job.folder / STOP).unlink(missing_ok=True)
    forget_unfinished(job.folder)
    _quiet_tune()
    if searcher is not None:
        run_rung(job, [], 0, concurrent=concurrent, searcher=searcher)
        trials = drawn_trials(job.folder)
    settings = by_setting(trials)
    for rung in range(job.search.rungs):
        live = itertools.chain.from_iterable(settings.values())
        waiting = [trial_params for trial_params in live if _waits(job, trial_params, rung)]
        if waiting:
            run_rung(job, waiting, rung, concurrent=concurrent)
        if rung < job.search.rungs - 1:
            settings = _halve(job, settings, rung)
    return list(trials)


def _waits(job: SweepJob, trial_params: TrialParams, rung: int) -> bool:
    """Return True if a trial has not ended, and has no result at this rung."""
    folder = job.trial_folder(trial_params)
    return not (folder / ENDED).exists() and read_rung(folder, rung) is None


def _halve(
    job: SweepJob, settings: Mapping[str, list[TrialParams]], rung: int
) -> dict[str, list[TrialParams]]:
    """Return the settings that go on, and record the end of the other ones' trials."""
    values = {name: job.value(group, rung) for name, group in settings.items()}
    surviving = set(survivors(values, job.objective, reduction=job.search.reduction))
    for name, group in settings.items():
        if name not in surviving:
            for trial_params in group:
                end_trial(job.trial_folder(trial_params), "stopped")
    return {name: group for name, group in settings.items() if name in surviving}


def run_rung(
    job: SweepJob,
    trials: Sequence[TrialParams],
    rung: int,
    *,
    concurrent: int,
    searcher: Searcher | None = None,
) -> None:
    """Run trials up to a rung, or those that a searcher draws.

    Raises:
        RlhfvError: an error that every trial would meet.
    """
    settings = job.search.trials * max(1, len(job.space.seed))
    grid = {"params": tune.grid_search([json.dumps(trial_params) for trial_params in trials])}
    run = tune.with_parameters(run_trial, job=job, rung=rung)
    tuner = tune.Tuner(
        tune.with_resources(run, trial_resources(job.folder)),
        param_space={} if searcher else grid,
        tune_config=tune.TuneConfig(
            metric=REPORTED,
            mode="max",
            search_alg=searcher,
            num_samples=settings if searcher else 1,
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


def _quiet_tune() -> None:
    os.environ |= {
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    }
    logging.getLogger("ray.tune").setLevel(logging.ERROR)


def trial_resources(folder: Path) -> dict[str, float]:
    """Return the resources that Tune reserves for a trial's own process: a hundredth of a CPU.

    If the sweep's folder is a mirror, the process must run on the driver's node.
    """
    node = ray.util.get_node_ip_address()
    return open_folder(folder).ray_resources(cpus=DRIVER_CPUS, node=node)


def room_for_trials(scale: ScaleConfig, wanted: int, *, dry_run: bool) -> tuple[int, list[str]]:
    """Return the number of trials at a time, and for a dry run, why the cluster cannot hold them.

    Args:
        scale: of each trial; the setting `ddpo.scale`.
        wanted: as for `trials_at_once`.
        dry_run: nothing will run, so that there need be no room.

    Raises:
        ConfigError: it cannot, and this is no dry run.
    """
    try:
        check_fits(scale, setting="ddpo.scale")
        return trials_at_once(scale, wanted), []
    except ConfigError as refused:
        if not dry_run:
            raise
        return wanted or 1, [f"this cluster cannot run it: {refused}"]


def trials_at_once(scale: ScaleConfig, wanted: int) -> int:
    """Return the number of trials to run at a time, so that none waits for another's resources.

    Nodes that an autoscaler may start count as if they were there. Where its node types are not
    known, as many as are wanted run, or one.

    Args:
        scale: resources of each trial.
        wanted: number to run; 0: as many as fit into the cluster.

    Raises:
        ConfigError: more are wanted than fit.
    """
    totals = possible_totals(scale.resources)
    if totals is None:
        return wanted or 1
    actors = scale.actors * scale.cpus + prepare_cpus(scale)
    cpus = max(scale.most_workers * scale.cpus, actors) + DRIVER_CPUS
    fit = int(totals["CPU"] / cpus)
    if scale.gpu:
        fit = min(fit, int(totals["GPU"] / max(scale.most_workers, scale.actors)))
    if max(1, wanted) > fit:
        raise ConfigError(
            f"search.concurrent = {wanted or 1}: a trial needs {cpus:g} CPUs, so {fit} fit at a "
            "time. Lower it, or --ddpo.scale.workers, or --ddpo.scale.cpus."
        )
    return wanted or fit


def run_trial(sample: dict[str, Any], job: SweepJob, rung: int) -> None:
    """Run one trial up to a rung, in a process that runs one after another with one crew.

    An error that every trial would meet stops the sweep; any other error ends this trial.
    """
    keep_crew()
    trial_params: TrialParams = json.loads(sample["params"])
    folder = job.trial_folder(trial_params)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "params.json", trial_params)
    started = time.monotonic()
    try:
        if read_rung(folder, rung) is None:
            job.run(trial_params, folder, rung)
        if rung == job.search.rungs - 1:
            end_trial(folder, "finished", seconds=time.monotonic() - started)
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
    tune.report({REPORTED: rung})


def stop_all(folder: Path, error: RlhfvError) -> None:
    """Stop the sweep with an error, and wait until Tune has stopped it."""
    temporary = folder / f".{STOP}.{uuid.uuid4().hex[:8]}"
    temporary.write_bytes(pickle.dumps(error))
    temporary.replace(folder / STOP)
    while ray.is_initialized():
        tune.report({REPORTED: -1})  # Tune calls the stopper after a report
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
    """Records the end of a trial whose process was lost too often.

    It replaces Tune's progress callback, and prints nothing.
    """

    def __init__(self, job: SweepJob) -> None:
        super().__init__()
        self.job = job

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Do nothing: the trial's folder has the result."""

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record that the trial's process was lost too often."""
        # The file, because Tune's get_error() may not have the error yet.
        lines = Path(trial.error_file).read_text().strip().splitlines()
        folder = self.job.trial_folder(json.loads(trial.config["params"]))
        end_trial(folder, "failed", error=f"lost {TRIES + 1} times: {lines[-1]}")
