"""Small real models of still further vision-language families, made as in `tests.families`.

Special features: experts and images of 490 pixels (Aria), four positions per token that start anew
in every row (HunYuan-VL), features added in several layers and scaled logits (Granite 4 Vision),
images as words of the vocabulary (Chameleon, Emu3), an image before the prompt (BLIP-2), marks of
the image's tokens (Kosmos-2). Those of `REFUSED_D` cannot be trained, and are refused.
"""

from collections.abc import Callable, Sequence
from typing import Any

import transformers as tf

from tests.families import QWEN_TOKENS, ROPE, VISION, template, text_of, tokenizer, without_videos


def aria() -> tuple[Any, Any]:
    words = tokenizer(image_token="<|img|>")
    # Its image processor knows the sizes 490 and 980 only: patches of 70 pixels make 49 of them.
    images = tf.AriaImageProcessorPil(max_image_size=490, min_image_size=336)
    processor = tf.AriaProcessor(
        images, words, chat_template=template("<|img|>"), size_conversion={490: 4, 980: 8}
    )
    vision = {**VISION, "patch_size": 70, "image_size": 490, "model_type": "idefics3_vision"}
    config = tf.AriaConfig(
        vision_config=vision,
        text_config=tf.AriaTextConfig(
            **text_of(words, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)
        ),
        image_token_index=words.convert_tokens_to_ids("<|img|>"),
        projector_patch_to_query_dict={49: 4, 196: 8},
    )
    return tf.AriaForConditionalGeneration(config), processor


def paddleocr_vl() -> tuple[Any, Any]:
    start, end = "<|IMAGE_START|>", "<|IMAGE_END|>"
    words = tokenizer(start, end, "<|video|>", image_token="<|IMAGE_PLACEHOLDER|>")
    images = tf.PaddleOCRVLImageProcessorPil(
        size={"shortest_edge": 2 * 28**2, "longest_edge": 12 * 28**2}
    )
    processor = tf.PaddleOCRVLProcessor(
        images, words, chat_template=template(f"{start}<|IMAGE_PLACEHOLDER|>{end}")
    )
    config = tf.PaddleOCRVLConfig(
        vision_config={**VISION, "image_size": 56},
        text_config=text_of(words, head_dim=8, rope_parameters=ROPE),
        image_token_id=words.convert_tokens_to_ids("<|IMAGE_PLACEHOLDER|>"),
        video_token_id=words.convert_tokens_to_ids("<|video|>"),
        vision_start_token_id=words.convert_tokens_to_ids(start),
        vision_end_token_id=words.convert_tokens_to_ids(end),
    )
    return tf.PaddleOCRVLForConditionalGeneration(config), processor


def lighton_ocr() -> tuple[Any, Any]:
    words = tokenizer(
        image_token="<|image_pad|>",
        image_break_token="<|vision_pad|>",
        image_end_token="<|vision_end|>",
    )
    images = tf.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=28)
    processor = tf.LightOnOcrProcessor(
        images, words, chat_template=template("<|image_pad|>"), patch_size=14
    )
    config = tf.LightOnOcrConfig(
        vision_config=tf.PixtralVisionConfig(**VISION, image_size=112, head_dim=8),
        text_config=tf.Qwen3Config(**text_of(words, head_dim=8)),
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
    )
    return tf.LightOnOcrForConditionalGeneration(config), processor


def hunyuan_vl() -> tuple[Any, Any]:
    words = tokenizer(
        image_token="<|image|>", image_start_token="<|image>", image_end_token="<image|>"
    )
    images = tf.HunYuanVLImageProcessorPil(
        size={"shortest_edge": 2 * 32**2, "longest_edge": 12 * 32**2}
    )
    processor = tf.HunYuanVLProcessor(
        images, words, chat_template=template("<|image><|image|><image|>")
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1, 1]}
    vision = {**VISION, "patch_size": 16, "out_hidden_size": 32, "max_image_size": 112}
    config = tf.HunYuanVLConfig(
        vision_config=vision,
        text_config=text_of(words, head_dim=8, rope_parameters=rope),
        image_token_id=words.convert_tokens_to_ids("<|image|>"),
        im_start_id=words.convert_tokens_to_ids("<|image>"),
        im_end_id=words.convert_tokens_to_ids("<image|>"),
    )
    return tf.HunYuanVLForConditionalGeneration(config), processor


