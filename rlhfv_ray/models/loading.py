"""Load a policy and its processor from a Hugging Face folder or hub name, and say exactly which one it is."""

import hashlib
import json
import shutil
from pathlib import Path
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
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import PROCESSOR_NAME, VIDEO_PROCESSOR_NAME
from transformers.utils.hub import cached_file
from transformers.utils.import_utils import is_flash_attn_2_available

from rlhfv_ray.config import SHAPES, ModelConfig
from rlhfv_ray.data.encoding import prompt_ids
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.models.layouts import TESTED
from rlhfv_ray.storage.folder import fetch, local_path

CONTENTS = (
    "*.safetensors",
    "*.bin",
    "*.py",
)  # of a model folder, beside its config.json: what makes it this model
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def resolve_model(path: str) -> str:
    """The folder or hub name behind `model.path`; `shapes` is the model shipped with this package.

    Raises:
        ConfigError: no path was given, or it is neither a model folder nor a hub name.
    """
    if not path:
        raise ConfigError(
            "model.path is not set: give --model.path a Hugging Face model folder, or a hub name."
        )
    if path == SHAPES:
        from rlhfv_ray.shapes.model import SHIPPED

        path = str(SHIPPED)
    folder = local_path(path)
    fetch(folder)
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise ConfigError(
                f"model.path = {path!r} holds an adapter, not a model. Merge it into its base first "
                "(peft: PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(...)) and give that folder."
            )
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"model.path = {path!r}: the folder has no config.json, so it is no Hugging Face model."
            )
        return str(folder.resolve())
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ConfigError(
            f"model.path = {path!r}: no such folder. Give a Hugging Face model folder, or a hub name."
        )
    return path


def architecture_of(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """A checkpoint's configuration (`config.json`), read without its weights.

    Raises:
        ConfigError: there is none, transformers does not know the architecture, or it is code that was not allowed to run.
    """
    where = resolve_model(str(path))
    try:
        return AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"model.path = {where!r}: its architecture cannot be had: {_first_line(error)}{_code_hint(error)}"
        ) from error


def load_policy(
    path: str | Path, *, dtype: str = "auto", device: str = "auto"
) -> tuple[PreTrainedModel, Any]:
    """Load a model and its processor.

    Weights come from safetensors only and no remote code runs.

    Args:
        path: Hugging Face folder, hub name, or `shapes`.
        dtype: `fp32`, `bf16`, or `auto` for the checkpoint's own.
        device: a torch device, or `auto` for the GPU where there is one.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        ConfigError: there is no such model, or it lacks a chat template or a fast tokenizer.
    """
    return _load(ModelConfig(path=str(path)), dtype, device)


def load_model(config: ModelConfig) -> tuple[PreTrainedModel, Any]:
    """Load a model as it is configured: `load_policy` with its dtype and way of computing attention.

    Raises:
        ConfigError: as `load_policy`; or its attention cannot be had here.
    """
    usable = is_flash_attn_2_available() and config.dtype == "bf16"
    if config.attention == "flash_attention_2" and not usable:
        raise ConfigError(
            "model.attention = 'flash_attention_2' needs a CUDA GPU, the package flash-attn (pip install 'rlhfv-ray[gpu]') and "
            "--model.dtype bf16. Leave --model.attention auto: torch's sdpa does as well at these lengths."
        )
    if config.dtype == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise ConfigError(
            "model.dtype = 'bf16': this GPU cannot compute in bf16. Use --model.dtype fp32."
        )
    model, processor = _load(config, config.dtype, "auto")
    plain_rows = config.layout == "plain" or model.config.model_type not in TESTED
    flash = config.attention == "flash_attention_2" or (
        config.attention == "auto" and usable and plain_rows
    )
    if flash or config.attention in ("sdpa", "eager"):
        model.set_attn_implementation("flash_attention_2" if flash else config.attention)
    return model, processor


