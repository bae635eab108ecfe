"""layout_of: what a model offers decides which rows are tried."""

from types import SimpleNamespace

import pytest

from rlhfv_ray.errors import ConfigError
from rlhfv_ray.models import layout_of
from rlhfv_ray.models.layouts import candidate_layouts


def model_of(attention: str = "sdpa", **text_settings) -> SimpleNamespace:
    """Return the attributes of a model that decide its layouts."""
    text = SimpleNamespace(_attn_implementation=attention, **text_settings)
    config = SimpleNamespace(model_type="some", get_text_config=lambda: text)
    body = SimpleNamespace(forward=lambda input_ids, pixel_values: None)
    return SimpleNamespace(
        config=config, base_model=body, forward=lambda input_ids, pixel_values, labels: None
    )


def ways(model, layout="auto"):
    return [(one.shared, one.split_head) for one in candidate_layouts(model, layout)]


def test_the_fastest_comes_first():
    """Catches: a slow layout that wins because it is tried before a faster one."""
    everything = [(True, True), (True, False), (False, True), (False, False)]
    assert ways(model_of()) == everything
    assert ways(model_of(), "shared") == everything[:2]
    assert ways(model_of(), "plain") == everything[2:]
    first, *_, last = candidate_layouts(model_of())
    assert first == layout_of(model_of())
    assert first.accepts == last.accepts == {"input_ids", "pixel_values", "labels"}


def test_attention_without_masks_runs_plain():
    """Catches: shared rows given to flash attention, which ignores a 4-D mask, or to eager, which
    adds it."""
    for attention in ("flash_attention_2", "eager"):
        assert ways(model_of(attention)) == [(False, True), (False, False)]


def test_layers_with_a_state_run_plain():
    """Catches: linear attention and convolutions, whose state no mask parts, in shared rows."""
    for kind in ("linear_attention", "conv"):
        model = model_of(layer_types=["full_attention", kind])
        assert ways(model) == [(False, True), (False, False)]


def test_windows_need_a_mask():
    """Catches: shared rows that see beyond a window, as attention without a mask does."""
    assert layout_of(model_of()).forked
    for settings in (
        {"sliding_window": 8},
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ):
        layout = layout_of(model_of(**settings))
        assert layout.shared and not layout.forked
        assert ("sliding_attention", 8) in layout.windows
    unused = layout_of(model_of(sliding_window=8, layer_types=["full_attention"]))
    assert unused.forked and unused.windows == (("full_attention", 0),)


def test_shared_asked_for_and_impossible():
    """Catches: an option that silently does something else."""
    with pytest.raises(ConfigError, match=r"some and eager attention.*leave --model.layout auto"):
        layout_of(model_of("eager"), "shared")
    with pytest.raises(ConfigError, match="only shared rows take several pairs"):
        layout_of(model_of("eager"), row_tokens=100)
