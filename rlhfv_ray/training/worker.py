"""The training loop of one worker, top to bottom, with a DeepSpeed engine."""

import gc
import logging
import math
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import psutil
import torch
import torch.distributed as dist

from rlhfv_ray.config import DDPOConfig, OptimConfig, ScaleConfig
from rlhfv_ray.data.mixture import mixed_rows
from rlhfv_ray.data.reference_table import (
    PairSizes,
    from_row,
    load_reference,
    pair_sizes,
    reference_digest,
)
from rlhfv_ray.errors import ConfigError, RlhfvError, StageFailedError
from rlhfv_ray.inference.model_check import read_check
from rlhfv_ray.inference.prefetch import prefetched
from rlhfv_ray.logps import policy_token_logps
from rlhfv_ray.loss import StepLoss, batch_loss
from rlhfv_ray.models import (
    AnswerPolicy,
    fit_step,
    load_model,
    prepare_training,
    processor_of,
    recompute_activations,
)
from rlhfv_ray.models.augmentation import augmentation
from rlhfv_ray.models.batch import Layout, collate_pairs, pinned, to_device
from rlhfv_ray.models.loading import BROKEN
from rlhfv_ray.models.memory import MICRO_BATCHES
from rlhfv_ray.models.self_check import SelfCheck, checked_layout
from rlhfv_ray.records import EncodedPair, PairBatch
from rlhfv_ray.storage.folder import fetch, make
from rlhfv_ray.training.checkpoint import (
    Writer,
    export_policy,
    load_checkpoint,
    once_a_folder,
)
from rlhfv_ray.training.engine_settings import engine_settings
from rlhfv_ray.training.job import TrainJob
from rlhfv_ray.training.metrics_reporter import MetricsReporter
from rlhfv_ray.training.sampler import micro_batches, nested_subset
from rlhfv_ray.training.saver import CheckpointSaver
from rlhfv_ray.training.step_checks import (
    check_first_loss,
    check_repeated_loss,
    loss_to_repeat,
    pairs_to_blame,
)

logger = logging.getLogger(__name__)

RESTING = "resting"  # key of a group of AdamW whose learning rate stays 0


def train_worker(job: TrainJob, report: Callable[[dict[str, Any]], None]) -> None:
    """Run the whole training loop on one rank.

    Args:
        job: what to train.
        report: called by every worker every `scale.log_every` updates; gets new records as
            {"records": [...]}.

    Raises:
        RlhfvError: on every rank.
    """
    job = prepare(job)
    pairs, sizes = load_training_pairs(job.config, job.reference)
    check = read_check(job.reference)
    config, predicted_gib = fit_worker(
        checked_config(job.config, check), pairs, sizes, split_head=check.split_head
    )
    scale, total_steps = config.scale, config.optim.total_steps(len(pairs))
    last_step = job.stop_after or total_steps
    engine, processor = load_engine(config, check)
    job = replace(job, config=config)
    writer = Writer(job.folder, job.token, scale.keep, reference_digest(job.reference))
    saver = CheckpointSaver(engine, writer, minutes=scale.checkpoint_minutes)
    step, records = load_checkpoint(engine, job.folder, reference=writer.reference)
    recorded = loss_to_repeat(job.folder, step)
    reporter = MetricsReporter(
        records,
        report,
        {
            "memory/predicted_gib": round(predicted_gib, 3),
            "recompute": scale.recompute,
            "micro_batch": scale.micro_batch,
        },
        workers_by_node(),
    )
    batches = prefetched(
        micro_batches(
            *(pairs, sizes, collation(config, processor, engine.module.layout), config),
            start=step,
            stop=last_step,
        )
    )
    skipped = 0  # updates in a row
    while step < last_step:
        losses, suspects = update(
            engine, batches, job, step=step, rate=learning_rate(config.optim, step, total_steps)
        )
        step += 1
        check_repeated_loss(losses, recorded, step=step, dtype=config.model.dtype)
        skipped = skipped + 1 if suspects else 0
        reporter.add(step, engine, losses, suspects)
        must_stop = skipped == config.optim.max_skipped
        is_checkpoint_step = step == last_step or step % scale.checkpoint_every == 0
        if must_stop or is_checkpoint_step or step % scale.log_every == 0:
            reporter.flush()
            is_checkpoint_step |= saver.check()
        if must_stop:
            stop_skipping(saver, suspects, step=step, skipped=skipped)
        if is_checkpoint_step and not suspects:
            saver.save(step, reporter.records)
    saver.close()
    check_not_past(last_step, step, job.folder)
    export_policy(
        engine, processor, (job.export or job.folder) / "model", config.model, writer=writer
    )
    engine.destroy()  # its hooks hold the weights in cycles that no collection sees


