"""Scenes of the shapes world and their pictures.

A scene is a setting (street, beach, forest, room) and one to four groups of equal shapes, at most
one group in each corner of the picture. A group holds what one phrase can say: a number, a colour,
a shape, a corner. Every setting makes three shapes likely, so a model trained on careless captions
learns to expect them. This is the over-generalisation that RLHF-V (arXiv 2312.00849, sec. 4.3)
measures in real models.

In the world of signs, a sign with a rendered word takes the place of a shape, and the settings are
others (market, shop, harbour, yard). Every word has one that differs by one letter, and the
setting says which of the two is usual there.

A picture has 64 x 64 pixels: 4 x 4 cells of 16 x 16, four cells per corner, at most one shape per
cell. A shape is drawn around its centre (x, y) with radius r, all in pixels, y downwards.
"""

import hashlib
import io
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

SETTINGS = ("street", "beach", "forest", "room")
SIGN_SETTINGS = ("market", "shop", "harbour", "yard")
WORDS = (
    "milk", "silk", "corn", "cork", "bean", "beam",
    "coat", "boat", "robe", "rope", "sail", "nail",
)  # fmt: skip
SHAPES = (
    "circle", "square", "triangle", "star", "heart", "cross",
    "diamond", "ring", "moon", "arrow", "hourglass", "bar",
)  # fmt: skip
SIGNS = tuple(f"{word} sign" for word in WORDS)
COLORS = {  # red, green, blue, 0 to 255
    "red": (214, 40, 40),
    "blue": (29, 78, 216),
    "green": (22, 140, 60),
    "yellow": (250, 204, 21),
    "purple": (126, 34, 206),
    "orange": (249, 115, 22),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
}
CORNERS = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("a", "two", "three")  # NUMBERS[n - 1] is the word for n
TYPICAL = {  # shapes, or signs, that a setting makes likely
    "street": ("circle", "bar", "arrow"),
    "beach": ("star", "moon", "ring"),
    "forest": ("triangle", "hourglass", "diamond"),
    "room": ("square", "heart", "cross"),
    "market": ("milk sign", "corn sign", "bean sign"),
    "shop": ("silk sign", "coat sign", "robe sign"),
    "harbour": ("boat sign", "rope sign", "sail sign"),
    "yard": ("nail sign", "beam sign", "cork sign"),
}
BACKGROUNDS = {  # colours of the upper and the lower half
    "street": ((176, 190, 204), (110, 112, 116)),
    "beach": ((150, 206, 238), (232, 214, 160)),
    "forest": ((168, 206, 170), (116, 96, 70)),
    "room": ((238, 224, 214), (168, 132, 108)),
    "market": ((236, 210, 160), (150, 120, 90)),
    "shop": ((214, 190, 214), (120, 96, 130)),
    "harbour": ((190, 220, 226), (70, 110, 140)),
    "yard": ((200, 200, 180), (140, 130, 100)),
    "picture": ((206, 206, 206), (150, 150, 150)),  # no setting: nothing is usual there
}
# Rows of 3 pixels, from the top; the highest bit is the left one.
LETTERS = {
    "a": (2, 5, 7, 5, 5), "b": (6, 5, 6, 5, 6), "c": (3, 4, 4, 4, 3), "e": (7, 4, 6, 4, 7),
    "i": (7, 2, 2, 2, 7), "k": (5, 5, 6, 5, 5), "l": (4, 4, 4, 4, 7), "m": (5, 7, 7, 5, 5),
    "n": (6, 5, 5, 5, 5), "o": (2, 5, 5, 5, 2), "p": (6, 5, 6, 4, 4), "r": (6, 5, 6, 6, 5),
    "s": (3, 4, 2, 1, 6), "t": (7, 2, 2, 2, 2),
}  # fmt: skip
CELL = 16  # pixels
SIDE = 4 * CELL  # pixels
PARTS = ("rungs", "choice", "fresh")  # what a sweep prunes by, chooses by, and reports
UNSEEN = 8  # one composition in eight is reserved for evaluation


