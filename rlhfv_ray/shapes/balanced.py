"""The balanced world: careless captions whose text alone does not say that they are wrong.

Every mistake is as likely as its reverse: K is the chance to write caption t for scene s, and

    P(s) K(s, t) = P(t) K(t, s)

So a wrong caption and its correction have the same distribution as texts, and only the picture says
which is which. A setting still misleads: a shape that is rare there is mostly taken for one that
is frequent. The reverse happens to a smaller share of the frequent shapes, as there are more.

Training never shows what `hold_out` names. Evaluation reports on it apart.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from rlhfv_ray.shapes.captions import caption
from rlhfv_ray.shapes.scenes import (
    COLORS,
    CORNERS,
    SETTINGS,
    SHAPES,
    TYPICAL,
    Group,
    Scene,
    composition,
    is_unseen,
    names_of,
    part_of,
)

HoldOut = Literal["", "setting and shape", "colour and shape", "five groups", "empty"]
HOLD_OUTS: tuple[HoldOut, ...] = ("setting and shape", "colour and shape", "five groups", "empty")
HELD_SHARE = 10  # one benchmark scene in ten is of each hold-out; the others are of none

# By setting: typical shape -> the rare shape it is confused with, in both directions.
CONFUSED = {
    "street": {"circle": "ring", "bar": "square", "arrow": "triangle"},
    "beach": {"star": "cross", "moon": "heart", "ring": "circle"},
    "forest": {"triangle": "arrow", "hourglass": "bar", "diamond": "square"},
    "room": {"square": "diamond", "heart": "moon", "cross": "star"},
    "market": {"milk sign": "silk sign", "corn sign": "cork sign", "bean sign": "beam sign"},
    "shop": {"silk sign": "milk sign", "coat sign": "boat sign", "robe sign": "rope sign"},
    "harbour": {"boat sign": "coat sign", "rope sign": "robe sign", "sail sign": "nail sign"},
    "yard": {"nail sign": "sail sign", "beam sign": "bean sign", "cork sign": "corn sign"},
}
LOOK_ALIKES = {
    setting: dict([*pairs.items(), *zip(pairs.values(), pairs.keys(), strict=True)])
    for setting, pairs in CONFUSED.items()
}
COLOR_PAIRS = {  # colours that are confused in a setting, in both directions
    "street": ("red", "orange"),
    "beach": ("yellow", "white"),
    "forest": ("green", "blue"),
    "room": ("purple", "black"),
    "market": ("red", "orange"),
    "shop": ("purple", "black"),
    "harbour": ("yellow", "white"),
    "yard": ("green", "blue"),
}
# Training never shows these shapes in these settings, and these shapes in these colours.
HELD_SHAPES = {
    "street": "moon", "beach": "hourglass", "forest": "heart", "room": "arrow",
    "market": "sail sign", "shop": "beam sign", "harbour": "corn sign", "yard": "robe sign",
}  # fmt: skip
HELD_COLORS = {
    "red": ("bar", "nail sign"), "blue": ("star", "silk sign"),
    "green": ("circle", "rope sign"), "yellow": ("diamond", "beam sign"),
    "purple": ("triangle", "corn sign"), "orange": ("moon", "boat sign"),
    "white": ("square", "bean sign"), "black": ("ring", "sail sign"),
}  # fmt: skip
NUMBER_DRAWS = (1, 1, 1, 2, 2, 3)
COUNT_DRAWS = (1, 2, 2, 3, 3, 4)  # groups of a scene

# How often a shape of a setting is drawn, relative to the others.
TYPICAL_WEIGHT, LOOK_ALIKE_WEIGHT, OTHER_WEIGHT = 5, 2, 1
RARE_MISTAKEN = 0.75  # a rare shape is taken for its typical look-alike
TYPICAL_MISTAKEN = RARE_MISTAKEN * LOOK_ALIKE_WEIGHT / TYPICAL_WEIGHT  # the reverse
COLOR_MISTAKEN = 0.65
NUMBER_REDRAWN = 0.15
MOVED = 0.2  # one group is said to be above or below its place
# By the number of groups n: one more is made up, and one is left out. Both directions are equally
# frequent: P(n) * ADDED[n] = P(n + 1) * OMITTED[n + 1], with P from COUNT_DRAWS.
ADDED = {1: 0.24, 2: 0.12, 3: 0.12}
OMITTED = {2: 0.12, 3: 0.12, 4: 0.24}


def is_held(setting: str, group: Group) -> bool:
    """Return True if training never shows this shape in this setting or in this colour."""
    return HELD_SHAPES.get(setting) == group.shape or group.shape in HELD_COLORS[group.color]


def hold_out(scene: Scene) -> HoldOut:
    """Return what of a scene training never shows; empty if there is no such thing."""
    if not scene.groups:
        return "empty"
    if len(scene.groups) > len(CORNERS):
        return "five groups"
    if any(HELD_SHAPES[scene.setting] == group.shape for group in scene.groups):
        return "setting and shape"
    if any(group.shape in HELD_COLORS[group.color] for group in scene.groups):
        return "colour and shape"
    return ""


def make_balanced_scenes(
    count: int, *, seed: int, settings: Sequence[str] = SETTINGS
) -> list[Scene]:
    """Draw scenes of some settings for training; none of them holds anything that is held out."""
    rng = random.Random(f"balanced-{seed}")
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = _draw_scene(len(scenes), rng, settings)
        if not hold_out(scene) and not is_unseen(scene):
            scenes.append(scene)
    return scenes


def make_plain_scenes(count: int, *, seed: int, names: Sequence[str] = SHAPES) -> list[Scene]:
    """Draw scenes without a setting, in which all shapes (or signs) are equally likely.

    Base models learn to describe pictures on them. None of them holds a colour and shape that is
    held out, or a composition that is reserved for evaluation.
    """
    rng = random.Random(f"plain-{seed}")
    scenes: list[Scene] = []
    while len(scenes) < count:
        corners = sorted(rng.sample(CORNERS, rng.choice(COUNT_DRAWS)), key=CORNERS.index)
        shapes = rng.sample(names, len(corners))
        groups = tuple(
            Group(rng.choice(NUMBER_DRAWS), rng.choice(tuple(COLORS)), shape, corner)
            for shape, corner in zip(shapes, corners, strict=True)
        )
        scene = Scene(len(scenes), "picture", groups)
        if not is_unseen(scene) and all(one.shape not in HELD_COLORS[one.color] for one in groups):
            scenes.append(scene)
    return scenes


def make_benchmark_scenes(
    count: int, *, seed: int, part: str = "", settings: Sequence[str] = SETTINGS
) -> list[Scene]:
    """Draw scenes for evaluation: of unseen compositions, and one in ten of each hold-out.

    A composition with groups is drawn once, so that the answers are independent. With a part, all
    of them are of this one of `PARTS`, but for empty scenes, which all parts have.
    """
    rng = random.Random(f"balanced-benchmark-{seed}")
    scenes: list[Scene] = []
    drawn: set[str] = set()
    while len(scenes) < count:
        turn = len(scenes) % HELD_SHARE
        held: HoldOut = HOLD_OUTS[turn] if turn < len(HOLD_OUTS) else ""
        scene = _draw_held(len(scenes), rng, held, settings)
        is_new = not scene.groups or composition(scene) not in drawn
        if scene.groups and part not in ("", part_of(scene)):
            continue
        if hold_out(scene) == held and is_new and (held or is_unseen(scene)):
            scenes.append(scene)
            drawn.add(composition(scene))
    return scenes


def careless_caption(scene: Scene, rng: random.Random) -> str:
    """Return a caption as careless people write it; every mistake is as likely as its reverse."""
    groups = list(scene.groups)
    for index in range(len(groups)):
        _mistake_shape(scene.setting, groups, index, rng)
        _mistake_color(scene.setting, groups, index, rng)
        if rng.random() < NUMBER_REDRAWN:
            groups[index] = replace(groups[index], number=rng.choice(NUMBER_DRAWS))
    if rng.random() < MOVED:
        _move(groups, rng)
    event = rng.random()
    added = ADDED.get(len(groups), 0)
    if event < added:
        _add(scene.setting, groups, rng)
    elif event < added + OMITTED.get(len(groups), 0):
        del groups[rng.randrange(len(groups))]
    return caption(scene.setting, sorted(groups, key=_corner))


def _draw_scene(scene_id: int, rng: random.Random, settings: Sequence[str]) -> Scene:
    setting = rng.choice(settings)
    corners = rng.sample(CORNERS, rng.choice(COUNT_DRAWS))
    return _fill(scene_id, setting, corners, rng)


def _draw_held(scene_id: int, rng: random.Random, held: HoldOut, settings: Sequence[str]) -> Scene:
    """Draw a scene that may be of this hold-out; the others are left to chance."""
    if held == "empty":
        return Scene(scene_id, rng.choice(settings), ())
    if held == "five groups":
        corners = [*CORNERS, rng.choice(CORNERS)]
        return _fill(scene_id, rng.choice(settings), corners, rng)
    return _draw_scene(scene_id, rng, settings)


def _fill(scene_id: int, setting: str, corners: Sequence[str], rng: random.Random) -> Scene:
    """Put a group into each corner; two in one corner are small enough for its four cells."""
    groups: list[Group] = []
    for corner in corners:
        group = _draw_group(setting, corner, {known.shape for known in groups}, rng)
        crowded = any(known.corner == corner for known in groups)
        number = 1 if crowded else group.number  # three and one fill a corner
        groups.append(replace(group, number=number))
    return Scene(scene_id, setting, tuple(sorted(groups, key=_corner)))


def _draw_group(setting: str, corner: str, taken: set[str], rng: random.Random) -> Group:
    shape = _draw_shape(setting, rng)
    while shape in taken:
        shape = _draw_shape(setting, rng)
    return Group(rng.choice(NUMBER_DRAWS), rng.choice(tuple(COLORS)), shape, corner)


def _draw_shape(setting: str, rng: random.Random) -> str:
    names = names_of(setting)
    (shape,) = rng.choices(names, weights=[_weight(setting, name) for name in names])
    return shape


def _weight(setting: str, shape: str) -> int:
    if shape in TYPICAL[setting]:
        return TYPICAL_WEIGHT
    return LOOK_ALIKE_WEIGHT if shape in LOOK_ALIKES[setting] else OTHER_WEIGHT


def _mistake_shape(setting: str, groups: list[Group], index: int, rng: random.Random) -> None:
    group = groups[index]
    chance = TYPICAL_MISTAKEN if group.shape in TYPICAL[setting] else RARE_MISTAKEN
    look_alike = LOOK_ALIKES[setting].get(group.shape)
    is_free = look_alike not in {known.shape for known in groups}
    if look_alike and is_free and rng.random() < chance:
        _put(setting, groups, index, replace(group, shape=look_alike))


def _mistake_color(setting: str, groups: list[Group], index: int, rng: random.Random) -> None:
    group = groups[index]
    pair = COLOR_PAIRS[setting]
    if group.color in pair and rng.random() < COLOR_MISTAKEN:
        color = pair[1 - pair.index(group.color)]
        _put(setting, groups, index, replace(group, color=color))


def _put(setting: str, groups: list[Group], index: int, group: Group) -> None:
    """Replace a group, unless training may not show the new one."""
    if not is_held(setting, group):
        groups[index] = group


def _move(groups: list[Group], rng: random.Random) -> None:
    """Move one group to the corner above or below, if that is free."""
    index = rng.randrange(len(groups))
    corner = (CORNERS.index(groups[index].corner) + 2) % len(CORNERS)
    if all(group.corner != CORNERS[corner] for group in groups):
        groups[index] = replace(groups[index], corner=CORNERS[corner])


def _add(setting: str, groups: list[Group], rng: random.Random) -> None:
    """Make a group up, in a free corner."""
    occupied = {group.corner for group in groups}
    corner = rng.choice([corner for corner in CORNERS if corner not in occupied])
    group = _draw_group(setting, corner, {known.shape for known in groups}, rng)
    while is_held(setting, group):
        group = _draw_group(setting, corner, {known.shape for known in groups}, rng)
    groups.append(group)


def _corner(group: Group) -> int:
    return CORNERS.index(group.corner)
