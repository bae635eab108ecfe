"""Processors of checkpoints, in the forms in which they are published."""

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoConfig, AutoProcessor, ProcessorMixin
from transformers.models.auto.auto_mappings import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import (
    PROCESSOR_MAPPING,
    processor_class_from_name,
)
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import (
    GENERATION_CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    PROCESSOR_NAME,
    VIDEO_PROCESSOR_NAME,
)
from transformers.utils.import_utils import is_torchvision_available

from rlhfv_ray.config import ModelConfig
from rlhfv_ray.data.templates import (
    END_TOKENS,
    NOT_EMBEDDED,
    TEMPLATE_ARGUMENTS,
    answer_ends,
    template_arguments,
)
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.models.checkpoint_files import (
    BROKEN_FILES,
    absent_hint,
    architecture_of,
    cached_file_of,
    code_hint,
    first_line,
    resolve_model,
)

# Settings of a tokenizer that its processor takes for every text.
LIMITS = (
    *("max_length", "truncation", "truncation_strategy", "stride"),
    *("padding", "pad_to_multiple_of"),
)
NEEDS_TORCHVISION = (
    " This family needs torchvision: pip install 'rlhfv-ray[vision]' on every node (docs/models.md "
    "says which build belongs to which torch), and use it for all of a model's log-probs."
)


def processor_of(config: ModelConfig) -> Any:
    """Return the processor of a configured model, whose chat template gets its arguments.

    It knows which of its tokens the model has no embedding of.

    Raises:
        ConfigError: as `load_processor`, or the template has no such argument.
    """
    processor = load_processor(config.path, trust_remote_code=config.trust_remote_code)
    setattr(processor.tokenizer, TEMPLATE_ARGUMENTS, _template_arguments(processor, config))
    setattr(processor.tokenizer, NOT_EMBEDDED, _not_embedded(processor.tokenizer, config))
    return processor


def _not_embedded(tokenizer: Any, config: ModelConfig) -> tuple[str, ...]:
    """Return the tokens that were added to a tokenizer behind the last word of its model."""
    architecture = architecture_of(config.path, trust_remote_code=config.trust_remote_code)
    words = getattr(architecture.get_text_config(), "vocab_size", None)
    if words is None:
        return ()
    return tuple(token for token, number in tokenizer.get_added_vocab().items() if number >= words)


def _template_arguments(processor: Any, config: ModelConfig) -> dict[str, Any]:
    """Return the values of the configured arguments of a chat template, by name."""
    arguments = {}
    for entry in config.template_arguments:
        name, _, text = entry.partition("=")
        if not re.search(rf"\b{name}\b", processor.chat_template):
            raise ConfigError(
                f"model.template_arguments = {entry!r}: the chat template of {config.path!r} takes "
                f"no {name}. Leave it out, or correct the name."
            )
        try:
            arguments[name] = json.loads(text)
        except ValueError:
            arguments[name] = text
    return arguments