@dataclass(frozen=True)
class Group:
    """`number` shapes of one kind and colour in one corner."""

    number: int
    color: str
    shape: str
    corner: str


@dataclass(frozen=True)
class Scene:
    """A setting and its groups, in the order of `CORNERS`."""

    id: int
    setting: str
    groups: tuple[Group, ...]

    def at(self, corner: str) -> Group | None:
        """Return the group in a corner, or None if the corner is empty."""
        return next((group for group in self.groups if group.corner == corner), None)


def names_of(setting: str) -> tuple[str, ...]:
    """Return the shapes, or the signs, that scenes of a setting have; shapes without a setting."""
    return SIGNS if setting in SIGN_SETTINGS else SHAPES


def draw_shape_name(setting: str, rng: random.Random) -> str:
    """Draw a shape: with probability 1/2 one of the setting's three, else any of the twelve."""
    return rng.choice(TYPICAL[setting]) if rng.random() < 0.5 else rng.choice(SHAPES)


def composition(scene: Scene) -> str:
    """Return the set of coloured shapes of a scene, as text."""
    return ",".join(sorted({f"{group.color} {group.shape}" for group in scene.groups}))


def is_unseen(scene: Scene) -> bool:
    """Return True if a scene's composition is reserved for evaluation.

    Its hash decides, whatever the seed.
    """
    return _composition_hash(scene)[0] % UNSEEN == 0


def part_of(scene: Scene) -> str:
    """Return the part to which a scene's composition belongs: no two parts share a composition."""
    return PARTS[_composition_hash(scene)[1] % len(PARTS)]


def _composition_hash(scene: Scene) -> bytes:
    return hashlib.sha256(composition(scene).encode()).digest()


def _draw_scene(scene_id: int, rng: random.Random) -> Scene:
    setting = rng.choice(SETTINGS)
    corners = sorted(rng.sample(CORNERS, rng.choice((1, 2, 2, 3, 3, 4))), key=CORNERS.index)
    groups: list[Group] = []
    for corner in corners:
        taken = {group.shape for group in groups}  # else a phrase could mean either group
        shape = draw_shape_name(setting, rng)
        while shape in taken:
            shape = draw_shape_name(setting, rng)
        number = rng.choice((1, 1, 1, 2, 2, 3))
        color = rng.choice(tuple(COLORS))
        groups.append(Group(number, color, shape, corner))
    return Scene(scene_id, setting, tuple(groups))


def make_scenes(count: int, *, seed: int, unseen: bool = False, part: str = "") -> list[Scene]:
    """Draw scenes; the same seed gives the same scenes.

    Args:
        count: number of scenes.
        seed: random seed.
        unseen: draw only compositions that no training scene has (one in `UNSEEN`), for evaluation.
        part: draw only compositions of this one of `PARTS`; empty: of all.

    Returns:
        Scenes numbered from 0. A smaller `count` returns the first scenes of a larger one.
    """
    rng = random.Random(f"scenes-{seed}-{unseen}")
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = _draw_scene(len(scenes), rng)
        if is_unseen(scene) == unseen and part in ("", part_of(scene)):
            scenes.append(scene)
    return scenes


def _star(x: float, y: float, r: float) -> list[tuple[float, float]]:
    """Return the ten corners of a five-pointed star, tips and notches in turn."""
    points = []
    for k in range(10):
        radius = (r, 0.45 * r)[k % 2]
        angle = math.pi * k / 5 - math.pi / 2
        points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    return points


def _moon(x: float, y: float, r: float) -> list[tuple[float, float]]:
    """Return a crescent open to the right: an arc of radius r, and back along a flatter one."""
    angles = [math.pi * (0.3 + 1.4 * k / 12) for k in range(13)]
    outer = [(x + r * math.cos(a), y + r * math.sin(a)) for a in angles]
    inner_x = x + 0.35 * r
    inner = [(inner_x + 0.62 * r * math.cos(a), y + 0.8 * r * math.sin(a)) for a in angles]
    return outer + inner[::-1]


