"""Predict the memory of a training step from its configuration, before any weight is loaded.

Weights, gradients and optimizer state are counted. Activations are what autograd saves for
backward. To add them up, the model is built on torch's meta device and run there on tensors of the
true shapes, which costs neither memory nor time. So every architecture gives its own number.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from rlhfv_ray.config import DDPOConfig
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.logps import HEAD_BYTES
from rlhfv_ray.models.adapters import meta_model, parameter_counts, parts_of
from rlhfv_ray.models.batch import collate_pairs
from rlhfv_ray.models.layouts import layout_of
from rlhfv_ray.models.policy import recompute_activations
from rlhfv_ray.records import EncodedPair

GIB = 2**30
SPARE = 0.08  # fraction of the device for fragmentation, libraries and collectives' buffers
BUCKET = 5e8  # elements of DeepSpeed's reduction bucket, its default
# Memory that one layer's backward needs beside its activations, as a fraction of them; measured.
WORKING = 0.5
CHOICES = (0, 4, 2, 1)  # values of `scale.recompute`, from the fastest to the leanest
COUNTED = "rlhfv_counted"  # attention implementation of models on the meta device


@dataclass(frozen=True)
class StepSize:
    """Size of one forward pass of one worker."""

    rows: int
    tokens: int  # per row
    images: Mapping[str, Tensor]  # the processor's image tensors, for all rows
    scored: int  # answer tokens


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


def step_size(pairs: Sequence[EncodedPair], processor: Any, config: DDPOConfig) -> StepSize:
    """Return the size of one forward pass over these pairs.

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
    return StepSize(rows, tokens, images, len(batch.targets))


