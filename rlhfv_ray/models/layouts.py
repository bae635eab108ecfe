"""The layouts of pairs that a model may allow, from what the model itself offers.

Nothing here says that a layout is right for a model: `models.self_check` tries the candidates on
real pairs, and a job takes the first whose numbers are the model's own.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhfv_ray.errors import ConfigError
from rlhfv_ray.models.attention import FORKED_SDPA
from rlhfv_ray.models.batch import Layout

# Families whose attention is not causal within a pair, or has layers that look at the image: their
# shared rows need a mask.
MASK_NEEDED = {"gemma3", "gemma4", "paligemma", "mllama"}
# Kinds of layers whose state depends on the order of tokens alone, so that a mask can part answers.
MASKED = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class RopeLayout(Layout):
    """Qwen-VL, GLM-V and others: a token has three positions (time, height, width)."""

    # The model's own function for positions; it reads the model's configuration only.
    rope: Callable[..., tuple[Tensor, Tensor]] = field(kw_only=True)

    def positions(
        self, prompt: Tensor, images: dict[str, Tensor], image_index: int, processor: Any
    ) -> Tensor:
        """Return time, height and width (3, L) of every token of a prompt (L,)."""
        ids = prompt.unsqueeze(0)  # (1, L)
        given = {
            **self.token_inputs(ids, torch.zeros_like(ids, dtype=torch.bool), processor),
            "image_grid_thw": images["image_grid_thw"][image_index : image_index + 1],  # (1, 3)
            "attention_mask": torch.ones_like(ids),
        }
        names = inspect.signature(self.rope).parameters
        settings = {name: value for name, value in given.items() if name in names}
        positions, _ = self.rope(ids, **settings)  # (3, 1, L)
        return positions[:, 0]


@dataclass(frozen=True)
class GemmaLayout(Layout):
    """Gemma 3: the tokens of an image see each other."""

    def attention(self, allowed: Tensor, inputs: dict[str, Tensor]) -> Any:
        """Return one mask (R, 1, T, T) per kind of layer."""
        kinds = inputs["token_type_ids" if "token_type_ids" in inputs else "mm_token_type_ids"]
        image = kinds.bool()  # (R, T)
        # A run of image tokens is one image. The cumulative sum counts the runs: (R, T).
        run = torch.where(image, (image & ~image.roll(1, 1)).cumsum(1), -1)
        same_run = run.unsqueeze(2) == run.unsqueeze(1)  # (R, T, T)
        same_image = same_run & image.unsqueeze(2)
        return super().attention(allowed | same_image.unsqueeze(1), inputs)  # (R, 1, T, T)


@dataclass(frozen=True)
class Gemma4Layout(GemmaLayout):
    """Larger Gemma 4: the tokens of an image see each other in layers with a window alone."""

    def attention(self, allowed: Tensor, inputs: dict[str, Tensor]) -> Any:
        """Return one mask (R, 1, T, T) per kind of layer."""
        masks = super().attention(allowed, inputs)
        if not isinstance(masks, dict):  # one kind: full, since the last layer always is
            return allowed
        return {kind: masks[kind] if window else allowed for kind, window in self.windows}


@dataclass(frozen=True)
class PrefixLayout(Layout):
    """PaliGemma: the prompt sees itself both ways, and only answers are causal."""

    def token_inputs(
        self, input_ids: Tensor, answered: Tensor, processor: Any
    ) -> dict[str, Tensor]:
        """Return the mark (R, T) of the causal tokens, as generation extends it."""
        return {"token_type_ids": answered.long()}

    def attention(self, allowed: Tensor, inputs: dict[str, Tensor]) -> Any:
        """Return a mask in which the tokens of one prompt see each other both ways."""
        prompt = inputs["token_type_ids"] == 0  # (R, T)
        both = prompt.unsqueeze(2) & prompt.unsqueeze(1)  # (R, T, T)
        # What a token sees of its own prompt is what its prompt sees of it: `allowed`, transposed.
        backwards = allowed.transpose(2, 3) & both.unsqueeze(1)  # (R, 1, T, T)
        return super().attention(allowed | backwards, inputs)


@dataclass(frozen=True)
class CrossLayout(Layout):
    """Llama 3.2 Vision: layers of their own look at the image, from its token on."""

    image_token: int = field(kw_only=True)

    def row_inputs(self, input_ids: Tensor, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the mask (R, T, images, tiles) of what a token sees of the image."""
        tiles = images["cross_attention_mask"][:, -1:]  # (R, 1, images, tiles) of the last token
        after = (input_ids == self.image_token).cumsum(1) > 0  # (R, T)
        return {**images, "cross_attention_mask": tiles * after[:, :, None, None]}


