"""Small real models of every tested family: their own classes and processors, random weights.

Sizes keep the special features of a family: tiles (LLaVA-NeXT, Idefics3, SmolVLM, InternVL), three
positions per token (Qwen-VL), tied heads and windows (Gemma 3).
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 14,
}


def tokenizer(*special: str, **named: str) -> tf.PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer; `named` special tokens are also its attributes."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    words = ["<pad>", "<s>", "</s>", *special, *named.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=words,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(
        ["a red circle and a blue square on a street, next to a green star"] * 4, trainer
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=named,
        clean_up_tokenization_spaces=False,
    )


def template(image: str) -> str:
    """Return a chat template with an image placeholder."""
    return (
        "{% for message in messages %}{{ message['role'] }}:\n"
        "{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
        "{% endfor %}{% if message['role'] == 'assistant' %}</s>{% else %}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    )


def text_of(words: tf.PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """Return the settings of a language model for a tokenizer."""
    special = {
        f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("pad", "bos", "eos")
    }
    return {**TEXT, "vocab_size": len(words), **special, **more}


CLIP_PROCESSOR = {
    "patch_size": 14,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
    "chat_template": template("<image>\n"),
}


def clip_and_llama(words: tf.PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return the settings of a LLaVA: a CLIP tower on a Llama."""
    return {
        "vision_config": tf.CLIPVisionConfig(**VISION, image_size=28, projection_dim=32),
        "text_config": tf.LlamaConfig(**text_of(words)),
        "image_token_index": words.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -1,
    }


def llava() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>")
    processor = tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessorPil(
            size={"height": 28, "width": 28}, do_center_crop=False
        ),
        tokenizer=words,
        **CLIP_PROCESSOR,
    )
    config = tf.LlavaConfig(**clip_and_llama(words))
    return tf.LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>")
    grid = [[28, 56], [56, 28], [56, 56]]
    processor = tf.LlavaNextProcessor(
        image_processor=tf.LlavaNextImageProcessorPil(
            size={"shortest_edge": 28},
            crop_size={"height": 28, "width": 28},
            image_grid_pinpoints=grid,
        ),
        tokenizer=words,
        **CLIP_PROCESSOR,
    )
    config = tf.LlavaNextConfig(image_grid_pinpoints=grid, **clip_and_llama(words))
    return tf.LlavaNextForConditionalGeneration(config), processor


QWEN_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def qwen(name: str, vision: dict[str, Any], **text: Any) -> tuple[Any, Any]:
    words = tokenizer(*QWEN_TOKENS)
    patch = vision["patch_size"]
    side = (2 * patch) ** 2
    images = tf.Qwen2VLImageProcessorPil(
        patch_size=patch, merge_size=2, size={"shortest_edge": 2 * side, "longest_edge": 12 * side}
    )
    processor = without_videos(
        name, images, words, chat_template=template("<|vision_start|><|image_pad|><|vision_end|>")
    )
    ids = {
        name: words.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")
    }
    config = getattr(tf, f"{name}Config")(
        vision_config=vision,
        text_config=text_of(words, rope_parameters=ROPE, **text),
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    return getattr(tf, f"{name}ForConditionalGeneration")(config), processor


def qwen2_vl() -> tuple[Any, Any]:
    return qwen(
        "Qwen2VL",
        {
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 14,
        },
    )


def qwen2_5_vl() -> tuple[Any, Any]:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": 14,
        "out_hidden_size": 32,
    }
    return qwen("Qwen2_5_VL", {**vision, "window_size": 56, "fullatt_block_indexes": [1]})


def qwen3_vl() -> tuple[Any, Any]:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "patch_size": 16,
        "out_hidden_size": 32,
    }
    vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    return qwen("Qwen3VL", vision, head_dim=8)


IDEFICS_TOKENS = (
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
    "<global-img>",
    "<video>",
)
CELLS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))


def idefics(name: str) -> tuple[Any, Any]:
    words = tokenizer(*IDEFICS_TOKENS, *CELLS)
    images = getattr(tf, f"{name}ImageProcessorPil")(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, do_image_splitting=True
    )
    make = tf.Idefics3Processor if name == "Idefics3" else functools.partial(without_videos, name)
    processor = make(images, words, image_seq_len=1, chat_template=template("<image>"))
    vision = {**VISION, "image_size": 28}
    config = getattr(tf, f"{name}Config")(
        vision_config=vision,
        text_config=tf.LlamaConfig(**text_of(words)),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=words.pad_token_id,
    )
    return getattr(tf, f"{name}ForConditionalGeneration")(config), processor


def idefics3() -> tuple[Any, Any]:
    return idefics("Idefics3")


def smolvlm() -> tuple[Any, Any]:
    return idefics("SmolVLM")


def internvl(
    text: type[Any] = tf.Qwen2Config, *, tiles_by_image_processor: bool = True
) -> tuple[Any, Any]:
    words = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    images = tf.GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28},
        crop_to_patches=tiles_by_image_processor,
        min_patches=1,
        max_patches=3,
    )
    processor = without_videos(
        "InternVL", images, words, image_seq_length=1, chat_template=template("<IMG_CONTEXT>\n")
    )
    vision = tf.InternVLVisionConfig(**{**VISION, "patch_size": [14, 14]}, image_size=[28, 28])
    config = tf.InternVLConfig(
        vision_config=vision,
        text_config=text(**text_of(words)),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=1,
        downsample_ratio=0.5,
    )
    return tf.InternVLForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    words = tokenizer(
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    processor = tf.Gemma3Processor(
        tf.Gemma3ImageProcessorPil(size={"height": 56, "width": 56}),
        words,
        chat_template=template("<start_of_image>"),
        image_seq_length=4,
    )
    text = text_of(
        words, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
    )
    config = tf.Gemma3Config(
        vision_config=tf.SiglipVisionConfig(**VISION, image_size=56),
        text_config=tf.Gemma3TextConfig(**text),
        mm_tokens_per_image=4,
        boi_token_index=words.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=words.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=words.convert_tokens_to_ids("<image_soft_token>"),
    )
    return tf.Gemma3ForConditionalGeneration(config), processor


def without_videos(name: str, *parts: Any, **settings: Any) -> Any:
    """Return a family's processor without its video part, which needs torchvision.

    It has the name of the full class, as in saved checkpoints.
    """
    full_class = getattr(tf, f"{name}Processor")
    body: dict[str, Any] = {
        "get_attributes": classmethod(lambda _: ["image_processor", "tokenizer"])
    }
    processor_class = type(full_class.__name__, (full_class,), body)
    return processor_class(*parts, video_processor=None, **settings)


FAMILIES: Sequence[Callable[[], tuple[Any, Any]]] = (
    llava,
    llava_next,
    qwen2_vl,
    qwen2_5_vl,
    qwen3_vl,
    idefics3,
    smolvlm,
    internvl,
    gemma3,
)


def save(make: Callable[[], tuple[Any, Any]], folder: Path) -> Path:
    """Save a family's model and processor, with random weights, and return the folder."""
    torch.manual_seed(0)
    model, processor = make()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.2)  # wide: uniform answers would hide mistakes
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
