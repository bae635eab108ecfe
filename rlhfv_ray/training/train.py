"""JOB: DDPO on Ray Train workers, as the driver sees it.

`train_ddpo` starts the workers and waits for them. Each runs `training.worker.train_worker`. A
trial's process has a crew do it (`training.warm`).
"""

import os
import pickle
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

# Ray has no public switch for what these callbacks start: a process each, for every training.
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from rlhfv_ray.cluster import wait_for_resources
from rlhfv_ray.config import ScaleConfig
from rlhfv_ray.crew.crew import keeps_crew
from rlhfv_ray.crew.group_watch import start_watch
from rlhfv_ray.errors import (
    CheckpointError,
    ConfigError,
    StageFailedError,
    StaleReferenceError,
    StorageError,
)
from rlhfv_ray.storage.folder import discard, fetch, make, open_folder, publish
from rlhfv_ray.training.elastic import BatchPolicy, WorkerLog, start_attempts
from rlhfv_ray.training.job import TrainJob
from rlhfv_ray.training.metrics_log import Record, RecordWriter, cut_damaged, tail_records
from rlhfv_ray.training.warm import COLLECTIVE_TIMEOUT_S, train_warm

ALLOCATOR_SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # torch's old and new name


def ignore_records(records: Sequence[Record]) -> None:
    """Do nothing with the records of new updates."""


def train_ddpo(
    job: TrainJob, *, on_records: Callable[[Sequence[Record]], None] = ignore_records
) -> None:
    """Start the workers and wait for them; a lost worker's unsaved updates are repeated.

    Args:
        job: what to train; `job.folder` receives `metrics.jsonl`, `checkpoints/` and, at the end,
            `model/`.
        on_records: called in this process, a few times a second at most, with the records of new
            updates.

    Raises:
        RlhfvError: as raised by a worker.
        StageFailedError: workers were lost more often than `scale.max_failures`.
    """
    cut_damaged(job.folder)
    if job.config.scale.is_elastic:
        on_records = WorkerLog(on_records)
    with tail_records(job.folder, on_records):
        train = train_warm if keeps_crew(job.config.scale) else _fit
        train(job)


def _fit(job: TrainJob) -> None:
    """Train with Ray Train."""
    # Ray checks every 2 s by default, and every end of training would come that late.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    scale = job.config.scale
    # 60 s by default, which a node that replaces a lost one exceeds.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = f"{start_attempts(scale)[1]:g}"
    bundles = [scale.resources] * scale.least_workers
    wait_for_resources("Training", bundles, timeout=scale.start_timeout)
    trainer = ray_trainer(job)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit as stopped:  # Ray Train's own answer to Ctrl-C
        raise KeyboardInterrupt from stopped
    except ray.train.TrainingFailedError as error:
        raise_failure(job)
        raise StageFailedError(
            f"{_failure_text(error, scale)}; run the same command again to continue from the "
            f"last checkpoint. The last error: {str(error).strip().splitlines()[-1]}"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)  # Ray Train leaves its own handler there
    raise_failure(job)
    discard(job.folder / "ray")


class GroupCallback(PlacementGroupCleanerCallback):
    """Ray Train's, with a watch of ours."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Start the watch where it outlives the controller."""
        self._controller_actor_id = ray.get_runtime_context().get_actor_id()
        self._cleaner = start_watch()


class LeanTrainer(TorchTrainer):
    """Ray Train's trainer without a process for datasets: workers read their pairs themselves."""

    def _create_default_callbacks(self) -> list[Any]:
        replaced = (DatasetsCallback, PlacementGroupCleanerCallback)
        callbacks = super()._create_default_callbacks()
        own = [callback for callback in callbacks if not isinstance(callback, replaced)]
        return [*own, GroupCallback()]

    def _initialize_and_run_controller(self, **controller_settings: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            assert self.train_loop_config is not None
            job = self.train_loop_config["job"]
            controller_settings["scaling_policy"] = BatchPolicy(job, self.scaling_config)
        return super()._initialize_and_run_controller(**controller_settings)


def _failure_text(error: ray.train.TrainingFailedError, scale: ScaleConfig) -> str:
    """Return how often Ray Train tried before it gave up."""
    if isinstance(error, ray.train.ControllerError):
        return (
            f"{scale.least_workers} training workers could not be started within "
            f"{scale.start_attempts} times (scale.start_attempts) {scale.start_timeout:g} s "
            "(scale.start_timeout)"
        )
    return f"Training workers were lost {scale.max_failures + 1} times (scale.max_failures)"


def ray_trainer(job: TrainJob) -> TorchTrainer:
    """Return Ray Train's trainer that runs `run_worker` on every worker."""
    scale = job.config.scale
    return LeanTrainer(
        run_worker,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=scale.workers,  # one number, or the least and the most
            use_gpu=scale.gpu,
            resources_per_worker=scale.resources,
        ),
        torch_config=TorchConfig(
            backend="nccl" if scale.gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S
        ),
        run_config=ray.train.RunConfig(
            # A new name for every attempt: our checkpoints say where to continue, and Ray's
            # snapshot of an earlier attempt must not.
            name=f"attempt-{job.token}",
            **open_folder(job.folder / "ray").ray_storage(),
            failure_config=ray.train.FailureConfig(
                max_failures=scale.max_failures,
                controller_failure_limit=start_attempts(scale)[0] - 1,
            ),
            callbacks=[RecordWriter(job.folder, job.token)],
            logging_config=ray.train.LoggingConfig("WARNING"),
            worker_runtime_env=worker_environment(scale),
        ),
    )


def worker_environment(scale: ScaleConfig) -> dict[str, Any]:
    """Return Ray's runtime environment of a worker.

    Batches differ in length. With segments that grow, torch's allocator leaves no gaps between
    those of other sizes. A setting of the driver's own is left alone.
    """
    if not scale.gpu or any(name in os.environ for name in ALLOCATOR_SETTINGS):
        return {}
    return {"env_vars": {ALLOCATOR_SETTINGS[0]: "expandable_segments:True"}}


def run_worker(settings: dict[str, TrainJob]) -> None:
    """Run `train_worker`, and leave an error of ours in a file for the driver.

    Ray retries what a worker raises, and these errors would only be raised again. The worker's
    modules are imported here: Ray Train's controller imports this one, and needs no models.
    """
    import torch.distributed as dist

    from rlhfv_ray.training.worker import train_worker

    job = settings["job"]
    try:
        train_worker(job, ray.train.report)
    except StorageError:  # raised by one rank alone, and a retry may succeed
        raise
    except (
        ConfigError,
        StageFailedError,
        StaleReferenceError,
        CheckpointError,
    ) as error:  # raised by all ranks together
        if dist.get_rank() == 0:
            make(job.folder)
            job.failure.write_bytes(pickle.dumps(error))
            publish(job.failure)


def raise_failure(job: TrainJob) -> None:
    """Raise the error that the workers left, if they left one."""
    fetch(job.failure)
    if job.failure.exists():
        error = pickle.loads(job.failure.read_bytes())
        discard(job.failure)
        raise error
