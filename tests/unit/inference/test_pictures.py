"""Prompts without their pictures, and back."""

import pickle

from rlhfv_ray.inference.pictures import load_prompts, store_pictures
from rlhfv_ray.records import Prompt

PICTURES = [b"first" * 10_000, b"", b"second" * 20_000]


def test_prompts_come_back_with_their_own_pictures(tmp_path):
    """Catches: a picture cut at the wrong place, or another prompt's; an absent one read as one."""
    prompts = [Prompt(str(number), PICTURES[number % 3], f"{number}?") for number in range(12)]
    stored = store_pictures(prompts, tmp_path / "pictures")
    assert load_prompts(stored, tmp_path / "pictures") == prompts
    assert load_prompts(stored[7:2:-2], tmp_path / "pictures") == prompts[7:2:-2]
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_a_picture_travels_once(tmp_path):
    """Catches: pictures pickled with every prompt, or written for each question about them."""
    prompts = [Prompt(str(number), bytes(PICTURES[0]), "?") for number in range(100)]
    stored = store_pictures(prompts, tmp_path / "pictures")
    assert (tmp_path / "pictures").stat().st_size == len(PICTURES[0])
    assert len(pickle.dumps(stored)) < 100 * 100
