"""Further small real models of vision-language families, made as in `tests.families`.

Special features: a window shorter than the rows (LLaVA on Mistral), convolutions between tokens
(LLaVA on LFM2), a prompt that sees itself both ways (PaliGemma), cross attention (Llama 3.2
Vision), scaled logits and windows (Aya Vision), masks of padded pixels (Idefics2), a processor that
takes no nested images (GOT-OCR2), features as soft words (Ovis2).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers as tf

from rlhfv_ray.models.processors import without_video_part
from tests.families import (
    CLIP_PROCESSOR,
    VISION,
    clip_and_llama,
    template,
    text_of,
    tokenizer,
    without_videos,
)


def llava_around(words: tf.PreTrainedTokenizerFast, text: Any) -> tuple[Any, Any]:
    """Return a LLaVA whose language model has the configuration `text`."""
    processor = tf.LlavaProcessor(image_processor=clip_images(), tokenizer=words, **CLIP_PROCESSOR)
    config = tf.LlavaConfig(**{**clip_and_llama(words), "text_config": text})
    return tf.LlavaForConditionalGeneration(config), processor


def clip_images() -> Any:
    """Return CLIP's image processor for images of 28 by 28 pixels."""
    return tf.CLIPImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False)


def llava_windowed() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>")
    # Six layers: 5 tokens per layer further back, so that answers still depend on the image.
    text = text_of(words, sliding_window=6, num_hidden_layers=6)
    return llava_around(words, tf.MistralConfig(**text))


def llava_lfm2() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>")
    text = text_of(words, layer_types=["conv", "full_attention"], block_multiple_of=8)
    return llava_around(words, tf.Lfm2Config(**text))


def paligemma() -> tuple[Any, Any]:
    return prefixed(tf.GemmaConfig)


def paligemma2() -> tuple[Any, Any]:
    return prefixed(
        tf.Gemma2Config, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
    )


