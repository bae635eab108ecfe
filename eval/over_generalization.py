"""Over-generalisation: objects that a scene makes likely, hallucinated more often than others."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SceneType:
    """A kind of place."""

    objects: tuple[str, ...]  # in most of its images, the most frequent first
    images: frozenset[int]


@dataclass(frozen=True)
class CocoTruth:
    """What is in COCO's images."""

    objects: Mapping[int, frozenset[str]]  # by image id
    scenes: Mapping[str, SceneType]

    def digest(self, images: Iterable[int]) -> str:
        """Stands for all that is known about some images, and what is typical of the scenes."""
        chosen = sorted(images)
        objects = [[image, sorted(self.objects[image])] for image in chosen]
        scenes = [
            [name, scene.objects, sorted(scene.images & set(chosen))]
            for name, scene in self.scenes.items()
        ]
        return hashlib.sha256(json.dumps([objects, scenes]).encode()).hexdigest()


def over_generalization(
    truth: CocoTruth, named: Mapping[int, Sequence[tuple[str, str]]]
) -> dict[str, Any]:
    """How much more often the objects typical of a scene are hallucinated inside it (RLHF-V, arXiv 2312.00849, Table 2).

        rate(images) = hallucinated mentions of the scene's typical objects / their mentions, in the answers on these images
        rise = rate(images of the scene) - rate(all images)

    Args:
        truth: of at least the images asked about.
        named: by image, the mentions (word, object) of the answer to it.

    Returns:
        Per scene `in_scene`, `overall` and `rise` as fractions and `n`, answers on its images; and `mean_rise` over the
        scenes. None where nothing was counted.

    Example:
        In the kitchen one of two sinks is not there, anywhere one of three.

        >>> truth = CocoTruth(
        ...     {1: frozenset({"sink"}), 2: frozenset({"oven"}), 3: frozenset({"sink"})},
        ...     {"kitchen": SceneType(("oven", "sink"), frozenset({1, 2}))},
        ... )
        >>> rises = over_generalization(truth, {image: [("sink", "sink")] for image in (1, 2, 3)})
        >>> {name: round(value, 2) for name, value in rises["kitchen"].items()}
        {'in_scene': 0.5, 'overall': 0.33, 'rise': 0.17, 'n': 2}
    """

    def rate(images: Iterable[int], objects: AbstractSet[str]) -> float | None:
        right = [
            name in truth.objects[image]
            for image in images
            for _, name in named[image]
            if name in objects
        ]
        return right.count(False) / len(right) if right else None

    rates: dict[str, Any] = {}
    for name, scene in truth.scenes.items():
        inside, typical = (
            [image for image in named if image in scene.images],
            frozenset(scene.objects),
        )
        in_scene, overall = rate(inside, typical), rate(named, typical)
        rise = None if in_scene is None or overall is None else in_scene - overall
        rates[name] = {"in_scene": in_scene, "overall": overall, "rise": rise, "n": len(inside)}
    rises = [scene["rise"] for scene in rates.values() if scene["rise"] is not None]
    return {**rates, "mean_rise": sum(rises) / len(rises) if rises else None}
