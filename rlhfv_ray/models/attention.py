"""Attention over shared rows, under a name of its own that only our models select.

In a shared row the tokens of one pair form a fork: a common beginning of c tokens, then the rest
of the chosen answer (w tokens) and the rest of the rejected answer (l tokens). Masked attention
computes all T x T scores and hides most of them; `forked_attention` computes the visible ones.

Shapes: R rows of T tokens, H query heads, G key heads (H a multiple of G), D features per head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

# transformers dispatches by name. It treats a name that contains "sdpa" as a variant of sdpa, and
# then checks that the architecture supports sdpa.
FORKED_SDPA = "rlhfv_forked_sdpa"

# Row, first position, c, w, l: see the module's docstring.
ForkSizes = tuple[int, int, int, int, int]


def select_forked_attention(model: Any) -> None:
    """Select `forked_attention` for the language model of `model`, in place.

    The vision tower keeps its attention. So does every other model of the process. transformers
    never writes the name of an attention implementation to config.json.
    """
    # `set_attn_implementation({"text_config": ...})` on the whole model would miss the families
    # that build their decoder from a copy of that sub-configuration.
    model.get_decoder().set_attn_implementation(FORKED_SDPA)


def forked_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    forks: Sequence[ForkSizes] | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Compute the attention of shared rows without a mask.

    The common beginning and the rest of the chosen answer form one causal run. The rest of the
    rejected answer sees the common beginning and itself. Without forks, as in generation and in
    plain rows, this is transformers' own sdpa.

    Args:
        module: attention layer.
        query: (R, H, T, D).
        key: (R, G, T, D).
        value: (R, G, T, D).
        attention_mask: (R, 1, T, T) bool. It is not read where forks are given.
        forks: one tuple per pair, in the order of their positions in each row. The model's forward
            pass hands its keyword arguments down to here.
        settings: transformers' further arguments; `scaling` multiplies the scores.

    Returns:
        (R, T, H, D), zero on padding; and None in place of the attention weights.
    """
    if forks is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    groups = query.shape[1] // key.shape[1]
    key = repeat_kv(key, groups)  # (R, H, T, D)
    value = repeat_kv(value, groups)  # (R, H, T, D)
    scale = settings.get("scaling")  # None: 1 / sqrt(D), torch's default
    row_outputs: list[list[Tensor]] = [[] for _ in query]  # per row, its runs in order
    for row, start, common, chosen, rejected in forks:
        stop = start + common + chosen + rejected
        # The c + w + l tokens of one pair: (1, H, c + w + l, D) each.
        queries = query[row : row + 1, :, start:stop]
        keys = key[row : row + 1, :, start:stop]
        values = value[row : row + 1, :, start:stop]
        chosen_stop = common + chosen
        row_outputs[row].append(_chosen_run(queries, keys, values, chosen_stop, scale))
        if rejected:
            row_outputs[row].append(
                _rejected_run(queries, keys, values, common, chosen_stop, scale)
            )
    rows = [_pad_row(outputs, query.shape[2]) for outputs in row_outputs]  # R times (H, T, D)
    return torch.stack(rows).transpose(1, 2).contiguous(), None


def _chosen_run(query: Tensor, key: Tensor, value: Tensor, stop: int, scale: Any) -> Tensor:
    """Return (1, H, c + w, D): causal attention over the first `stop` = c + w tokens of a pair."""
    queries, keys, values = (tensor[:, :, :stop] for tensor in (query, key, value))
    # A causal run without a mask is what flash kernels accept.
    return scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scale)


def _rejected_run(
    query: Tensor, key: Tensor, value: Tensor, common: int, start: int, scale: Any
) -> Tensor:
    """Return (1, H, l, D): the l tokens from `start` = c + w, which see the c and themselves."""
    queries = query[:, :, start:]  # (1, H, l, D)
    # The chosen rest, between `common` and `start`, is cut out: (1, H, c + l, D) each.
    keys = torch.cat([key[:, :, :common], key[:, :, start:]], dim=2)
    values = torch.cat([value[:, :, :common], value[:, :, start:]], dim=2)
    # torch's is_causal aligns the first query with the first key; here it follows c keys, so the
    # diagonal moves by c: (l, c + l) bool.
    visible = torch.ones(queries.shape[2], keys.shape[2], dtype=torch.bool, device=query.device)
    visible = visible.tril(common)
    return scaled_dot_product_attention(queries, keys, values, attn_mask=visible, scale=scale)


def _pad_row(outputs: Sequence[Tensor], tokens: int) -> Tensor:
    """Concatenate the runs of one row, (1, H, *, D) each, and pad them with zeros to (H, T, D)."""
    row = torch.cat(list(outputs), dim=2)[0]  # (H, tokens in use, D)
    return nn.functional.pad(row, (0, 0, 0, tokens - row.shape[1]))


AttentionInterface.register(FORKED_SDPA, forked_attention)
# transformers builds no mask at all for a name that has no mask function, not even for padding.
AttentionMaskInterface.register(FORKED_SDPA, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
