"""The annotator's judgement and corrections, on one scene by hand and on many careless captions."""

import random
from statistics import fmean

import pytest

from rlhfv_ray.shapes.annotator import Segment, correct, mistakes
from rlhfv_ray.shapes.captions import caption, careless_caption, read_phrases
from rlhfv_ray.shapes.scenes import Group, Scene, make_scenes

SCENE = Scene(
    7, "beach", (Group(1, "red", "star", "top left"), Group(2, "blue", "ring", "bottom right"))
)
TRUE = "a beach with a red star at the top left and two blue rings at the bottom right."


@pytest.fixture(scope="module")
def corrected():
    """Careless captions that the annotator corrects: scene, what was said, correction."""
    rng = random.Random(0)
    said = [(scene, careless_caption(scene, rng)) for scene in make_scenes(1000, seed=9)]
    return [(scene, text, found) for scene, text in said if (found := correct(scene, text))]


def test_truth_has_no_mistake_and_no_correction():
    """Catches: a pair made from a correct answer."""
    assert mistakes(SCENE, TRUE) == []
    assert correct(SCENE, TRUE) is None
    for scene in make_scenes(200, seed=4):
        assert correct(scene, caption(scene.setting, scene.groups)) is None


@pytest.mark.parametrize(
    ("kind", "wrong", "right"),
    [
        ("attribute", "a green star at the top left", "a red star at the top left"),
        ("number", "three red stars at the top left", "a red star at the top left"),
        ("position", "a red star at the top right", "a red star at the top left"),
    ],
)
def test_each_kind_of_mistake(kind, wrong, right):
    """Catches: a mistake missed, taken for another kind, or with the span of another phrase; a correction that is not the truth."""
    text = TRUE.replace(right, wrong)
    [mistake] = mistakes(SCENE, text)
    assert (mistake.kind, text[mistake.start : mistake.stop], mistake.truth) == (
        kind,
        wrong,
        SCENE.groups[0],
    )
    correction = correct(SCENE, text)
    assert correction.text == TRUE
    assert correction.segments == (Segment((kind,), wrong, right),)


def test_several_mistakes_in_one_phrase_are_one_segment():
    """Catches: a phrase corrected once per mistake."""
    text = TRUE.replace("a red star at the top left", "two green stars at the top right")
    correction = correct(SCENE, text)
    assert correction.text == TRUE
    [segment] = correction.segments
    assert segment.kinds == ("attribute", "position", "number")


def test_made_up_object_becomes_a_missed_one():
    """Catches: corrections that only cut, which teach that shorter is better. The ring was missed, the moon is not there."""
    text = "a beach with a red star at the top left and a white moon at the top right."
    correction = correct(SCENE, text)
    assert correction.text == TRUE
    assert correction.segments == (
        Segment(("object",), "a white moon at the top right", "two blue rings at the bottom right"),
    )


def test_made_up_object_is_cut_where_nothing_was_missed():
    """Catches: a true object repeated to fill the gap."""
    text = TRUE.replace(" and ", ", ").replace(".", " and a white moon at the top right.")
    correction = correct(SCENE, text)
    assert correction.text == TRUE
    assert correction.segments == (Segment(("object",), "a white moon at the top right", ""),)


def test_shape_named_twice_is_made_up():
    """Catches: the same object counted as true again and again, as in answers that repeat themselves."""
    text = TRUE.replace(" and ", ", ").replace(".", " and a red star at the top left.")
    assert [mistake.kind for mistake in mistakes(SCENE, text)] == ["object"]
    assert correct(SCENE, text).text == TRUE


def test_truest_phrase_is_the_one_about_the_object():
    """Catches: the first phrase of a shape taken for the object, so that the true one is cut and the wrong one mended."""
    text = "a beach with a green star at the top right, a red star at the top left and two blue rings at the bottom right."
    [mistake] = mistakes(SCENE, text)
    assert (mistake.kind, mistake.said.color) == ("object", "green")
    assert correct(SCENE, text).text == TRUE


def test_made_up_object_becomes_the_missed_one_of_its_corner():
    """Catches: the words about one place put in place of those about another."""
    scene = Scene(
        8, "beach", (*SCENE.groups[:1], Group(1, "blue", "bar", "top right"), SCENE.groups[1])
    )
    text = "a beach with a red star at the top left and a white moon at the bottom right."
    [segment] = correct(scene, text).segments
    assert segment.chosen == "two blue rings at the bottom right"


def test_only_mistakes_left_is_an_empty_scene():
    """Catches: a crash, or a dangling "with", where the only phrase is cut."""
    scene = Scene(1, "room", (Group(1, "red", "star", "top left"),))
    correction = correct(
        scene, "a room with a red star at the top left and a red moon at the top left."
    )
    assert correction.text == "a room with a red star at the top left."


@pytest.mark.parametrize(
    "text",
    [
        "",
        TRUE.replace("beach", "room"),
        TRUE[:-1],
        "There is a red star at the top left.",
        TRUE.replace("two blue rings", "two blue"),
        TRUE.replace(" and ", ", "),
    ],
)
def test_no_description_of_the_setting_is_no_pair(text):
    """Catches: a pair whose two answers differ in more than the mistakes, because the answer is not of the grammar."""
    assert correct(SCENE, text) is None


def test_corrections_leave_no_mistake(corrected):
    """Catches: a chosen answer that hallucinates; unmistaken phrases changed; segments that do not add up to the change."""
    assert len(corrected) > 500
    for scene, said, correction in corrected:
        assert mistakes(scene, correction.text) == []
        assert correct(scene, correction.text) is None
        wrong = {mistake.start: mistake.stop for mistake in mistakes(scene, said)}
        assert [segment.rejected for segment in correction.segments] == [
            said[start:stop] for start, stop in wrong.items()
        ]
        kept = {group for group, (start, _) in read_phrases(said) if start not in wrong}
        put = [
            group for segment in correction.segments for group, _ in read_phrases(segment.chosen)
        ]
        assert {group for group, _ in read_phrases(correction.text)} == kept | set(put)
        assert len(read_phrases(correction.text)) == len(kept) + len(put)


def test_shorter_is_not_the_signal(corrected):
    """Catches: corrections that mostly cut, so that the model learns to say less instead of what is there.

    Only a shape claimed besides all the true ones is cut, which shortens a caption of three phrases by a quarter.
    """
    ratios = [len(correction.text.split()) / len(said.split()) for _, said, correction in corrected]
    assert fmean(ratio >= 1 for ratio in ratios) >= 0.5
    assert fmean(ratios) > 0.85


def test_marked_spans_are_the_corrected_phrases(corrected):
    """Catches: marks beside the words; a correction that is not marked; a phrase marked that nobody changed."""
    for _, said, found in corrected:
        assert [said[start:stop] for start, stop in found.rejected_spans] == [
            s.rejected for s in found.segments
        ]
        put_in = sorted(segment.chosen for segment in found.segments if segment.chosen)
        assert sorted(found.text[start:stop] for start, stop in found.chosen_spans) == put_in
