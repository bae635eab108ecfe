"""Captions: said, read back, and carelessly said."""

import random
import re
from collections import Counter
from math import sqrt

import pytest

from rlhfv_ray.shapes.annotator import mistakes
from rlhfv_ray.shapes.captions import caption, careless_caption, phrase, plural, read_phrases
from rlhfv_ray.shapes.scenes import COLORS, CORNERS, SHAPES, TYPICAL, Group, make_scenes

SCENES = 2000


def test_every_phrase_reads_back():
    """Catches: a word the grammar writes but cannot read ("crosses", "an orange"), for any number, colour, shape, corner."""
    for number in (1, 2, 3):
        for color in COLORS:
            for shape in SHAPES:
                group = Group(number, color, shape, CORNERS[number])
                said = phrase(group)
                assert read_phrases(said) == [(group, (0, len(said)))]


def test_captions_read_back():
    """Catches: groups lost or merged where phrases are listed; spans that are not the phrase."""
    for scene in make_scenes(200, seed=1):
        text = caption(scene.setting, scene.groups)
        read = read_phrases(text)
        assert tuple(group for group, _ in read) == scene.groups
        assert [text[start:stop] for _, (start, stop) in read] == [phrase(group) for group in scene.groups]


def test_no_groups_is_a_caption_too():
    """Catches: "a room with ." where the annotator cut the only phrase."""
    assert caption("room", []) == "a room."
    assert read_phrases("a room.") == []


def test_other_text_reads_as_nothing():
    """Catches: half phrases read as whole ones."""
    assert read_phrases("a reds star at the top left, two star, a red starfish at the top left") == []
    assert plural("cross") == "crosses"


def test_careless_captions_are_as_careless_as_documented():
    """Catches: a mistake drawn more or less often than the docstring says; bounds are five standard deviations of a binomial.

    The made-up shape needs an absent typical one; a wrong colour, number or corner is always possible.
    """
    assert careless_caption.__doc__
    found = re.search(
        r"With probability (\S+) one more shape .*; with (\S+) one colour,\s+with (\S+) one\s+number and with (\S+) one corner",
        careless_caption.__doc__,
        re.DOTALL,
    )
    assert found, "the docstring names the four probabilities"
    numerator, _, denominator = found[1].partition("/")
    documented = {
        "object": float(numerator) / float(denominator or 1),
        "attribute": float(found[2]),
        "number": float(found[3]),
        "position": float(found[4]),
    }
    rng, counts, possible = random.Random(0), Counter(), Counter()
    for scene in make_scenes(SCENES, seed=5):
        kinds = {mistake.kind for mistake in mistakes(scene, careless_caption(scene, rng))}
        counts.update(kinds)
        absent = set(TYPICAL[scene.setting]) - {group.shape for group in scene.groups}
        possible.update({"attribute", "number", "position"} | ({"object"} if absent else set()))
    for kind, probability in documented.items():
        bound = 5 * sqrt(possible[kind] * probability * (1 - probability))
        assert counts[kind] == pytest.approx(possible[kind] * probability, abs=bound), kind


def test_careless_captions_follow_their_generator():
    """Catches: a draw from the global generator, which no seed would repeat."""
    scenes = make_scenes(30, seed=2)
    first, second = ([careless_caption(scene, rng) for scene in scenes] for rng in (random.Random(1), random.Random(1)))
    assert first == second
    rng = random.Random(2)
    assert first != [careless_caption(scene, rng) for scene in scenes]
