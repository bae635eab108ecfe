"""The files of a checkpoint: where it is, its architecture, and what cannot be loaded of it."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig
from transformers.tokenization_utils_base import ADDED_TOKENS_FILE, FULL_TOKENIZER_FILE
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from rlhfv_ray.errors import ConfigError
from rlhfv_ray.models.hub import hub_commit
from rlhfv_ray.models.muffin_config import completed
from rlhfv_ray.shapes.model import BASE_MODELS
from rlhfv_ray.storage.folder import fetch, local_path
from rlhfv_ray.storage.stages import check_stage, is_done

# What transformers raises on files that are absent, damaged or not valid.
BROKEN_FILES = (OSError, ValueError, ImportError, KeyError, StrictDataclassError)
# Models of the field that transformers does not have.
ABSENT = {
    "omnilmm": "OmniLMM is not part of transformers; its successor MiniCPM-V 4.6 is.",
    "minicpmv": "MiniCPM-V up to 4.5 is code of its checkpoint and not part of transformers; "
    "MiniCPM-V 4.6 and 4.7 are.",
}


def resolve_model(path: str) -> str:
    """Return the folder or hub name behind `model.path`.

    `shapes`, `shapes-biased` and `shapes-signs` are the base models of the shapes worlds. A model
    at an address is fetched first.

    Raises:
        ConfigError: no path was given, or it is neither a model folder nor a hub name, or the hub's
            model cannot be had.
    """
    if not path:
        raise ConfigError(
            "model.path is not set: give --model.path a Hugging Face model folder or a hub name."
        )
    if path in BASE_MODELS:
        path = str(BASE_MODELS[path])
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
    hub_commit(path)  # an error if it cannot be had
    return path


def architecture_of(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Return a checkpoint's configuration (`config.json`), read without its weights.

    Raises:
        ConfigError: the file is missing, transformers does not know the architecture, or the
            architecture is code of the checkpoint, which was not allowed to run.
    """
    source = resolve_model(str(path))
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        return completed(config, lambda: added_tokens(source))
    except BROKEN_FILES as error:
        raise ConfigError(
            f"model.path = {source!r}: its architecture cannot be loaded: "
            f"{first_line(error)}{code_hint(error)}{absent_hint(source)}"
        ) from error


def check_trainable(source: str, *, trust_remote_code: bool = False) -> None:
    """Refuse a checkpoint that is not trained here, whatever its other files are.

    Raises:
        ConfigError: the model takes no pictures with text (a language model, an omni model), or its
            weights are quantised (GPTQ, AWQ, ...): they cannot be trained, and their log-probs are
            another model's.
    """
    config = architecture_of(source, trust_remote_code=trust_remote_code)
    own_code = getattr(config, "auto_map", None) or {}
    if (
        type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        and "AutoModelForImageTextToText" not in own_code
    ):
        raise ConfigError(
            f"model.path = {source!r}: type {config.model_type} is not an image-text-to-text model "
            f"of transformers.{absent_hint(source)} Give a vision-language model; of an omni model "
            "the part that reads and answers, saved alone."
        )
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        for setting in ("quantization_config", "compression_config"):
            quantized = getattr(part, setting, None)
            if quantized is not None:
                named = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
                method = named or "by no named method"
                raise ConfigError(
                    f"model.path = {source!r}: its weights are quantised ({method}), and quantised "
                    "weights are not trained. Give the checkpoint that they were made of."
                )


def check_pickles(path: str, *, allow_pickle: bool) -> None:
    """Refuse a local model whose weights are pickles alone, unless they are allowed.

    Raises:
        ConfigError: they are not.
    """
    source = resolve_model(path)
    folder = Path(source)
    if not allow_pickle and any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"model.path = {source!r} cannot be loaded: its weights are pickles, which can run "
            "code, and not safetensors. If you trust them, --model.allow-pickle."
        )


def check_weight_files(source: str) -> None:
    """Check that all weights of a local model exist and have their full length.

    Only headers are read. A hub's model is fetched whole when it is loaded.

    Raises:
        ConfigError: a file is missing, or a part of it.
    """
    folder = Path(source)
    name = SAFE_WEIGHTS_NAME if (folder / SAFE_WEIGHTS_NAME).is_file() else SAFE_WEIGHTS_INDEX_NAME
    if not (folder / name).is_file():
        return
    try:
        shards = {name}
        if name == SAFE_WEIGHTS_INDEX_NAME:
            shards = set(json.loads((folder / name).read_text())["weight_map"].values())
        for name in sorted(shards):
            with safe_open(folder / name, framework="pt"):
                pass
    except (*BROKEN_FILES, TypeError, AttributeError, SafetensorError) as error:
        raise ConfigError(
            f"model.path = {source!r}: {name} is missing or damaged ({first_line(error)}). "
            "Download it again; `git lfs pull` replaces a file of three lines, which is a pointer."
        ) from error


def check_exported(path: str) -> None:
    """Check the files of a model that a training exported; of other models nothing is known.

    Raises:
        StageFailedError: a file of the training's folder is missing or damaged.
    """
    folder = local_path(path)
    if folder.name == "model" and is_done(folder.parent):
        check_stage(folder.parent)


def cached_file_of(source: str, name: str) -> str | None:
    """Return the path of one file of a folder or hub name, or None if it does not exist."""
    return cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        # An unreachable hub costs the settings in this file, not the whole model.
        _raise_exceptions_for_connection_errors=False,
    )


def added_tokens(source: str) -> dict[str, int]:
    """Return the ids of the tokens that a checkpoint's tokenizer adds to its vocabulary."""
    added: dict[str, int] = {}
    full = cached_file_of(source, FULL_TOKENIZER_FILE)
    if full:
        listed = json.loads(Path(full).read_text(encoding="utf-8")).get("added_tokens", [])
        added |= {token["content"]: token["id"] for token in listed}
    older = cached_file_of(source, ADDED_TOKENS_FILE)
    return added | (json.loads(Path(older).read_text(encoding="utf-8")) if older else {})


def code_hint(error: Exception) -> str:
    """Return advice for a checkpoint whose own code was not allowed to run, else nothing."""
    if "trust_remote_code" not in str(error):
        return ""
    return " It brings Python code of its own: if you trust its author, --model.trust-remote-code."


def absent_hint(source: str) -> str:
    """Return a sentence about a known model that transformers does not have, else nothing."""
    try:
        kind = json.loads((Path(source) / "config.json").read_text()).get("model_type")
    except (OSError, ValueError):
        return ""
    return f" {ABSENT[kind]}" if kind in ABSENT else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its class if it has none."""
    if isinstance(error, StrictDataclassError):  # names the check there, and not the reason
        error = error.__cause__ or error
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
