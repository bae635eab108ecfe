"""The shapes world: scenes with known truth, a small model that hallucinates, an annotator.

The annotator corrects the model's descriptions from the truth.
"""

from rlhfv_ray.shapes.annotator import correct
from rlhfv_ray.shapes.scenes import make_scenes

__all__ = ["correct", "make_scenes"]
