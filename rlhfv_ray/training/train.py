"""JOB: DDPO on Ray Train workers.

`train_ddpo` starts the workers; each runs `train_worker`, top to bottom, with a DeepSpeed engine.
"""

import functools
import logging
import math
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer

from rlhfv_ray.cluster import wait_for_resources
from rlhfv_ray.config import DDPOConfig, OptimConfig, ScaleConfig
from rlhfv_ray.data.reference_table import (
    from_row,
    load_reference,
    pair_lengths,
    reference_digest,
)
from rlhfv_ray.errors import (
    CheckpointError,
    ConfigError,
    StageFailedError,
    StaleReferenceError,
    StorageError,
)
from rlhfv_ray.logps import policy_token_logps
from rlhfv_ray.loss import StepLoss, batch_loss
from rlhfv_ray.models.batch import collate_pairs, to_device
from rlhfv_ray.records import PairBatch
from rlhfv_ray.storage.folder import discard, fetch, make, open_folder, publish
from rlhfv_ray.training.checkpoint import (
    Writer,
    export_policy,
    load_checkpoint,
    once_a_folder,
    save_checkpoint,
)
from rlhfv_ray.training.metrics_log import (
    MetricsReporter,
    Record,
    RecordWriter,
    cut_damaged,
    tail_records,
)
from rlhfv_ray.training.sampler import micro_batches, nested_subset, prefetched
from rlhfv_ray.training.step_checks import (
    check_first_loss,
    check_repeated_loss,
    loss_to_repeat,
    pairs_to_blame,
)

logger = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT_S = 600


@dataclass(frozen=True)
class TrainJob:
    """One training run, as the driver describes it to every worker."""

    config: DDPOConfig
    reference: Path  # finished reference folder
    reference_inputs: dict[str, Any]  # what its config.json should say
    folder: Path  # of this stage
    token: str  # of the lease on `folder`
    stop_after: int = 0  # updates, with a checkpoint to continue from; 0: train to the end
    export: Path | None = None  # folder that receives `model/`; None: `folder`

    @property
    def failure(self) -> Path:
        """Return the file in which workers leave an error for their own driver."""
        return self.folder / f"failure-{self.token}.pickle"


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
    # Ray checks every 2 s by default, and every end of training would come that late.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Ray gives up after 60 s by default, which another job's last seconds can exceed.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    scale = job.config.scale
    wait_for_resources("Training", [scale.resources] * scale.workers)
    trainer = ray_trainer(job)
    interrupt = signal.getsignal(signal.SIGINT)
    cut_damaged(job.folder)
    with tail_records(job.folder, on_records):
        try:
            trainer.fit()
        except SystemExit as stopped:  # Ray Train's own answer to Ctrl-C
            raise KeyboardInterrupt from stopped
        except ray.train.TrainingFailedError as error:
            raise_failure(job)
            losses = job.config.scale.max_failures + 1
            raise StageFailedError(
                f"Training workers were lost {losses} times (scale.max_failures); run the same "
                "command again to continue from the last checkpoint. The last loss: "
                f"{str(error).strip().splitlines()[-1]}"
            ) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, interrupt)  # Ray Train leaves its own handler there
    raise_failure(job)
    discard(job.folder / "ray")


def ray_trainer(job: TrainJob) -> TorchTrainer:
    """Return Ray Train's trainer that runs `run_worker` on every worker."""
    scale = job.config.scale
    return TorchTrainer(
        run_worker,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=scale.workers,
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
                max_failures=scale.max_failures, controller_failure_limit=2
            ),
            callbacks=[RecordWriter(job.folder, job.token)],
            logging_config=ray.train.LoggingConfig("WARNING"),
        ),
    )


def run_worker(settings: dict[str, TrainJob]) -> None:
    """Run `train_worker`, and leave an error of ours in a file for the driver.

    Ray retries what a worker raises, and these errors would only be raised again.
    """
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


