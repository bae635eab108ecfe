"""Pairs left out until both directions of a change are equally frequent."""

from collections import Counter

from rlhfv_ray.records import PreferencePair
from rlhfv_ray.shapes.balance import (
    Change,
    balanced_subset,
    change_of,
    even_subset,
    setting_of,
    typical_phrases,
)
from rlhfv_ray.shapes.captions import caption
from rlhfv_ray.shapes.scenes import Group
from rlhfv_ray.shapes.text_audit import told_apart
from tests.conftest import careless_pairs

STAR, BAR = Group(1, "red", "star", "top left"), Group(3, "red", "bar", "top left")
ONE, OTHER = caption("beach", [STAR]), caption("beach", [BAR])
COLOR = caption("beach", [Group(1, "blue", "star", "top left")])


def pair(number: int, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(str(number), b"", "?", chosen, rejected)


def test_changes_by_hand():
    """Catches: a change read backwards; typical shapes of another setting."""
    assert change_of(pair(0, ONE, OTHER)) == Change(typical=1, phrases=0, shapes=-2, words=-1)
    assert change_of(pair(0, OTHER, ONE)) == Change(-1, 0, 2, 1)
    assert change_of(pair(0, ONE, caption("beach", []))) == Change(1, 1, 1, 7)
    assert change_of(pair(0, ONE, COLOR)) == Change(0, 0, 0, 0)
    repeated = caption("beach", [STAR, STAR])
    assert change_of(pair(0, repeated, ONE)) == Change(1, 1, 1, 1)  # the word "and"
    assert [typical_phrases(caption(name, [STAR, BAR])) for name in ("beach", "room")] == [1, 0]
    assert [setting_of(text) for text in ("a room.", ONE, "no place")] == ["room", "beach", ""]


def test_as_many_stay_as_of_the_reverse():
    """Catches: a surplus that stays; pairs without a direction left out; another order."""
    pairs = [
        pair(number, *texts)
        for number, texts in enumerate(
            [(ONE, OTHER), (ONE, COLOR), (ONE, OTHER), (OTHER, ONE), (ONE, OTHER), (COLOR, ONE)]
        )
    ]
    assert [kept.id for kept in balanced_subset(pairs)] == ["0", "1", "3", "5"]


def test_the_biased_world_keeps_no_pair_with_a_direction():
    """Catches: one-sided corrections that pass. The biased world has none in the other direction
    but those of the numbers of shapes."""
    pairs = careless_pairs(200)
    directions = Counter(change_of(pair) for pair in balanced_subset(pairs))
    assert all(change.typical == change.phrases == 0 for change in directions)
    assert 0 < sum(directions.values()) < len(pairs) / 2


def test_words_are_written_in_as_often_as_cut():
    """Catches: a surplus of a shape or colour that stays; the words of another setting; pairs that
    take nothing left out; another order.
    """
    elsewhere = caption("room", [STAR]), caption("room", [BAR])
    texts = [(ONE, OTHER)] * 6 + [(OTHER, ONE)] * 2 + [(COLOR, ONE), elsewhere]
    pairs = [pair(number, *both) for number, both in enumerate(texts)]
    kept = even_subset(pairs)
    assert [one.id for one in kept] == ["3", "4", "5", "6", "7", "8", "9"]
    assert even_subset(kept) == kept and even_subset([]) == []


def test_even_pairs_are_told_less_by_their_texts():
    """Catches: pairs left out of the wrong side, so that texts say more."""
    pairs = careless_pairs(200)
    assert told_apart(texts_of(even_subset(pairs))) < told_apart(texts_of(pairs)) - 0.1


def texts_of(pairs: list[PreferencePair]) -> list[tuple[str, str]]:
    return [(one.chosen, one.rejected) for one in pairs]
