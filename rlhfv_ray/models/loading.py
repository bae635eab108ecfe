"""Load a policy and its processor from a Hugging Face folder or hub name.

Digests identify exactly which weights and which processor they are.
"""

import copy
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
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
from transformers.utils.hub import cached_file
from transformers.utils.import_utils import is_flash_attn_2_available

from rlhfv_ray.config import SHAPES, ModelConfig
from rlhfv_ray.data.encoding import END_TOKENS, prompt_ids
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.storage.files import file_digest
from rlhfv_ray.storage.folder import fetch, local_path
from rlhfv_ray.storage.stages import check_stage, is_done

# Files of a model folder that, with its config.json, determine the model and how it decodes.
CONTENTS = ("*.safetensors", "*.bin", "*.py", "generation_config.json")
# What a model's code raises on inputs that it does not expect.
BROKEN = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
# Models of the field that transformers does not have.
ABSENT = {
    "beit3_llava": "Muffin and RLHF-V's own models (beit3_llava) are not part of transformers.",
    "omnilmm": "OmniLMM is not part of transformers; its successor MiniCPM-V 4.6 is.",
    "minicpmv": "MiniCPM-V up to 4.5 is code of its checkpoint and not part of transformers; "
    "MiniCPM-V 4.6 and 4.7 are.",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def resolve_model(path: str) -> str:
    """Return the folder or hub name behind `model.path`.

    `shapes` is the model shipped with this package. A model at an address is fetched first.

    Raises:
        ConfigError: no path was given, or it is neither a model folder nor a hub name.
    """
    if not path:
        raise ConfigError(
            "model.path is not set: give --model.path a Hugging Face model folder or a hub name."
        )
    if path == SHAPES:
        from rlhfv_ray.shapes.model import SHIPPED

        path = str(SHIPPED)
    folder = local_path(path)
    fetch(folder)
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise ConfigError(
                f"model.path = {path!r} holds an adapter, not a model. Merge it into its base "
                "first (peft: PeftModel.from_pretrained(base, folder).merge_and_unload()"
                ".save_pretrained(...)) and give that folder."
            )
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"model.path = {path!r}: the folder has no config.json, so it is no Hugging Face "
                "model. Give the folder that `save_pretrained` wrote."
            )
        return str(folder.resolve())
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ConfigError(
            f"model.path = {path!r}: no such folder. Give a Hugging Face model folder or a hub "
            "name."
        )
    return path


def architecture_of(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Return a checkpoint's configuration (`config.json`), read without its weights.

    Raises:
        ConfigError: the file is missing, transformers does not know the architecture, or the
            architecture is code of the checkpoint, which was not allowed to run.
    """
    source = resolve_model(str(path))
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ConfigError(
            f"model.path = {source!r}: its architecture cannot be loaded: "
            f"{_first_line(error)}{_code_hint(error)}{_absent_hint(source)}"
        ) from error


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
        ConfigError: the model does not exist, or lacks a chat template or a fast tokenizer.
    """
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
    check_unquantized(source, trust_remote_code=trust)
    processor = load_processor(source, trust_remote_code=trust)
    target = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source,
            dtype=DTYPES.get(dtype, dtype),
            # None: pickles too, but safetensors if both exist.
            use_safetensors=None if config.allow_pickle else True,
            output_loading_info=True,
            trust_remote_code=trust,
        )
    except (OSError, ValueError, SafetensorError) as error:
        hint = _code_hint(error)
        if not config.allow_pickle and any(Path(source).glob("*.bin")):
            hint = (
                " Its weights are pickles, which can run code: if you trust them, "
                f"--model.allow-pickle.{hint}"
            )
        raise ConfigError(
            f"model.path = {source!r} cannot be loaded: {_first_line(error)}{hint}"
        ) from error
    model, info = loaded
    for problem in ("missing", "unexpected", "mismatched"):
        keys = sorted(str(key) for key in info[f"{problem}_keys"])
        if keys:
            raise ConfigError(
                f"model.path = {source!r}: {len(keys)} weights are {problem} "
                f"(first: {', '.join(keys[:3])}), so it is not the model that its config.json "
                f"describes ({type(model).__name__}). Save it again from the code that trained it."
            )
    nn.Module.to(model, target)
    return model.eval(), processor