def train_worker(job: TrainJob, report: Callable[[dict[str, Any]], None]) -> None:
    """Run the whole training loop on one rank.

    Args:
        job: what to train.
        report: called by every worker every `scale.log_every` updates; gets new records as
            {"records": [...]}.

    Raises:
        RlhfvError: on every rank.
    """
    torch.manual_seed(job.config.seed)
    once_a_folder(job.reference, lambda: fetch(job.reference))
    once_a_folder(job.folder, lambda: make(job.folder))
    pairs, lengths = load_training_pairs(job.config, job.reference)
    config, predicted_gib = fit_worker(job.config, pairs, lengths)
    scale = config.scale
    total_steps = config.optim.total_steps(len(pairs))
    last_step = job.stop_after or total_steps
    engine, processor = load_engine(config)
    writer = Writer(job.folder, job.token, scale.keep, reference_digest(job.reference))
    step, records = load_checkpoint(engine, job.folder, reference=writer.reference)
    recorded = loss_to_repeat(job.folder, step)
    reporter = MetricsReporter(
        records,
        report,
        {"memory/predicted_gib": round(predicted_gib, 3), "recompute": scale.recompute},
    )
    collate = functools.partial(
        collate_pairs, processor=processor, rule=config.data.rule, layout=engine.module.layout
    )
    batches = prefetched(micro_batches(pairs, lengths, collate, config, start=step, stop=last_step))
    skipped = 0  # updates in a row
    while step < last_step:
        rate = learning_rate(config.optim, step, total_steps)
        losses, suspects = update(engine, batches, job, step=step, rate=rate)
        step += 1
        check_repeated_loss(losses, recorded, step=step, dtype=config.model.dtype)
        skipped = skipped + 1 if suspects else 0
        reporter.add(step, engine, losses, suspects)
        must_stop = skipped == config.optim.max_skipped
        is_checkpoint_step = step == last_step or step % scale.checkpoint_every == 0
        if must_stop or is_checkpoint_step or step % scale.log_every == 0:
            reporter.flush()
        if must_stop:
            raise StageFailedError(
                f"Updates {step - skipped + 1} to {step} were skipped: loss or gradient is not "
                f"finite with the pairs {', '.join(suspects)}. {skipped} in a row stop the run "
                "(optim.max_skipped); the last checkpoint is intact. "
                "Look at these pairs, or lower --optim.learning-rate."
            )
        if is_checkpoint_step and not suspects:
            save_checkpoint(engine, writer, step=step, records=reporter.records)
    if step > last_step:
        raise StageFailedError(
            f"{job.folder} is at update {step} already; the model of update {last_step} is gone."
        )
    export_policy(
        engine, processor, (job.export or job.folder) / "model", config.model, writer=writer
    )


def load_training_pairs(config: DDPOConfig, reference: Path) -> tuple[Any, list[int]]:
    """Return the pairs of a reference folder that training uses, and their lengths in tokens."""
    pairs, lengths = load_reference(reference), pair_lengths(reference)
    if not config.data.limit:
        return pairs, lengths
    rows = nested_subset(len(pairs), config.data.used(len(pairs)), seed=config.seed)
    return pairs.select(rows), [lengths[row] for row in rows]


