"""A model as DDPO sees it: batches of pairs in, log-probabilities of answer tokens out."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhfv_ray.batch import Layout, branch_mask
from rlhfv_ray.logps import HEAD_BYTES, head_logps, widened


class AnswerHead(nn.Module):
    """The output head of a model, sharing its weights, computed on answer tokens only."""

    def __init__(self, head: nn.Linear, limit: int) -> None:
        super().__init__()
        self.weight, self.bias, self.limit = head.weight, head.bias, limit

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Log-probabilities (N,) of targets (N,) from features (N, D)."""
        return head_logps(hidden, self.weight, self.bias, targets, limit=self.limit)


class AnswerPolicy(nn.Module):
    """Scores the answers of pairs with an image-text-to-text model.

    The model's body runs on all tokens; its head only where an answer's token is predicted. Of a model whose family was not tested for that
    (logits may be scaled or capped behind the head) all logits are computed, as the model does it.
    """

    def __init__(self, model: Any, layout: Layout, *, head_bytes: int = HEAD_BYTES) -> None:
        super().__init__()
        self.model, self.layout = model, layout
        self.head = AnswerHead(model.get_output_embeddings(), head_bytes)

    def forward(self, inputs: Mapping[str, Tensor], predictors: Tensor, targets: Tensor) -> Tensor:
        """Log-probability (N,), in nats, of every scored token of a `PairBatch`."""
        wanted = dict(inputs)
        if "branches" in wanted:
            wanted["attention_mask"] = self.layout.attention(branch_mask(wanted.pop("branches")), wanted)
        if not self.layout.split_head:
            logits = self.model(**wanted, use_cache=False).logits.flatten(0, 1)[predictors]
            return widened(logits).log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        hidden = self.model.base_model(**wanted, use_cache=False).last_hidden_state
        return self.head(hidden.flatten(0, 1)[predictors], targets)


def recompute_activations(model: Any, every: int) -> None:
    """Keep the activations of all layers for backward (0), or compute those of every k-th layer again.

    Only the layers themselves enter training mode, which is when transformers' layers recompute; what they hold stays in evaluation
    mode, so no dropout wakes up.
    """
    if not every:
        model.activation_checkpointing_disable()
    else:
        model.activation_checkpointing_enable({"use_reentrant": False}, every_n_layers=every)
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = bool(every)
