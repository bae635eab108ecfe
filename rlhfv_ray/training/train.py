"""JOB: DDPO. `train_ddpo` starts workers through Ray Train; each runs `train_worker`, top to bottom, with a DeepSpeed engine."""

import functools
import json
import logging
import math
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor

from rlhfv_ray.config import DDPOConfig, OptimConfig
from rlhfv_ray.data.reference_table import check_reference, from_row, load_reference, pair_lengths
from rlhfv_ray.errors import (
    CheckpointError,
    ConfigError,
    StageFailedError,
    StaleReferenceError,
    StorageError,
)
from rlhfv_ray.logps import policy_token_logps
from rlhfv_ray.loss import PreferenceLoss, StepLoss, batch_loss
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
from rlhfv_ray.training.metrics_log import MetricsReporter, RecordWriter, tail_records
from rlhfv_ray.training.sampler import micro_batches, nested_subset, prefetched

logger = logging.getLogger(__name__)

FAILURE = "failure.pickle"  # written and read within one attempt
COLLECTIVE_TIMEOUT_S = 600
GATE = {
    "fp32": (1e-6, 1e-5),
    "bf16": (1e-2, 1e-2),
}  # how far the first loss may be from ln 2; or a token, nats


@dataclass(frozen=True)
class TrainJob:
    """What the driver tells every worker."""

    config: DDPOConfig
    reference: Path  # finished reference folder
    reference_inputs: dict[str, Any]  # what its config.json should say
    folder: Path  # of this stage
    token: str  # of the lease on it
    until: int = 0  # updates after which to stop, with a checkpoint to go on from; 0: at the end
    export: Path | None = (
        None  # folder that receives `model/`; this stage's, if there is none given
    )


def train_ddpo(
    job: TrainJob, *, seen: Callable[[Sequence[Mapping[str, Any]]], None] = lambda records: None
) -> None:
    """Start the workers and wait for them; what a lost worker had not saved is done again.

    Args:
        job: what to train; `job.folder` receives `metrics.jsonl`, `checkpoints/` and, at the end, `model/`.
        seen: called in this process, a few times a second at most, with the records of new updates.

    Raises:
        RlhfvError: as raised by a worker.
        StageFailedError: workers were lost more often than `scale.max_failures`.
    """
    scale = job.config.scale
    discard(job.folder / FAILURE)
    os.environ.setdefault(
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5"
    )  # Ray's 2 s make every end of training as late
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=scale.workers,
            use_gpu=scale.gpu,
            resources_per_worker={"CPU": scale.cpus, **({"GPU": 1} if scale.gpu else {})},
        ),
        torch_config=TorchConfig(
            backend="nccl" if scale.gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S
        ),
        run_config=ray.train.RunConfig(
            name=f"attempt-{job.token}",  # never the same twice: our checkpoints, not Ray's snapshot, say where to go on
            **open_folder(job.folder / "ray").ray_storage(),
            failure_config=ray.train.FailureConfig(
                max_failures=scale.max_failures, controller_failure_limit=2
            ),
            callbacks=[RecordWriter(job.folder)],
            logging_config=ray.train.LoggingConfig("WARNING"),
        ),
    )
    interrupt = signal.getsignal(signal.SIGINT)
    with tail_records(job.folder, seen):
        try:
            trainer.fit()
        except SystemExit as stopped:  # Ray Train's own answer to Ctrl-C
            raise KeyboardInterrupt from stopped
        except ray.train.TrainingFailedError as error:
            raise_failure(job)
            raise StageFailedError(
                f"Training workers were lost {scale.max_failures + 1} times (scale.max_failures); run the same command again to go "
                f"on from the last checkpoint. The last loss: {str(error).strip().splitlines()[-1]}"
            ) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, interrupt)  # Ray Train leaves its own there
    raise_failure(job)
    discard(job.folder / "ray")


