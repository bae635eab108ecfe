"""Small real models of further families, as those of `tests.families`: newer Qwen, GLM and Gemma.

Sizes keep what sets a family apart: linear attention (Qwen3.5), experts (the MoE models), layers
that reuse keys and values, inputs of each layer, and windows (Gemma 4).
"""

from collections.abc import Callable, Sequence
from typing import Any

import transformers as tf

from tests.families import (
    QWEN_TOKENS,
    ROPE,
    VISION,
    internvl,
    template,
    text_of,
    tokenizer,
    without_videos,
)

QWEN3_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "patch_size": 16,
    "out_hidden_size": 32,
    "num_position_embeddings": 64,
}
EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}


def qwen3(name: str, vision: dict[str, Any], **text: Any) -> tuple[Any, Any]:
    """Return a model with the processor of Qwen3-VL, which later Qwen models share."""
    words = tokenizer(*QWEN_TOKENS)
    images = tf.Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, size={"shortest_edge": 2 * 32**2, "longest_edge": 12 * 32**2}
    )
    processor = without_videos(
        "Qwen3VL",
        images,
        words,
        chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    config = getattr(tf, f"{name}Config")(
        vision_config=vision,
        text_config=text_of(words, **text),
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=words.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|vision_end|>"),
    )
    return getattr(tf, f"{name}ForConditionalGeneration")(config), processor


def qwen3_5() -> tuple[Any, Any]:
    # A quarter of each head is rotated, as published, so heads are four times as wide.
    rope = {**ROPE, "mrope_interleaved": True, "partial_rotary_factor": 0.25}
    return qwen3(
        "Qwen3_5",
        QWEN3_VISION,
        head_dim=32,
        rope_parameters=rope,
        layer_types=["linear_attention", "full_attention"],
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
    )


def qwen3_vl_moe() -> tuple[Any, Any]:
    vision = {**QWEN3_VISION, "deepstack_visual_indexes": [0]}
    return qwen3("Qwen3VLMoe", vision, head_dim=8, rope_parameters=ROPE, num_experts=4, **EXPERTS)


GLM_TOKENS = tuple(
    f"<|{name}|>"
    for name in (
        "image",
        "begin_of_image",
        "end_of_image",
        "video",
        "begin_of_video",
        "end_of_video",
    )
)


def glm(name: str, **text: Any) -> tuple[Any, Any]:
    words = tokenizer(*GLM_TOKENS)
    images = tf.Glm4vImageProcessorPil(
        patch_size=14,
        merge_size=2,
        size={"shortest_edge": 2 * 2 * 28**2, "longest_edge": 2 * 12 * 28**2},
    )
    processor = without_videos(
        "Glm4v",
        images,
        words,
        chat_template=template("<|begin_of_image|><|image|><|end_of_image|>"),
    )
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": 14,
        "image_size": 112,
        "out_hidden_size": 32,
    }
    ids = {
        f"{kind}_{place}_token_id": words.convert_tokens_to_ids(f"<|{mark}_of_{kind}|>")
        for kind in ("image", "video")
        for place, mark in (("start", "begin"), ("end", "end"))
    }
    # Half of each head is rotated, as published, so heads are twice as wide.
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    rope = {**ROPE, "partial_rotary_factor": 0.5}
    config = getattr(tf, f"{name}Config")(
        vision_config=vision,
        text_config=text_of(words, rope_parameters=rope, **heads, **text),
        image_token_id=words.convert_tokens_to_ids("<|image|>"),
        video_token_id=words.convert_tokens_to_ids("<|video|>"),
        **ids,
    )
    return getattr(tf, f"{name}ForConditionalGeneration")(config), processor


def glm4v() -> tuple[Any, Any]:
    return glm("Glm4v")


def glm4v_moe() -> tuple[Any, Any]:
    return glm("Glm4vMoe", first_k_dense_replace=1, n_routed_experts=4, **EXPERTS)


GEMMA4_WORDS = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
# A token shows 8 x 8 pixels. No limit of tokens is smaller than 70.
GEMMA4_IMAGES = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}


