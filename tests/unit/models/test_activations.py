"""Bytes that autograd saves, by hand. Predicted against measured memory is in tests/invariants."""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from rlhfv_ray.models.activations import saved_bytes


def test_saved_bytes_counts_each_storage_once_and_no_weights():
    """Catches: weights counted as activations, or a tensor that two operations save counted twice.

    x is 3 x 4 fp32, 48 bytes. The layer saves x, and the two products save x and its output.
    """
    layer = nn.Linear(4, 4, bias=False)
    x = torch.randn(3, 4, requires_grad=True)
    assert saved_bytes(lambda: layer(x)) == 48
    assert saved_bytes(lambda: layer(x) * x) == 96


def test_attention_counts_as_fused_on_the_meta_device():
    """Catches: the whole table of scores counted, which fused attention never saves.

    Query, key, value and output are 1 x 2 x 64 x 4 fp32, 2,048 bytes each; 128 rows of scores have
    one number each. A mask of the scores is saved as numbers: 64 x 64 x 4 bytes.
    """
    with torch.device("meta"):
        query, key, value = (torch.randn(1, 2, 64, 4, requires_grad=True) for _ in range(3))
        mask = torch.ones(64, 64, dtype=torch.bool)
    plain = saved_bytes(lambda: scaled_dot_product_attention(query, key, value, is_causal=True))
    assert plain == 4 * 2048 + 128 * 4
    masked = saved_bytes(lambda: scaled_dot_product_attention(query, key, value, attn_mask=mask))
    assert masked == plain + 64 * 64 * 4
