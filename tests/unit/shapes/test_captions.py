"""Captions are written, read back, and written carelessly."""

import random
import re
from collections import Counter
from math import sqrt

import pytest

from rlhfv_ray.shapes.captions import (
    caption,
    careless_caption,
    look_alike,
    phrase,
    plural,
    read_phrases,
)
from rlhfv_ray.shapes.scenes import COLORS, CORNERS, SHAPES, SIGNS, TYPICAL, Group, make_scenes

SCENES = 2000


def test_every_phrase_reads_back():
    """Catches: a word that the grammar writes but cannot read ("crosses", "an orange")."""
    for number in (1, 2, 3):
        for color in COLORS:
            for shape in (*SHAPES, *SIGNS):
                group = Group(number, color, shape, CORNERS[number])
                text = phrase(group)
                assert read_phrases(text) == [(group, (0, len(text)))]


def test_captions_read_back():
    """Catches: groups lost or merged where phrases are listed; spans that are not the phrase."""
    for scene in make_scenes(200, seed=1):
        text = caption(scene.setting, scene.groups)
        read = read_phrases(text)
        assert tuple(group for group, _ in read) == scene.groups
        assert [text[start:stop] for _, (start, stop) in read] == [
            phrase(group) for group in scene.groups
        ]


def test_no_groups_is_a_caption_too():
    """Catches: "a room with ." where the annotator cut the only phrase."""
    assert caption("room", []) == "a room."
    assert read_phrases("a room.") == []


def test_other_text_reads_as_nothing():
    """Catches: half phrases read as whole ones."""
    assert (
        read_phrases("a reds star at the top left, two star, a red starfish at the top left") == []
    )
    assert plural("cross") == "crosses"


def test_careless_captions_are_as_careless_as_documented():
    """Catches: a mistake drawn more or less often than the docstring says.

    Bounds are five standard deviations of a binomial. Phrase and group of one corner belong
    together; a phrase about an empty corner is an extra claim.
    """
    documented = documented_probabilities()
    rng = random.Random(0)
    counts = Counter()  # mistakes
    possible = Counter()  # chances to make them
    for scene in make_scenes(SCENES, seed=5):
        claims = {group.corner: group for group, _ in read_phrases(careless_caption(scene, rng))}
        shapes: list[str] = []  # as claimed, corner by corner
        for group in scene.groups:
            expected = look_alike(group.shape, scene.setting)
            true_shapes = {known.shape for known in scene.groups}
            if expected not in {*shapes, *true_shapes} and group.number < 3:
                possible["mistaken"] += 1
                counts["mistaken"] += claims[group.corner].shape == expected
            shapes.append(claims[group.corner].shape)
        assert set(shapes) <= {group.shape for group in scene.groups} | set(TYPICAL[scene.setting])
        claimed = [group for corner, group in claims.items() if scene.at(corner) is None]
        absent = set(TYPICAL[scene.setting]) - set(shapes)
        assert len(claimed) <= 1 and {group.shape for group in claimed} <= absent
        possible.update(
            {"color", "number"}
            | ({"claimed"} if absent and len(scene.groups) < len(CORNERS) else set())
        )
        counts["claimed"] += len(claimed)
        for part in ("color", "number"):
            wrong = [
                group
                for group in scene.groups
                if getattr(claims[group.corner], part) != getattr(group, part)
            ]
            assert len(wrong) <= 1
            counts[part] += len(wrong)
    assert documented.keys() == possible.keys()
    for kind, probability in documented.items():
        bound = 5 * sqrt(possible[kind] * probability * (1 - probability))
        assert counts[kind] == pytest.approx(possible[kind] * probability, abs=bound), kind


def documented_probabilities() -> dict[str, float]:
    """Read the probabilities from the docstring, so that tuning them changes one text only."""
    words = " ".join((careless_caption.__doc__ or "").split())
    patterns = {
        "mistaken": r"With probability (\S+) a group",
        "claimed": r"with (\S+) one more typical shape",
        "color": r"with (\S+) one colour",
        "number": r"with (\S+) one number",
    }
    matches = {name: re.search(pattern, words) for name, pattern in patterns.items()}
    return {name: float(match[1]) for name, match in matches.items() if match}


def test_careless_captions_follow_their_generator():
    """Catches: a draw from the global generator, which no seed would repeat."""
    scenes = make_scenes(30, seed=2)
    first, second = (
        [careless_caption(scene, rng) for scene in scenes]
        for rng in (random.Random(1), random.Random(1))
    )
    assert first == second
    rng = random.Random(2)
    assert first != [careless_caption(scene, rng) for scene in scenes]
