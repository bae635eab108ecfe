"""layout_of: shared rows only where they are tested, never silently."""

from types import SimpleNamespace

import pytest

from rlhfv_ray.errors import ConfigError
from rlhfv_ray.models import layout_of


def model_of(kind: str, attention: str = "sdpa") -> SimpleNamespace:
    """Return the attributes of a model that decide its layout."""
    text = SimpleNamespace(_attn_implementation=attention)
    config = SimpleNamespace(model_type=kind, get_text_config=lambda: text)
    return SimpleNamespace(
        config=config, base_model=SimpleNamespace(forward=lambda input_ids, pixel_values: None)
    )


def test_tested_families_share_others_do_not():
    """Catches: an untested family run with masks and a head that it may not respect."""
    assert layout_of(model_of("llava")).shared
    assert layout_of(model_of("llava")).split_head
    unknown = layout_of(model_of("aya_vision"))
    assert not unknown.shared
    assert not unknown.split_head
    assert unknown.accepts == {"input_ids", "pixel_values"}


def test_attention_without_masks_runs_plain():
    """Catches: shared rows given to flash attention, which ignores a 4-D mask, or to eager, which
    adds it."""
    for attention in ("flash_attention_2", "eager"):
        layout = layout_of(model_of("llava", attention))
        assert not layout.shared
        assert layout.split_head


@pytest.mark.parametrize(("kind", "attention"), [("aya_vision", "sdpa"), ("llava", "eager")])
def test_shared_asked_for_and_impossible(kind, attention):
    """Catches: an option that silently does something else."""
    with pytest.raises(
        ConfigError, match=rf"{kind} and {attention} attention.*leave --model.layout auto"
    ):
        layout_of(model_of(kind, attention), "shared")