def gemma4_family(
    name: str, sound: Any, images: Any, vision: dict[str, Any], **text: Any
) -> tuple[Any, Any]:
    words = tokenizer("<|video|>", **GEMMA4_WORDS)
    processor = with_sound(name, sound, images, words, chat_template=template("<|image|>"))
    settings = {
        "head_dim": 8,
        "global_head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 6,
        "final_logit_softcapping": 30.0,
        **text,
    }
    ids = {
        f"{kind}_token_id": words.convert_tokens_to_ids(GEMMA4_WORDS[f"{kind}_token"])
        for kind in ("boi", "eoi", "image", "boa", "audio")
    }
    config = getattr(tf, f"{name}Config")(
        vision_config={**vision, "patch_size": 4, "pooling_kernel_size": 2},
        text_config=text_of(words, **settings),
        audio_config=None,
        video_token_id=words.convert_tokens_to_ids("<|video|>"),
        eoa_token_index=words.convert_tokens_to_ids("<audio|>"),
        **ids,
    )
    return getattr(tf, f"{name}ForConditionalGeneration")(config), processor


def gemma4_images(**text: Any) -> tuple[Any, Any]:
    """Return a Gemma 4 with a vision tower."""
    vision = {**VISION, "num_key_value_heads": 4, "head_dim": 8, "position_embedding_size": 512}
    return gemma4_family(
        "Gemma4",
        tf.Gemma4AudioFeatureExtractor(),
        tf.Gemma4ImageProcessorPil(**GEMMA4_IMAGES),
        vision,
        **text,
    )


def gemma4() -> tuple[Any, Any]:
    """Return a Gemma 4 as E2B and E4B: inputs of each layer, causal also within an image."""
    return gemma4_images(
        num_hidden_layers=4,  # the last two reuse the keys and values of the first two
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=400,
    )


def gemma4_experts() -> tuple[Any, Any]:
    """Return a Gemma 4 as 26B-A4B: experts, and the tokens of an image see each other."""
    return gemma4_images(
        hidden_size_per_layer_input=0,
        use_bidirectional_attention="vision",
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=32,
    )


def gemma4_unified() -> tuple[Any, Any]:
    """Return a Gemma 4 as 12B: no vision tower. Its image processor needs torchvision."""
    return gemma4_family(
        "Gemma4Unified",
        tf.Gemma4UnifiedAudioFeatureExtractor(),
        tf.Gemma4UnifiedImageProcessor(**GEMMA4_IMAGES),
        {"mm_embed_dim": 32, "mm_posemb_size": 80, "output_proj_dims": 32},
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
    )


def internvl_published(text: type[Any] = tf.Qwen2Config) -> tuple[Any, Any]:
    """Return an InternVL as published in transformers' form (`-hf`).

    Its image processor is saved with crop_to_patches=False, but InternVLProcessor turns the tiles
    on. So only the whole processor cuts tiles, never the image processor alone.
    """
    return internvl(text, tiles_by_image_processor=False)


def internvl_published_qwen3() -> tuple[Any, Any]:
    """Return an InternVL 3.5, whose language model is a Qwen3."""
    return internvl_published(tf.Qwen3Config)


class NoVideo(tf.ProcessorMixin):
    """Takes the place of `ProcessorMixin` behind a processor, and drops its video part."""

    def __init__(self, *parts: Any, video_processor: None = None, **settings: Any) -> None:
        super().__init__(*parts, **settings)


def with_sound(name: str, *parts: Any, **settings: Any) -> Any:
    """Return a processor without its video part, as `without_videos`, but with its sound part."""
    full_class = getattr(tf, f"{name}Processor")
    kept = [part for part in full_class.get_attributes() if part != "video_processor"]
    body: dict[str, Any] = {"get_attributes": classmethod(lambda _: kept)}
    processor_class = type(full_class.__name__, (full_class, NoVideo), body)
    return processor_class(*parts, video_processor=None, **settings)


FAMILIES_A: Sequence[Callable[[], tuple[Any, Any]]] = (
    qwen3_5,
    qwen3_vl_moe,
    glm4v,
    glm4v_moe,
    gemma4,
    gemma4_experts,
    internvl_published,
    internvl_published_qwen3,
)
