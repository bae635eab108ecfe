"""Load a policy and its processor from a Hugging Face folder or hub name.

Digests identify exactly which weights and which processor they are.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available

from rlhfv_ray.config import ModelConfig
from rlhfv_ray.data.encoding import VERSION, answer_ids, prompt_ids
from rlhfv_ray.errors import ConfigError, DataError, RlhfvError
from rlhfv_ray.models.checkpoint_files import (
    architecture_of,
    check_exported,
    check_pickles,
    check_trainable,
    check_weight_files,
    code_hint,
    first_line,
    resolve_model,
)
from rlhfv_ray.models.hub import hub_commit
from rlhfv_ray.models.muffin import MuffinConfig, take_token_ids
from rlhfv_ray.models.processors import processor_digest, processor_of
from rlhfv_ray.storage.files import known_digest

# Files of a model folder that, with its config.json, determine the model and how it decodes.
CONTENTS = ("*.safetensors", "*.bin", "*.py", "generation_config.json")
# What a model's code raises on inputs that it does not expect.
BROKEN = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
# What a device raises that has no memory left, or that fails; the second is for good.
DEVICE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_policy(
    path: str | Path, *, dtype: str = "auto", device: str = "auto"
) -> tuple[PreTrainedModel, Any]:
    """Load a model and its processor.

    Weights come from safetensors only, and no remote code runs.

    Args:
        path: Hugging Face folder, hub name, or `shapes`.
        dtype: `fp32`, `bf16`, or `auto` for the checkpoint's own.
        device: a torch device, or `auto` for the GPU if one exists, else the CPU.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        ConfigError: the model does not exist, or lacks a chat template or a fast tokenizer; the
            dtype is unknown, or the device cannot be used here.
    """
    if dtype not in (*DTYPES, "auto"):
        raise ConfigError(f"dtype = {dtype!r}: allowed are {', '.join(DTYPES)} and auto.")
    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device = {device!r} cannot be used: {first_line(error)}") from error
    return _load(ModelConfig(path=str(path)), dtype, device)


def load_model(config: ModelConfig) -> tuple[PreTrainedModel, Any]:
    """Load a model and its processor as configured, with its dtype and attention.

    Raises:
        ConfigError: as `load_policy`, or the configured attention or dtype is not possible here.
    """
    flash_usable = is_flash_attn_2_available() and config.dtype == "bf16"
    if config.attention == "flash_attention_2" and not flash_usable:
        raise ConfigError(
            "model.attention = 'flash_attention_2' needs a CUDA GPU, the package flash-attn "
            "(pip install 'rlhfv-ray[gpu]') and --model.dtype bf16. Leave --model.attention auto: "
            "torch's sdpa is as fast at these lengths."
        )
    if config.dtype == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise ConfigError(
            "model.dtype = 'bf16': this GPU cannot compute in bf16. Use --model.dtype fp32."
        )
    model, processor = _load(config, config.dtype, "auto")
    # Flash attention takes no mask of ours, so models that can share rows keep sdpa.
    if config.attention == "auto" and flash_usable and config.layout == "plain":
        model.set_attn_implementation("flash_attention_2")
    elif config.attention != "auto":
        model.set_attn_implementation(config.attention)
    return model, processor


def _load(config: ModelConfig, dtype: str, device: str) -> tuple[PreTrainedModel, Any]:
    source = resolve_model(config.path)
    trust = config.trust_remote_code
    check_trainable(source, trust_remote_code=trust)
    processor = processor_of(replace(config, path=source))
    target = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    model = load_weights(source, config, dtype)
    if isinstance(model.config, MuffinConfig):
        take_token_ids(model, processor.tokenizer)
    nn.Module.to(model, target)
    return model.eval(), processor


def load_weights(source: str, config: ModelConfig, dtype: str = "auto") -> Any:
    """Return the model of a resolved path, on the CPU, with exactly the weights of its checkpoint.

    Raises:
        ConfigError: it cannot be loaded, or weights are missing, unexpected or of another shape.
    """
    check_pickles(source, allow_pickle=config.allow_pickle)
    trust = config.trust_remote_code
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source,
            config=architecture_of(source, trust_remote_code=trust),
            dtype=DTYPES.get(dtype, dtype),
            # None: pickles too, but safetensors if both exist.
            use_safetensors=None if config.allow_pickle else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            trust_remote_code=trust,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"model.path = {source!r} cannot be loaded: {first_line(error)}{code_hint(error)}"
        ) from error
    model, info = loaded
    for problem in ("missing", "unexpected", "mismatched"):
        keys = sorted(  # mismatched ones come with both shapes
            key if isinstance(key, str) else key[0] for key in info[f"{problem}_keys"]
        )
        if keys:
            raise ConfigError(
                f"model.path = {source!r}: {len(keys)} weights are {problem} "
                f"(first: {', '.join(keys[:3])}), so it is not the model that its config.json "
                f"describes ({type(model).__name__}). Save it again from the code that trained it."
            )
    return model


def check_image_tokens(model: ModelConfig) -> None:
    """Check that the template expands an image to as many tokens as the model has features for it.

    The model is built without weights (torch's meta device), so this costs no memory. Models that
    need more inputs than pixels are skipped: their own forward pass checks the counts.

    Raises:
        ConfigError: the counts differ, the template has no place for an image or cannot be
            rendered, or weights or embeddings are missing.
        StageFailedError: a training made the model, and a file of it is missing or damaged.
    """
    check_exported(model.path)
    source, trust_remote_code = resolve_model(model.path), model.trust_remote_code
    check_trainable(source, trust_remote_code=trust_remote_code)
    check_weight_files(source)
    processor = processor_of(replace(model, path=source))
    config = architecture_of(source, trust_remote_code=trust_remote_code)
    answer = _short_answer(processor, source)
    image = Image.new("RGB", (336, 336))  # the size of CLIP-L at LLaVA-1.5; any would do
    token = getattr(config, "image_token_id", None)
    try:
        prompt = prompt_ids(processor, image, "?") if token is not None else []
    except RlhfvError:  # a ValueError, too
        raise
    except ValueError:  # the processor itself counts image tokens, before they are expanded
        prompt = []
    expanded = 0 if token is None else prompt.count(token)
    _check_vocabulary(config, processor, {*prompt, *answer} - {token}, trust_remote_code)
    if token is not None and not expanded:
        raise ConfigError(
            f"{source!r}: the chat template leaves no place for an image. Use the template of the "
            "model's own family (chat_template.jinja), with an image token where a message has "
            "{'type': 'image'}."
        )
    count = _image_features(config, processor, image, trust_remote_code)
    if count is not None and count != expanded:
        raise ConfigError(
            f"{source!r}: the template expands an image to {expanded} image tokens but the vision "
            f"tower gives {count} features. Make patch_size, vision_feature_select_strategy and "
            "num_additional_image_tokens in processor_config.json agree with the model's "
            "config.json."
        )


def _short_answer(processor: Any, source: str) -> list[int]:
    """Return the tokens of a short answer, with what the chat template writes behind it.

    Raises:
        ConfigError: the template cannot be rendered.
    """
    try:
        return answer_ids(processor, "?", "Yes.").ids
    except (TemplateError, TypeError) as error:
        raise ConfigError(
            f"{source!r}: its chat template cannot write a question about an image and its answer "
            f"({first_line(error)}). Use the template of the model's own family "
            "(chat_template.jinja), which takes a message's content as a list of parts."
        ) from error
    except DataError:  # each row says it of its own answers
        return []


def _check_vocabulary(config: Any, processor: Any, used: set[int], trust: bool) -> None:
    """Check that the model has an embedding of every token that text and padding can have, and of
    those that a prompt and an answer use.

    Raises:
        ConfigError: it has fewer.
    """
    tokenizer = processor.tokenizer
    text = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    largest = max(*text.values(), *used, tokenizer.pad_token_id or 0, tokenizer.eos_token_id or 0)
    if largest < getattr(config.get_text_config(), "vocab_size", 0):
        return
    # Llama 3.2 Vision has a few more embeddings than its config.json has words.
    embeddings = len(_without_weights(config, trust).get_input_embeddings().weight)
    if largest >= embeddings:
        raise ConfigError(
            f"{tokenizer.name_or_path!r}: its tokenizer has tokens up to number {largest}, and the "
            f"model of its config.json has embeddings of {embeddings}. Take tokenizer and "
            "config.json from the checkpoint that the weights belong to."
        )


def _without_weights(config: Any, trust: bool) -> Any:
    """Return a model on torch's meta device."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=trust)


def _image_features(config: Any, processor: Any, image: Any, trust: bool) -> int | None:
    """Return the number of features that a vision tower gives for an image.

    None where it takes more than pixels, or cannot be run without its weights: the self-check runs
    it with them.
    """
    try:
        pixels = processor.image_processor([image], return_tensors="pt")
        if set(pixels) != {"pixel_values"}:
            return None
        model = _without_weights(config, trust)
        on_meta = pixels["pixel_values"].to("meta")
        # DeepSeek-VL and Janus have the method in their body alone.
        owner = model if hasattr(model, "get_image_features") else model.base_model
        features = owner.get_image_features(pixel_values=on_meta).pooler_output
        return sum(feature.shape[-2] for feature in features)  # (tokens, D) per image
    except BROKEN:
        return None


def weights_digest(path: str | Path) -> str:
    """Return the sha256 of a local model's configuration, weights, decoding defaults and code.

    A hub name is identified by its resolved commit instead.
    """
    source = Path(resolve_model(str(path)))
    if not source.is_dir():
        return f"{source}@{hub_commit(str(source))}"
    files = [source / "config.json"]
    for pattern in CONTENTS:
        files += source.glob(pattern)
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        digest.update(bytes.fromhex(known_digest(file)))
    return digest.hexdigest()


def model_digests(config: ModelConfig) -> dict[str, str]:
    """Return the digests of a model's weights and of the parts of its processor, by name.

    Raises:
        StageFailedError: a training made the model, and a file of it is missing or damaged.
    """
    check_exported(config.path)
    return {"weights": weights_digest(config.path), **processor_digest(processor_of(config))}


def model_inputs(model: ModelConfig) -> dict[str, Any]:
    """Return everything that a model's answers depend on."""
    settings = {"dtype": model.dtype, "attention": model.attention, "version": VERSION}
    return {**model_digests(model), **settings}