def prefixed(text_config: Any, **text: Any) -> tuple[Any, Any]:
    """Return a PaliGemma around a language model's configuration."""
    words = tokenizer(image_token="<image>")
    images = tf.SiglipImageProcessorPil(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    # The processor adds tokens of its own, so it is made before the model.
    processor = tf.PaliGemmaProcessor(images, words, chat_template=template("<image>"))
    config = tf.PaliGemmaConfig(
        vision_config=tf.SiglipVisionConfig(
            **VISION, image_size=28, projection_dim=32, vision_use_head=False
        ),
        text_config=text_config(**text_of(words, head_dim=8, **text)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
        vocab_size=len(words),
    )
    return tf.PaliGemmaForConditionalGeneration(config), processor


def mllama() -> tuple[Any, Any]:
    words = tokenizer("<|python_tag|>")
    settings = text_of(words)
    # As in Llama 3.2, the image's token has an embedding but no logit.
    words.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    images = tf.MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=2)
    processor = tf.MllamaProcessor(images, words, chat_template=template("<|image|>"))
    vision = tf.MllamaVisionConfig(
        **VISION,
        image_size=28,
        num_global_layers=1,
        max_num_tiles=2,
        supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
        intermediate_layers_indices=[0],
        vision_output_dim=64,
    )
    config = tf.MllamaConfig(
        vision_config=vision,
        text_config=tf.MllamaTextConfig(**settings, cross_attention_layers=[1]),
        image_token_index=words.convert_tokens_to_ids("<|image|>"),
    )
    model = tf.MllamaForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "gate" in name and weight.ndim == 1 and "proj" not in name:
                weight.fill_(0.5)  # closed gates, as at the start of pretraining, hide the image
    return model, processor


def vipllava() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>")
    processor = tf.LlavaProcessor(image_processor=clip_images(), tokenizer=words, **CLIP_PROCESSOR)
    config = tf.VipLlavaConfig(**{**clip_and_llama(words), "vision_feature_layer": [-1, -2]})
    return tf.VipLlavaForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>", video_token="<video>")
    grid = [[28, 28], [28, 56], [56, 28], [56, 56]]
    images = tf.LlavaOnevisionImageProcessorPil(
        size={"height": 28, "width": 28}, image_grid_pinpoints=grid
    )
    processor = without_videos(
        "LlavaOnevision",
        images,
        words,
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=template("<image>\n"),
    )
    config = tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(**VISION, image_size=28, vision_use_head=False),
        text_config=tf.Qwen2Config(**text_of(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
    )
    return tf.LlavaOnevisionForConditionalGeneration(config), processor


AYA_TOKENS = (
    "<image>",
    "<|START_OF_IMG|>",
    "<|END_OF_IMG|>",
    "<|IMG_PATCH|>",
    "<|IMG_LINE_BREAK|>",
    "TILE",
    "TILE_GLOBAL",
)


def aya_vision() -> tuple[Any, Any]:
    words = tokenizer(*AYA_TOKENS)
    images = tf.GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=3
    )
    processor = tf.AyaVisionProcessor(
        images,
        words,
        patch_size=14,
        img_size=56,
        downsample_factor=2,
        chat_template=template("<image>"),
    )
    text = text_of(
        words,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
        logit_scale=0.25,
    )
    config = tf.AyaVisionConfig(
        vision_config=tf.SiglipVisionConfig(**VISION, image_size=56, vision_use_head=False),
        text_config=tf.Cohere2Config(**text),
        image_token_index=words.convert_tokens_to_ids("<|IMG_PATCH|>"),
    )
    return tf.AyaVisionForConditionalGeneration(config), processor


def idefics2() -> tuple[Any, Any]:
    words = tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>")
    images = tf.Idefics2ImageProcessorPil(size={"shortest_edge": 28, "longest_edge": 56})
    processor = tf.Idefics2Processor(
        images, words, image_seq_len=4, chat_template=template("<image>")
    )
    config = tf.Idefics2Config(
        vision_config={**VISION, "image_size": 56},
        perceiver_config={
            "hidden_size": 32,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
        },
        text_config=tf.MistralConfig(**text_of(words, sliding_window=None)),
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )
    return tf.Idefics2ForConditionalGeneration(config), processor


def got_ocr2() -> tuple[Any, Any]:
    words = tokenizer("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<imgpad>")
    images = tf.GotOcr2ImageProcessorPil(size={"height": 128, "width": 128})
    processor = tf.GotOcr2Processor(images, words, chat_template=template("<img><imgpad></img>"))
    vision = {
        "hidden_size": 32,
        "output_channels": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 128,  # 64 by 64 patches: its processor counts 256 tokens per image
        "patch_size": 2,
        "global_attn_indexes": [],
        "mlp_dim": 64,
    }
    config = tf.GotOcr2Config(
        vision_config=vision,
        text_config=tf.Qwen2Config(**text_of(words)),
        image_token_index=words.convert_tokens_to_ids("<imgpad>"),
        image_seq_length=256,
    )
    return tf.GotOcr2ForConditionalGeneration(config), processor


OVIS_TOKENS = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")


def ovis2() -> tuple[Any, Any]:
    words = tokenizer("<image>", "<IMG_ATOM>", *OVIS_TOKENS)
    images = tf.Ovis2ImageProcessorPil(
        size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=3
    )
    processor = tf.Ovis2Processor(
        images, words, image_seq_length=4, chat_template=template("<image>\n")
    )
    config = tf.Ovis2Config(
        vision_config={**VISION, "image_size": 28, "vocab_size": 40},
        text_config=tf.Qwen2Config(**text_of(words)),
        image_token_id=words.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=words.convert_tokens_to_ids(list(OVIS_TOKENS)),
        vocab_size=len(words),
        hidden_size=32,
    )
    return tf.Ovis2ForConditionalGeneration(config), processor


def video_llava() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>", video_token="<video>")
    images = tf.VideoLlavaImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    # Its tokenizer follows the video part, so `without_videos` would hand on None for it.
    processor = without_video_part(tf.VideoLlavaProcessor)(images, None, words, **CLIP_PROCESSOR)
    settings = clip_and_llama(words)
    config = tf.VideoLlavaConfig(
        vision_config=settings["vision_config"],
        text_config=settings["text_config"],
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-1,
    )
    return tf.VideoLlavaForConditionalGeneration(config), processor


FAMILIES_B: Sequence[Callable[[], tuple[Any, Any]]] = (
    llava_windowed,
    llava_lfm2,
    paligemma,
    paligemma2,
    mllama,
    vipllava,
    llava_onevision,
    aya_vision,
    idefics2,
    got_ocr2,
    ovis2,
    video_llava,
)
