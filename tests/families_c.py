"""Further small real models of vision-language families, made as in `tests.families`.

Special features: slices of an image that are packed in one row of pixels (MiniCPM-V 4.6 and 4.7),
markers with positions on a canvas (MiniCPM-V 4.7), experts of its own for the image (ERNIE 4.5 VL),
a head that is tied to the embeddings (DeepSeek-VL, Janus), a tower of convolutions (FastVLM).
"""

from collections.abc import Callable, Sequence
from typing import Any

import transformers as tf

from rlhfv_ray.models.processors import without_video_part
from tests.families import (
    CLIP_PROCESSOR,
    ROPE,
    VISION,
    template,
    text_of,
    tokenizer,
    without_videos,
)
from tests.families_a import EXPERTS, GLM_TOKENS, QWEN3_VISION, qwen3

# A quarter of each head is rotated, as published, so heads are four times as wide.
MIXED = {
    "head_dim": 32,
    "rope_parameters": {**ROPE, "mrope_interleaved": True, "partial_rotary_factor": 0.25},
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


def minicpm(name: str, **more: str) -> tuple[Any, Any]:
    """Return a MiniCPM-V; `more`: further tokens whose ids its configuration holds, by setting."""
    words = tokenizer(
        "\n",
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        image_start_token="<image>",
        image_end_token="</image>",
        slice_start_token="<slice>",
        slice_end_token="</slice>",
        image_id_start_token="<image_id>",
        image_id_end_token="</image_id>",
    )
    # A token shows 32 x 32 pixels. Images above 48 x 48 are also seen in slices of that size.
    images = tf.MiniCPMV4_6ImageProcessorPil(patch_size=8, scale_resolution=48, max_slice_nums=4)
    processor = without_video_part(getattr(tf, f"{name}Processor"))(
        images, None, words, chat_template=template("<|image_pad|>")
    )
    vision = {**VISION, "patch_size": 8, "image_size": 64}
    config = getattr(tf, f"{name}Config")(
        vision_config=vision,
        text_config=tf.Qwen3_5TextConfig(**text_of(words, **MIXED)),
        insert_layer_id=0,
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
        **{key: words.convert_tokens_to_ids(token) for key, token in more.items()},
    )
    return getattr(tf, f"{name}ForConditionalGeneration")(config), processor


def minicpmv4_6() -> tuple[Any, Any]:
    return minicpm("MiniCPMV4_6")


def minicpmv4_7() -> tuple[Any, Any]:
    return minicpm(
        "MiniCPMV4_7",
        image_start_id="<image>",
        image_end_id="</image>",
        slice_start_id="<slice>",
        slice_end_id="</slice>",
        newline_id="\n",
    )


def qwen3_5_moe() -> tuple[Any, Any]:
    return qwen3(
        "Qwen3_5Moe",
        QWEN3_VISION,
        num_experts=4,
        shared_expert_intermediate_size=32,
        **EXPERTS,
        **MIXED,
    )


def glm46(name: str, rotated: float, **vision: Any) -> tuple[Any, Any]:
    """Return a model with the processor of GLM-4.6V; `rotated`: share of a head's width."""
    words = tokenizer(*GLM_TOKENS)
    images = tf.Glm46VImageProcessorPil(
        patch_size=14,
        merge_size=2,
        size={"shortest_edge": 2 * 2 * 28**2, "longest_edge": 2 * 12 * 28**2},
    )
    processor = without_videos(
        "Glm46V",
        images,
        words,
        chat_template=template("<|begin_of_image|><|image|><|end_of_image|>"),
    )
    ids = {
        f"{kind}_{place}_token_id": words.convert_tokens_to_ids(f"<|{mark}_of_{kind}|>")
        for kind in ("image", "video")
        for place, mark in (("start", "begin"), ("end", "end"))
    }
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": int(8 / rotated)}
    text = text_of(words, rope_parameters={**ROPE, "partial_rotary_factor": rotated}, **heads)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 4}
    config = getattr(tf, f"{name}Config")(
        vision_config={**sizes, "patch_size": 14, "out_hidden_size": 32, **vision},
        text_config=text,
        image_token_id=words.convert_tokens_to_ids("<|image|>"),
        video_token_id=words.convert_tokens_to_ids("<|video|>"),
        **ids,
    )
    return getattr(tf, f"{name}ForConditionalGeneration")(config), processor