def candidate_layouts(model: Any, layout: str = "auto", *, row_tokens: int = 0) -> Iterator[Layout]:
    """Yield the layouts that a model may allow, the fastest first.

    Args:
        model: an image-text-to-text model.
        layout: `plain`, `shared`, or `auto` for both.
        row_tokens: see `Layout`.

    Raises:
        ConfigError: shared rows, or several pairs in a row, were requested and are not possible.
    """
    config = model.config
    text = config.get_text_config()
    attention = text._attn_implementation
    windows = _windows(text)
    can_share = attention in ("sdpa", FORKED_SDPA) and {kind for kind, _ in windows} <= MASKED
    if layout == "shared" and not can_share:
        raise ConfigError(
            f"model.layout = 'shared' is not possible for a model of type {config.model_type} and "
            f"{attention} attention. Shared rows need sdpa attention in every layer of the "
            "language model; leave --model.layout auto."
        )
    ways = [True] * (can_share and layout != "plain") + [False] * (layout != "shared")
    if row_tokens and not any(ways):
        raise ConfigError(
            f"scale.row_tokens = {row_tokens}: only shared rows take several pairs, and these rows "
            "are plain. Leave it 0."
        )
    if row_tokens and config.model_type == "mllama":
        raise ConfigError(
            f"scale.row_tokens = {row_tokens}: a model of type mllama takes one image per row. "
            "Leave it 0."
        )
    make = _maker(model)
    forked = all(not window for _, window in windows) and config.model_type not in MASK_NEEDED
    # Of both: Video-LLaVA's body takes pixels by a name that its own signature no longer has.
    callees = (model.forward, model.base_model.forward)
    accepts = frozenset().union(*(inspect.signature(callee).parameters for callee in callees))
    for shared in ways:
        for split_head in (True, False):
            yield make(
                shared=shared,
                row_tokens=row_tokens if shared else 0,
                split_head=split_head,
                accepts=accepts,
                forked=forked,
                windows=windows,
            )


def layout_of(
    model: Any, layout: str = "auto", *, row_tokens: int = 0, split_head: bool = True
) -> Layout:
    """Return the fastest layout that a model may allow.

    Args:
        model: an image-text-to-text model.
        layout: `plain`, `shared`, or `auto`: shared where it is possible.
        row_tokens: see `Layout`.
        split_head: the head may run alone. Jobs have both answers from `models.self_check`.

    Raises:
        ConfigError: as `candidate_layouts`.
    """
    candidates = candidate_layouts(model, layout, row_tokens=row_tokens)
    return next(candidate for candidate in candidates if candidate.split_head == split_head)


def _windows(text: Any) -> tuple[tuple[str, int], ...]:
    """Return the kinds of a language model's layers, with the window of each; 0: none."""
    window = getattr(text, "sliding_window", None) or 0
    listed = getattr(text, "layer_types", None)
    kinds = dict.fromkeys(listed or ["sliding_attention" if window else "full_attention"])
    return tuple((kind, window if kind == "sliding_attention" else 0) for kind in kinds)


def _maker(model: Any) -> Callable[..., Layout]:
    """Return what makes the layouts of a model."""
    config = model.config
    if hasattr(model.base_model, "get_rope_index"):
        return _with(RopeLayout, rope=model.base_model.get_rope_index)
    if config.model_type == "mllama":
        return _with(CrossLayout, image_token=config.image_token_index)
    text = config.get_text_config()
    if config.model_type == "gemma4" and text.use_bidirectional_attention == "vision":
        return Gemma4Layout
    return {"gemma3": GemmaLayout, "paligemma": PrefixLayout}.get(config.model_type, Layout)


def _with(kind: Callable[..., Layout], **more: Any) -> Callable[..., Layout]:
    return lambda **settings: kind(**settings, **more)
