"""Models with random weights and realistic sizes, and random pairs with realistic lengths.

The cells of the speed benchmark run on them. They need no download.
"""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from rlhfv_ray.models import AnswerPolicy, layout_of, load_processor
from rlhfv_ray.models.batch import Layout
from rlhfv_ray.records import ChangedTokens, ReferencePair

IMAGE_TOKEN, FIRST_WORD = 3, 10  # the image token of the shapes world's tokenizer

PATCH = 14  # pixels


@dataclass(frozen=True)
class Size:
    """Sizes of a LLaVA, and lengths of its pairs in tokens."""

    width: int
    layers: int
    feedforward: int
    heads: int
    words: int
    vision_width: int
    vision_layers: int
    image_side: int  # pixels
    prompt: int  # text tokens, image tokens not included
    answer: int
    common: int  # tokens of the common prefix of both answers
    group: int = 1  # query heads that share a key head

    @property
    def image_tokens(self) -> int:
        """Return the number of patches of an image."""
        return (self.image_side // PATCH) ** 2

    @property
    def tokens(self) -> tuple[int, int]:
        """Return the tokens of a pair as two padded rows, and as one shared row."""
        before = self.image_tokens + self.prompt
        return 2 * (before + self.answer), before + 2 * self.answer - self.common

    def flops(self, *, shared: bool, checkpointing: bool = False) -> float:
        """Count the floating-point operations of forward and backward of one pair."""
        tokens = self.tokens[int(shared)]
        # Operations per weight and token: forward 2, backward 4, recomputed forward 2.
        passes = 8 if checkpointing else 6
        block = 4 * self.width**2 + 3 * self.width * self.feedforward
        rows = 1 if shared else 2
        scored = 2 * self.answer - self.common if shared else tokens
        attention = 2 * passes * self.width * self.layers * (tokens / rows) ** 2 / 2 * rows
        vision = 2 * (self.image_tokens + 1) * self.vision_layers * 12 * self.vision_width**2
        images = (1 if shared else 2) * passes / 2 * vision
        return (
            passes * self.layers * block * tokens
            + attention
            + 6 * self.width * self.words * scored
            + images
        )


MUFFIN = Size(256, 6, 688, 8, 2000, 128, 4, 112, prompt=78, answer=87, common=24)
LLAVA = dataclasses.replace(MUFFIN, image_side=336, prompt=60)
LLAVA_7B = Size(4096, 32, 11008, 32, 32064, 1024, 24, 336, prompt=60, answer=87, common=24)
LLAVA_13B = dataclasses.replace(LLAVA_7B, width=5120, layers=40, feedforward=13824, heads=40)


@dataclass(frozen=True)
class Setting:
    """A model and its pairs, on a device."""

    size: Size
    model: Any
    processor: Any
    pairs: Sequence[ReferencePair]
    device: torch.device

    @property
    def policy(self) -> AnswerPolicy:
        """Return the model as the pipeline runs it."""
        return AnswerPolicy(self.model, layout_of(self.model))

    @property
    def plain(self) -> Layout:
        """Return the layout with two rows per pair."""
        return layout_of(self.model, "plain")


def make_setting(size: Size, *, pairs: int, device: torch.device, dtype: torch.dtype) -> Setting:
    """Build a model with random weights on the device, and random pairs."""
    vision = CLIPVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=4 * size.vision_width,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=max(1, size.vision_width // 64),
        image_size=size.image_side,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=size.words,
        hidden_size=size.width,
        intermediate_size=size.feedforward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads // size.group,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlavaForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    side = {"height": size.image_side, "width": size.image_side}
    processor = load_processor("shapes")  # of the same family, for smaller pictures
    processor.image_processor = CLIPImageProcessorPil(size=side, do_center_crop=False)
    processor.patch_size = PATCH
    return Setting(size, model, processor, make_pairs(size, pairs), device)


def make_pairs(size: Size, count: int) -> list[ReferencePair]:
    """Build pairs of random tokens.

    A fifth of the tokens after the common prefix are marked as corrected.
    """
    rng = random.Random(0)

    def words(number: int) -> list[int]:
        return [rng.randrange(FIRST_WORD, size.words) for _ in range(number)]

    def marks() -> list[bool]:
        return [False] * size.common + [rng.random() < 0.2 for _ in range(tail)]

    def logps() -> list[float]:
        return [-rng.random() for _ in range(size.answer)]

    pairs = []
    tail = size.answer - size.common
    for number in range(count):
        common = words(size.common)
        # Two tokens that are no words make the answers differ right after the common prefix.
        chosen = [*common, FIRST_WORD - 2, *words(tail - 1)]
        rejected = [*common, FIRST_WORD - 1, *words(tail - 1)]
        changed = ChangedTokens(marks(), marks())
        file = BytesIO()
        Image.effect_noise((640, 480), 60).convert("RGB").save(file, "JPEG")
        prompt = [IMAGE_TOKEN] * size.image_tokens + words(size.prompt)
        pairs.append(
            ReferencePair(
                str(number),
                file.getvalue(),
                prompt,
                chosen,
                rejected,
                {"both_sides": changed},
                chosen_logps=logps(),
                rejected_logps=logps(),
            )
        )
    return pairs


def on(part: Any, setting: Setting) -> Any:
    """Move a tensor, or a dict of model inputs, to the setting's device.

    Pixels of a dict take the model's dtype.
    """
    if not isinstance(part, dict):
        return part.to(setting.device)
    moved = {}
    for name, tensor in part.items():
        dtype = setting.model.dtype if tensor.is_floating_point() else None
        moved[name] = tensor.to(setting.device, dtype)
    return moved