def _load(config: ModelConfig, dtype: str, device: str) -> tuple[PreTrainedModel, Any]:
    where, trust, allow_pickle = (
        resolve_model(config.path),
        config.trust_remote_code,
        config.allow_pickle,
    )
    processor = load_processor(where, trust_remote_code=trust)
    target = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    safe = None if allow_pickle else True  # None: safetensors where there are some
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            where,
            dtype=DTYPES.get(dtype, dtype),
            use_safetensors=safe,
            output_loading_info=True,
            trust_remote_code=trust,
        )
    except (OSError, ValueError, SafetensorError) as error:
        pickled = not allow_pickle and any(Path(where).glob("*.bin"))
        hint = (
            " Its weights are pickles, which can run code: if you trust them, --model.allow-pickle."
            if pickled
            else ""
        )
        said = f"model.path = {where!r} cannot be loaded: {_first_line(error)}{hint}{_code_hint(error)}"
        raise ConfigError(said) from error
    model, info = loaded
    for what in ("missing", "unexpected", "mismatched"):
        if keys := sorted(str(key) for key in info[f"{what}_keys"]):
            raise ConfigError(
                f"model.path = {where!r}: {len(keys)} weights are {what} (first: {', '.join(keys[:3])}), so it is not the model that its "
                f"config.json describes ({type(model).__name__}). Save it again from the code that trained it."
            )
    nn.Module.to(model, target)
    return model.eval(), processor


def load_processor(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The processor of a checkpoint, checked to have what the line needs.

    Raises:
        ConfigError: it cannot be loaded, has no chat template, or its tokenizer gives no character offsets.
    """
    where = resolve_model(str(path))
    try:
        processor = _processor(where, trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        said = (
            f"The processor of {where!r} cannot be loaded: {_first_line(error)}{_code_hint(error)}"
        )
        raise ConfigError(said) from error
    if (
        getattr(processor, "tokenizer", None) is None
        or getattr(processor, "image_processor", None) is None
    ):
        raise ConfigError(
            f"{where!r} has no processor for images and text: it is no image-text-to-text model."
        )
    if not processor.chat_template:
        raise ConfigError(
            f"{where!r} has no chat template: add chat_template.jinja to the model's folder."
        )
    if not processor.tokenizer.is_fast:
        raise ConfigError(
            f"{where!r} has only a slow tokenizer: save the model with its tokenizer.json."
        )
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def _processor(where: str, trust_remote_code: bool) -> Any:
    """A checkpoint's processor; without its part for videos where that cannot be had, most often for want of torchvision."""
    try:
        return AutoProcessor.from_pretrained(where, trust_remote_code=trust_remote_code)
    except (ImportError, OSError):
        architecture = AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code)
        whole: Any = PROCESSOR_MAPPING.get(type(architecture), None)
        if whole is None or "video_processor" not in whole.get_attributes():
            raise
        parts = [name for name in whole.get_attributes() if name != "video_processor"]
        place = whole.get_attributes().index("video_processor")

        def arguments(made: Any, *where: Any, **settings: Any) -> list[Any]:
            found = super(made, made)._get_arguments_from_pretrained(*where, **settings)
            return [*found[:place], None, *found[place:]]

        bodies = {
            "get_attributes": classmethod(lambda _: parts),
            "_get_arguments_from_pretrained": classmethod(arguments),
        }
        bodies["apply_chat_template"] = (
            ProcessorMixin.apply_chat_template
        )  # SmolVLM's own asks for the part for videos
        return type(whole.__name__, (whole,), bodies).from_pretrained(
            where
        )  # the same name: it is saved by it


