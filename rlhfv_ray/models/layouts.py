"""The layout of pairs that a model allows, family by family.

A family is in `TESTED` when a test shows two things in fp32. Log-probabilities and gradients are
the same in shared rows as in plain ones. They are also the same with the head on answer tokens only
as from the model's own logits. All other families run in plain rows through the whole model. Models
of a tested family whose attention takes no mask of ours run in plain rows too.
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
    """Qwen-VL: a token has three positions (time, height, width).

    Such a model must also be told which tokens belong to an image.
    """

    image_token: int = field(kw_only=True)
    # The model's own function for positions; it reads the model's configuration only.
    rope: Callable[..., tuple[Tensor, Tensor]] = field(kw_only=True)

    def token_inputs(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Return the mark (R, T) of image tokens: 1 on them, 0 on text."""
        return {"mm_token_type_ids": (input_ids == self.image_token).int()}

    def positions(self, prompt: Tensor, images: dict[str, Tensor], image_index: int) -> Tensor:
        """Return time, height and width (3, L) of every token of a prompt (L,)."""
        ids = prompt.unsqueeze(0)  # (1, L)
        grid = images["image_grid_thw"][image_index : image_index + 1]  # (1, 3) patches
        positions, _ = self.rope(ids, image_grid_thw=grid, **self.token_inputs(ids))  # (3, 1, L)
        return positions[:, 0]


@dataclass(frozen=True)
class GemmaLayout(Layout):
    """Gemma 3: the tokens of an image see each other, and some layers see only a window."""

    forked: ClassVar[bool] = False  # an image's tokens see later ones, which needs a mask
    image_token: int = field(kw_only=True)
    window: int = field(kw_only=True)  # positions that a layer of kind `sliding_attention` sees

    def token_inputs(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Return the mark (R, T) of image tokens: 1 on them, 0 on text."""
        return {"token_type_ids": (input_ids == self.image_token).long()}

    def attention(self, allowed: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return one mask (R, 1, T, T) per kind of layer.

        Windows are counted in positions, because a continuation may stand far from what it
        continues.
        """
        image = inputs["token_type_ids"].bool()  # (R, T)
        # A run of image tokens is one image. The cumulative sum counts the runs: (R, T).
        run = torch.where(image, (image & ~image.roll(1, 1)).cumsum(1), -1)
        same_run = run.unsqueeze(2) == run.unsqueeze(1)  # (R, T, T)
        same_image = same_run & image.unsqueeze(2)
        visible = allowed | same_image.unsqueeze(1)  # (R, 1, T, T)
        positions = inputs["position_ids"]  # (R, T)
        distance = positions.unsqueeze(2) - positions.unsqueeze(1)  # (R, T, T), query - key
        near = distance.unsqueeze(1) < self.window
        return {"full_attention": visible, "sliding_attention": visible & near}


def layout_of(model: Any, layout: str = "auto", *, row_tokens: int = 0) -> Layout:
    """Return the layout of a model.

    Args:
        model: an image-text-to-text model.
        layout: `plain`, `shared`, or `auto`. The last means shared if the family is tested for it
            and the model's attention takes a mask.
        row_tokens: see `Layout`.

    Raises:
        ConfigError: shared rows, or several pairs in a row, were requested and are not possible.
    """
    config = model.config
    attention = config.get_text_config()._attn_implementation
    tested = config.model_type in TESTED
    can_share = tested and attention in ("sdpa", FORKED_SDPA)
    if layout == "shared" and not can_share:
        raise ConfigError(
            f"model.layout = 'shared' is not possible for a model of type {config.model_type} and "
            f"{attention} attention. Shared rows are tested with sdpa attention and "
            f"{', '.join(sorted(TESTED))}; leave --model.layout auto."
        )
    shared = can_share and layout != "plain"
    if row_tokens and not shared:
        raise ConfigError(
            f"scale.row_tokens = {row_tokens}: only shared rows take several pairs, and these rows "
            "are plain. Leave it 0."
        )
    accepts = frozenset(inspect.signature(model.base_model.forward).parameters)
    make_layout = FAMILIES.get(config.model_type, _plain)
    return make_layout(
        model, shared=shared, row_tokens=row_tokens, split_head=tested, accepts=accepts
    )


def _plain(model: Any, **settings: Any) -> Layout:
    return Layout(**settings)


def _rope(model: Any, **settings: Any) -> Layout:
    image_token = model.config.image_token_id
    return RopeLayout(**settings, image_token=image_token, rope=model.base_model.get_rope_index)


def _gemma(model: Any, **settings: Any) -> Layout:
    config = model.config
    window = config.get_text_config().sliding_window
    return GemmaLayout(**settings, image_token=config.image_token_id, window=window)


FAMILIES: dict[str, Callable[..., Layout]] = {
    "qwen2_vl": _rope,
    "qwen2_5_vl": _rope,
    "qwen3_vl": _rope,
    "gemma3": _gemma,
}
TESTED = {"llava", "llava_next", "idefics3", "smolvlm", "internvl", *FAMILIES}
