"""Select the trained parts of a model: whole parts, or LoRA adapters on its language model.

LoRA (arXiv 2106.09685) is peft's.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from rlhfv_ray.config import ModelConfig
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.models.checkpoint_files import architecture_of
from rlhfv_ray.models.loading import DTYPES

logger = logging.getLogger(__name__)

# Names, outside of the language model, of what leads from the vision tower into it.
PROJECTOR = re.compile(
    r"projector|connector|merger|aligner|adapter|resampler|perceiver|embed_vision|image_newline"
    r"|view_sep|visual_embeddings_table"
)


def parts_of(model: Any) -> Callable[[str], str]:
    """Return a function from the name of a parameter or module to its part of the model.

    The module tree says what is the language model: its decoder and the output head. Everything
    else comes before it: the projector, by its name, and the vision tower (or another tower), which
    is the rest. So no tower is ever taken for a part of the language model.

    Example:
        >>> from rlhfv_ray.shapes.model import BIASED
        >>> from rlhfv_ray.models import load_policy
        >>> part_of = parts_of(load_policy(BIASED, dtype="fp32")[0])
        >>> part_of("model.vision_tower.encoder.layers.0.mlp.fc1.weight")
        'vision'
        >>> part_of("model.multi_modal_projector.linear_1.weight")
        'projector'
        >>> part_of("lm_head.weight")
        'language'
    """
    of_language = (model.get_decoder(), model.get_output_embeddings())
    # A decoder that is the whole model (Fuyu) leaves nothing before it.
    prefixes = tuple(
        f"{name}." for name, module in model.named_modules() if name and module in of_language
    )

    def part_of(name: str) -> str:
        if f"{name}.".startswith(prefixes):
            return "language"
        return "projector" if PROJECTOR.search(name) else "vision"

    return part_of


def prepare_training(model: Any, config: ModelConfig) -> None:
    """Freeze the parts that are not trained and add the configured adapters, in place.

    A fresh adapter adds nothing (its matrix B is 0), so the policy still equals the reference.

    Args:
        model: an image-text-to-text model.
        config: `trainable` names the parts. A `lora_rank` above 0 puts adapters on the language
            model and freezes its own weights.

    Raises:
        ConfigError: no adapter fits, or nothing is left to train.
    """
    if config.lora_rank:
        with_adapters(model, config)
    part_of = parts_of(model)
    for name, weight in model.named_parameters():
        part = part_of(name)
        base_weight = config.lora_rank and part == "language" and "lora_" not in name
        weight.requires_grad_(part in config.trainable and not base_weight)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ConfigError(
            f"model.trainable = {config.trainable}: this model has no such part, so nothing is "
            "trained. Name at least one part that it has: vision, projector, language."
        )


def with_adapters(model: Any, config: ModelConfig) -> Any:
    """Put new LoRA adapters on linear layers of the language model, never on its output head.

    `lora_targets` names the layers. If it is empty, all linear layers except the output head get
    adapters.

    Returns:
        A peft model that wraps the same model, which is changed in place.

    Raises:
        ConfigError: no layer has one of the names.
    """
    from peft import LoraConfig, get_peft_model

    head, part_of = model.get_output_embeddings(), parts_of(model)
    # Subclasses of linear layers (routers of experts) return more than one tensor.
    linear = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and part_of(name) == "language" and module is not head
    ]
    fused = [
        name
        for name, weight in model.named_parameters()
        if weight.ndim > 2 and part_of(name) == "language"
    ]
    if fused:
        kinds = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in fused})
        logger.warning(
            "%d fused weights of the language model (experts, convolutions) get no adapters and "
            "stay as they are: %s.",
            *(len(fused), ", ".join(kinds)),
        )
    available = sorted({name.rsplit(".", 1)[-1] for name in linear})
    unknown = sorted(set(config.lora_targets) - set(available))
    if unknown:
        raise ConfigError(
            f"model.lora_targets: the language model has no linear layer {unknown}; "
            f"it has {available}."
        )
    selected = config.lora_targets or available
    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,
        target_modules=[name for name in linear if name.rsplit(".", 1)[-1] in selected],
        lora_dropout=0.0,
    )
    return get_peft_model(model, settings, autocast_adapter_dtype=False)


def merge_adapters(
    model: Any, config: ModelConfig, state: Mapping[str, Tensor], *, keep_in: Path | None = None
) -> Any:
    """Return a plain model with trained adapters merged into its weights.

    The sums are computed in fp32 and then rounded to the dtype of the weights.

    Args:
        model: the model as loaded for training, without adapters; it is changed.
        config: the configuration of the training.
        state: the trained weights, by their names in the model with adapters.
        keep_in: folder that receives the adapters alone, which peft loads onto the base model. It
            is not made if other parts were trained too: adapters are not the whole change then.
    """
    dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    adapted = with_adapters(model.float(), config)
    widened = {name: tensor.float() for name, tensor in state.items()}
    adapted.get_base_model().load_state_dict(widened)
    if keep_in is not None and set(config.trainable) == {"language"}:
        adapted.peft_config["default"].base_model_name_or_path = config.path
        adapted.save_pretrained(keep_in, save_embedding_layers=False)  # peft asks the hub else
    return adapted.merge_and_unload().to(dtype)


def meta_model(config: ModelConfig) -> Any:
    """Return the model prepared for training, on torch's meta device: no weights, no memory."""
    trust = config.trust_remote_code
    architecture = architecture_of(config.path, trust_remote_code=trust)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(architecture, trust_remote_code=trust)
        model = model.to(DTYPES[config.dtype]).eval()
        prepare_training(model, config)
    return model


def planned_counts(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return `parameter_counts` of a training run, before any weight is loaded."""
    return parameter_counts(meta_model(config))


def parameter_counts(model: Any) -> dict[str, tuple[int, int]]:
    """Return the number of parameters of each part, and how many are trained.

    Adapters count as a part of their own.
    """
    counts: dict[str, tuple[int, int]] = {}
    part_of = parts_of(model)
    for name, weight in model.named_parameters():
        part = "adapters" if "lora_" in name else part_of(name)
        total, trained = counts.get(part, (0, 0))
        counts[part] = (total + weight.numel(), trained + weight.numel() * weight.requires_grad)
    return counts
