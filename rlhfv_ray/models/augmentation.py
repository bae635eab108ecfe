"""Random changes of pictures in training, as Muffin's: off by default.

    crop      a random part of the picture, resized to the model's square, and flipped half the time
    muffin    then two of ten changes of its look (RandAugment), each made half the time

The release draws anew at each visit, and other pixels for the reference than for the policy. Here
the row's id draws, so that both see the same, and a stopped training repeats its pixels.
Numbers: specifications of thunlp/Muffin's transform; level 7 of 10.
"""

import io
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageEnhance, ImageOps

from rlhfv_ray.config import LARGEST_IMAGE, DataConfig
from rlhfv_ray.data.images import decode_image
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.records import EncodedPair

Picture = Image.Image
GREY = (128, 128, 128)  # where a moved picture leaves nothing
FACTOR = 1.36  # of brightness and sharpness: 0.7 * 1.8 + 0.1
SHEAR = 0.21
SHIFT = 7  # pixels
ANGLE = 21  # degrees
DRAWS = 2  # with replacement
ATTEMPTS = 10  # to fit a crop into the picture


def _moved(picture: Picture, matrix: tuple[float, ...]) -> Picture:
    """Return a picture whose pixel (x, y) is that of matrix (x, y, 1) before, grey outside."""
    affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return picture.transform(picture.size, affine, matrix, bilinear, fillcolor=GREY)


# Each takes a picture and a sign, which the changes without a direction do not read.
LOOKS: tuple[Callable[[Picture, int], Picture], ...] = (
    lambda picture, sign: picture,
    lambda picture, sign: ImageOps.autocontrast(picture),
    lambda picture, sign: ImageOps.equalize(picture),
    lambda picture, sign: ImageEnhance.Brightness(picture).enhance(FACTOR),
    lambda picture, sign: ImageEnhance.Sharpness(picture).enhance(FACTOR),
    lambda picture, sign: _moved(picture, (1, sign * SHEAR, 0, 0, 1, 0)),
    lambda picture, sign: _moved(picture, (1, 0, 0, sign * SHEAR, 1, 0)),
    lambda picture, sign: _moved(picture, (1, 0, sign * SHIFT, 0, 1, 0)),
    lambda picture, sign: _moved(picture, (1, 0, 0, 0, 1, sign * SHIFT)),
    lambda picture, sign: picture.rotate(sign * ANGLE, Image.Resampling.BILINEAR, fillcolor=GREY),
)


@dataclass(frozen=True)
class Augmentation:
    """A random change of pictures."""

    side: int  # of the model's square, pixels
    area: float  # least share of the picture that a crop keeps
    looks: bool  # draw changes of its look too

    def changed(self, pair: EncodedPair) -> EncodedPair:
        """Return a pair with its picture changed, as its id draws."""
        picture = self.picture(
            decode_image(pair.image, max_pixels=LARGEST_IMAGE), random.Random(pair.id)
        )
        stored = io.BytesIO()
        picture.save(stored, "BMP")
        return replace(pair, image=stored.getvalue())

    def picture(self, picture: Picture, draw: random.Random) -> Picture:
        """Return a picture changed: (side, side)."""
        box = crop_box(picture.size, self.area, draw)
        square = (self.side, self.side)
        picture = picture.crop(box).resize(square, Image.Resampling.BICUBIC)
        if draw.random() < 0.5:
            picture = ImageOps.mirror(picture)
        for change in draw.choices(LOOKS, k=DRAWS) if self.looks else ():
            if draw.random() < 0.5:
                picture = change(picture, draw.choice((-1, 1)))
        return picture


def crop_box(size: tuple[int, int], least: float, draw: random.Random) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a random crop, as torchvision's RandomResizedCrop.

    Args:
        size: width and height.
        least: share of the area that the crop keeps at least; the most is all of it.
        draw: of area, ratio and place. The ratio of the sides is from 3/4 to 4/3.
    """
    width, height = size
    for _ in range(ATTEMPTS):
        area = width * height * draw.uniform(least, 1.0)
        ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left, top = draw.randint(0, width - across), draw.randint(0, height - down)
            return left, top, left + across, top + down
    across = min(width, round(height * 4 / 3))
    down = min(height, round(width * 4 / 3))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def augmentation(data: DataConfig, processor: Any) -> Augmentation | None:
    """Return the change of pictures that the settings name; None for none.

    Raises:
        ConfigError: the model does not take pictures of one square.
    """
    if data.augment == "none":
        return None
    size = dict(getattr(processor.image_processor, "size", None) or {})
    if set(size) != {"height", "width"} or size["height"] != size["width"]:
        raise ConfigError(
            f"data.augment = {data.augment!r}: the model takes pictures of size {size}, and not of "
            "one square (height = width), as Muffin does. Leave out --data.augment."
        )
    return Augmentation(size["height"], data.crop_area, looks=data.augment == "muffin")