def check_unquantized(source: str, *, trust_remote_code: bool = False) -> None:
    """Refuse quantised weights: they cannot be trained, and their log-probs are another model's.

    Raises:
        ConfigError: the checkpoint is quantised (GPTQ, AWQ, bitsandbytes, ...).
    """
    config = architecture_of(source, trust_remote_code=trust_remote_code)
    quantized = getattr(config, "quantization_config", None)
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ConfigError(
            f"model.path = {source!r}: its weights are quantised ({method}), and quantised weights "
            "are not trained. Give the checkpoint that they were made of."
        )


def load_processor(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Return the processor of a checkpoint, after checking that it has all required parts.

    Raises:
        ConfigError: it cannot be loaded, has no chat template, or its tokenizer gives no character
            offsets.
    """
    source = resolve_model(str(path))
    try:
        processor = _processor(source, trust_remote_code)
    except (OSError, ValueError, ImportError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"The processor of {source!r} cannot be loaded: {_first_line(error)}"
            f"{_code_hint(error)}{_absent_hint(source)}{_vision_hint(error)}"
        ) from error
    parts = (getattr(processor, name, None) for name in ("tokenizer", "image_processor"))
    if any(part is None for part in parts):
        raise ConfigError(
            f"{source!r} has no processor for images and text, so it is no image-text-to-text "
            "model. Give a vision-language model."
        )
    processor.chat_template = _chat_template(processor, source)
    if not processor.tokenizer.is_fast:
        raise ConfigError(
            f"{source!r} has only a slow tokenizer: save the model with its tokenizer.json."
        )
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    setattr(processor.tokenizer, END_TOKENS, _end_tokens(processor.tokenizer, source))
    return processor


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
    """Return the tokens that end a generation of a checkpoint, as its own settings name them."""
    settings_file = _cached_file(source, GENERATION_CONFIG_NAME)
    settings = json.loads(Path(settings_file).read_text()) if settings_file else {}
    named = settings.get("eos_token_id")
    numbers = named if isinstance(named, list) else [named]
    tokens = [tokenizer.convert_ids_to_tokens(number) for number in numbers if number is not None]
    return tuple(token for token in tokens if token)


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
        return _without_video_part(full_class).from_pretrained(source)


def _named_class(source: str) -> Any:
    """Return the processor class that a checkpoint's files name, or None.

    GLM-OCR has no processor of its own: its files name that of GLM-4.6V.
    """
    for name in (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME, TOKENIZER_CONFIG_FILE):
        settings_file = _cached_file(source, name)
        settings = json.loads(Path(settings_file).read_text()) if settings_file else {}
        if settings.get("processor_class"):
            return processor_class_from_name(settings["processor_class"])
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


def _without_video_part(full_class: Any) -> Any:
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


def keep_video_settings(source: str, folder: Path) -> None:
    """Copy a checkpoint's video settings to a model saved from it.

    A processor that was loaded without its video part was saved without these settings.

    Args:
        source: folder or hub name that the model was loaded from.
        folder: folder that the model and its processor were saved to.
    """
    video_file = _cached_file(source, VIDEO_PROCESSOR_NAME)
    if video_file and not (folder / VIDEO_PROCESSOR_NAME).exists():
        shutil.copyfile(video_file, folder / VIDEO_PROCESSOR_NAME)
    processor_file = _cached_file(source, PROCESSOR_NAME)
    settings = json.loads(Path(processor_file).read_text()) if processor_file else {}
    if "video_processor" in settings:
        target = folder / PROCESSOR_NAME
        saved = json.loads(target.read_text())
        merged = {"video_processor": settings["video_processor"], **saved}
        target.write_text(json.dumps(merged, indent=2))


def _cached_file(source: str, name: str) -> str | None:
    """Return the path of one file of a folder or hub name, or None if it does not exist."""
    return cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        # An unreachable hub costs the settings in this file, not the whole model.
        _raise_exceptions_for_connection_errors=False,
    )


def check_image_tokens(path: str | Path, *, trust_remote_code: bool = False) -> None:
    """Check that the template expands an image to as many tokens as the model has features for it.

    The model is built without weights (torch's meta device), so this costs no memory. Models that
    need more inputs than pixels are skipped: their own forward pass checks the counts.

    Raises:
        ConfigError: the counts differ, or the template has no place for an image.
        StageFailedError: a training made the model, and a file of it is missing or damaged.
    """
    check_exported(str(path))
    source = resolve_model(str(path))
    processor = load_processor(source, trust_remote_code=trust_remote_code)
    config = architecture_of(source, trust_remote_code=trust_remote_code)
    image = Image.new("RGB", (336, 336))  # the size of CLIP-L at LLaVA-1.5; any would do
    token = getattr(config, "image_token_id", None)
    try:
        expanded = prompt_ids(processor, image, "?").count(token) if token is not None else 0
    except ConfigError:  # a ValueError, too
        raise
    except ValueError:  # the processor itself counts image tokens, before they are expanded
        expanded = 0
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


def _image_features(config: Any, processor: Any, image: Any, trust: bool) -> int | None:
    """Return the number of features that a vision tower gives for an image.

    None where it takes more than pixels, or cannot be run without its weights: the self-check runs
    it with them.
    """
    try:
        pixels = processor.image_processor([image], return_tensors="pt")
        if set(pixels) != {"pixel_values"}:
            return None
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust)
        on_meta = pixels["pixel_values"].to("meta")
        # DeepSeek-VL and Janus have the method in their body alone.
        owner = model if hasattr(model, "get_image_features") else model.base_model
        features = owner.get_image_features(pixel_values=on_meta).pooler_output
        return sum(feature.shape[-2] for feature in features)  # (tokens, D) per image
    except BROKEN:
        return None


def check_exported(path: str) -> None:
    """Check the files of a model that a training exported; of other models nothing is known.

    Raises:
        StageFailedError: a file of the training's folder is missing or damaged.
    """
    folder = local_path(path)
    if folder.name == "model" and is_done(folder.parent):
        check_stage(folder.parent)


def weights_digest(path: str | Path, *, trust_remote_code: bool = False) -> str:
    """Return the sha256 of a local model's configuration, weights, decoding defaults and code.

    A hub name is identified by its resolved commit instead.
    """
    source = Path(resolve_model(str(path)))
    if not source.is_dir():
        architecture = architecture_of(source, trust_remote_code=trust_remote_code)
        return f"{source}@{architecture._commit_hash}"
    files = [source / "config.json"]
    for pattern in CONTENTS:
        files += source.glob(pattern)
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        digest.update(bytes.fromhex(file_digest(file)))
    return digest.hexdigest()


def model_digests(config: ModelConfig) -> dict[str, str]:
    """Return the digests of a model's weights and of the parts of its processor, by name.

    Raises:
        StageFailedError: a training made the model, and a file of it is missing or damaged.
    """
    check_exported(config.path)
    trust = config.trust_remote_code
    processor = load_processor(config.path, trust_remote_code=trust)
    weights = weights_digest(config.path, trust_remote_code=trust)
    return {"weights": weights, **processor_digest(processor)}


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
    tokenizer.no_padding()  # which the last call leaves there
    tokenizer.no_truncation()
    parts = {
        "tokenizer": tokenizer.to_str() + special_tokens,
        "template": processor.chat_template,
        "pixels": type(image_processor).__qualname__ + image_processor.to_json_string(),
        "image_tokens": json.dumps(numbers, sort_keys=True, default=str),
    }
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in parts.items()}


def model_inputs(model: ModelConfig) -> dict[str, Any]:
    """Return everything that a model's answers depend on."""
    return {**model_digests(model), "dtype": model.dtype, "attention": model.attention}


def _code_hint(error: Exception) -> str:
    """Return advice for a checkpoint whose own code was not allowed to run, else nothing."""
    if "trust_remote_code" not in str(error):
        return ""
    return " It brings Python code of its own: if you trust its author, --model.trust-remote-code."


def _absent_hint(source: str) -> str:
    """Return a sentence about a known model that transformers does not have, else nothing."""
    try:
        kind = json.loads((Path(source) / "config.json").read_text()).get("model_type")
    except (OSError, ValueError):
        return ""
    return f" {ABSENT[kind]}" if kind in ABSENT else ""


def _vision_hint(error: Exception) -> str:
    """Return advice where the error asks for torchvision, else nothing."""
    if "torchvision" not in str(error).lower():
        return ""
    return (
        " This family needs torchvision: install the build that belongs to your torch "
        "(pip install torchvision), and use the same one for all of a model's log-probs."
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
