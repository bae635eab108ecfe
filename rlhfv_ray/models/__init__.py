"""Loading image-text-to-text checkpoints, and scoring pairs with them."""

from rlhfv_ray.models.activations import StepSize
from rlhfv_ray.models.adapters import (
    merge_adapters,
    parameter_counts,
    planned_counts,
    prepare_training,
)
from rlhfv_ray.models.checkpoint_files import architecture_of, check_pickles, resolve_model
from rlhfv_ray.models.layouts import layout_of
from rlhfv_ray.models.loading import (
    check_image_tokens,
    load_model,
    load_policy,
    model_digests,
    weights_digest,
)
from rlhfv_ray.models.memory import Memory, fit_memory, fit_step, predict_memory, step_size
from rlhfv_ray.models.muffin import MuffinForConditionalGeneration
from rlhfv_ray.models.muffin_processor import MuffinProcessor
from rlhfv_ray.models.policy import AnswerPolicy, generator, recompute_activations
from rlhfv_ray.models.processors import (
    load_processor,
    processor_digest,
    processor_of,
    save_processor,
)

__all__ = [
    "AnswerPolicy",
    "Memory",
    "MuffinForConditionalGeneration",
    "MuffinProcessor",
    "StepSize",
    "architecture_of",
    "check_image_tokens",
    "check_pickles",
    "fit_memory",
    "fit_step",
    "generator",
    "layout_of",
    "load_model",
    "load_policy",
    "load_processor",
    "merge_adapters",
    "model_digests",
    "parameter_counts",
    "planned_counts",
    "predict_memory",
    "prepare_training",
    "processor_digest",
    "processor_of",
    "recompute_activations",
    "resolve_model",
    "save_processor",
    "step_size",
    "weights_digest",
]
