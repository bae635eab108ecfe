"""The versions of the shapes world, under the names that settings use.

`biased`: the first version. Its corrections name fewer typical shapes and never more phrases, so
part of the gain can be had without looking at the pictures.
`balanced`: texts alone do not tell a wrong caption from its correction.
`signs`: balanced too, with signs in the place of shapes. Their words are rendered, and a word that
is usual in a setting differs from another one by a letter.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

from rlhfv_ray.shapes import balanced, captions
from rlhfv_ray.shapes.scenes import (
    SETTINGS,
    SHAPES,
    SIGN_SETTINGS,
    SIGNS,
    Scene,
    make_scenes,
)

WorldName = Literal["biased", "balanced", "signs"]


class World(NamedTuple):
    """A version of the world: its draws of scenes, and its writer of careless captions."""

    # Enters the fingerprints of stages. Raised when the same seed gives another world.
    version: int | str
    training_scenes: Callable[..., list[Scene]]  # count, *, seed
    benchmark_scenes: Callable[..., list[Scene]]  # count, *, seed, part; of unseen compositions
    careless_caption: Callable[[Scene, random.Random], str]
    hold_out: Callable[[Scene], str]  # what of a benchmark's scene training never shows
    is_balanced: bool  # texts alone must not tell chosen from rejected
    settings: tuple[str, ...] = SETTINGS
    names: tuple[str, ...] = SHAPES  # of what a picture holds


def _unseen_scenes(count: int, **settings: Any) -> list[Scene]:
    return make_scenes(count, unseen=True, **settings)


WORLDS: dict[WorldName, World] = {
    "biased": World(
        2, make_scenes, _unseen_scenes, captions.careless_caption, lambda scene: "", False
    ),
    "balanced": World(
        "balanced 4",
        balanced.make_balanced_scenes,
        balanced.make_benchmark_scenes,
        balanced.careless_caption,
        balanced.hold_out,
        True,
    ),
    "signs": World(
        "signs 1",
        partial(balanced.make_balanced_scenes, settings=SIGN_SETTINGS),
        partial(balanced.make_benchmark_scenes, settings=SIGN_SETTINGS),
        balanced.careless_caption,
        balanced.hold_out,
        True,
        SIGN_SETTINGS,
        SIGNS,
    ),
}
