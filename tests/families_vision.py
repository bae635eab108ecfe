"""Small models of families whose image processors need torchvision."""

from collections.abc import Callable, Sequence
from typing import Any

import transformers as tf

from tests.families import VISION, template, text_of, tokenizer
from tests.families_a import gemma4_unified

PIXTRAL = {"patch_size": 14, "spatial_merge_size": 2, "chat_template": template("[IMG]")}


def pixtral_parts() -> tuple[Any, Any]:
    """Return a tokenizer and an image processor as Pixtral's, with patches merged by two."""
    words = tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    images = tf.PixtralImageProcessor(size={"longest_edge": 112}, patch_size=28)
    return words, images


def pixtral_tower() -> Any:
    return tf.PixtralVisionConfig(**VISION, image_size=112, head_dim=8)


def mistral3() -> tuple[Any, Any]:
    """Return a Mistral Small 3: its projector merges patches, and its processor counts them so."""
    words, images = pixtral_parts()
    processor = tf.PixtralProcessor(images, words, **PIXTRAL)
    config = tf.Mistral3Config(
        vision_config=pixtral_tower(),
        text_config=tf.MistralConfig(**text_of(words, head_dim=8, sliding_window=None)),
        image_token_index=words.convert_tokens_to_ids("[IMG]"),
        tie_word_embeddings=False,
    )
    return tf.Mistral3ForConditionalGeneration(config), processor


def pixtral() -> tuple[Any, Any]:
    """Return a Pixtral in transformers' form: a LLaVA around its tower."""
    words = tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    images = tf.PixtralImageProcessor(size={"longest_edge": 56}, patch_size=14)
    processor = tf.PixtralProcessor(images, words, patch_size=14, chat_template=template("[IMG]"))
    config = tf.LlavaConfig(
        vision_config=pixtral_tower(),
        text_config=tf.MistralConfig(**text_of(words, head_dim=8, sliding_window=None)),
        image_token_index=words.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return tf.LlavaForConditionalGeneration(config), processor


def lfm2_vl() -> tuple[Any, Any]:
    """Return an LFM2-VL: a SigLIP 2 tower, and a language model with convolutions."""
    special = ("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>")
    words = tokenizer(*special, image_token="<image>")
    images = tf.Lfm2VlImageProcessor(
        encoder_patch_size=14,
        tile_size=56,
        min_image_tokens=1,
        max_image_tokens=4,
        do_image_splitting=False,
        max_num_patches=16,
    )
    processor = tf.Lfm2VlProcessor(images, words, chat_template=template("<image>"))
    config = tf.Lfm2VlConfig(
        vision_config=tf.Siglip2VisionConfig(**VISION, num_patches=16, vision_use_head=False),
        text_config=tf.Lfm2Config(**text_of(words, layer_types=["conv", "full_attention"])),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        projector_hidden_size=32,
    )
    return tf.Lfm2VlForConditionalGeneration(config), processor


def cohere2_vision() -> tuple[Any, Any]:
    """Return a Command A Vision: tiles, and a language model with windows."""
    words = tokenizer(
        image_token="<|IMG_PATCH|>",
        boi_token="<|START_OF_IMG|>",
        eoi_token="<|END_OF_IMG|>",
        img_line_break_token="<|IMG_LINE_BREAK|>",
    )
    images = tf.Cohere2VisionImageProcessor(
        size={"height": 56, "width": 56}, patch_size=2, max_patches=2
    )
    processor = tf.Cohere2VisionProcessor(images, words, chat_template=template("<|IMG_PATCH|>"))
    config = tf.Cohere2VisionConfig(
        vision_config=tf.SiglipVisionConfig(**VISION, image_size=56, vision_use_head=False),
        text_config=tf.Cohere2Config(**text_of(words, sliding_window=64)),
        image_token_id=words.image_token_id,
        alignment_intermediate_size=64,
    )
    return tf.Cohere2VisionForConditionalGeneration(config), processor


def llama4() -> tuple[Any, Any]:
    """Return a Llama 4: experts with a router, and chunks of attention."""
    special = ("<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>")
    words = tokenizer(*special, "<|tile_x_separator|>", "<|tile_y_separator|>")
    images = tf.Llama4ImageProcessor(size={"height": 28, "width": 28}, max_patches=4)
    processor = tf.Llama4Processor(
        images, words, patch_size=14, pixel_shuffle_ratio=0.5, chat_template=template("<|image|>")
    )
    vision = tf.Llama4VisionConfig(
        **{**VISION, "intermediate_size": 128},
        image_size=28,
        vision_output_dim=32,
        projector_input_dim=32,
        projector_output_dim=32,
        pixel_shuffle_ratio=0.5,
    )
    text = tf.Llama4TextConfig(
        **text_of(words, head_dim=8, intermediate_size_mlp=64, num_local_experts=2)
    )
    config = tf.Llama4Config(
        vision_config=vision,
        text_config=text,
        image_token_index=words.convert_tokens_to_ids("<|patch|>"),
    )
    return tf.Llama4ForConditionalGeneration(config), processor


FAMILIES_VISION: Sequence[Callable[[], tuple[Any, Any]]] = (
    mistral3,
    pixtral,
    lfm2_vl,
    cohere2_vision,
    llama4,
    gemma4_unified,
)