def load_processor(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Return the processor of a checkpoint, after checking that it has all required parts.

    Raises:
        ConfigError: it cannot be loaded, has no chat template, or its tokenizer gives no character
            offsets.
    """
    source = resolve_model(str(path))
    try:
        processor = _processor(source, trust_remote_code)
    except (*BROKEN_FILES, TypeError, AttributeError) as error:
        raise ConfigError(
            f"The processor of {source!r} cannot be loaded: {first_line(error)}"
            f"{code_hint(error)}{absent_hint(source)}{_vision_hint(error)}"
        ) from error
    parts = (getattr(processor, name, None) for name in ("tokenizer", "image_processor"))
    if any(part is None for part in parts):
        raise ConfigError(
            f"{source!r} has no processor for images and text, so it is no image-text-to-text "
            f"model. Give a vision-language model.{_missing_hint(source, trust_remote_code)}"
        )
    processor.chat_template = _chat_template(processor, source)
    _complete_patches(processor, source)
    if not processor.tokenizer.is_fast:
        raise ConfigError(
            f"{source!r} has only a slow tokenizer: save the model with its tokenizer.json."
        )
    _forget_limits(processor.tokenizer)
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    if processor.tokenizer.pad_token_id is None:
        raise ConfigError(
            f"{source!r}: its tokenizer has neither a pad_token nor an eos_token. Name them in "
            "tokenizer_config.json."
        )
    # Muffin's settings name another token than its tokenizer's, and its answers end in a text.
    ends = () if answer_ends(processor) else _end_tokens(processor.tokenizer, source)
    setattr(processor.tokenizer, END_TOKENS, ends)
    return processor


def _complete_patches(processor: Any, source: str) -> None:
    """Give a LLaVA's processor the sizes that folders of 2024 have in config.json alone."""
    if getattr(processor, "patch_size", 0) is not None:
        return
    architecture: Any = architecture_of(source)
    processor.patch_size = architecture.vision_config.patch_size
    processor.vision_feature_select_strategy = architecture.vision_feature_select_strategy
    if processor.vision_feature_select_strategy == "default":  # leaves out a class token
        processor.num_additional_image_tokens = 1


def _chat_template(processor: Any, source: str) -> str:
    """Return the processor's chat template; of several the default one, else its tokenizer's.

    Raises:
        ConfigError: there is none.
    """
    for owner in (processor, processor.tokenizer):
        template = owner.chat_template
        if isinstance(template, Mapping):
            template = template.get("default")
        if template:
            return template
    raise ConfigError(
        f"{source!r} has no chat template: add chat_template.jinja to the model's folder."
    )


def _end_tokens(tokenizer: Any, source: str) -> tuple[str, ...]:
    """Return the tokens that end a generation of a checkpoint, as its own settings name them.

    Raises:
        ConfigError: the settings name something else than numbers of tokens.
    """
    named = _settings(source, GENERATION_CONFIG_NAME).get("eos_token_id")
    numbers = named if isinstance(named, list) else [named]
    numbers = [number for number in numbers if number is not None]
    if not all(isinstance(number, int) for number in numbers):
        raise ConfigError(
            f"{source!r}: eos_token_id = {named!r} in {GENERATION_CONFIG_NAME} is no number of a "
            "token, nor a list of them."
        )
    # -1 stands for no token.
    tokens = [tokenizer.convert_ids_to_tokens(number) for number in numbers if number >= 0]
    return tuple(token for token in tokens if token)


def _settings(source: str, name: str) -> dict[str, Any]:
    """Return the settings in one file of a checkpoint; empty if it has no such file.

    Raises:
        ConfigError: the file is damaged.
    """
    path = cached_file_of(source, name)
    try:
        settings = json.loads(Path(path).read_text()) if path else {}
    except ValueError as error:
        raise ConfigError(
            f"{source!r}: {name} is damaged ({first_line(error)}). Download it again."
        ) from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{source!r}: {name} holds no settings by name. Download it again.")
    return settings


def _processor(source: str, trust_remote_code: bool) -> Any:
    """Return a checkpoint's processor, without its video part if that part cannot be loaded.

    The usual cause is that torchvision, which only video processors need, is not installed.
    """
    try:
        return AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (ImportError, OSError):
        architecture = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        full_class: Any = PROCESSOR_MAPPING.get(type(architecture), None) or _named_class(source)
        if full_class is None or "video_processor" not in full_class.get_attributes():
            raise
        return without_video_part(full_class).from_pretrained(source)


def _named_class(source: str) -> Any:
    """Return the processor class that a checkpoint's files name, or None.

    GLM-OCR has no processor of its own: its files name that of GLM-4.6V.
    """
    for name in (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME, TOKENIZER_CONFIG_FILE):
        named = _settings(source, name).get("processor_class")
        if named:
            return processor_class_from_name(named)
    return None


class _PartsAtHand(ProcessorMixin):
    """Stands between a processor's class and its base, and leaves out the video part.

    The base takes parts in order, and in VideoLlavaProcessor the tokenizer follows the video part.
    Gemma 4's constructor hands on every part by name.
    """

    # What MiniCPM-V's constructor and ERNIE's `save_pretrained` read of the video part.
    video_processor = SimpleNamespace(slice_mode=False, downsample_mode="", font="")

    def __init__(self, *parts: Any, video_processor: None = None, **settings: Any) -> None:
        super().__init__(*[part for part in parts if part is not None], **settings)


def without_video_part(full_class: Any) -> Any:
    """Return a subclass of a processor class that loads everything except the video processor."""
    attributes = full_class.get_attributes()
    remaining = [name for name in attributes if name != "video_processor"]
    video_index = attributes.index("video_processor")

    def arguments(cls: Any, *positional: Any, **settings: Any) -> list[Any]:
        parts = super(cls, cls)._get_arguments_from_pretrained(*positional, **settings)
        # The constructor still expects the video processor in its position.
        return [*parts[:video_index], None, *parts[video_index:]]

    body = {
        "get_attributes": classmethod(lambda _: remaining),
        "_get_arguments_from_pretrained": classmethod(arguments),
        # SmolVLM's own method reads the video processor.
        "apply_chat_template": ProcessorMixin.apply_chat_template,
    }
    # The name stays the same because `save_pretrained` writes it into the configuration.
    return type(full_class.__name__, (full_class, _PartsAtHand), body)


def save_processor(processor: Any, source: str, folder: Path) -> None:
    """Save a processor beside a model, with all settings of the checkpoint that it came from.

    The files do not depend on the texts that the processor was used for.

    Args:
        processor: loaded from `source`.
        source: folder or hub name.
        folder: folder of the saved model.
    """
    _forget_last_call(processor.tokenizer.backend_tokenizer)
    processor.save_pretrained(folder)
    # transformers 5 writes one file for all parts, and servers with transformers 4 read this one.
    _keep_file(IMAGE_PROCESSOR_NAME, source, folder)
    _keep_video_settings(source, folder)


def _forget_limits(tokenizer: Any) -> None:
    """Remove the lengths that a tokenizer cuts or pads every text to by itself.

    A processor applies those that stand in tokenizer.json or tokenizer_config.json without a word,
    and a prompt would lose its question.
    """
    _forget_last_call(tokenizer.backend_tokenizer)
    for name in LIMITS:
        tokenizer.init_kwargs.pop(name, None)


def _forget_last_call(tokenizer: Any) -> None:
    """Remove the padding and truncation that the last call left in a tokenizer of `tokenizers`."""
    tokenizer.no_padding()
    tokenizer.no_truncation()


def _keep_file(name: str, source: str, folder: Path) -> None:
    """Copy a file of the checkpoint, unless it has none or the folder has its own."""
    file = cached_file_of(source, name)
    if file and not (folder / name).exists():
        shutil.copyfile(file, folder / name)


def _keep_video_settings(source: str, folder: Path) -> None:
    """Copy the video settings, which a processor that was loaded without its video part lacks."""
    _keep_file(VIDEO_PROCESSOR_NAME, source, folder)
    settings = _settings(source, PROCESSOR_NAME)
    if "video_processor" in settings:
        target = folder / PROCESSOR_NAME
        saved = json.loads(target.read_text())
        merged = {"video_processor": settings["video_processor"], **saved}
        target.write_text(json.dumps(merged, indent=2))


def processor_digest(processor: Any) -> dict[str, str]:
    """Return digests of everything between a row of data and the model's inputs.

    The keys are tokenizer, template, pixels (the image transform) and image_tokens (how many an
    image expands to).
    """
    image_processor = processor.image_processor
    special_tokens = json.dumps(processor.tokenizer.special_tokens_map, default=str)
    numbers = {
        name: value
        for name, value in processor.to_dict().items()
        if isinstance(value, int | str | None)
    }
    tokenizer = copy.deepcopy(processor.tokenizer.backend_tokenizer)
    _forget_last_call(tokenizer)
    arguments = template_arguments(processor)
    parts = {
        "tokenizer": tokenizer.to_str() + special_tokens,
        "template": processor.chat_template
        + (json.dumps(arguments, sort_keys=True) if arguments else ""),
        "pixels": type(image_processor).__qualname__ + image_processor.to_json_string(),
        "image_tokens": json.dumps(numbers, sort_keys=True, default=str),
    }
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in parts.items()}


def _missing_hint(source: str, trust_remote_code: bool) -> str:
    """Return advice where a family's image processor was left out for want of torchvision."""
    architecture = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    backends = IMAGE_PROCESSOR_MAPPING_NAMES.get(architecture.model_type, {})
    needed = "torchvision" in backends and "pil" not in backends
    return NEEDS_TORCHVISION if needed and not is_torchvision_available() else ""


def _vision_hint(error: Exception) -> str:
    """Return advice where the error asks for torchvision, else nothing."""
    return NEEDS_TORCHVISION if "torchvision" in str(error).lower() else ""
