"""What of a model is trained: whole parts, or low-rank adapters (LoRA, arXiv 2106.09685) on its language model, through peft."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from rlhfv_ray.config import ModelConfig
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.models.loading import DTYPES, architecture_of

# Where the families keep their parts; what is neither is the language model.
PROJECTOR = re.compile(r"multi_modal_projector|(^|\.)connector\.|merger|image_newline")
VISION = re.compile(r"vision_tower|vision_model|(^|\.)visual\.")


def part_of(name: str) -> str:
    """The part of a model that a parameter or module belongs to: `vision`, `projector` or `language`.

    Example:
        >>> [part_of(name) for name in ("model.visual.merger.mlp.0", "model.vision_tower.layers.0", "lm_head.weight")]
        ['projector', 'vision', 'language']
    """
    return (
        "projector" if PROJECTOR.search(name) else "vision" if VISION.search(name) else "language"
    )


def prepare_training(model: Any, config: ModelConfig) -> None:
    """Freeze what is not trained and add adapters where they are asked for, in place.

    Fresh adapters add nothing (B = 0), so the policy still is the reference.

    Args:
        model: an image-text-to-text model.
        config: `trainable` parts; `lora_rank` above 0 puts adapters on the language model in place of training its weights.

    Raises:
        ConfigError: no adapter fits, or nothing is left to train.
    """
    if config.lora_rank:
        with_adapters(model, config)
    for name, weight in model.named_parameters():
        part = part_of(name)
        adapted = config.lora_rank and part == "language"
        weight.requires_grad_(part in config.trainable and ("lora_" in name if adapted else True))
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ConfigError(
            f"model.trainable = {config.trainable}: this model has no such part, so nothing is trained."
        )


def with_adapters(model: Any, config: ModelConfig) -> Any:
    """Put fresh adapters on the linear layers of the language model, but its head; or on those that `lora_targets` names.

    Returns:
        A peft model around the same model.

    Raises:
        ConfigError: no layer has such a name.
    """
    from peft import LoraConfig, get_peft_model

    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and part_of(name) == "language"
        and module is not model.get_output_embeddings()
    ]
    there = sorted({name.rsplit(".", 1)[-1] for name in linear})
    unknown = sorted(set(config.lora_targets) - set(there))
    if unknown:
        raise ConfigError(
            f"model.lora_targets: the language model has no linear layer {unknown}; it has {there}."
        )
    targets = [name for name in linear if name.rsplit(".", 1)[-1] in (config.lora_targets or there)]
    alpha = config.lora_alpha or 2 * config.lora_rank
    settings = LoraConfig(
        r=config.lora_rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0
    )
    return get_peft_model(model, settings, autocast_adapter_dtype=False)


def merge_adapters(model: Any, config: ModelConfig, state: Mapping[str, Tensor]) -> Any:
    """A plain model from the weights of a trained one with adapters; added up in fp32, in the dtype of the weights.

    Args:
        model: as it was loaded for training, without adapters; it is changed.
        config: as in training.
        state: the trained model's weights, by their names in the model with adapters.
    """
    dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    wrapped = with_adapters(model.float(), config)
    wrapped.get_base_model().load_state_dict(
        {name: tensor.float() for name, tensor in state.items()}
    )
    return wrapped.merge_and_unload().to(dtype)


def meta_model(config: ModelConfig) -> Any:
    """The model as it is trained, built without weights or memory (torch's meta device)."""
    trust = config.trust_remote_code
    architecture = architecture_of(config.path, trust_remote_code=trust)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(architecture, trust_remote_code=trust)
        model = model.to(DTYPES[config.dtype]).eval()
        prepare_training(model, config)
    return model


def planned_counts(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """`parameter_counts` of a training run, before any weight is loaded."""
    return parameter_counts(meta_model(config))


def parameter_counts(model: Any) -> dict[str, tuple[int, int]]:
    """Parameters of each part, and how many of them are trained; adapters are a part of their own."""
    counts: dict[str, tuple[int, int]] = {}
    for name, weight in model.named_parameters():
        part = "adapters" if "lora_" in name else part_of(name)
        whole, trained = counts.get(part, (0, 0))
        counts[part] = whole + weight.numel(), trained + weight.numel() * weight.requires_grad
    return counts
