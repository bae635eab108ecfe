"""The embedded world: scenes that know the truth, a small pretrained model that hallucinates, and an annotator that corrects it."""

from rlhfv_ray.shapes.annotator import correct
from rlhfv_ray.shapes.scenes import make_scenes

__all__ = ["correct", "make_scenes"]
