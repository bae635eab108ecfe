"""Muffin's configuration: what cannot be built is named before a weight is read."""

import json

import pytest

from rlhfv_ray.config import ModelConfig
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.models import load_model
from tests.families_muffin import RELEASE, change_config, write_release


@pytest.fixture
def copy(tmp_path):
    return write_release(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_query": None}, "num_query = None.*64"),
        ({"num_query": 2000}, "num_query = 2000"),
        ({"use_mm_proj": False}, "projector"),
        ({"mm_vision_config": None, "mm_vision_tower": None}, "beit3_large_patch16_SIDE"),
        (
            {"mm_vision_config": None, "mm_vision_tower": "beit3_base_patch16_224"},
            "beit3_base_patch16_224.*no base size",
        ),
        ({"mm_vision_config": None, "mm_vision_tower": "beit3_large_patch16_500"}, "224, 256"),
        ({"mm_vision_config": {**RELEASE["mm_vision_config"], "image_size": 33}}, "side 33"),
        ({"vocab_size": 100}, "vocab_size"),
        ({"model_type": "omnilmm"}, "MiniCPM-V"),
    ],
)
def test_settings_that_cannot_be_built_are_named(copy, changes, message):
    """Catches: a stack trace, or weights read first, for a configuration that cannot be."""
    change_config(copy, **changes)
    for shard in copy.glob("*.bin"):
        shard.unlink()  # nothing of them is needed for these errors
    with pytest.raises(ConfigError, match=message) as error:
        load_model(ModelConfig(path=str(copy), dtype="fp32"))
    assert len(str(error.value)) < 600


def test_a_tokenizer_without_image_tokens_is_named(copy):
    """Catches: features that are put in the place of some other token."""
    (copy / "added_tokens.json").write_text(json.dumps({"[PAD]": 399}))
    with pytest.raises(ConfigError, match=r"no token <im_patch>.*added_tokens\.json"):
        load_model(ModelConfig(path=str(copy), dtype="fp32"))