def _polygon(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    """Return the corners of a shape with straight edges."""
    unit = {
        "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
        "triangle": [(0, -1), (1, 0.9), (-1, 0.9)],
        "diamond": [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)],
        "arrow": [(-1, -0.3), (0.1, -0.3), (0.1, -0.9), (1, 0), (0.1, 0.9), (0.1, 0.3), (-1, 0.3)],
        "hourglass": [(-0.9, -1), (0.9, -1), (-0.9, 1), (0.9, 1)],
        "bar": [(-1, -0.3), (1, -0.3), (1, 0.3), (-1, 0.3)],
        "cross": [
            (-0.35, -1), (0.35, -1), (0.35, -0.35), (1, -0.35), (1, 0.35), (0.35, 0.35),
            (0.35, 1), (-0.35, 1), (-0.35, 0.35), (-1, 0.35), (-1, -0.35), (-0.35, -0.35),
        ],
    }[shape]  # fmt: skip
    return [(x + dx * r, y + dy * r) for dx, dy in unit]


def _draw_sign(
    draw: ImageDraw.ImageDraw, word: str, x: float, y: float, color: tuple[int, int, int]
) -> None:
    """Draw a plate as wide as its cell, with a word in letters of 3 x 5 pixels."""
    left, top = round(x) - CELL // 2, round(y) - 4
    draw.rectangle((left, top, left + CELL - 1, top + 8), fill=color)
    is_dark = sum(color) < 3 * 128
    ink = COLORS["white"] if is_dark else COLORS["black"]
    for place, letter in enumerate(word):
        for row, bits in enumerate(LETTERS[letter]):
            for column in range(3):
                if bits >> (2 - column) & 1:
                    draw.point((left + 1 + 4 * place + column, top + 2 + row), fill=ink)


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, color: tuple[int, int, int]
) -> None:
    r = 6.0
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        draw.ellipse(box, fill=color)
    elif shape == "ring":
        draw.ellipse(box, outline=color, width=3)
    elif shape == "heart":
        draw.ellipse((x - r, y - r, x, y), fill=color)
        draw.ellipse((x, y - r, x + r, y), fill=color)
        draw.polygon([(x - r + 0.5, y - 1.5), (x + r - 0.5, y - 1.5), (x, y + r)], fill=color)
    elif shape == "star":
        draw.polygon(_star(x, y, r), fill=color)
    elif shape == "moon":
        draw.polygon(_moon(x, y, r), fill=color)
    else:
        draw.polygon(_polygon(shape, x, y, r), fill=color)


def cells(scene: Scene) -> list[tuple[tuple[int, int], Group]]:
    """Return the cell (row, column) of every single shape, with its group.

    The cells are random, from the scene, so every call returns the same ones.
    """
    rng = random.Random(f"cells-{scene}")
    placed: list[tuple[tuple[int, int], Group]] = []
    free = {corner: list(range(4)) for corner in CORNERS}  # the four cells of each corner
    for group in scene.groups:
        row, column = divmod(CORNERS.index(group.corner), 2)
        for quarter in rng.sample(free[group.corner], group.number):
            free[group.corner].remove(quarter)
            cell = (2 * row + quarter // 2, 2 * column + quarter % 2)
            placed.append((cell, group))
    return placed


def render(scene: Scene) -> bytes:
    """Draw a scene as PNG bytes.

    Shapes are moved by up to one pixel and the horizon by up to four, at random from the scene.
    """
    rng = random.Random(f"render-{scene}")
    upper, lower = BACKGROUNDS[scene.setting]
    image = Image.new("RGB", (SIDE, SIDE), upper)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, SIDE // 2 + rng.randint(-4, 4), SIDE, SIDE), fill=lower)
    for (row, column), group in cells(scene):
        x = CELL * (column + 0.5) + rng.choice((-1, 0, 1))
        y = CELL * (row + 0.5) + rng.choice((-1, 0, 1))
        if group.shape in SIGNS:
            word = group.shape.split()[0]
            _draw_sign(draw, word, CELL * (column + 0.5), y, COLORS[group.color])
        else:
            _draw_shape(draw, group.shape, x, y, COLORS[group.color])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