def fit_worker(config: DDPOConfig, pairs: Any, lengths: Sequence[int]) -> tuple[DDPOConfig, float]:
    """Check, before weights are loaded, that the longest pairs fit into every worker's memory.

    Returns:
        The configuration with its choice of activations to recompute, and the GiB a worker needs.

    Raises:
        ConfigError: they do not fit; on every rank.
    """
    from rlhfv_ray.models import fit_memory, load_processor, step_size

    scale = config.scale
    device = "cuda" if scale.gpu else "cpu"  # where the backend reduces
    least = torch.tensor(available_memory(scale), device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    longest_rows = sorted(range(len(lengths)), key=lambda row: lengths[row])[-scale.micro_batch :]
    longest = [from_row(pairs[row], chosen_only=config.loss.is_sft) for row in longest_rows]
    processor = load_processor(config.model.path, trust_remote_code=config.model.trust_remote_code)
    fitting, memory = fit_memory(config, step_size(longest, processor, config), int(least))
    return fitting, memory.total / 2**30


def available_memory(scale: ScaleConfig) -> int:
    """Return the bytes one worker may use: as configured, its GPU's, or its share of the node's."""
    if scale.memory_gib:
        return int(scale.memory_gib * 2**30)
    if scale.gpu:
        return torch.cuda.mem_get_info()[1]
    workers_on_node = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
    return psutil.virtual_memory().total // workers_on_node


def load_engine(config: DDPOConfig) -> tuple[Any, Any]:
    """Return the policy to train, in a DeepSpeed engine with AdamW, and its processor."""
    # transformers is imported here: the driver's side does without
    from rlhfv_ray.models import AnswerPolicy, layout_of, load_model, prepare_training

    model, processor = load_model(config.model)
    prepare_training(model, config.model)
    policy = AnswerPolicy(
        model, layout_of(model, config.model.layout, row_tokens=config.scale.row_tokens)
    )
    trained = [weight for weight in policy.parameters() if weight.requires_grad]
    optim = config.optim
    optimizer = torch.optim.AdamW(  # fused: one pass over the weights instead of a dozen
        trained, lr=optim.learning_rate, weight_decay=optim.weight_decay, fused=True
    )
    return start_engine(policy, optimizer, config), processor


def import_deepspeed() -> Any:
    """Import DeepSpeed without MLflow, which its autotuner would import if it could.

    Workers need neither, and MLflow takes as long to import as torch and DeepSpeed together.
    """
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # importing it then fails
    try:
        import deepspeed
    finally:
        if hidden:
            del sys.modules["mlflow"]
    return deepspeed


def start_engine(policy: Any, optimizer: torch.optim.Optimizer, config: DDPOConfig) -> Any:
    """Wrap policy and optimizer in a DeepSpeed engine."""
    from rlhfv_ray.models import recompute_activations

    deepspeed = import_deepspeed()

    if not config.scale.gpu:
        # No compiled ops: gloo carries the collectives, and a build takes 90 s.
        setattr(deepspeed.ops, "__compatible_ops__", {})  # noqa: B010
    optim, scale = config.optim, config.scale
    # DeepSpeed's stage 0 in fp32 neither detects nor skips a non-finite gradient. Stage 1 does,
    # and computes the same.
    stage = 1 if scale.zero_stage == 0 and config.model.dtype == "fp32" else scale.zero_stage
    zero: dict[str, Any] = {"stage": stage}
    if scale.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if scale.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    settings = {
        "train_batch_size": optim.batch,
        "train_micro_batch_size_per_gpu": scale.micro_batch,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": optim.clip,
        "bf16": {"enabled": config.model.dtype == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=settings)
    engine.eval()  # no dropout: policy and reference are the same function
    recompute_activations(policy.model, max(0, scale.recompute))
    return engine


def update(
    engine: Any, batches: Iterator[PairBatch], job: TrainJob, *, step: int, rate: float
) -> tuple[list[tuple[PairBatch, StepLoss]], list[str]]:
    """Do one update: forward and backward of this rank's batches, then the optimizer's step.

    Returns:
        The batches with their losses. If DeepSpeed skipped the update because loss or gradient is
        not finite, also the pairs to blame, on every rank; otherwise an empty list.

    Raises:
        StaleReferenceError: a loss of the first update is not ln 2; on every rank.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    losses: list[tuple[PairBatch, StepLoss]] = []
    skipped_before = engine.skipped_steps
    dtype = next(engine.module.parameters()).dtype
    for _ in range(job.config.accumulation):
        batch = to_device(next(batches), engine.device, dtype)
        scored = policy_token_logps(engine, batch)
        loss = batch_loss(scored, batch, job.config.loss)
        if step == 0 and loss.preference is not None:
            check_first_loss(
                scored,
                batch,
                loss.preference,
                dtype=job.config.model.dtype,
                reference=job.reference,
                reference_inputs=job.reference_inputs,
            )
        engine.backward(loss.total)
        engine.step()
        losses.append((batch, loss))
    return losses, pairs_to_blame(losses) if engine.skipped_steps > skipped_before else []


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """Return the rate of an update: linear warm-up, then a half cosine to 0 (or constant).

    The warm-up takes the first `optim.warmup` share of all `steps`.

    Example:
        >>> optim = OptimConfig(learning_rate=1.0, warmup=0.5)
        >>> [round(learning_rate(optim, step, 4), 3) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    warmup = math.ceil(optim.warmup * steps)
    if step < warmup:
        return optim.learning_rate * (step + 1) / warmup
    if optim.schedule == "constant":
        return optim.learning_rate
    angle = math.pi * (step - warmup) / max(1, steps - warmup)  # 0 to pi
    return optim.learning_rate * 0.5 * (1 + math.cos(angle))
