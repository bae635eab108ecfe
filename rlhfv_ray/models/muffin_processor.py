"""The processor of Muffin: its texts, its pictures, and its tokenizer from the release's files.

A release folder has neither a processor nor a chat template, and only LLaMA's slow tokenizer. All
three are made here. A folder that was saved from here has them in the usual files.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import (
    AddedToken,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.convert_slow_tokenizer import import_protobuf
from transformers.image_utils import PILImageResampling
from transformers.tokenization_utils_base import FULL_TOKENIZER_FILE, generate_merges
from transformers.utils import PROCESSOR_NAME

from rlhfv_ray.data.templates import prompt_text
from rlhfv_ray.models.checkpoint_files import added_tokens, architecture_of, cached_file_of
from rlhfv_ray.models.muffin_config import IMAGE_TOKENS, MuffinConfig, vision_settings

# FastChat's first conversation, with Muffin's roles.
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
SLOW_TOKENIZER = "tokenizer.model"
# In training the picture stands before the question and the role of the answer is given. When
# Muffin answers one question (`answering`), the picture stands behind it, a blank and a line less
# are written, and the model writes the role itself.
TEMPLATE = """\
{%- set picture = '<im_start>' + '<im_patch>' * NUM_QUERY + '<im_end>' -%}
{%- set break = '\\n' -%}
{{- SYSTEM + break -}}
{%- if answering -%}
  {{- '###Human: ' -}}
  {%- for part in messages[0]['content'] if part['type'] == 'text' -%}
    {{- part['text'].replace('<image>', '') -}}
  {%- endfor -%}
  {{- break + picture + break + '###' -}}
{%- else -%}
  {{- break -}}
  {%- for message in messages -%}
    {{- '### ' + ('Human' if message['role'] == 'user' else 'Assistant') + ': ' -}}
    {%- for part in message['content'] -%}
      {{- picture + break if part['type'] == 'image' else part['text'] -}}
    {%- endfor -%}
    {{- break -}}
  {%- endfor -%}
  {{- '### Assistant:' if add_generation_prompt else '### ' -}}
{%- endif -%}
"""


class MuffinProcessor(ProcessorMixin):
    """Prepares a picture and the texts of Muffin."""

    # What ends an answer, and what the model may write before it: see `data.templates`.
    answer_ends = ("###",)
    answer_role = "Assistant:"

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Return the processor of a folder that was saved from here, or of the release's.

        Raises:
            ValueError: its pictures have another side, or number of tokens, than the model's.
        """
        source = str(pretrained_model_name_or_path)
        config = architecture_of(source)
        side = vision_settings(config).image_size
        if cached_file_of(source, PROCESSOR_NAME):
            processor = super().from_pretrained(source, **kwargs)
        else:
            processor = muffin_processor(release_tokenizer(source), config.num_query, side)
        size = dict(processor.image_processor.size)
        if size != {"height": side, "width": side}:
            raise ValueError(
                f"pictures are resized to {size}, but the model takes {side} x {side} pixels "
                f"(mm_vision_tower). Set size in {PROCESSOR_NAME} to that side"
            )
        text = prompt_text(processor, "?") if processor.chat_template else ""
        if text.count(IMAGE_TOKENS["im_patch_token"]) != config.num_query:
            raise ValueError(
                f"its chat template does not write {config.num_query} image tokens for a picture "
                "(num_query). Delete chat_template.jinja and processor_config.json: they are made "
                "anew"
            )
        return processor


def muffin_processor(tokenizer: Any, queries: int, side: int) -> MuffinProcessor:
    """Return a processor for a number of tokens and a side in pixels of every picture."""
    return MuffinProcessor(image_processor(side), tokenizer, chat_template=chat_template(queries))


def chat_template(queries: int) -> str:
    """Return Muffin's chat template, whose pictures are a number of tokens."""
    return TEMPLATE.replace("NUM_QUERY", str(queries)).replace("SYSTEM", json.dumps(SYSTEM))


def image_processor(side: int) -> CLIPImageProcessorPil:
    """Return the release's transform of evaluation: a square, whatever the picture's shape."""
    return CLIPImageProcessorPil(
        size={"height": side, "width": side},
        resample=PILImageResampling.BICUBIC,
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def release_tokenizer(source: str) -> Any:
    """Return a checkpoint's tokenizer; if it has only LLaMA's slow one, in its fast form.

    Raises:
        ValueError: there is none.
    """
    if cached_file_of(source, FULL_TOKENIZER_FILE):
        return AutoTokenizer.from_pretrained(source)
    slow = cached_file_of(source, SLOW_TOKENIZER)
    if slow is None:
        raise ValueError(f"there is neither {FULL_TOKENIZER_FILE} nor {SLOW_TOKENIZER}")
    protobuf: Any = import_protobuf()
    model = protobuf.ModelProto()
    model.ParseFromString(Path(slow).read_bytes())
    vocabulary = {piece.piece: number for number, piece in enumerate(model.pieces)}
    # legacy: each text between special tokens begins with a blank, as it did then.
    llama = LlamaTokenizer(vocab=vocabulary, merges=generate_merges(vocabulary), legacy=True)
    backend = llama.backend_tokenizer
    beginning = (llama.bos_token, llama.bos_token_id)
    backend.post_processor = TemplateProcessing(f"{llama.bos_token} $A", None, [beginning])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=llama.bos_token,
        eos_token=llama.eos_token,
        unk_token=llama.unk_token,
        model_max_length=2048,
    )
    added = sorted(added_tokens(source).items(), key=lambda item: item[1])
    # The tokenizers of 2023 dropped the blanks and lines around an added token.
    tokens = [AddedToken(token, lstrip=True, rstrip=True, special=True) for token, _ in added]
    tokenizer.add_tokens(tokens, special_tokens=True)
    for token, number in added:
        if tokenizer.convert_tokens_to_ids(token) != number:
            raise ValueError(f"the token {token} has another number than {number} in {slow}")
    pads = [token for token, _ in added if token not in IMAGE_TOKENS.values()]
    tokenizer.pad_token = pads[0] if pads else tokenizer.unk_token
    return tokenizer


AutoProcessor.register(MuffinConfig, MuffinProcessor)