def granite4_vision() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>")
    grid = [[56, 112], [112, 56], [112, 112]]
    images = tf.LlavaNextImageProcessorPil(
        size={"height": 56, "width": 56},
        crop_size={"height": 56, "width": 56},
        image_grid_pinpoints=grid,
    )
    processor = tf.Granite4VisionProcessor(
        images,
        words,
        patch_size=14,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        chat_template=template("<image>\n"),
    )
    # A head of its projector is 64 wide.
    vision = {**VISION, "hidden_size": 64, "image_size": 56, "vision_use_head": False}
    config = tf.Granite4VisionConfig(
        vision_config=tf.SiglipVisionConfig(**vision),
        text_config=text_of(
            words,
            num_hidden_layers=5,
            embedding_multiplier=2.0,
            logits_scaling=4.0,
            residual_multiplier=0.5,
            attention_multiplier=0.3,
        ),
        qformer_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 64,
            "num_hidden_layers": 1,
            "intermediate_size": 64,
            "cross_attention_frequency": 1,
            "use_qformer_text_input": False,
        },
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full",
        image_grid_pinpoints=grid,
        downsample_rate="1/2",
        deepstack_layer_map=[[-2, 0]],
        spatial_target_layers=[1, 2, 3, 4],
    )
    return tf.Granite4VisionForConditionalGeneration(config), processor


def exaone4_5() -> tuple[Any, Any]:
    words = tokenizer(*QWEN_TOKENS)
    images = tf.Qwen2VLImageProcessorPil(
        patch_size=14, merge_size=2, size={"shortest_edge": 2 * 28**2, "longest_edge": 12 * 28**2}
    )
    processor = without_videos(
        "Exaone4_5_",
        images,
        words,
        chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "num_key_value_heads": 2,
        "patch_size": 14,
        "out_hidden_size": 32,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    text = text_of(words, sliding_window=6, layer_types=["sliding_attention", "full_attention"])
    config = tf.Exaone4_5_Config(
        vision_config=vision,
        text_config=tf.Exaone4Config(**text),
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
    )
    return tf.Exaone4_5_ForConditionalGeneration(config), processor


def with_template(processor: Any, text: str) -> Any:
    """Return a processor whose constructor takes no chat template, with one."""
    processor.chat_template = text
    return processor


def chameleon() -> tuple[Any, Any]:
    # The name of an image's token spells its number: A is 0, B is 1.
    codes = [f"IMGIMG{''.join(chr(65 + int(d)) for d in str(code))}Z" for code in range(16)]
    words = tokenizer(*codes, boi_token="<racm3:break>", eoi_token="<eoss>", image_token="<image>")
    words.add_special_tokens({"sep_token": "<reserved08706>"})
    images = tf.ChameleonImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor = with_template(
        tf.ChameleonProcessor(images, words, image_seq_length=16), template("<image>")
    )
    config = tf.ChameleonConfig(
        **text_of(words),
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 16,
            "latent_channels": 8,
            "resolution": 32,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1],
            "num_res_blocks": 1,
        },
        vocabulary_map=words.get_vocab(),
    )
    return tf.ChameleonForConditionalGeneration(config), processor


def emu3() -> tuple[Any, Any]:
    codes = [f"<|visual token {code:06d}|>" for code in range(16)]
    words = tokenizer(
        *codes,
        "<|extra_200|>",
        image_token="<image>",
        boi_token="<|image start|>",
        eoi_token="<|image end|>",
        image_wrapper_token="<|image token|>",
        eof_token="<|extra_201|>",
    )
    images = tf.Emu3ImageProcessor(min_pixels=8 * 16**2, max_pixels=16 * 16**2, spatial_factor=8)
    processor = tf.Emu3Processor(images, words, chat_template=template("<image>"))
    config = tf.Emu3Config(
        vq_config={
            "codebook_size": 16,
            "embed_dim": 4,
            "latent_channels": 4,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "attn_resolutions": [3],
            "hidden_size": 32,
        },
        text_config=text_of(words),
        vocabulary_map=words.get_vocab(),
    )
    return tf.Emu3ForConditionalGeneration(config), processor


