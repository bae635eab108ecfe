"""Random changes of pictures: their bounds, and that a row always draws the same."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rlhfv_ray.config import DataConfig
from rlhfv_ray.data import decode_image
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.models.augmentation import GREY, LOOKS, Augmentation, augmentation, crop_box
from rlhfv_ray.records import EncodedPair
from rlhfv_ray.shapes.scenes import make_scenes, render

PICTURE = render(make_scenes(1, seed=3)[0])

SIZES = st.integers(8, 400)


def square(side):
    """A processor of pictures of one square."""
    return SimpleNamespace(image_processor=SimpleNamespace(size={"height": side, "width": side}))


def pixels(picture):
    return np.asarray(picture).astype(int)


@settings(deadline=None)
@given(SIZES, SIZES, st.sampled_from([0.5, 0.99]), st.integers(0, 10**6))
def test_crops_keep_their_share_within_the_picture(width, height, least, seed):
    """Catches: a crop that leaves the picture, keeps less than asked, or has another shape."""
    left, top, right, bottom = crop_box((width, height), least, random.Random(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    ratio = (right - left) / (bottom - top)
    is_fallback = (left, top) == ((width - right + left) // 2, (height - bottom + top) // 2)
    rounding = 1 + 1 / min(right - left, bottom - top)
    assert 3 / 4 / rounding <= ratio <= 4 / 3 * rounding or is_fallback
    share = (right - left) * (bottom - top) / (width * height)
    assert share >= least / rounding**2 or is_fallback


def test_a_row_draws_the_same_each_time_and_another_row_differs():
    """Catches: pixels that differ between reference and policy, or after a stop; one draw for all
    rows; an original that is lost."""
    change = augmentation(DataConfig(augment="muffin"), square(32))
    assert change is not None
    rows = [EncodedPair(str(number), PICTURE, [1], [2], [], {}) for number in range(40)]
    first, second = ([change.changed(row).image for row in rows] for _ in range(2))
    assert first == second
    assert len(set(first)) == 40
    assert {decode_image(image).size for image in first} == {(32, 32)}
    assert rows[0].image == PICTURE


def test_crops_flip_half_of_the_pictures():
    """Catches: a flip that is always or never made; looks that are drawn where only a crop is."""
    left = Image.new("RGB", (64, 64), "red")
    left.paste("blue", (0, 0, 32, 64))
    change = Augmentation(64, 0.999, looks=False)
    corners = [change.picture(left, random.Random(seed)).getpixel((2, 32)) for seed in range(400)]
    flips = sum(corner[0] > corner[2] for corner in corners)
    assert 160 < flips < 240
    assert all(min(corner[:2]) < 20 for corner in corners)


def test_looks_are_those_of_the_release():
    """Catches: another factor, direction or fill than the release's at its level 7."""
    grey = Image.new("RGB", (40, 40), (100, 100, 100))
    assert LOOKS[3](grey, 1).getpixel((0, 0)) == (136, 136, 136)
    spot = Image.new("RGB", (41, 41), "black")
    spot.paste("white", (20, 20, 21, 21))
    places = {}
    for number in (5, 6, 7, 8, 9):
        for sign in (-1, 1):
            moved = LOOKS[number](spot, sign)
            values = pixels(moved)[..., 0]
            bright = np.argwhere(values == values.max())[0]
            places[number, sign] = tuple(int(place) - 20 for place in bright)
            assert GREY in {moved.getpixel(corner) for corner in ((0, 0), (40, 40), (0, 40))} | {
                moved.getpixel((40, 0))
            }
    assert (places[7, 1], places[7, -1]) == ((0, -7), (0, 7))
    assert (places[8, 1], places[8, -1]) == ((-7, 0), (7, 0))
    assert places[5, 1][0] == places[6, 1][1] == 0
    assert abs(places[5, 1][1]) == abs(places[6, -1][0]) == 4  # 0.21 * 20 pixels
    assert places[9, 1] == places[9, -1] == (0, 0)


def test_models_without_one_square_are_named():
    """Catches: a picture that is cropped to a side which the model's own transform then changes."""
    clip = SimpleNamespace(image_processor=SimpleNamespace(size={"shortest_edge": 336}))
    assert augmentation(DataConfig(), clip) is None
    with pytest.raises(ConfigError, match=r"data\.augment = 'crop'.*shortest_edge"):
        augmentation(DataConfig(augment="crop"), clip)
