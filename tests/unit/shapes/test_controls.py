"""Control pairs: what they keep, and what they take away."""

import random
from collections import Counter

import pytest

from rlhfv_ray.records import PreferencePair
from rlhfv_ray.shapes.annotator import correct
from rlhfv_ray.shapes.balance import setting_of, typical_phrases
from rlhfv_ray.shapes.captions import caption, careless_caption, read_phrases
from rlhfv_ray.shapes.controls import blind_edit, controlled
from rlhfv_ray.shapes.scenes import SETTINGS, Group, Scene, make_scenes, render


@pytest.fixture(scope="module")
def pairs() -> list[PreferencePair]:
    rng = random.Random(0)
    made = []
    for scene in make_scenes(120, seed=9):
        text = careless_caption(scene, rng)
        correction = correct(scene, text)
        if correction:
            spans = (correction.chosen_spans, correction.rejected_spans)
            row = PreferencePair(f"{scene.id}", render(scene), "?", correction.text, text, *spans)
            made.append(row)
    return made


def owners(pairs: list[PreferencePair]) -> dict[bytes, PreferencePair]:
    by_picture = {pair.image: pair for pair in pairs}
    assert len(by_picture) == len(pairs)
    return by_picture


@pytest.mark.parametrize("control", ["permuted", "permuted_all"])
def test_every_pair_gets_the_picture_of_another(pairs, control):
    """Catches: a pair that keeps its picture; a picture used twice; texts that move along."""
    permuted = controlled(pairs, control, seed=0)
    assert [(pair.id, pair.chosen, pair.rejected) for pair in permuted] == [
        (pair.id, pair.chosen, pair.rejected) for pair in pairs
    ]
    givers = [owners(pairs)[pair.image] for pair in permuted]
    assert all(giver.id != pair.id for giver, pair in zip(givers, permuted, strict=True))
    assert Counter(giver.id for giver in givers) == Counter(pair.id for pair in pairs)
    settings = [
        setting_of(giver.rejected) == setting_of(pair.rejected)
        for giver, pair in zip(givers, permuted, strict=True)
    ]
    assert all(settings) if control == "permuted" else sum(settings) < len(pairs) / 2


def test_permutations_follow_their_seed(pairs):
    """Catches: a control that another run cannot repeat."""
    first, again, other = (controlled(pairs, "permuted", seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_a_pair_alone_in_its_setting_is_left_out(pairs):
    """Catches: a control pair with its own picture, which teaches to look."""
    beach = next(pair for pair in pairs if setting_of(pair.rejected) == "beach")
    rooms = [pair for pair in pairs if setting_of(pair.rejected) == "room"]
    assert controlled([beach, *rooms], "permuted", seed=0) == controlled(rooms, "permuted", seed=0)


def test_blank_pictures_show_the_setting_only(pairs):
    """Catches: a blank picture that shows a shape, or another setting."""
    blank = controlled(pairs, "blank", seed=0)
    pictures = {name: render(Scene(0, name, ())) for name in SETTINGS}
    assert [pair.image for pair in blank] == [pictures[setting_of(pair.rejected)] for pair in pairs]
    assert len(set(pictures.values())) == len(SETTINGS)


def test_blind_edits_change_one_typical_phrase(pairs):
    """Catches: an edit that knows the truth, changes nothing or more than a phrase, or marks the
    wrong words."""
    edits = controlled(pairs, "blind", seed=0)
    assert len(edits) == sum(typical_phrases(pair.rejected) > 0 for pair in pairs)
    dropped = 0
    for edit in edits:
        before = [group for group, _ in read_phrases(edit.rejected)]
        after = [group for group, _ in read_phrases(edit.chosen)]
        dropped += len(after) < len(before)
        assert len(set(before) - set(after)) == 1
        assert typical_phrases(edit.chosen) == typical_phrases(edit.rejected) - 1
        assert caption(setting_of(edit.rejected), after) == edit.chosen
        ((start, stop),) = edit.rejected_spans
        [lost] = set(before) - set(after)
        assert read_phrases(edit.rejected[start:stop])[0][0] == lost
        new = [edit.chosen[start:stop] for start, stop in edit.chosen_spans]
        assert [read_phrases(text)[0][0] for text in new] == list(set(after) - set(before))
    assert 0.2 < dropped / len(edits) < 0.6


def test_the_only_phrase_is_never_dropped():
    """Catches: a chosen answer that says nothing."""
    text = caption("beach", [Group(1, "red", "star", "top left")])
    for seed in range(20):
        edit = blind_edit(PreferencePair("1", b"", "?", text, text), random.Random(seed))
        assert edit is not None and len(read_phrases(edit.chosen)) == 1
    untypical = caption("room", [Group(1, "red", "star", "top left")])
    assert blind_edit(PreferencePair("1", b"", "?", "", untypical), random.Random(0)) is None


def test_no_control_changes_nothing(pairs):
    """Catches: true pairs that pass through a control."""
    assert controlled(pairs, "none", seed=0) == pairs
