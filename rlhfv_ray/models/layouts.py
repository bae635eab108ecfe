"""The layout of pairs that a model allows, family by family.

A family is in `TESTED` when a test shows, in fp32, that its log-probabilities and gradients are the same in shared rows as in plain ones,
and the same with the head on answer tokens only as from the model's own logits. All others run in plain rows through the whole model;
so, but for the head, do models whose attention takes no mask of ours.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhfv_ray.errors import ConfigError
from rlhfv_ray.models.attention import FORKED_SDPA
from rlhfv_ray.models.batch import Layout


@dataclass(frozen=True)
class RopeLayout(Layout):
    """Qwen-VL: a token has three positions (time, height, width), and ids alone do not say which tokens are an image's."""

    image_token: int = field(kw_only=True)
    rope: Callable[..., tuple[Tensor, Tensor]] = field(
        kw_only=True
    )  # of the model; reads its configuration only

    def token_inputs(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Which tokens are an image's."""
        return {"mm_token_type_ids": (input_ids == self.image_token).int()}

    def positions(self, prompt: Tensor, images: dict[str, Tensor], which: int) -> Tensor:
        """Time, height and width of every token."""
        ids = prompt.unsqueeze(0)
        grid = images["image_grid_thw"][which : which + 1]
        return self.rope(ids, image_grid_thw=grid, **self.token_inputs(ids))[0][:, 0]


@dataclass(frozen=True)
class GemmaLayout(Layout):
    """Gemma 3: the tokens of an image see each other both ways, and some layers see only a window."""

    forked: ClassVar[bool] = False  # an image's tokens see later ones, which needs a mask
    image_token: int = field(kw_only=True)
    window: int = field(kw_only=True)

    def token_inputs(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Which tokens are an image's."""
        return {"token_type_ids": (input_ids == self.image_token).long()}

    def attention(self, allowed: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """One mask per kind of layer; windows are counted in positions, for a continuation may stand far from what it continues."""
        image = inputs["token_type_ids"].bool()
        block = torch.where(image, (image & ~image.roll(1, 1)).cumsum(1), -1)
        allowed = allowed | (
            (block.unsqueeze(2) == block.unsqueeze(1)) & image.unsqueeze(2)
        ).unsqueeze(1)
        positions = inputs["position_ids"]
        near = (positions.unsqueeze(2) - positions.unsqueeze(1)).unsqueeze(1) < self.window
        return {"full_attention": allowed, "sliding_attention": allowed & near}


def layout_of(model: Any, layout: str = "auto", *, row_tokens: int = 0) -> Layout:
    """The layout of a model.

    Args:
        model: an image-text-to-text model.
        layout: `plain`, `shared`, or `auto`: shared where the family is known to allow it and its attention takes a mask.
        row_tokens: see `Layout`.

    Raises:
        ConfigError: shared rows, or several pairs in a row, are asked for and cannot be had.
    """
    config = model.config
    attention = config.get_text_config()._attn_implementation
    able = config.model_type in TESTED and attention in ("sdpa", FORKED_SDPA)
    if layout == "shared" and not able:
        raise ConfigError(
            f"model.layout = 'shared': not with a model of type {config.model_type} and {attention} attention. Shared rows are tested "
            f"with sdpa attention and {', '.join(sorted(TESTED))}; leave --model.layout auto."
        )
    if row_tokens and not (able and layout != "plain"):
        raise ConfigError(
            f"scale.row_tokens = {row_tokens}: only shared rows take several pairs, and these rows are plain. Leave it 0."
        )
    accepts = frozenset(inspect.signature(model.base_model.forward).parameters)
    shared, split_head = able and layout != "plain", config.model_type in TESTED
    settings = {
        "shared": shared,
        "row_tokens": row_tokens,
        "split_head": split_head,
        "accepts": accepts,
    }
    return FAMILIES.get(config.model_type, _plain)(model, **settings)


def _plain(model: Any, **settings: Any) -> Layout:
    return Layout(**settings)


def _rope(model: Any, **settings: Any) -> Layout:
    return RopeLayout(
        **settings, image_token=model.config.image_token_id, rope=model.base_model.get_rope_index
    )


def _gemma(model: Any, **settings: Any) -> Layout:
    config = model.config
    return GemmaLayout(
        **settings,
        image_token=config.image_token_id,
        window=config.get_text_config().sliding_window,
    )


FAMILIES: dict[str, Callable[..., Layout]] = {
    "qwen2_vl": _rope,
    "qwen2_5_vl": _rope,
    "qwen3_vl": _rope,
    "gemma3": _gemma,
}
TESTED = {"llava", "llava_next", "idefics3", "smolvlm", "internvl", *FAMILIES}
