"""How much memory a training step takes, foretold from configuration and shapes before any weight is loaded.

Weights, gradients and optimizer state are counted. Activations are what autograd keeps: the model is built on torch's meta device and run
there on tensors of the true shapes, which costs neither memory nor time, and what it would save for backward is added up; so every
architecture tells its own number.
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
from rlhfv_ray.models.adapters import meta_model, parameter_counts, part_of
from rlhfv_ray.models.batch import collate_pairs
from rlhfv_ray.models.layouts import layout_of
from rlhfv_ray.models.policy import recompute_activations
from rlhfv_ray.records import EncodedPair

GIB = 2**30
SPARE = 0.08  # of the device: fragmentation, libraries, collectives' buffers
BUCKET = 5e8  # elements of DeepSpeed's reduction bucket, by default
WORKING = 0.5  # of one layer's activations: what its backward needs beside them, measured
CHOICES = (0, 4, 2, 1)  # of `scale.recompute`, from the fastest to the leanest


@dataclass(frozen=True)
class StepSize:
    """What goes through the model in one forward pass of one worker."""

    rows: int
    tokens: int  # of a row
    images: Mapping[str, Tensor]  # the processor's image tensors, for all rows
    scored: int  # answer tokens


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker, by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    working: int  # of the head, then of one layer's backward

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.working

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value / GIB:.2f}" for name, value in vars(self).items())
        return f"{self.total / GIB:.2f} GiB a worker ({parts})"


def step_size(pairs: Sequence[EncodedPair], processor: Any, config: DDPOConfig) -> StepSize:
    """Shapes of one forward pass over these pairs.

    Raises:
        ConfigError: a pair is longer than `scale.row_tokens`.
    """
    layout = layout_of(
        meta_model(config.model), config.model.layout, row_tokens=config.scale.row_tokens
    )
    longest = max(pairs, key=layout.tokens_of)
    if 0 < layout.row_tokens < layout.tokens_of(longest):
        raise ConfigError(
            f"scale.row_tokens = {layout.row_tokens}: the pair {longest.id} takes {layout.tokens_of(longest)} tokens of a row. "
            "Give at least as many, or 0 for a row of its own to each pair."
        )
    batch = collate_pairs(pairs, processor, rule=config.data.rule, layout=layout)
    rows, tokens = batch.inputs["input_ids"].shape
    of_images = layout.image_inputs(processor, [pairs[0].image])
    images = {name: tensor for name, tensor in batch.inputs.items() if name in of_images}
    return StepSize(rows, tokens, images, len(batch.targets))


def predict_memory(config: DDPOConfig, shapes: StepSize) -> Memory:
    """Peak memory of one worker in a training step.

    Args:
        config: model, dtype, ZeRO stage, offload, adapters, recomputed layers.
        shapes: of one forward pass.
    """
    model = meta_model(config.model)
    whole, trained = (sum(column) for column in zip(*parameter_counts(model).values(), strict=True))
    scale, size = config.scale, 2 if config.model.dtype == "bf16" else 4
    share = {level: scale.workers if scale.zero_stage >= level else 1 for level in (1, 2, 3)}
    weights = 0 if scale.offload == "all" else whole * size // share[3]
    optimizer = (
        0 if scale.offload != "none" else trained * 12 // share[1]
    )  # fp32 weights and two moments
    gradients = trained * size // share[2] + int(min(trained, BUCKET)) * size * (share[2] > 1)
    words = model.get_output_embeddings().weight.shape[0]
    copies = 1 if size == 4 else 2  # half precision is widened beside itself
    head = copies * min(HEAD_BYTES, 4 * shapes.scored * words)
    kept, working = activation_bytes(model, shapes, max(0, scale.recompute))
    # The head's backward is done when the layers' begins, so only the larger of the two counts.
    return Memory(weights, gradients, optimizer, kept, max(head, working))


def activation_bytes(model: Any, shapes: StepSize, every: int) -> tuple[int, int]:
    """Bytes that the model's body keeps for backward, and what backward needs beside them; `model` is on the meta device."""
    model.set_attn_implementation("counted")
    body, dtype = model.base_model, model.dtype
    language = body.get_decoder() if hasattr(body, "get_decoder") else body.language_model
    width = model.config.get_text_config().hidden_size
    rows, tokens = shapes.rows, shapes.tokens
    with torch.device("meta"):
        embedded = torch.empty(rows, tokens, width, dtype=dtype, requires_grad=True)
        mask = torch.empty(rows, 1, tokens, tokens, dtype=torch.bool)
        positions = torch.empty(rows, tokens, dtype=torch.long)

    def text() -> Any:
        return language(
            inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False
        )

    images = {
        name: tensor.to("meta", dtype) if tensor.is_floating_point() else tensor
        for name, tensor in shapes.images.items()
    }
    trained = any(
        weight.requires_grad
        for name, weight in model.named_parameters()
        if part_of(name) != "language"
    )

    def vision() -> Any:
        with nullcontext() if trained else torch.no_grad():
            return body.get_image_features(**images)

    try:
        vision()
    except RuntimeError:  # NotImplementedError is one
        # It looks at values: this part runs on the CPU, on weights that are not set.
        for name, module in body.named_children():
            if part_of(f"model.{name}.") != "language":
                module.to_empty(device="cpu")
        images = {
            name: tensor.to(dtype if tensor.is_floating_point() else None)
            for name, tensor in shapes.images.items()
        }

    layers = model.config.get_text_config().num_hidden_layers
    whole = saved_bytes(text)
    if not every:
        return whole + saved_bytes(vision), int(WORKING * whole / layers)
    recompute_activations(model, every)
    lean, seen = saved_bytes(text), saved_bytes(vision)
    recompute_activations(model, 0)
    layer = (whole - lean) / -(
        -layers // every
    )  # what one recomputed layer keeps while its backward runs
    first = (
        layers - 1
    ) % every == 0  # the last layer, where backward begins and most is kept, is itself recomputed
    return lean + seen, int((first + WORKING) * layer)