def keep_video_settings(source: str, folder: Path) -> None:
    """Copy a checkpoint's settings for videos to a model saved from it: a processor loaded without that part was saved without it.

    Args:
        source: folder or hub name the model was loaded from.
        folder: where it and its processor are saved.
    """
    videos, whole = (
        cached_file(
            source,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,  # a hub out of reach costs these settings, not the model
        )
        for name in (VIDEO_PROCESSOR_NAME, PROCESSOR_NAME)
    )
    if videos and not (folder / VIDEO_PROCESSOR_NAME).exists():
        shutil.copyfile(videos, folder / VIDEO_PROCESSOR_NAME)
    there = json.loads(Path(whole).read_text()) if whole else {}
    if "video_processor" in there:
        target = folder / PROCESSOR_NAME
        kept = {"video_processor": there["video_processor"], **json.loads(target.read_text())}
        target.write_text(json.dumps(kept, indent=2))


def check_image_tokens(path: str | Path, *, trust_remote_code: bool = False) -> None:
    """Check that the template expands an image to as many tokens as the model has features for it.

    The model is built without weights (torch's meta device), so this costs no memory; models whose image features cannot be
    computed without data are left to their own check in the forward pass.

    Raises:
        ConfigError: the counts differ.
    """
    where = resolve_model(str(path))
    processor = load_processor(where, trust_remote_code=trust_remote_code)
    config = architecture_of(where, trust_remote_code=trust_remote_code)
    image = Image.new("RGB", (336, 336))
    token = getattr(config, "image_token_id", None)
    try:
        expanded = prompt_ids(processor, image, "?").count(token) if token is not None else 0
    except ValueError:  # the processor counts image tokens itself, before they are expanded
        expanded = 0
    if token is not None and not expanded:
        raise ConfigError(
            f"{where!r}: the chat template leaves no place for an image. Use the template of the model's own family "
            "(chat_template.jinja), with an image token where a message has {'type': 'image'}."
        )
    pixels = processor.image_processor([image], return_tensors="pt")
    if set(pixels) != {"pixel_values"}:
        return
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    features = model.get_image_features(
        pixel_values=pixels["pixel_values"].to("meta")
    ).pooler_output
    count = sum(feature.shape[-2] for feature in features)
    if count != expanded:
        raise ConfigError(
            f"{where!r}: the template expands an image to {expanded} image tokens but the vision tower gives {count} features. "
            "Make patch_size, vision_feature_select_strategy and num_additional_image_tokens in processor_config.json agree "
            "with the model's config.json."
        )


def weights_digest(path: str | Path, *, trust_remote_code: bool = False) -> str:
    """sha256 over the configuration, weights and code of a local model; a hub name stands with its resolved commit."""
    where = Path(resolve_model(str(path)))
    if not where.is_dir():
        return f"{where}@{architecture_of(where, trust_remote_code=trust_remote_code)._commit_hash}"
    digest = hashlib.sha256()
    for file in sorted(
        [where / "config.json", *(path for kind in CONTENTS for path in where.glob(kind))]
    ):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def model_digests(config: ModelConfig) -> dict[str, str]:
    """Digests of all that a model is, by name: its weights and the parts of its processor."""
    trust = config.trust_remote_code
    weights = weights_digest(config.path, trust_remote_code=trust)
    return {
        "weights": weights,
        **processor_digest(load_processor(config.path, trust_remote_code=trust)),
    }


def processor_digest(processor: Any) -> dict[str, str]:
    """Digests of everything between a row and the model's inputs: tokenizer, template, pixel transform."""
    parts = {
        "tokenizer": processor.tokenizer.backend_tokenizer.to_str(),
        "template": processor.chat_template,
        "pixels": type(processor.image_processor).__qualname__
        + processor.image_processor.to_json_string(),
        "image_tokens": json.dumps(
            {k: v for k, v in processor.to_dict().items() if isinstance(v, int | str | None)},
            sort_keys=True,
            default=str,
        ),
    }
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in parts.items()}


def _code_hint(error: Exception) -> str:
    """What to do about a checkpoint whose own code was not allowed to run."""
    if "trust_remote_code" not in str(error):
        return ""
    return (
        " It brings Python code of its own: if you trust who wrote it, --model.trust-remote-code."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def model_inputs(model: ModelConfig) -> dict[str, Any]:
    """What a model's answers depend on."""
    return {**model_digests(model), "dtype": model.dtype}
