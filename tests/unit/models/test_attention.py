"""forked_attention: it equals masked attention, and no model but ours is touched by it."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlhfv_ray.models import AnswerPolicy, attention, layout_of, load_policy
from rlhfv_ray.models.attention import (
    FORKED_SDPA,
    PLAIN,
    Paths,
    attention_paths,
    forked_attention,
    paths_of,
)
from rlhfv_ray.models.batch import branch_mask
from tests.families import FAMILIES, save


def test_transformers_keeps_its_sdpa():
    """Catches: an import of our package that replaces sdpa for every model of the process."""
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
    assert ALL_ATTENTION_FUNCTIONS[FORKED_SDPA] is forked_attention


def test_a_plain_model_keeps_torchs_path(small_model, monkeypatch):
    """Catches: a transformers model, not ours, whose attention runs through our function."""
    policy_model, _ = load_policy(small_model, device="cpu")
    AnswerPolicy(policy_model, layout_of(policy_model))
    size = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 16, "num_hidden_layers": 1}
    stranger = LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=2))
    assert stranger.config._attn_implementation == "sdpa"

    def refuse(*_, **__):
        raise AssertionError("our attention ran in a model that is not ours")

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, FORKED_SDPA, refuse)
    ids = torch.arange(6).unsqueeze(0)
    stranger(input_ids=ids)
    with pytest.raises(AssertionError, match="not ours"):
        policy_model(input_ids=ids)  # ours is the one that would notice


@pytest.mark.parametrize("make", FAMILIES, ids=lambda make: make.__name__)
def test_only_the_language_model_is_switched(make, tmp_path):
    """Catches: a family whose decoder keeps sdpa; a vision tower that is switched with it; an
    exported config.json that names an attention which other programs do not have."""
    model, _ = load_policy(save(make, tmp_path / "model"), device="cpu")
    vision = model.config.vision_config._attn_implementation
    layout = layout_of(model)
    AnswerPolicy(model, layout)
    expected = FORKED_SDPA if layout.forked else "sdpa"
    assert model.get_decoder().config._attn_implementation == expected
    assert model.config.vision_config._attn_implementation == vision == "sdpa"
    assert layout_of(model) == layout  # the switched model still counts as one with sdpa
    model.save_pretrained(tmp_path / "export")
    for file in (tmp_path / "export").glob("*.json"):
        assert "forked" not in file.read_text()
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["model_type"] == model.config.model_type


def test_plain_rows_leave_the_model_as_it_was(small_model):
    """Catches: attention switched for a layout that has no forks."""
    model, _ = load_policy(small_model, device="cpu")
    AnswerPolicy(model, layout_of(model, "plain"))
    assert model.get_decoder().config._attn_implementation == "sdpa"


def test_forks_equal_their_mask():
    """Catches: a continuation that sees the other, a pair that sees its neighbour, heads that are
    paired with the wrong keys, a scale that is dropped.

    Row 0 holds two pairs (2 + 1 + 2 and 1 + 2 + 0 tokens), row 1 one pair (3 + 0 + 1) and padding.
    """
    torch.manual_seed(0)
    query = torch.randn(2, 4, 8, 3)  # R, H, T, D
    key = torch.randn(2, 2, 8, 3)  # two query heads per key head
    value = torch.randn(2, 2, 8, 3)
    forks = [(0, 0, 2, 1, 2), (0, 5, 1, 2, 0), (1, 0, 3, 0, 1)]
    branches = torch.tensor([[0, 0, 1, 2, 2, 3, 4, 4], [0, 0, 0, 2, -1, -1, -1, -1]])
    found, weights = forked_attention(None, query, key, value, None, forks, scaling=0.3)
    masked = scaled_dot_product_attention(
        query,
        key.repeat_interleave(2, dim=1),
        value.repeat_interleave(2, dim=1),
        attn_mask=branch_mask(branches),
        scale=0.3,
    ).transpose(1, 2)  # R, T, H, D
    used = branches >= 0
    assert weights is None
    torch.testing.assert_close(found[used], masked[used])
    assert (found[~used] == 0).all()


PATHS = [Paths(*switches) for switches in itertools.product((False, True), repeat=3)]


@pytest.mark.parametrize("paths", PATHS, ids=str)
def test_all_paths_equal_the_mask(paths):
    """Catches: a path of GPUs that pairs heads with the wrong keys, mixes up stacked pairs, or
    shifts the diagonal; a gradient that one of them drops.

    Rows 0 and 2 hold pairs of equal sizes (2 + 1 + 2), at two places; row 1 one of other sizes.
    """
    torch.manual_seed(0)
    tensors = [torch.randn(3, heads, 8, 3, dtype=torch.double) for heads in (4, 2, 2)]
    forks = [(0, 0, 2, 1, 2), (0, 5, 1, 2, 0), (1, 0, 3, 0, 1), (2, 0, 1, 1, 0), (2, 2, 2, 1, 2)]
    branches = torch.tensor(
        [[0, 0, 1, 2, 2, 3, 4, 4], [0, 0, 0, 2, -1, -1, -1, -1], [0, 1, 3, 3, 4, 5, 5, -1]]
    )
    used = branches >= 0
    results = []
    for is_forked in (True, False):
        query, key, value = leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        if is_forked:
            with attention_paths(paths):
                output, _ = forked_attention(None, query, key, value, None, forks, scaling=0.3)
        else:
            output = scaled_dot_product_attention(
                query,
                key.repeat_interleave(2, dim=1),
                value.repeat_interleave(2, dim=1),
                attn_mask=branch_mask(branches),
                scale=0.3,
            ).transpose(1, 2)
        (output[used] ** 2).sum().backward()
        results.append([output[used], *(leaf.grad for leaf in leaves)])
    for ours, masked in zip(*results, strict=True):
        torch.testing.assert_close(ours, masked, rtol=1e-12, atol=1e-12)


def test_a_cpu_takes_the_plain_path():
    """Catches: a CPU on a path for GPUs; a choice that outlives its use."""
    assert paths_of(torch.zeros(1)) == PLAIN
    with attention_paths(PATHS[-1]):
        assert paths_of(torch.zeros(1)) == Paths(grouped=True, stacked=True, lower_right=True)
    assert paths_of(torch.zeros(1)) == PLAIN


def test_without_forks_it_is_transformers_sdpa(monkeypatch):
    """Catches: generation or plain rows computed by anything but transformers' own function."""
    module = SimpleNamespace(num_key_value_groups=1, is_causal=True)
    tensors = [torch.randn(1, 2, 4, 3) for _ in range(3)]
    monkeypatch.setattr(attention, "repeat_kv", None)  # the forked path would fail on it
    ours = forked_attention(module, *tensors, None, scaling=0.5)[0]
    assert torch.equal(ours, sdpa_attention_forward(module, *tensors, None, scaling=0.5)[0])
