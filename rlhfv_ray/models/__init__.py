"""Loading image-text-to-text checkpoints."""

from rlhfv_ray.models.loading import (
    check_image_tokens,
    load_policy,
    load_processor,
    processor_digest,
    resolve_model,
    weights_digest,
)

__all__ = ["check_image_tokens", "load_policy", "load_processor", "processor_digest", "resolve_model", "weights_digest"]
