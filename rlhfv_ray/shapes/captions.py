"""What people and models say of a scene: careful captions, careless ones, and reading either back.

The grammar: "a SETTING with PHRASE, PHRASE and PHRASE." where a phrase is "NUMBER COLOR SHAPE(s) at the CORNER".
"""

import random
import re
from dataclasses import replace

from rlhfv_ray.shapes.scenes import COLORS, CORNERS, NUMBERS, SHAPES, TYPICAL, Group, Scene

QUESTIONS = (
    "Describe this image in detail.",
    "What is in this picture?",
    "Please provide a detailed description of the picture.",
    "Take a look at this image and describe what you notice.",
)


def plural(shape: str) -> str:
    """English plural of a shape name."""
    return shape + ("es" if shape.endswith(("s", "x")) else "s")


NAMES = {
    form: shape for shape in SHAPES for form in (shape, plural(shape))
}  # singular or plural -> shape
PHRASE = re.compile(
    rf"\b(?P<number>{'|'.join(NUMBERS)}|an) (?P<color>{'|'.join(COLORS)}) "
    rf"(?P<shape>{'|'.join(sorted(NAMES, key=len, reverse=True))}) at the (?P<corner>{'|'.join(CORNERS)})\b"
)


def phrase(group: Group) -> str:
    """One group in words.

    Example:
        >>> phrase(Group(2, "red", "cross", "top left"))
        'two red crosses at the top left'
    """
    article = "an" if group.number == 1 and group.color[0] in "aeiou" else NUMBERS[group.number - 1]
    shape = group.shape if group.number == 1 else plural(group.shape)
    return f"{article} {group.color} {shape} at the {group.corner}"


def caption(setting: str, groups: list[Group] | tuple[Group, ...]) -> str:
    """A setting and groups in words, in the given order.

    Example:
        >>> caption("beach", [Group(1, "orange", "ring", "top left"), Group(2, "red", "star", "top right")])
        'a beach with an orange ring at the top left and two red stars at the top right.'
    """
    phrases = [phrase(group) for group in groups]
    listed = " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1] if phrases else ""]))
    return f"a {setting} with {listed}." if listed else f"a {setting}."


def read_phrases(text: str) -> list[tuple[Group, tuple[int, int]]]:
    """The groups a text names, with the characters [start, stop) of each phrase."""
    found = []
    for match in PHRASE.finditer(text):
        number = 1 if match["number"] == "an" else NUMBERS.index(match["number"]) + 1
        found.append(
            (Group(number, match["color"], NAMES[match["shape"]], match["corner"]), match.span())
        )
    return found


def look_alike(shape: str, setting: str) -> str:
    """The shape typical of a setting that careless people take another shape for, always the same one."""
    typical = TYPICAL[setting]
    return shape if shape in typical else typical[SHAPES.index(shape) % len(typical)]


def careless_caption(scene: Scene, rng: random.Random) -> str:
    """A caption as careless people write them, to pretrain on: they see what a setting makes them expect.

    With probability 0.8 a group of one or two shapes that the setting does not make likely is taken for one it does; with 0.5
    one more typical shape is claimed; with 0.2 one colour and with 0.1 one number is wrong.
    """
    groups: list[Group] = []
    for group in scene.groups:
        seen = look_alike(group.shape, scene.setting)
        taken = seen in {other.shape for other in (*groups, *scene.groups)}
        mistaken = rng.random() < 0.8 and group.number < 3 and not taken
        groups.append(replace(group, shape=seen) if mistaken else group)
    at = rng.randrange(len(groups))
    if rng.random() < 0.2:
        groups[at] = replace(
            groups[at], color=rng.choice([c for c in COLORS if c != groups[at].color])
        )
    if rng.random() < 0.1:
        groups[at] = replace(
            groups[at], number=rng.choice([n for n in (1, 2, 3) if n != groups[at].number])
        )
    absent = [
        shape for shape in TYPICAL[scene.setting] if shape not in {group.shape for group in groups}
    ]
    free = [corner for corner in CORNERS if scene.at(corner) is None]
    if absent and free and rng.random() < 0.5:
        groups.append(
            Group(
                rng.choice((1, 1, 2)),
                rng.choice(tuple(COLORS)),
                rng.choice(absent),
                rng.choice(free),
            )
        )
    return caption(scene.setting, sorted(groups, key=lambda group: CORNERS.index(group.corner)))
