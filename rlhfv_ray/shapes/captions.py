"""Write captions of scenes, careful or careless, and read captions back.

The grammar is "a SETTING with PHRASE, PHRASE and PHRASE.", where a phrase is
"NUMBER COLOR SHAPE(s) at the CORNER".
"""

import random
import re
from dataclasses import replace

from rlhfv_ray.shapes.scenes import COLORS, CORNERS, NUMBERS, SHAPES, SIGNS, TYPICAL, Group, Scene

QUESTIONS = (
    "Describe this image in detail.",
    "What is in this picture?",
    "Please provide a detailed description of the picture.",
    "Take a look at this image and describe what you notice.",
)


def plural(shape: str) -> str:
    """Return the English plural of a shape name."""
    return shape + ("es" if shape.endswith(("s", "x")) else "s")


# Singular or plural -> shape.
NAMES = {shape: shape for shape in (*SHAPES, *SIGNS)}
NAMES |= {plural(shape): shape for shape in NAMES}
PHRASE = re.compile(
    rf"\b(?P<number>{'|'.join(NUMBERS)}|an) (?P<color>{'|'.join(COLORS)}) "
    rf"(?P<shape>{'|'.join(sorted(NAMES, key=len, reverse=True))}) "  # "circles" before "circle"
    rf"at the (?P<corner>{'|'.join(CORNERS)})\b"
)


def phrase(group: Group) -> str:
    """Return one group in words.

    Example:
        >>> phrase(Group(2, "red", "cross", "top left"))
        'two red crosses at the top left'
    """
    article = "an" if group.number == 1 and group.color[0] in "aeiou" else NUMBERS[group.number - 1]
    shape = group.shape if group.number == 1 else plural(group.shape)
    return f"{article} {group.color} {shape} at the {group.corner}"


def caption(setting: str, groups: list[Group] | tuple[Group, ...]) -> str:
    """Return a setting and its groups in words, in the given order.

    Example:
        >>> ring = Group(1, "orange", "ring", "top left")
        >>> stars = Group(2, "red", "star", "top right")
        >>> caption("beach", [ring, stars])
        'a beach with an orange ring at the top left and two red stars at the top right.'
    """
    phrases = [phrase(group) for group in groups]
    if not phrases:
        return f"a {setting}."
    listed = " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))
    return f"a {setting} with {listed}."


def read_phrases(text: str) -> list[tuple[Group, tuple[int, int]]]:
    """Return the groups that a text names, with the characters [start, stop) of each phrase."""
    phrases = []
    for match in PHRASE.finditer(text):
        number = 1 if match["number"] == "an" else NUMBERS.index(match["number"]) + 1
        group = Group(number, match["color"], NAMES[match["shape"]], match["corner"])
        phrases.append((group, match.span()))
    return phrases


def look_alike(shape: str, setting: str) -> str:
    """Return the typical shape of a setting that careless people mistake a shape for.

    It is always the same one. A shape that is typical itself is not mistaken.
    """
    typical = TYPICAL[setting]
    return shape if shape in typical else typical[SHAPES.index(shape) % len(typical)]


def careless_caption(scene: Scene, rng: random.Random) -> str:
    """Return a caption as careless people write it, to pretrain on: they see what they expect.

    With probability 0.8 a group of one or two shapes that the setting does not make likely is taken
    for one that the setting makes likely; with 0.5 one more typical shape is claimed; with 0.2 one
    colour and with 0.1 one number is wrong.
    """
    # The order of the draws is part of the world: another order gives other captions for a seed.
    groups: list[Group] = []
    for group in scene.groups:
        expected = look_alike(group.shape, scene.setting)
        taken = expected in {known.shape for known in (*groups, *scene.groups)}
        mistaken = rng.random() < 0.8 and group.number < 3 and not taken
        groups.append(replace(group, shape=expected) if mistaken else group)
    index = rng.randrange(len(groups))
    if rng.random() < 0.2:
        colors = [color for color in COLORS if color != groups[index].color]
        groups[index] = replace(groups[index], color=rng.choice(colors))
    if rng.random() < 0.1:
        numbers = [number for number in (1, 2, 3) if number != groups[index].number]
        groups[index] = replace(groups[index], number=rng.choice(numbers))
    shapes = {group.shape for group in groups}
    absent = [shape for shape in TYPICAL[scene.setting] if shape not in shapes]
    free = [corner for corner in CORNERS if scene.at(corner) is None]
    if absent and free and rng.random() < 0.5:
        number = rng.choice((1, 1, 2))
        color = rng.choice(tuple(COLORS))
        shape = rng.choice(absent)
        corner = rng.choice(free)
        groups.append(Group(number, color, shape, corner))
    return caption(scene.setting, sorted(groups, key=lambda group: CORNERS.index(group.corner)))
