"""A model as DDPO sees it: batches of pairs in, log-probabilities of answer tokens out."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhfv_ray.logps import HEAD_BYTES, head_logps, widened
from rlhfv_ray.models.batch import FORKS, Layout, branch_mask


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
            forks = wanted.pop(FORKS).tolist()
            mask = self.layout.attention(branch_mask(wanted.pop("branches")), wanted)
            if isinstance(mask, Tensor):
                setattr(mask, FORKS, forks)
            wanted["attention_mask"] = mask
        if not self.layout.split_head:
            logits = self.model(**wanted, use_cache=False).logits.flatten(0, 1)[predictors]
            return widened(logits).log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        hidden = self.model.base_model(**wanted, use_cache=False).last_hidden_state
        return self.head(hidden.flatten(0, 1)[predictors], targets)


def forked_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **settings: Any
) -> tuple[Tensor, None]:
    """Attention of shared rows without their mask: what a mask hides is not computed, and a causal run needs none.

    Of every pair, what both answers have in common and the chosen answer's rest are one causal run; the rejected answer's rest sees what is
    common, and itself. Where the mask does not say how the rows fork, it is transformers' own.

    Args:
        module: attention layer.
        query: (R, H, T, D).
        key: (R, G, T, D), H a multiple of G.
        value: as `key`.
        attention_mask: (R, 1, T, T), as `AnswerPolicy` made it, or any other.
        settings: of transformers, `scaling` among them.
    """
    forks = getattr(attention_mask, FORKS, None)
    if forks is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    groups, scale = query.shape[1] // key.shape[1], settings.get("scaling")
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    pieces: list[list[Tensor]] = [[] for _ in query]
    for row, start, common, chosen, rejected in forks:
        parts = [
            tensor[row : row + 1, :, start : start + common + chosen + rejected]
            for tensor in (query, key, value)
        ]
        asked, keys, values = (part[:, :, : common + chosen] for part in parts)
        pieces[row].append(
            scaled_dot_product_attention(asked, keys, values, is_causal=True, scale=scale)
        )
        if rejected:
            asked = parts[0][:, :, common + chosen :]
            keys, values = (
                torch.cat([part[:, :, :common], part[:, :, common + chosen :]], dim=2)
                for part in parts[1:]
            )
            allowed = torch.ones(
                rejected, common + rejected, dtype=torch.bool, device=query.device
            ).tril(common)
            pieces[row].append(
                scaled_dot_product_attention(asked, keys, values, attn_mask=allowed, scale=scale)
            )
    return torch.stack([_filled(found, query) for found in pieces]).transpose(
        1, 2
    ).contiguous(), None


def _filled(pieces: list[Tensor], like: Tensor) -> Tensor:
    """A row's results one after the other, zeros where it is padded, (H, T, D)."""
    found = torch.cat(pieces, dim=2)[0]
    return nn.functional.pad(found, (0, 0, 0, like.shape[2] - found.shape[1]))


AttentionInterface.register(
    "sdpa", forked_attention
)  # for masks that say how rows fork; all others go where they went


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
