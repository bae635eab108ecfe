"""Attention over shared rows, under a name of its own that only our models select.

In a shared row the tokens of one pair form a fork: a common beginning of c tokens, then the rest
of the chosen answer (w tokens) and the rest of the rejected answer (l tokens). Masked attention
computes all T x T scores and hides most of them; `forked_attention` computes the visible ones.

Shapes: R rows of T tokens, H query heads, G key heads (H a multiple of G), D features per head.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

# transformers dispatches by name. It treats a name that contains "sdpa" as a variant of sdpa, and
# then checks that the architecture supports sdpa.
FORKED_SDPA = "rlhfv_forked_sdpa"

# Row, first position, c, w, l: see the module's docstring.
ForkSizes = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Paths:
    """Ways to compute the same attention. They are meant for GPUs, and a CPU gains nothing."""

    grouped: bool
    """Let the kernel read each key for its group of queries, instead of repeating keys and values.
    On a GPU only flash kernels can, which take half precision."""
    stacked: bool
    """Compute pairs of equal sizes in one call, because a call on short rows is launch-bound."""
    lower_right: bool
    """Give the rest of the rejected answer torch's causal bias, which flash kernels take, instead
    of a mask."""


PLAIN = Paths(grouped=False, stacked=False, lower_right=False)
CHOSEN_PATHS: ContextVar[Paths | None] = ContextVar("paths", default=None)


@contextlib.contextmanager
def attention_paths(paths: Paths) -> Iterator[None]:
    """Compute attention of forks in these ways, in place of the device's own (a benchmark does)."""
    token = CHOSEN_PATHS.set(paths)
    try:
        yield
    finally:
        CHOSEN_PATHS.reset(token)


def paths_of(query: Tensor) -> Paths:
    """Return the paths of a tensor's device and precision, or those of `attention_paths`."""
    chosen = CHOSEN_PATHS.get()
    if chosen is not None:
        return chosen
    if not query.is_cuda:
        return PLAIN
    return Paths(grouped=query.element_size() < 4, stacked=True, lower_right=True)


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
    paths = paths_of(query)
    if not paths.grouped:
        groups = query.shape[1] // key.shape[1]
        key = repeat_kv(key, groups)  # (R, H, T, D)
        value = repeat_kv(value, groups)  # (R, H, T, D)
    scale = settings.get("scaling")  # None: 1 / sqrt(D), torch's default
    runs: dict[tuple[int, int], Tensor] = {}  # by row and first position
    for batch in fork_batches(forks, stacked=paths.stacked):
        *_, common, chosen, rejected = batch[0]
        # The c + w + l tokens of P pairs of these sizes: (P, H or G, c + w + l, D) each.
        queries, keys, values = (_slices(tensor, batch) for tensor in (query, key, value))
        outputs = [_chosen_run(queries, keys, values, common + chosen, scale, paths)]
        if rejected:
            outputs.append(_rejected_run(queries, keys, values, batch[0], scale, paths))
        places = [(row, start) for row, start, *_ in batch]
        runs |= dict(zip(places, torch.cat(outputs, dim=2).split(1), strict=True))
    row_outputs: list[list[Tensor]] = [[] for _ in query]  # per row, its pairs in order
    for row, start, *_ in forks:
        row_outputs[row].append(runs[row, start])
    rows = [_pad_row(outputs, query.shape[2]) for outputs in row_outputs]  # R times (H, T, D)
    return torch.stack(rows).transpose(1, 2).contiguous(), None


def fork_batches(forks: Sequence[ForkSizes], *, stacked: bool) -> list[list[ForkSizes]]:
    """Return the forks of each call: one by one, or all of equal sizes together.

    Example:
        >>> fork_batches([(0, 0, 2, 1, 1), (1, 0, 3, 1, 1), (2, 0, 2, 1, 1)], stacked=True)
        [[(0, 0, 2, 1, 1), (2, 0, 2, 1, 1)], [(1, 0, 3, 1, 1)]]
    """
    if not stacked:
        return [[fork] for fork in forks]
    by_sizes: dict[tuple[int, ...], list[ForkSizes]] = {}
    for fork in forks:
        by_sizes.setdefault(tuple(fork[2:]), []).append(fork)
    return list(by_sizes.values())


def _slices(tensor: Tensor, forks: Sequence[ForkSizes]) -> Tensor:
    """Return the tokens of P pairs of equal sizes, (P, *, c + w + l, D), of (R, *, T, D)."""
    pairs = []
    for row, start, *sizes in forks:
        pairs.append(tensor[row : row + 1, :, start : start + sum(sizes)])
    return pairs[0] if len(pairs) == 1 else torch.cat(pairs)


def _chosen_run(
    query: Tensor, key: Tensor, value: Tensor, stop: int, scale: Any, paths: Paths
) -> Tensor:
    """Return (P, H, c + w, D): causal attention over the first `stop` = c + w tokens of a pair."""
    queries, keys, values = (tensor[:, :, :stop] for tensor in (query, key, value))
    # A causal run without a mask is what flash kernels accept.
    return scaled_dot_product_attention(
        queries, keys, values, is_causal=True, scale=scale, enable_gqa=paths.grouped
    )


def _rejected_run(
    query: Tensor, key: Tensor, value: Tensor, fork: ForkSizes, scale: Any, paths: Paths
) -> Tensor:
    """Return (P, H, l, D): the l tokens from c + w on, which see the first c and themselves."""
    common, start = fork[2], fork[2] + fork[3]
    queries = query[:, :, start:]  # (P, H, l, D)
    # The chosen rest, between `common` and `start`, is cut out: (P, *, c + l, D) each.
    keys = torch.cat([key[:, :, :common], key[:, :, start:]], dim=2)
    values = torch.cat([value[:, :, :common], value[:, :, start:]], dim=2)
    # torch's is_causal aligns the first query with the first key; here it follows c keys, so the
    # diagonal moves by c: (l, c + l) bool.
    visible: Any
    if paths.lower_right:
        visible = causal_lower_right(queries.shape[2], keys.shape[2])
    else:
        visible = torch.ones(
            queries.shape[2], keys.shape[2], dtype=torch.bool, device=query.device
        ).tril(common)
    return scaled_dot_product_attention(
        queries, keys, values, attn_mask=visible, scale=scale, enable_gqa=paths.grouped
    )


def _pad_row(outputs: Sequence[Tensor], tokens: int) -> Tensor:
    """Concatenate the pairs of one row, (1, H, *, D) each, and pad them with zeros to (H, T, D)."""
    row = torch.cat(list(outputs), dim=2)[0]  # (H, tokens in use, D)
    return nn.functional.pad(row, (0, 0, 0, tokens - row.shape[1]))


AttentionInterface.register(FORKED_SDPA, forked_attention)
# transformers builds no mask at all for a name that has no mask function, not even for padding.
AttentionMaskInterface.register(FORKED_SDPA, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