class _Attention(torch.autograd.Function):
    """What fused attention keeps: queries, keys, values, its output and one number per row of scores; no table of scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, heads, tokens, width = query.shape
        out = value.new_empty(rows, tokens, heads, width)
        ctx.save_for_backward(
            query, key, value, out, query.new_empty(rows, heads, tokens, dtype=torch.float32)
        )
        return out


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **_: Any
) -> tuple[Tensor, None]:
    return _Attention.apply(query, key, value), None


AttentionInterface.register("counted", _attention)  # the meta device would run attention unfused


def saved_bytes(run: Callable[[], Any]) -> int:
    """Bytes of the tensors that autograd keeps of a computation, each storage once, weights not counted."""
    kept: list[
        Tensor
    ] = []  # alive until they are counted, so that no storage takes another's place

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor if tensor._base is None else tensor._base, torch.nn.Parameter):
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(
        {
            tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in kept
        }.values()
    )


def fit_memory(config: DDPOConfig, shapes: StepSize, available: int) -> tuple[DDPOConfig, Memory]:
    """The configuration with `scale.recompute` chosen (where it is negative) so that a step fits: from no recomputation to all layers.

    Args:
        config: of training.
        shapes: of its largest forward pass.
        available: bytes of one worker's device.

    Raises:
        ConfigError: it cannot fit; with what would.
    """
    room = int(available * (1 - SPARE))
    choices = CHOICES if config.scale.recompute < 0 else (config.scale.recompute,)
    for every in choices:
        chosen = replace(config, scale=replace(config.scale, recompute=every))
        memory = predict_memory(chosen, shapes)
        if memory.total <= room:
            return chosen, memory
    raise ConfigError(
        f"A worker needs {memory} and has {available / GIB:.2f}, {SPARE:.0%} of which stay spare. "
        f"What would fit: {remedies(chosen, shapes, room)}. (--scale.memory-gib says how much there is, if this is wrong.)"
    )


def remedies(config: DDPOConfig, shapes: StepSize, room: int) -> str:
    """Changes after which a job that does not fit would, cheapest first; those that do not suffice are left out."""
    scale, optim = config.scale, config.optim
    wider = replace(scale, zero_stage=3, workers=2 * scale.workers)
    tried = {
        "--scale.recompute 1": replace(config, scale=replace(scale, recompute=1)),
        "--scale.zero-stage 3": replace(config, scale=replace(scale, zero_stage=3)),
        "--scale.zero-stage 3 and twice the workers": replace(
            config, scale=wider, optim=replace(optim, batch=2 * optim.batch)
        ),
        "--scale.offload optimizer": replace(
            config, scale=replace(scale, zero_stage=max(1, scale.zero_stage), offload="optimizer")
        ),
        "--model.lora-rank 16 --model.trainable language": replace(
            config, model=replace(config.model, lora_rank=16, trainable=("language",))
        ),
    }
    fitting = [name for name, other in tried.items() if predict_memory(other, shapes).total <= room]
    fewer = "fewer pairs per forward pass (--scale.micro-batch), shorter pairs (--data.max-length), or a smaller model"
    return "; or ".join(fitting) or fewer
