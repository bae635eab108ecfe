"""Over-generalisation: a scene's typical objects are hallucinated more often inside the scene.

RLHF-V, arXiv 2312.00849, Table 2.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SceneType:
    """A type of scene, such as a kitchen: its typical objects and its images."""

    objects: tuple[str, ...]  # typical ones, the most frequent first
    images: frozenset[int]


@dataclass(frozen=True)
class CocoTruth:
    """The objects in each image, and the images of each scene."""

    objects: Mapping[int, frozenset[str]]  # by image id
    scenes: Mapping[str, SceneType]

    def digest(self, images: Iterable[int]) -> str:
        """Return a digest of the truth about some images, and of the scenes' typical objects."""
        image_ids = sorted(images)
        objects = [[image, sorted(self.objects[image])] for image in image_ids]
        scenes = [
            [name, scene.objects, sorted(scene.images & set(image_ids))]
            for name, scene in self.scenes.items()
        ]
        return hashlib.sha256(json.dumps([objects, scenes]).encode()).hexdigest()


def over_generalization(
    truth: CocoTruth, named: Mapping[int, Sequence[tuple[str, str]]]
) -> dict[str, Any]:
    """Compare the hallucination of a scene's typical objects inside the scene and overall.

        rate(images) = hallucinated mentions of the scene's typical objects / their mentions,
                       in the answers on these images
        rise = rate(images of the scene) - rate(all images)

    Args:
        truth: on at least the images in `named`.
        named: by image, the mentions (word, object) of the answer to it.

    Returns:
        Per scene `in_scene`, `overall` and `rise` as fractions, and `n`, the number of answers on
        its images; and `mean_rise` over the scenes. A rate without mentions is None.

    Example:
        One of two sinks in the kitchen is hallucinated, and one of three overall.

        >>> truth = CocoTruth(
        ...     {1: frozenset({"sink"}), 2: frozenset({"oven"}), 3: frozenset({"sink"})},
        ...     {"kitchen": SceneType(("oven", "sink"), frozenset({1, 2}))},
        ... )
        >>> rises = over_generalization(truth, {image: [("sink", "sink")] for image in (1, 2, 3)})
        >>> {name: round(value, 2) for name, value in rises["kitchen"].items()}
        {'in_scene': 0.5, 'overall': 0.33, 'rise': 0.17, 'n': 2}
    """
    scenes: dict[str, Any] = {}
    rises: list[float] = []
    for name, scene in truth.scenes.items():
        typical = frozenset(scene.objects)
        images = [image for image in named if image in scene.images]
        in_scene = _hallucination_rate(truth, named, images, typical)
        overall = _hallucination_rate(truth, named, named, typical)
        rise = None
        if in_scene is not None and overall is not None:
            rise = in_scene - overall
            rises.append(rise)
        scenes[name] = {"in_scene": in_scene, "overall": overall, "rise": rise, "n": len(images)}
    return {**scenes, "mean_rise": sum(rises) / len(rises) if rises else None}


def _hallucination_rate(
    truth: CocoTruth,
    named: Mapping[int, Sequence[tuple[str, str]]],
    images: Iterable[int],
    objects: AbstractSet[str],
) -> float | None:
    """Return the fraction of mentions of some objects that are hallucinated, on some images."""
    mentions = 0
    hallucinated = 0
    for image in images:
        names = [name for _, name in named[image] if name in objects]
        mentions += len(names)
        hallucinated += sum(name not in truth.objects[image] for name in names)
    return hallucinated / mentions if mentions else None
