"""The configuration of Muffin, RLHF-V's own model, as its release writes it.

A release folder is flat: LLaMA's settings, and those of the picture beside them. It names its
vision tower (`beit3_large_patch16_448`), whose last number is the side of the pictures in pixels,
and it holds no ids of image tokens: `completed` looks them up in the tokenizer.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

SIDES = (224, 256, 336, 448, 672)  # of pictures, pixels: the towers that the release registers
LARGE = re.compile(r"(?:^|/)beit3_large_patch16_(\d+)$")
# Image tokens by their fields of a completed configuration.
IMAGE_TOKENS = {
    "im_patch_token": "<im_patch>",
    "im_start_token": "<im_start>",
    "im_end_token": "<im_end>",
}
QUERY_POSITIONS = 1024  # rows of the query tokens' position table
FIRST_POSITION = 2  # both tables keep two rows unused, as fairseq's do


@strict
class MuffinVisionConfig(PreTrainedConfig):
    """BEiT-3's settings; the defaults are those of its large size."""

    model_type = "beit3_vision"
    base_config_key = "mm_vision_config"

    image_size: int = 448
    patch_size: int = 16
    hidden_size: int = 1024
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02

    def validate_architecture(self) -> None:
        """Check that heads and patches divide what they are cut from."""
        if self.image_size % self.patch_size or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"a vision tower of side {self.image_size} with patches of {self.patch_size} "
                f"pixels, width {self.hidden_size} and {self.num_attention_heads} heads cannot be "
                "built"
            )

    @property
    def image_positions(self) -> int:
        """Rows of the image tokens' position table: two unused, the class token, the patches."""
        return FIRST_POSITION + 1 + (self.image_size // self.patch_size) ** 2


@strict
class MuffinConfig(LlamaConfig):
    """Muffin's settings: LLaMA's, and those of the picture."""

    model_type = "beit3_llava"

    mm_vision_tower: str | None = None
    mm_vision_config: dict[str, Any] | None = None  # in place of what the tower's name stands for
    num_query: int | None = None  # tokens that a picture takes
    use_mm_proj: bool = True
    mm_use_im_start_end: bool = True
    im_patch_token: int | None = None
    im_start_token: int | None = None
    im_end_token: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # The release's ids are those of the first LLaMA conversion, and not its tokenizer's.
        if self.pad_token_id is not None and self.pad_token_id < 0:
            self.pad_token_id, self.bos_token_id, self.eos_token_id = None, 1, 2
        self.use_cache = True  # the release's training switched it off in its file
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Check what the picture's part is built of."""
        super().validate_architecture()
        if not self.num_query or not 0 < self.num_query <= QUERY_POSITIONS - FIRST_POSITION:
            raise ValueError(
                f"num_query = {self.num_query}: config.json must hold the number of tokens of a "
                "picture, from 1 to 1022; RLHF-V's models have 64"
            )
        if not self.use_mm_proj:
            raise ValueError("use_mm_proj = false: without its projector the model sees no picture")
        vision_settings(self)

    @property
    def image_token_id(self) -> int | None:
        """The token that stands for one feature of a picture, by transformers' name."""
        return self.im_patch_token


def vision_settings(config: MuffinConfig) -> MuffinVisionConfig:
    """Return the settings of a model's vision tower.

    Raises:
        ValueError: the tower's name is not one of BEiT-3's large size.
    """
    if config.mm_vision_config is not None:
        return MuffinVisionConfig(**config.mm_vision_config)
    named = LARGE.search(config.mm_vision_tower or "")
    if named is None or int(named[1]) not in SIDES:
        sides = ", ".join(map(str, SIDES))
        raise ValueError(
            f"mm_vision_tower = {config.mm_vision_tower!r}: must be beit3_large_patch16_SIDE, with "
            f"a side of {sides} pixels; the release has no base size"
        )
    return MuffinVisionConfig(image_size=int(named[1]))


def completed(config: Any, added_tokens: Callable[[], Mapping[str, int]]) -> Any:
    """Return a checkpoint's configuration, with Muffin's image tokens looked up in its tokenizer.

    Args:
        config: of any model; that of another one is returned as it is.
        added_tokens: returns the ids of the tokens that the tokenizer's files add to a vocabulary.

    Raises:
        ValueError: the tokenizer lacks an image token, or has more tokens than the model.
    """
    if not isinstance(config, MuffinConfig):
        return config
    missing = [name for name in IMAGE_TOKENS if getattr(config, name) is None]
    ids = added_tokens() if missing else {}
    for name in missing:
        token = IMAGE_TOKENS[name]
        if token not in ids:
            raise ValueError(
                f"its tokenizer has no token {token}. Give the tokenizer files of the release "
                "(added_tokens.json or tokenizer.json) beside config.json"
            )
        setattr(config, name, ids[token])
    for name in IMAGE_TOKENS:
        number = getattr(config, name)
        if not 0 <= number < config.vocab_size:
            raise ValueError(
                f"{name} = {number}, but the model has {config.vocab_size} tokens (vocab_size). "
                "Give the tokenizer files that belong to the model"
            )
    return config


AutoConfig.register("beit3_llava", MuffinConfig)
