"""The shapes world's model: a real LLaVA with its processor, small enough for a laptop."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from rlhfv_ray.config import SHAPES, SHAPES_BIASED, SHAPES_SIGNS
from rlhfv_ray.shapes.scenes import CELL, SIDE

# The base models were made by experiments/pretrain_shapes.py (docs/LOG.md has the commands).
BALANCED = Path(__file__).parent / "checkpoint_balanced"
BIASED = Path(__file__).parent / "checkpoint"
SIGNS = Path(__file__).parent / "checkpoint_signs"
BASE_MODELS = {SHAPES: BALANCED, SHAPES_BIASED: BIASED, SHAPES_SIGNS: SIGNS}  # by model path
VOCABULARY = 512  # tokens, special ones included
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER:"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n"
    "{% else %}ASSISTANT:\n{% generation %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}</s>{% endgeneration %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:\n{% endif %}"
)


def build_processor(texts: Iterable[str]) -> LlavaProcessor:
    """Train a byte-level BPE tokenizer on `texts`; return a LLaVA processor for images and text
    that uses it.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        clean_up_tokenization_spaces=False,
    )
    image_processor = CLIPImageProcessorPil(
        do_resize=True,
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which `default` drops again
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    processor: LlavaProcessor, *, width: int = 128, layers: int = 4
) -> LlavaForConditionalGeneration:
    """Return a LLaVA with random weights.

    Args:
        processor: the processor whose tokens and patches the model takes.
        width: features of both towers.
        layers: layers of the Llama; the CLIP vision tower has one less.
    """
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers - 1,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=CELL,
        projection_dim=width,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,  # the last layer
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config)
