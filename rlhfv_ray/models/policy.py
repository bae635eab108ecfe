"""A model as DDPO uses it: batches of pairs in, log-probabilities of answer tokens out.

Shapes: R rows of T tokens, N scored answer tokens, D features, V words of the vocabulary.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhfv_ray.logps import head_limit, head_logps, widened
from rlhfv_ray.models.attention import select_forked_attention
from rlhfv_ray.models.batch import FORKS, Layout, branch_mask


class AnswerHead(nn.Module):
    """The output head of a model, sharing its weights, computed on answer tokens only."""

    def __init__(self, head: nn.Linear, limit: int) -> None:
        super().__init__()
        self.weight = head.weight  # (V, D), the model's own parameter
        self.bias = head.bias  # (V,) or None
        self.limit = limit  # bytes of logits alive at a time

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the log-probs (N,) of the next tokens at N positions.

        Args:
            hidden: (N, D), the language model's last hidden states.
            targets: (N,), the ids of the next tokens.
        """
        return head_logps(hidden, self.weight, self.bias, targets, limit=self.limit)


class AnswerPolicy(nn.Module):
    """Score the answers of pairs with an image-text-to-text model.

    The model's body runs on all tokens, its head only where an answer token is predicted. A model
    of an untested family may scale or cap its logits behind the head. Such a model computes all of
    its logits itself.

    Args:
        model: an image-text-to-text model. Where the layout has forks, its language model switches
            to `attention.forked_attention`, which without forks equals transformers' sdpa.
        layout: the layout of the batches, from `layout_of`.
        head_bytes: logits held at a time, in bytes; 0: `logps.head_limit` of the model's device.
    """

    def __init__(self, model: Any, layout: Layout, *, head_bytes: int = 0) -> None:
        super().__init__()
        self.model = model
        self.layout = layout
        head = model.get_output_embeddings()
        self.head = AnswerHead(head, head_bytes or head_limit(gpu_bytes(head.weight.device)))
        if layout.shared and layout.forked:
            select_forked_attention(model)

    def forward(self, inputs: Mapping[str, Tensor], predictors: Tensor, targets: Tensor) -> Tensor:
        """Return the log-probability of every scored token of a `PairBatch`.

        Args:
            inputs: `PairBatch.inputs`.
            predictors: (N,) positions in the R * T tokens.
            targets: (N,) token ids.

        Returns:
            (N,) nats.
        """
        arguments = self._model_arguments(inputs)
        if not self.layout.split_head:
            logits = self.model(**arguments, use_cache=False).logits  # (R, T, V)
            predicted = widened(logits.flatten(0, 1)[predictors]).log_softmax(-1)  # (N, V)
            return predicted.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        body = self.model.base_model(**arguments, use_cache=False)
        features = body.last_hidden_state.flatten(0, 1)  # (R * T, D)
        return self.head(features[predictors], targets)

    def _model_arguments(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the keyword arguments of the model's forward pass."""
        arguments: dict[str, Any] = dict(inputs)
        if "branches" not in arguments:
            return arguments
        # transformers hands unknown keyword arguments of a forward pass down to every attention
        # function, in all tested families. Attention other than ours ignores `forks`, so the mask
        # is always given: a layer that does not know the forks still hides the right tokens.
        forks = arguments.pop(FORKS)  # (P, 5), on the CPU
        visible = branch_mask(arguments.pop("branches"))  # (R, 1, T, T) bool
        arguments["attention_mask"] = self.layout.attention(visible, arguments)
        if self.layout.forked:
            arguments[FORKS] = forks.tolist()
        return arguments


def gpu_bytes(device: torch.device) -> int:
    """Return the memory of a GPU in bytes; 0 for another device."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 0


def generator(model: Any) -> Callable[..., Any]:
    """Return the function with which a model answers, one that heeds logits processors.

    Janus' own `generate` drops them without a word. For text it is the one of all models otherwise,
    without the guidance of its drawing.
    """
    if model.config.model_type == "janus":
        of_all: Any = GenerationMixin
        return functools.partial(of_all.generate, model, guidance_scale=None)
    return model.generate


def recompute_activations(model: Any, every: int) -> None:
    """Keep the activations of all layers for backward, or recompute those of some layers.

    Only the layers enter training mode, because transformers' layers recompute in that mode alone.
    The modules inside them stay in evaluation mode, so dropout stays off.

    Args:
        model: a transformers model, changed in place.
        every: recompute every k-th layer, counted from the first; 0 keeps all activations.
    """
    if not every:
        model.activation_checkpointing_disable()
    else:
        model.activation_checkpointing_enable({"use_reentrant": False}, every_n_layers=every)
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = bool(every)