def run_worker(settings: dict[str, TrainJob]) -> None:
    """`train_worker` with its errors of ours left for the driver: they would come again, so Ray must not retry them."""
    job = settings["job"]
    try:
        train_worker(job, ray.train.report)
    except StorageError:  # of one rank alone, and it may be there again
        raise
    except (
        ConfigError,
        StageFailedError,
        StaleReferenceError,
        CheckpointError,
    ) as error:  # of all ranks together
        if dist.get_rank() == 0:
            make(job.folder)
            (job.folder / FAILURE).write_bytes(pickle.dumps(error))
            publish(job.folder / FAILURE)


def raise_failure(job: TrainJob) -> None:
    """Raise here the error that the workers left."""
    path = job.folder / FAILURE
    fetch(path)
    if path.exists():
        raise pickle.loads(path.read_bytes())


def train_worker(job: TrainJob, report: Callable[[dict[str, Any]], None]) -> None:
    """Train on one rank; the whole loop.

    Args:
        job: what to train.
        report: called by every worker every `scale.log_every` updates; gets new records as {"records": [...]}.

    Raises:
        RlhfvError: on every rank.
    """
    torch.manual_seed(job.config.seed)
    once_a_folder(job.reference, lambda: fetch(job.reference))
    once_a_folder(job.folder, lambda: make(job.folder))
    pairs, lengths = load_reference(job.reference), pair_lengths(job.reference)
    if job.config.data.limit:
        rows = nested_subset(len(pairs), job.config.data.used(len(pairs)), seed=job.config.seed)
        pairs, lengths = pairs.select(rows), [lengths[row] for row in rows]
    config, foretold = fit_worker(job.config, pairs, lengths)
    optim, scale, steps = config.optim, config.scale, config.optim.total_steps(len(pairs))
    until = job.until or steps
    engine, processor = load_engine(config)
    writer = Writer(job.folder, job.token, scale.keep)
    step, records = load_checkpoint(engine, job.folder)
    reporter = MetricsReporter(
        records, report, {"memory/foretold_gib": round(foretold, 3), "recompute": scale.recompute}
    )
    collate = functools.partial(
        collate_pairs, processor=processor, rule=config.data.rule, layout=engine.module.layout
    )
    batches = prefetched(micro_batches(pairs, lengths, collate, config, start=step, stop=until))
    skipped = 0  # updates in a row
    while step < until:
        losses, suspects = update(
            engine, batches, job, step=step, rate=learning_rate(optim, step, steps)
        )
        step += 1
        skipped = skipped + 1 if suspects else 0
        reporter.add(step, engine, losses, suspects)
        stop, due = (
            skipped == optim.max_skipped,
            step == until or step % scale.checkpoint_every == 0,
        )
        if stop or due or step % scale.log_every == 0:
            reporter.flush()
        if stop:
            raise StageFailedError(
                f"Updates {step - skipped + 1} to {step} were skipped: loss or gradient is not finite with the pairs "
                f"{', '.join(suspects)}. {skipped} in a row stop the run (optim.max_skipped); the last checkpoint is intact. "
                "Look at these pairs, or lower --optim.learning-rate."
            )
        if due and not suspects:
            save_checkpoint(engine, writer, step=step, records=reporter.records)
    if step > until:
        raise StageFailedError(
            f"{job.folder} is at update {step} already; the model of update {until} is gone."
        )
    export_policy(engine, processor, (job.export or job.folder) / "model", config.model)


def load_engine(config: DDPOConfig) -> tuple[Any, Any]:
    """The policy to train, in a DeepSpeed engine with AdamW, and its processor."""
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


def fit_worker(config: DDPOConfig, pairs: Any, lengths: Sequence[int]) -> tuple[DDPOConfig, float]:
    """Check, before weights are loaded, that the longest pairs fit into every worker's memory; choose what is to be recomputed.

    Returns:
        The configuration with that choice, and the GiB a worker will need.

    Raises:
        ConfigError: they do not fit; on every rank.
    """
    from rlhfv_ray.models import fit_memory, load_processor, step_size

    scale = config.scale
    if scale.memory_gib:
        found = int(scale.memory_gib * 2**30)
    elif scale.gpu:
        found = torch.cuda.mem_get_info()[1]
    else:
        found = psutil.virtual_memory().total // int(
            os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size())
        )
    least = torch.tensor(found, device="cuda" if scale.gpu else "cpu")  # where the backend reduces
    dist.all_reduce(least, dist.ReduceOp.MIN)
    longest = sorted(range(len(lengths)), key=lambda row: lengths[row])[-scale.micro_batch :]
    processor = load_processor(config.model.path, trust_remote_code=config.model.trust_remote_code)
    shapes = step_size(
        [from_row(pairs[row], chosen_only=config.loss.is_sft) for row in longest], processor, config
    )
    fitting, memory = fit_memory(config, shapes, int(least))
    return fitting, memory.total / 2**30