def predict_memory(config: DDPOConfig, step_size: StepSize) -> Memory:
    """Return the peak memory of one worker in a training step.

    Args:
        config: model, dtype, ZeRO stage, offload, adapters, recomputed layers.
        step_size: rows, tokens and images of one forward pass.
    """
    model = meta_model(config.model)
    counts = parameter_counts(model).values()
    parameters = sum(total for total, _ in counts)
    trained = sum(trained_part for _, trained_part in counts)
    scale = config.scale
    width = 2 if config.model.dtype == "bf16" else 4  # bytes per parameter
    # ZeRO (arXiv 1910.02054) shards optimizer state from stage 1, gradients from 2, weights from 3.
    shards = {stage: scale.workers if scale.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    weights = 0 if scale.offload == "all" else parameters * width // shards[3]
    # fp32 master weights and two Adam moments: 3 * 4 bytes per trained parameter.
    optimizer = 0 if scale.offload != "none" else trained * 12 // shards[1]
    bucket = int(min(trained, BUCKET)) * width if shards[2] > 1 else 0
    gradients = trained * width // shards[2] + bucket
    vocabulary = model.get_output_embeddings().weight.shape[0]
    copies = 1 if width == 4 else 2  # half-precision logits are widened to a second copy
    head = copies * min(HEAD_BYTES, 4 * step_size.scored * vocabulary)
    activations, working = activation_bytes(model, step_size, max(0, scale.recompute))
    # The head's backward ends before that of the layers begins, so only the larger counts.
    return Memory(weights, gradients, optimizer, activations, max(head, working))


def activation_bytes(model: Any, step_size: StepSize, every: int) -> tuple[int, int]:
    """Return the bytes that the model's body saves for backward, and those that backward adds.

    Args:
        model: a model on the meta device; it is changed.
        step_size: rows, tokens and images of one forward pass.
        every: every k-th layer is recomputed; 0 recomputes none.
    """
    model.set_attn_implementation(COUNTED)
    run_text = _text_pass(model, step_size)
    run_vision = _vision_pass(model, step_size)
    layers = model.config.get_text_config().num_hidden_layers
    text = saved_bytes(run_text)
    vision = saved_bytes(run_vision)
    if not every:
        return text + vision, int(WORKING * text / layers)
    recompute_activations(model, every)
    lean_text = saved_bytes(run_text)
    vision = saved_bytes(run_vision)
    recompute_activations(model, 0)
    recomputed_layers = -(-layers // every)  # rounded up
    layer = (text - lean_text) / recomputed_layers  # one layer saves this while its backward runs
    # Backward begins at the last layer, where most is saved. It adds that layer's activations if
    # the last layer itself is recomputed.
    last_recomputed = (layers - 1) % every == 0
    return lean_text + vision, int((last_recomputed + WORKING) * layer)


def _text_pass(model: Any, step_size: StepSize) -> Callable[[], Any]:
    """Return a function that runs the language model, on the meta device."""
    body = model.base_model
    language = body.get_decoder() if hasattr(body, "get_decoder") else body.language_model
    width = model.config.get_text_config().hidden_size
    rows = step_size.rows
    tokens = step_size.tokens
    with torch.device("meta"):
        # R rows of T tokens, D features: (R, T, D), (R, 1, T, T) and (R, T).
        embedded = torch.empty(rows, tokens, width, dtype=model.dtype, requires_grad=True)
        mask = torch.empty(rows, 1, tokens, tokens, dtype=torch.bool)
        positions = torch.empty(rows, tokens, dtype=torch.long)
    return lambda: language(
        inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False
    )


def _vision_pass(model: Any, step_size: StepSize) -> Callable[[], Any]:
    """Return a function that runs vision tower and projector, on the meta device if that works."""
    body = model.base_model
    part_of = parts_of(model)
    trained = any(
        weight.requires_grad
        for name, weight in model.named_parameters()
        if part_of(name) != "language"
    )

    def run(images: Mapping[str, Tensor]) -> Any:
        with nullcontext() if trained else torch.no_grad():
            return body.get_image_features(**images)

    on_meta: dict[str, Tensor] = {}
    on_cpu: dict[str, Tensor] = {}
    for name, tensor in step_size.images.items():
        pixels = tensor.is_floating_point()
        on_meta[name] = tensor.to("meta", model.dtype) if pixels else tensor
        on_cpu[name] = tensor.to(model.dtype) if pixels else tensor
    try:
        run(on_meta)
    except RuntimeError:  # NotImplementedError is a subclass
        # The model reads values, so this part runs on the CPU, with uninitialized weights.
        for name, module in body.named_children():
            if part_of(f"model.{name}") != "language":
                module.to_empty(device="cpu")
        return lambda: run(on_cpu)
    return lambda: run(on_meta)


class _CountedAttention(torch.autograd.Function):
    """Save what fused attention saves: q, k, v, the output, and one number per row of scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, heads, tokens, width = query.shape
        output = value.new_empty(rows, tokens, heads, width)
        log_sums = query.new_empty(rows, heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, log_sums)
        return output


def _counted_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **_: Any
) -> tuple[Tensor, None]:
    return _CountedAttention.apply(query, key, value), None


# torch's own attention runs unfused on the meta device and would save the whole table of scores.
AttentionInterface.register(COUNTED, _counted_attention)


def saved_bytes(run: Callable[[], Any]) -> int:
    """Return the bytes that autograd saves of a computation, each storage once, without weights."""
    # Tensors stay alive until they are counted: a freed storage's address could be reused.
    saved: list[Tensor] = []

    def save(tensor: Tensor) -> Tensor:
        owner = tensor if tensor._base is None else tensor._base  # a view shares its base's storage
        if not isinstance(owner, torch.nn.Parameter):
            saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        run()
    storages = [tensor.untyped_storage() for tensor in saved]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


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
    choices = CHOICES if config.scale.recompute < 0 else (config.scale.recompute,)
    for every in choices:
        chosen = replace(config, scale=replace(config.scale, recompute=every))
        memory = predict_memory(chosen, step_size)
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
    wider = replace(sharded, workers=2 * scale.workers)
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
