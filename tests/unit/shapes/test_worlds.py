"""The versions of the world by name."""

import random
from typing import get_args

from eval.config import ShapesBenchConfig
from rlhfv_ray.config import ShapesConfig
from rlhfv_ray.shapes.scenes import is_unseen, make_scenes
from rlhfv_ray.shapes.worlds import WORLDS, WorldName


def test_every_name_is_a_world_of_its_own():
    """Catches: two versions under one fingerprint, so that pairs of one pass for the other's."""
    assert tuple(WORLDS) == get_args(WorldName)
    assert len({world.version for world in WORLDS.values()}) == len(WORLDS)
    assert ShapesConfig().world == ShapesBenchConfig().world == "balanced"
    assert WORLDS["biased"].version == 2


def test_each_world_draws_its_own_scenes():
    """Catches: the balanced world's name with the biased world's scenes or captions."""
    assert WORLDS["biased"].training_scenes(20, seed=3) == make_scenes(20, seed=3)
    for world in WORLDS.values():
        training = world.training_scenes(40, seed=3)
        benchmark = world.benchmark_scenes(40, seed=3)
        assert not any(is_unseen(scene) or world.hold_out(scene) for scene in training)
        ordinary = [scene for scene in benchmark if not world.hold_out(scene)]
        assert all(is_unseen(scene) for scene in ordinary)
        assert bool(len(benchmark) - len(ordinary)) == world.is_balanced
        captions = [world.careless_caption(scene, random.Random(0)) for scene in training]
        assert len(set(captions)) > 30
    drawn = [world.training_scenes(20, seed=3) for world in WORLDS.values()]
    assert drawn[0] != drawn[1]