BLIP_VISION = {**VISION, "image_size": 28}
QFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "encoder_hidden_size": 32,
}


def opt_of(words: tf.PreTrainedTokenizerFast) -> tf.OPTConfig:
    """Return the configuration of an OPT for a tokenizer."""
    special = {
        f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("pad", "bos", "eos")
    }
    return tf.OPTConfig(
        vocab_size=len(words),
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=512,
        **special,
    )


def blip2() -> tuple[Any, Any]:
    words = tokenizer()
    images = tf.BlipImageProcessorPil(size={"height": 28, "width": 28})
    # The processor itself puts the image before the text.
    processor = with_template(tf.Blip2Processor(images, words, num_query_tokens=4), template(""))
    config = tf.Blip2Config(
        vision_config=BLIP_VISION,
        qformer_config=QFORMER,
        text_config=opt_of(words),
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    return tf.Blip2ForConditionalGeneration(config), processor


def instructblip() -> tuple[Any, Any]:
    words = tokenizer()
    images = tf.BlipImageProcessorPil(size={"height": 28, "width": 28})
    processor = with_template(
        tf.InstructBlipProcessor(images, words, tokenizer(), num_query_tokens=4), template("")
    )
    text = tf.LlamaConfig(**text_of(words))
    config = tf.InstructBlipConfig(
        vision_config=BLIP_VISION,
        qformer_config={**QFORMER, "vocab_size": len(words)},
        text_config=text,
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    return tf.InstructBlipForConditionalGeneration(config), processor


def kosmos2() -> tuple[Any, Any]:
    places = [f"<image_place_{number}>" for number in range(64)]
    words = tokenizer("<unk>", *places)
    words.unk_token = "<unk>"
    images = tf.CLIPImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False)
    processor = with_template(
        tf.Kosmos2Processor(images, words, num_patch_index_tokens=4), template("")
    )
    config = tf.Kosmos2Config(
        text_config={
            "vocab_size": len(words),
            "embed_dim": 32,
            "layers": 2,
            "ffn_dim": 64,
            "attention_heads": 4,
            "pad_token_id": words.pad_token_id,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
        },
        vision_config=BLIP_VISION,
        latent_query_num=64,
    )
    return tf.Kosmos2ForConditionalGeneration(config), processor


def florence2() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>")
    images = tf.CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5
    processor = with_template(tf.Florence2Processor(images, words), template(""))
    config = tf.Florence2Config(
        text_config=tf.BartConfig(
            vocab_size=len(words),
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            pad_token_id=words.pad_token_id,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            decoder_start_token_id=words.eos_token_id,
            forced_eos_token_id=None,
        ),
        vision_config={
            "depths": [1, 1, 1, 1],
            "embed_dim": [8, 16, 16, 32],
            "num_heads": [2, 2, 2, 4],
            "num_groups": [2, 2, 2, 4],
            "window_size": 4,
            "projection_dim": 32,
        },
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )
    return tf.Florence2ForConditionalGeneration(config), processor


FAMILIES_D: Sequence[Callable[[], tuple[Any, Any]]] = (
    aria,
    paddleocr_vl,
    lighton_ocr,
    hunyuan_vl,
    granite4_vision,
    exaone4_5,
    chameleon,
    blip2,
)
# Emu3's words of an image depend on the other images of a batch, InstructBLIP's image on the
# question; Kosmos-2 marks the image's tokens by an input of its own, and Florence-2 has an encoder
# of the prompt.
REFUSED_D: Sequence[Callable[[], tuple[Any, Any]]] = (emu3, instructblip, kosmos2, florence2)