def update(
    engine: Any, batches: Iterator[PairBatch], job: TrainJob, *, step: int, rate: float
) -> tuple[list[tuple[PairBatch, StepLoss]], list[str]]:
    """One update: forward and backward of this rank's share of the global batch, then the optimizer.

    Returns:
        The batches with their losses; and, where DeepSpeed skipped the update because loss or gradient is not finite, the pairs to
        blame, on every rank.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    losses, before = [], engine.skipped_steps
    for _ in range(job.config.accumulation):
        batch = to_device(next(batches), engine.device, next(engine.module.parameters()).dtype)
        scored = policy_token_logps(engine, batch)
        loss = batch_loss(scored, batch, job.config.loss)
        if step == 0 and not losses and loss.preference is not None:
            check_first_loss(scored, batch, loss.preference, job)
        engine.backward(loss.total)
        engine.step()
        losses.append((batch, loss))
    return losses, pairs_to_blame(losses) if engine.skipped_steps > before else []


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """Linear warm-up over the first `warmup` share of the steps, then a half cosine to 0 (or constant).

    Example:
        >>> [round(learning_rate(OptimConfig(learning_rate=1.0, warmup=0.5), step, 4), 3) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    warmup = math.ceil(optim.warmup * steps)
    if step < warmup:
        return optim.learning_rate * (step + 1) / warmup
    if optim.schedule == "constant":
        return optim.learning_rate
    return (
        optim.learning_rate
        * 0.5
        * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    )


def start_engine(policy: Any, optimizer: torch.optim.Optimizer, config: DDPOConfig) -> Any:
    """Wrap policy and optimizer in a DeepSpeed engine."""
    import deepspeed

    from rlhfv_ray.models import recompute_activations

    if not config.scale.gpu:
        # No compiled ops: gloo carries the collectives, and a build takes 90 s.
        setattr(deepspeed.ops, "__compatible_ops__", {})  # noqa: B010
    optim, scale = config.optim, config.scale
    # DeepSpeed's stage 0 in fp32 neither sees nor skips a non-finite gradient; stage 1 computes the same and does.
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


def check_first_loss(scored: Tensor, batch: PairBatch, loss: PreferenceLoss, job: TrainJob) -> None:
    """The gate before the first update: policy = reference, so every worker's loss must be ln 2.

    Large beta and gamma on long answers magnify rounding; so a loss that is off passes where the tokens' log-probs themselves agree.

    Raises:
        StaleReferenceError: the reference log-probs are not this model's; on every rank.
    """
    assert batch.reference_token_logps is not None, "the reference stage fills these in"
    off = (loss.losses.detach().mean() - math.log(2)).abs()
    tokens = batch.answers >= 0
    apart = (scored.detach() - batch.reference_token_logps)[tokens].abs().mean()
    gate, rounding = GATE[job.config.model.dtype]
    failed = (~((off <= gate) | (apart <= rounding))).float()
    dist.all_reduce(failed, dist.ReduceOp.MAX)
    if failed:
        found = json.loads((job.reference / "config.json").read_text())
        check_reference(found, job.reference_inputs, unless_equal=False)


def pairs_to_blame(losses: Sequence[tuple[PairBatch, StepLoss]]) -> list[str]:
    """Pairs of a skipped update: of the batches whose loss is not finite, on any rank; else of all, as it was the gradient."""
    bad = [batch.ids for batch, loss in losses if not torch.isfinite(loss.total)]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (bad, [batch.ids for batch, _ in losses]))
    suspects = [pair for bad, _ in everyone for ids in bad for pair in ids]
    return suspects or [pair for _, batches in everyone for ids in batches for pair in ids]
