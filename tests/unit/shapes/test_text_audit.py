"""The classifier of texts alone, on pairs that text tells and on pairs that it cannot tell."""

import random

import pytest

from rlhfv_ray.errors import DataError
from rlhfv_ray.records import PreferencePair
from rlhfv_ray.shapes.annotator import correct
from rlhfv_ray.shapes.captions import caption, careless_caption
from rlhfv_ray.shapes.scenes import Group, make_scenes
from rlhfv_ray.shapes.text_audit import audit_texts, text_features, told_apart
from tests.conftest import careless_pairs

COUNT = 400


def pair(chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair("1", b"", "?", chosen, rejected)


def test_the_biased_world_is_told_by_its_texts():
    """Catches: a classifier that is blind to what is usual in a setting, which passes any world.

    In the biased world no correction adds a typical shape, and none adds a phrase.
    """
    audit = audit_texts(careless_pairs(COUNT))
    assert audit.pairs == COUNT
    assert audit.told > 0.8 and audit.told_interval.low > 0.75
    assert audit.more_typical == audit.more_phrases == 0
    assert audit.fewer_typical > COUNT / 2 and audit.chosen_words < audit.rejected_words


def test_coins_are_not_told():
    """Catches: a classifier tested on the pairs that it was trained on; it would tell most."""
    rng = random.Random(0)
    texts = []
    for scene in make_scenes(COUNT, seed=3):
        two = [caption(scene.setting, scene.groups), careless_caption(scene, rng)]
        rng.shuffle(two)
        texts.append((two[0], two[1]))
    assert told_apart(texts) == pytest.approx(0.5, abs=4 * 0.5 / COUNT**0.5)


def test_a_preference_that_depends_on_the_setting_is_told():
    """Catches: words counted without their setting, so that opposite preferences cancel out."""
    texts = []
    for number in range(COUNT):
        setting = ("street", "beach")[number % 2]
        shapes = ("star", "bar")[:: 1 if setting == "street" else -1]
        chosen, rejected = (
            caption(setting, [Group(1 + number % 3, "red", shape, "top left")]) for shape in shapes
        )
        texts.append((chosen, rejected))
    assert told_apart(texts) > 0.95


def test_changes_are_counted_by_hand():
    """Catches: chosen and rejected swapped in the figures; typical shapes of another setting."""
    star, bar = (Group(1, "red", shape, "top left") for shape in ("star", "bar"))
    two = [star, Group(2, "blue", "moon", "top right")]
    cut = pair(caption("beach", [star]), caption("beach", two))  # one typical phrase less
    swapped = pair(caption("beach", [star]), caption("beach", [bar]))  # one more, as long
    audit = audit_texts([cut] * 30 + [swapped] * 20)
    assert (audit.fewer_typical, audit.more_typical) == (30, 20)
    assert (audit.fewer_phrases, audit.more_phrases) == (30, 0)
    assert audit.shorter == (30 + 20 / 2) / 50
    assert (audit.chosen_words, audit.rejected_words) == (10, 10 + 8 * 30 / 50)


def test_too_few_pairs_are_an_error():
    """Catches: a share from a handful of pairs that looks like a finding."""
    scene = make_scenes(1, seed=0)[0]
    text = caption(scene.setting, scene.groups)
    assert correct(scene, text) is None
    with pytest.raises(DataError, match="50"):
        audit_texts([pair(text, text)])


def test_groups_are_told_by_each_other():
    """Catches: groups that are ignored; a group that is tested by a classifier trained on it."""
    texts = [("a star", "a bar"), ("a bar", "a star")] * 30
    groups = [0, 1] * 30  # each says the opposite of the other
    assert told_apart(texts, groups) == 0.0
    assert told_apart(texts) == pytest.approx(0.5, abs=0.2)


def test_the_words_of_a_text_keep_their_own_counts():
    """Catches: the number of phrases written over the word `phrases`, of data of another world."""
    features = text_features("two shapes and typical shapes in three phrases")
    assert (features["shapes"], features["phrases"], features["typical"]) == (2, 1, 1)
    assert (features["length"], features["number of words"]) == (8, 7)
    assert features["number of shapes"] == 0