def stop_skipping(
    saver: CheckpointSaver, suspects: Sequence[str], *, step: int, skipped: int
) -> NoReturn:
    """End training after several skipped updates; called by every worker.

    Args:
        saver: whose last checkpoint is completed first.
        suspects: pairs for which the last update was skipped.
        step: updates done.
        skipped: skipped updates in a row.

    Raises:
        StageFailedError: always.
    """
    saver.wait()
    raise StageFailedError(
        f"Updates {step - skipped + 1} to {step} were skipped: loss or gradient is not "
        f"finite with the pairs {', '.join(suspects)}. {skipped} in a row stop the run "
        "(optim.max_skipped); the last checkpoint is intact. "
        "Look at these pairs, or lower --optim.learning-rate."
    )


def check_not_past(last_step: int, step: int, folder: Path) -> None:
    """Check that a resumed training is not past its last update.

    Raises:
        StageFailedError: it is.
    """
    if step > last_step:
        raise StageFailedError(
            f"{folder} is at update {step} already; the model of update {last_step} is gone."
        )


def collation(
    config: DDPOConfig, processor: Any, layout: Layout
) -> Callable[[Sequence[EncodedPair]], PairBatch]:
    """Return the function that lays out pairs in a batch, with their pictures changed as set."""
    augment = augmentation(config.data, processor)

    def collate(pairs: Sequence[EncodedPair]) -> PairBatch:
        pictured = pairs if augment is None else [augment.changed(pair) for pair in pairs]
        batch = collate_pairs(pictured, processor, rule=config.data.rule, layout=layout)
        return pinned(batch) if config.scale.gpu else batch

    return collate


def workers_by_node() -> dict[str, int]:
    """Return the number of workers of every node, by its name; called by every worker."""
    nodes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(nodes, platform.node())
    return dict(Counter(nodes))


def prepare(job: TrainJob) -> TrainJob:
    """Seed torch, bring the reference to this node, and make the folder of the training there.

    Returns:
        The job, for the number of workers that there are.
    """
    torch.manual_seed(job.config.seed)
    once_a_folder(job.reference, lambda: fetch(job.reference))
    once_a_folder(job.folder, lambda: make(job.folder))
    return replace(job, config=job.config.with_workers(dist.get_world_size()))


def checked_config(config: DDPOConfig, check: SelfCheck) -> DDPOConfig:
    """Return the configuration with the layout of rows that the self-check found right."""
    return replace(config, model=replace(config.model, layout=check.layout))


def load_training_pairs(config: DDPOConfig, reference: Path) -> tuple[Any, PairSizes]:
    """Return the pairs of a reference folder that training uses, and their sizes."""
    pairs, sizes = load_reference(reference), pair_sizes(reference)
    if config.data.mixed_with:
        mixed = list(mixed_rows(pairs, config.data))
        pairs, sizes = pairs.select(mixed), sizes.of(mixed)
    if not config.data.limit:
        return pairs, sizes
    rows = nested_subset(len(pairs), config.data.used(len(pairs)), seed=config.seed)
    return pairs.select(rows), sizes.of(rows)


