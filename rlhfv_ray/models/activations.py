"""The activations of a training step in bytes, counted on torch's meta device.

The model is built there without weights and run on tensors of the true shapes. What autograd saves
for backward is added up.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from rlhfv_ray.models.adapters import parts_of
from rlhfv_ray.models.attention import ForkSizes, select_forked_attention
from rlhfv_ray.models.batch import FORKS
from rlhfv_ray.models.policy import recompute_activations

# Memory that one layer's backward needs beside its activations, as a fraction of them; measured.
WORKING = 0.25


@dataclass(frozen=True)
class StepSize:
    """Size of one forward pass of one worker."""

    rows: int
    tokens: int  # per row
    images: Mapping[str, Tensor]  # the processor's image tensors, for all rows
    scored: int  # answer tokens
    forks: Sequence[ForkSizes] = ()  # of shared rows that attention reads without a mask
    split_head: bool = True  # the output head runs on answer tokens alone


def activation_bytes(model: Any, step_size: StepSize, every: int) -> tuple[int, int]:
    """Return the bytes that the model's body saves for backward, and those that backward adds.

    Args:
        model: a model on the meta device; it is changed.
        step_size: rows, tokens and images of one forward pass.
        every: every k-th layer is recomputed; 0 recomputes none.
    """
    if step_size.forks:
        select_forked_attention(model)
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
    forks = {FORKS: step_size.forks} if step_size.forks else {}
    return lambda: language(
        inputs_embeds=embedded,
        attention_mask=mask,
        position_ids=positions,
        use_cache=False,
        **forks,
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


class _SavedByAttention(torch.autograd.Function):
    """Save what fused attention saves: its inputs, the output, and one number per row of scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        output = value.new_empty(*query.shape[:-1], value.shape[-1])
        log_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        added = None if mask is None else mask.to(query.dtype)  # as fused attention reads it
        ctx.save_for_backward(query, key, value, added, output, log_sums)
        return output


class FusedAttention(TorchFunctionMode):
    """Stands in for torch's attention, which is not fused on the meta device.

    There it would save the whole table of scores.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, or what counts in its place."""
        settings = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **settings)
        query, key, value, *further = args
        mask = further[0] if further else settings.get("attn_mask")
        return _SavedByAttention.apply(query, key, value, mask)


def saved_bytes(run: Callable[[], Any]) -> int:
    """Return the bytes that autograd saves of a computation, each storage once, without weights."""
    # Tensors stay alive until they are counted: a freed storage's address could be reused.
    saved: list[Tensor] = []

    def save(tensor: Tensor) -> Tensor:
        owner = tensor if tensor._base is None else tensor._base  # a view shares its base's storage
        if not isinstance(owner, torch.nn.Parameter):
            saved.append(tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
    with hooks, FusedAttention():
        run()
    storages = [tensor.untyped_storage() for tensor in saved]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())
