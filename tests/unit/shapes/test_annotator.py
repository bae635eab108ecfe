"""Judgements and corrections of one scene by hand, and of many careless captions."""

import random
from statistics import fmean

import pytest

from rlhfv_ray.shapes.annotator import Care, Segment, correct, mistakes
from rlhfv_ray.shapes.captions import caption, careless_caption, read_phrases
from rlhfv_ray.shapes.scenes import Group, Scene, make_scenes

SCENE = Scene(
    7, "beach", (Group(1, "red", "star", "top left"), Group(2, "blue", "ring", "bottom right"))
)
TRUE = "a beach with a red star at the top left and two blue rings at the bottom right."


@pytest.fixture(scope="module")
def corrected():
    """Careless captions that the annotator corrects: scene, caption, correction."""
    rng = random.Random(0)
    triples = []
    for scene in make_scenes(1000, seed=9):
        text = careless_caption(scene, rng)
        correction = correct(scene, text)
        if correction:
            triples.append((scene, text, correction))
    return triples


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
    """Catches: a mistake missed, of another kind, or with the span of another phrase; a correction
    that is not the truth."""
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
    """Catches: corrections that only cut, which teach that shorter is better.

    The caption misses the ring and makes up the moon.
    """
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
    """Catches: one object counted as true several times, as in answers that repeat themselves."""
    text = TRUE.replace(" and ", ", ").replace(".", " and a red star at the top left.")
    assert [mistake.kind for mistake in mistakes(SCENE, text)] == ["object"]
    assert correct(SCENE, text).text == TRUE


def test_truest_phrase_is_the_one_about_the_object():
    """Catches: the first phrase about a shape taken for the object, so that the true one is cut."""
    text = (
        "a beach with a green star at the top right, a red star at the top left "
        "and two blue rings at the bottom right."
    )
    [mistake] = mistakes(SCENE, text)
    assert (mistake.kind, mistake.said.color) == ("object", "green")
    assert correct(SCENE, text).text == TRUE


def test_made_up_object_becomes_the_missed_one_of_its_corner():
    """Catches: words about one corner that replace those about another."""
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
    """Catches: a pair made from an answer outside the grammar: it differs in more than mistakes."""
    assert correct(SCENE, text) is None


def test_corrections_leave_no_mistake(corrected):
    """Catches: a chosen answer that hallucinates; true phrases changed; segments that do not add up
    to the change."""
    assert len(corrected) > 500
    for scene, text, correction in corrected:
        assert mistakes(scene, correction.text) == []
        assert correct(scene, correction.text) is None
        wrong = {mistake.start: mistake.stop for mistake in mistakes(scene, text)}
        assert [segment.rejected for segment in correction.segments] == [
            text[start:stop] for start, stop in wrong.items()
        ]
        unchanged = {group for group, (start, _) in read_phrases(text) if start not in wrong}
        replacements = []
        for segment in correction.segments:
            replacements += [group for group, _ in read_phrases(segment.chosen)]
        corrected_groups = [group for group, _ in read_phrases(correction.text)]
        assert set(corrected_groups) == unchanged | set(replacements)
        assert len(corrected_groups) == len(unchanged) + len(replacements)


def test_shorter_is_not_the_signal(corrected):
    """Catches: corrections that mostly cut, so that the model learns to say less, not the truth.

    Only a shape claimed besides all the true ones is cut. This shortens a caption by a quarter
    where three true phrases remain.
    """
    ratios = [len(correction.text.split()) / len(text.split()) for _, text, correction in corrected]
    assert fmean(ratio >= 1 for ratio in ratios) >= 0.5
    assert fmean(ratios) > 0.85


def test_marked_spans_are_the_corrected_phrases(corrected):
    """Catches: a span off its words; a correction without a span; a span of an unchanged phrase."""
    for _, text, correction in corrected:
        marked_wrong = [text[start:stop] for start, stop in correction.rejected_spans]
        assert marked_wrong == [segment.rejected for segment in correction.segments]
        marked_new = [correction.text[start:stop] for start, stop in correction.chosen_spans]
        replacements = [segment.chosen for segment in correction.segments if segment.chosen]
        assert sorted(marked_new) == sorted(replacements)


def test_an_annotator_who_adds_names_what_was_left_out():
    """Catches: corrections that are never longer, so that shorter is better; an unmarked addition.

    The description leaves the ring out and has no mistake.
    """
    text = "a beach with a red star at the top left."
    assert correct(SCENE, text) is None
    correction = correct(SCENE, text, Care(adds=True))
    added = "two blue rings at the bottom right"
    assert correction.text == TRUE
    assert correction.segments == (Segment(("object",), "", added),)
    assert [TRUE[start:stop] for start, stop in correction.chosen_spans] == [added]
    assert correction.rejected_spans == ()


def test_an_annotator_who_adds_says_the_whole_truth(corrected):
    """Catches: an addition beside a replacement by the same group."""
    for scene, text, _ in corrected:
        correction = correct(scene, text, Care(adds=True))
        assert correction.text == caption(scene.setting, scene.groups)


def test_mistakes_are_left_at_their_rate(corrected):
    """Catches: a rate that does nothing, or leaves whole descriptions instead of phrases."""
    rng = random.Random(0)
    wrong = fixed = 0
    for scene, text, full in corrected:
        partial = correct(scene, text, Care(left=0.3), rng)
        wrong += len(full.segments)
        fixed += len(partial.segments) if partial else 0
    assert fixed / wrong == pytest.approx(0.7, abs=4 * (0.21 / wrong) ** 0.5)
    assert correct(*corrected[0][:2], Care(left=1.0), rng) is None


def test_corrections_are_wrong_at_their_rate(corrected):
    """Catches: a wrong correction that is no mistake, or of another phrase than a corrected one."""
    rng = random.Random(0)
    replaced = wrong = 0
    for scene, text, full in corrected:
        clumsy = correct(scene, text, Care(wrong=0.25), rng)
        errors = mistakes(scene, clumsy.text)
        assert {error.kind for error in errors} <= {"attribute"}
        replaced += len(full.chosen_spans)
        wrong += len(errors)
        marked = [clumsy.text[start:stop] for start, stop in clumsy.chosen_spans]
        assert {clumsy.text[error.start : error.stop] for error in errors} <= set(marked)
    assert wrong / replaced == pytest.approx(0.25, abs=4 * (0.19 / replaced) ** 0.5)