def fit_worker(
    config: DDPOConfig, pairs: Any, sizes: PairSizes, *, split_head: bool = True
) -> tuple[DDPOConfig, float]:
    """Check, before weights are loaded, that the longest pairs fit into every worker's memory.

    Args:
        config: with the layout of rows that the self-check found right.
        pairs: of the training.
        sizes: of the pairs.
        split_head: as the self-check found it.

    Returns:
        The configuration with its choice of pairs per forward pass and of activations to recompute,
        and the GiB a worker needs; 0 where they cannot be predicted, which is logged.

    Raises:
        ConfigError: they do not fit; on every rank.
    """
    scale = config.scale
    device = "cuda" if scale.gpu else "cpu"  # where the backend reduces
    least = torch.tensor(available_memory(scale), device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    by_length = sorted(range(len(sizes.tokens)), key=lambda row: sizes.tokens[row])
    longest_rows = by_length[-max(*MICRO_BATCHES, scale.micro_batch) :]
    longest = [from_row(pairs[row], chosen_only=config.loss.is_sft) for row in longest_rows]
    processor = processor_of(config.model)
    try:
        fitting, memory = fit_step(config, longest, processor, int(least), split_head=split_head)
    except RlhfvError:  # it does not fit
        raise
    except BROKEN as error:  # the meta device cannot run every model
        logger.warning(
            "The memory of a step is not known before it runs: %s cannot be computed without its "
            "weights (%s). Nothing is recomputed unless --scale.recompute says so, and a pass "
            "takes one pair unless --scale.micro-batch says otherwise.",
            *(config.model.path, str(error).strip().splitlines()[0]),
        )
        cautious = replace(
            scale, recompute=max(0, scale.recompute), micro_batch=scale.micro_batch or 1
        )
        return replace(config, scale=cautious), 0.0
    return fitting, memory.total / 2**30


def available_memory(scale: ScaleConfig) -> int:
    """Return the bytes one worker may use: as configured, its GPU's, or its share of the node's."""
    if scale.memory_gib:
        return int(scale.memory_gib * 2**30)
    if scale.gpu:
        return torch.cuda.mem_get_info()[1]
    workers_on_node = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
    return psutil.virtual_memory().total // workers_on_node


def load_engine(config: DDPOConfig, check: SelfCheck) -> tuple[Any, Any]:
    """Return the policy to train, in a DeepSpeed engine with AdamW, and its processor."""
    model, processor = load_model(config.model)
    prepare_training(model, config.model)
    layout = checked_layout(model, check, row_tokens=config.scale.row_tokens)
    policy = AnswerPolicy(model, layout)
    optimizer = torch.optim.AdamW(  # fused: one pass over the weights instead of a dozen
        weight_groups(policy, config.optim), lr=config.optim.learning_rate, fused=True
    )
    return start_engine(policy, optimizer, config), processor


def weight_groups(policy: Any, optim: OptimConfig) -> list[dict[str, Any]]:
    """Return the trained weights as AdamW's groups: those that decay, those that do not, and those
    whose learning rate stays 0.

    As in transformers' Trainer, biases and norms (vectors) do not decay.

    Raises:
        ConfigError: a pattern of `zero_rate` is in no name of a trained weight.
    """
    moving: list[Any] = []
    resting: list[Any] = []
    unseen = set(optim.zero_rate)
    for name, weight in policy.named_parameters():
        if weight.requires_grad:
            matches = {pattern for pattern in optim.zero_rate if re.search(pattern, name)}
            unseen -= matches
            (resting if matches else moving).append(weight)
    if unseen:
        raise ConfigError(
            f"optim.zero_rate = {min(unseen)!r}: no trained weight has such a name. Correct the "
            "pattern, or train the part that has them (--model.trainable)."
        )
    if not optim.weight_decay:
        groups = [{"params": moving, "weight_decay": 0.0}]
    else:
        matrices = [weight for weight in moving if weight.ndim > 1]
        vectors = [weight for weight in moving if weight.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": optim.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
    groups.append({"params": resting, "weight_decay": 0.0, RESTING: True})
    return [group for group in groups if group["params"]]


def import_deepspeed() -> Any:
    """Import DeepSpeed without MLflow and without torch's compiler, which it would import.

    MLflow, for its autotuner, takes as long to import as torch and DeepSpeed together. The compiler
    is for the optimizer Muon.
    """
    is_absent = "mlflow" not in sys.modules
    if is_absent:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # its import fails
    try:
        import deepspeed
        from deepspeed.runtime import compiler
    finally:
        if is_absent:
            del sys.modules["mlflow"]
    compiler.compile = lambda: compiler.dummy_decorator  # Muon's functions stay as they are
    return deepspeed


def start_engine(policy: Any, optimizer: torch.optim.Optimizer, config: DDPOConfig) -> Any:
    """Wrap policy and optimizer in a DeepSpeed engine."""
    deepspeed = import_deepspeed()

    if not config.scale.gpu:
        # No compiled ops: gloo carries the collectives, and a build takes 90 s.
        setattr(deepspeed.ops, "__compatible_ops__", {})  # noqa: B010
    if not gc.get_freeze_count():
        gc.freeze()  # ZeRO 3 collects garbage, and need not look through the modules
    trained = sum(weight.numel() for weight in policy.parameters() if weight.requires_grad)
    settings = engine_settings(config, trained=trained)
    engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=settings)
    engine.eval()  # no dropout: policy and reference are the same function
    recompute_activations(policy.model, max(0, config.scale.recompute))
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
        group["lr"] = 0.0 if group.get(RESTING) else rate
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

    The warm-up takes the first `optim.warmup` share of all `steps`. The schedule `trainer` is that
    of transformers' `get_cosine_schedule_with_warmup`, whose first update has rate 0.

    Example:
        >>> optim = OptimConfig(learning_rate=1.0, warmup=0.5)
        >>> [round(learning_rate(optim, step, 4), 3) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    warmup = math.ceil(optim.warmup * steps)
    if step < warmup:
        return optim.learning_rate * (step + (optim.schedule != "trainer")) / warmup
    if optim.schedule == "constant":
        return optim.learning_rate
    angle = math.pi * (step - warmup) / max(1, steps - warmup)  # 0 to pi
    return optim.learning_rate * 0.5 * (1 + math.cos(angle))