def glm46v() -> tuple[Any, Any]:
    return glm46("Glm46V", 0.5, image_size=112)


def glm_ocr() -> tuple[Any, Any]:
    return glm46("GlmOcr", 1.0)


def deepseek_vl() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image_placeholder>")
    images = tf.DeepseekVLImageProcessorPil(size={"height": 28, "width": 28})
    processor = tf.DeepseekVLProcessor(
        images, words, num_image_tokens=4, chat_template=template("<image_placeholder>")
    )
    config = tf.DeepseekVLConfig(
        vision_config=tf.SiglipVisionConfig(**VISION, image_size=28, vision_use_head=False),
        text_config=tf.LlamaConfig(**text_of(words)),
        image_token_id=words.convert_tokens_to_ids("<image_placeholder>"),
    )
    return tf.DeepseekVLForConditionalGeneration(config), processor


def janus() -> tuple[Any, Any]:
    words = tokenizer(
        image_token="<image_placeholder>", boi_token="<begin_of_image>", eoi_token="<end_of_image>"
    )
    images = tf.JanusImageProcessorPil(size={"height": 28, "width": 28})
    processor = tf.JanusProcessor(
        images, words, num_image_tokens=4, chat_template=template("<image_placeholder>")
    )
    vision = tf.JanusVisionConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
        mlp_ratio=2,
        projection_dim=32,
        num_image_tokens=4,
    )
    # The part that draws images, which answers do not use.
    drawing = tf.JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=16,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        projection_dim=32,
        image_token_embed_dim=32,
    )
    config = tf.JanusConfig(
        vision_config=vision,
        vq_config=drawing,
        text_config=tf.LlamaConfig(**text_of(words)),
        image_token_id=words.convert_tokens_to_ids("<image_placeholder>"),
    )
    return tf.JanusForConditionalGeneration(config), processor


def ernie4_5_vl_moe() -> tuple[Any, Any]:
    words = tokenizer(
        image_token="<|IMAGE_PLACEHOLDER|>",
        image_start_token="<|IMAGE_START|>",
        image_end_token="<|IMAGE_END|>",
        video_token="<|VIDEO_PLACEHOLDER|>",
        video_start_token="<|VIDEO_START|>",
        video_end_token="<|VIDEO_END|>",
    )
    images = tf.Ernie4_5_VLMoeImageProcessorPil(
        patch_size=14, merge_size=2, size={"shortest_edge": 2 * 28**2, "longest_edge": 12 * 28**2}
    )
    processor = without_video_part(tf.Ernie4_5_VLMoeProcessor)(
        images,
        words,
        None,
        chat_template=template("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"),
    )
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4}
    text = text_of(
        words,
        rope_parameters={**ROPE, "mrope_section": [1, 1, 2]},
        moe_intermediate_size=[32, 32],
        moe_k=2,
        moe_num_experts=4,
        moe_num_shared_experts=1,
    )
    ids = {
        f"{kind}{place}_token_id": getattr(words, f"{kind}{place}_token_id")
        for kind in ("image", "video")
        for place in ("", "_start", "_end")
    }
    config = tf.Ernie4_5_VLMoeConfig(vision_config=vision, text_config=text, **ids)
    return tf.Ernie4_5_VLMoeForConditionalGeneration(config), processor


def fast_vlm() -> tuple[Any, Any]:
    """Return a FastVLM. Its published tower needs timm; ConvNeXt also gives a map of features."""
    words = tokenizer(image_token="<image>")
    images = tf.CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    settings = {
        **CLIP_PROCESSOR,
        "patch_size": 16,
        "vision_feature_select_strategy": "full",
        "num_additional_image_tokens": 0,
    }
    processor = tf.LlavaProcessor(image_processor=images, tokenizer=words, **settings)
    tower = tf.ConvNextConfig(
        hidden_sizes=[8, 16, 32], depths=[1, 1, 1], num_stages=3, hidden_size=32
    )
    config = tf.FastVlmConfig(
        vision_config=tower,
        text_config=tf.Qwen2Config(**text_of(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    return tf.FastVlmForConditionalGeneration(config), processor


FAMILIES_C: Sequence[Callable[[], tuple[Any, Any]]] = (
    minicpmv4_6,
    minicpmv4_7,
    qwen3_5_moe,
    glm46v,
    glm_ocr,
    deepseek_vl,
    janus,
    ernie4_5_vl_moe,
    fast_vlm,
)
