"""Predict the memory of a training step from its configuration, before any weight is loaded.

Weights, gradients and optimizer state are counted. Activations are what `models.activations` counts
on torch's meta device, which costs neither memory nor time. So every architecture gives its own
number.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from rlhfv_ray.config import DDPOConfig
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.logps import HEAD_BYTES, head_limit
from rlhfv_ray.models.activations import StepSize, activation_bytes
from rlhfv_ray.models.adapters import meta_model, parameter_counts
from rlhfv_ray.models.batch import FORKS, collate_pairs
from rlhfv_ray.models.layouts import layout_of
from rlhfv_ray.records import EncodedPair

GIB = 2**30
SPARE = 0.08  # fraction of the device for fragmentation, libraries and collectives' buffers
# Most elements of DeepSpeed's reduction bucket: large enough that an exchange takes milliseconds,
# and small enough that the first of them starts early in the backward pass.
BUCKET = 200_000_000
SHARDED_GRADIENTS = 2  # lowest ZeRO stage that shards gradients
MICRO_BATCHES = (4, 2, 1)  # tried for `scale.micro_batch` 0
CHOICES = (0, 4, 2, 1)  # values of `scale.recompute`, from the fastest to the leanest


@dataclass(frozen=True)
class Memory:
    """One worker's memory use in bytes, by purpose."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    working: int  # of the head or of one layer's backward, whichever is larger

    @property
    def total(self) -> int:
        """Sum of all parts, in bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.working

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value / GIB:.2f}" for name, value in vars(self).items())
        return f"{self.total / GIB:.2f} GiB a worker ({parts})"


def step_size(
    pairs: Sequence[EncodedPair], processor: Any, config: DDPOConfig, *, split_head: bool = True
) -> StepSize:
    """Return the size of one forward pass over these pairs.

    Args:
        pairs: of the pass.
        processor: the model's.
        config: model, layout of its rows, and rule.
        split_head: as the self-check found it; before it, the cheaper case is assumed.

    Raises:
        ConfigError: a pair is longer than `scale.row_tokens`.
    """
    layout = layout_of(
        meta_model(config.model), config.model.layout, row_tokens=config.scale.row_tokens
    )
    longest = max(pairs, key=layout.tokens_of)
    longest_tokens = layout.tokens_of(longest)
    if 0 < layout.row_tokens < longest_tokens:
        raise ConfigError(
            f"scale.row_tokens = {layout.row_tokens}: the pair {longest.id} takes "
            f"{longest_tokens} tokens of a row. Give at least as many, or 0 to give each pair a "
            "row of its own."
        )
    batch = collate_pairs(pairs, processor, rule=config.data.rule, layout=layout)
    rows, tokens = batch.inputs["input_ids"].shape
    image_names = layout.image_inputs(processor, [pairs[0].image]).keys()
    images = {name: tensor for name, tensor in batch.inputs.items() if name in image_names}
    forks = batch.inputs[FORKS].tolist() if layout.shared and layout.forked else ()
    return StepSize(rows, tokens, images, len(batch.targets), forks, split_head)


def predict_memory(config: DDPOConfig, step_size: StepSize, *, available: int = 0) -> Memory:
    """Return the peak memory of one worker in a training step.

    Args:
        config: model, dtype, ZeRO stage, offload, adapters, recomputed layers.
        step_size: rows, tokens and images of one forward pass.
        available: bytes of the worker's device, by which a GPU sizes the head's chunks; 0: as if
            it were small.
    """
    model = meta_model(config.model)
    counts = parameter_counts(model).values()
    parameters = sum(total for total, _ in counts)
    trained = sum(trained_part for _, trained_part in counts)
    scale = config.scale
    width = 2 if config.model.dtype == "bf16" else 4  # bytes per parameter
    # ZeRO (arXiv 1910.02054) shards optimizer state from stage 1, gradients from 2, weights from 3.
    shards = {stage: scale.least_workers if scale.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    weights = 0 if scale.offload == "all" else parameters * width // shards[3]
    # fp32 master weights and two Adam moments: 3 * 4 bytes per trained parameter.
    optimizer = 0 if scale.offload != "none" else trained * 12 // shards[1]
    # ZeRO 2 fills a bucket while another one is reduced.
    bucket_bytes = (0, 0, 2, 1)[scale.zero_stage] * min(trained, BUCKET) * width
    gradients = trained * (4 if sums_in_fp32(config) else width) // shards[2] + bucket_bytes
    weight = model.get_output_embeddings().weight
    if step_size.split_head:
        limit = head_limit(available if scale.gpu else 0)
        head = head_bytes(weight, step_size.scored, gpu=scale.gpu, limit=limit)
    else:
        capped = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        head = whole_head_bytes(weight, step_size, capped=bool(capped))
    activations, working = activation_bytes(model, step_size, max(0, scale.recompute))
    # The head's backward ends before that of the layers begins, so only the larger counts.
    return Memory(weights, gradients, optimizer, activations, max(head, working))


def sums_in_fp32(config: DDPOConfig) -> bool:
    """Return True if DeepSpeed adds up in fp32 the bf16 gradients of an update's forward passes.

    It can where it shards gradients. A single pass needs no sum, and no memory for it.
    """
    is_sharded = config.scale.zero_stage >= SHARDED_GRADIENTS
    return config.model.dtype == "bf16" and is_sharded and config.accumulation > 1


def head_bytes(weight: Tensor, scored: int, *, gpu: bool, limit: int = HEAD_BYTES) -> int:
    """Return the bytes that the output head's backward needs (`logps.head_logps`).

    Args:
        weight: the head's, (V, D).
        scored: answer tokens of a forward pass.
        gpu: the step runs on a GPU.
        limit: bytes of fp32 logits of a chunk.
    """
    narrow = weight.itemsize < 4
    # fp32 logits of a chunk, and their slopes in the weight's own precision.
    logits = min(limit, 4 * scored * len(weight))
    logits += logits // 2 if narrow else 0
    if not weight.requires_grad:
        return logits
    sums = 4 * weight.numel()  # the weight's gradient, in fp32
    # A half-precision product is added to it, which a CPU widens first.
    product = weight.nbytes + (0 if gpu else sums) if narrow else 0
    return logits + sums + product


def whole_head_bytes(weight: Tensor, step_size: StepSize, *, capped: bool) -> int:
    """Return the bytes that the logits of all tokens need, where the head cannot run alone.

    Args:
        weight: the head's, (V, D).
        step_size: rows, tokens and scored tokens of a forward pass.
        capped: the model caps its logits by a tanh, whose output is kept for backward.
    """
    words = len(weight)
    logits = step_size.rows * step_size.tokens * words * weight.itemsize
    scored = 4 * step_size.scored * words  # fp32 logits of the answers' tokens
    product = weight.nbytes if weight.requires_grad else 0  # of the weight's gradient
    kept = logits if capped else 0
    forward = kept + logits + 2 * scored  # the answers' logits, and their logarithms beside them
    backward = kept + logits + max(product, kept)
    # Logarithms, their gradient and that of the logits are there before the latter's gradient is.
    return max(forward, kept + 3 * scored, backward)


def loaded_bytes(config: DDPOConfig) -> int:
    """Return the bytes of all weights, which a worker loads before ZeRO 3 leaves it a share."""
    counts = parameter_counts(meta_model(config.model)).values()
    return sum(total for total, _ in counts) * (2 if config.model.dtype == "bf16" else 4)


def fit_step(
    config: DDPOConfig,
    longest: Sequence[EncodedPair],
    processor: Any,
    available: int,
    *,
    split_head: bool = True,
) -> tuple[DDPOConfig, Memory]:
    """Choose `scale.micro_batch` and `scale.recompute` so that a step of the longest pairs fits.

    A micro batch above 0 is left as it is. 0 is replaced by the largest of `MICRO_BATCHES` that
    divides the batch and fits without further recomputation, or else by 1: fewer passes exchange
    gradients less often, but recomputation costs more than they save.

    Args:
        config: configuration of the training.
        longest: its longest pairs, the longest last.
        processor: of its model.
        available: bytes of one worker's device.
        split_head: as the self-check found it.

    Raises:
        ConfigError: the step cannot fit; the message says what would.
    """
    scale, budget = config.scale, int(available * (1 - SPARE))

    def sized(micro_batch: int) -> tuple[DDPOConfig, StepSize]:
        chosen = replace(config, scale=replace(scale, micro_batch=micro_batch))
        step = step_size(longest[-micro_batch:], processor, chosen, split_head=split_head)
        return chosen, step

    for micro_batch in () if scale.micro_batch else MICRO_BATCHES:
        if config.optim.batch % (scale.least_workers * micro_batch) == 0:
            chosen, step = sized(micro_batch)
            lean = replace(chosen, scale=replace(chosen.scale, recompute=max(0, scale.recompute)))
            if predict_memory(lean, step, available=available).total <= budget:
                return fit_memory(lean, step, available)
    chosen, step = sized(scale.micro_batch or 1)
    return fit_memory(chosen, step, available)


def fit_memory(
    config: DDPOConfig, step_size: StepSize, available: int
) -> tuple[DDPOConfig, Memory]:
    """Choose `scale.recompute` so that a step fits, and return the configuration and its memory.

    A value of 0 or above is left as it is. A negative one is replaced by the fastest that fits,
    from no recomputation to that of all layers.

    Args:
        config: configuration of the training.
        step_size: size of its largest forward pass.
        available: bytes of one worker's device.

    Raises:
        ConfigError: the step cannot fit; the message says what would.
    """
    budget = int(available * (1 - SPARE))
    loaded = loaded_bytes(config)
    if config.scale.zero_stage == 3 and loaded > budget:
        raise ConfigError(
            f"model.path = {config.model.path!r}: its weights take {loaded / GIB:.2f} GiB in "
            f"{config.model.dtype}, and every worker loads all of them before ZeRO 3 leaves it a "
            f"share. It has {available / GIB:.2f}, of which {SPARE:.0%} stay spare. Use GPUs with "
            "more memory or a smaller model. (--scale.memory-gib sets the memory, if this figure "
            "is wrong.)"
        )
    choices = CHOICES if config.scale.recompute < 0 else (config.scale.recompute,)
    for every in choices:
        chosen = replace(config, scale=replace(config.scale, recompute=every))
        memory = predict_memory(chosen, step_size, available=available)
        if memory.total <= budget:
            return chosen, memory
    raise ConfigError(
        f"A worker needs {memory} and has {available / GIB:.2f}, of which {SPARE:.0%} stay spare. "
        f"What would fit: {remedies(chosen, step_size, budget)}. "
        "(--scale.memory-gib sets the memory, if this figure is wrong.)"
    )


def remedies(config: DDPOConfig, step_size: StepSize, budget: int) -> str:
    """Return the changes that would make a job fit, cheapest first. If none would, return general
    advice.

    Args:
        config: a configuration that does not fit.
        step_size: size of its largest forward pass.
        budget: bytes that a worker may use.
    """
    scale = config.scale
    optim = config.optim
    recomputed = replace(scale, recompute=1)
    sharded = replace(scale, zero_stage=3)
    wider = replace(sharded, workers=2 * scale.least_workers)
    wider_optim = replace(optim, batch=2 * optim.batch)
    offloaded = replace(scale, zero_stage=max(1, scale.zero_stage), offload="optimizer")
    adapters = replace(config.model, lora_rank=16, trainable=("language",))
    changes = {
        "--scale.recompute 1": replace(config, scale=recomputed),
        "--scale.zero-stage 3": replace(config, scale=sharded),
        "--scale.zero-stage 3 and twice the workers": replace(
            config, scale=wider, optim=wider_optim
        ),
        "--scale.offload optimizer": replace(config, scale=offloaded),
        "--model.lora-rank 16 --model.trainable language": replace(config, model=adapters),
    }
    if loaded_bytes(config) > budget:  # refused there
        changes = {
            flags: changed for flags, changed in changes.items() if changed.scale.zero_stage < 3
        }
    fitting = [
        flags
        for flags, changed in changes.items()
        if predict_memory(changed, step_size).total <= budget
    ]
    advice = (
        "fewer pairs per forward pass (--scale.micro-batch), shorter pairs (--data.max-length), "
        "or a smaller model"
    )
    return "; or ".join(fitting) or advice
