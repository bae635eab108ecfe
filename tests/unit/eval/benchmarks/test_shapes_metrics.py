"""The F1 of phrases and the split recall, by hand, and the metrics of held-out scenes."""

from pathlib import Path

import pytest

from eval.benchmarks.contract import Ratio
from eval.benchmarks.shapes import ShapesBenchmark
from eval.benchmarks.shapes_metrics import (
    HELD_OUT,
    METRICS,
    count_of_groups,
    phrase_ratios,
    recall_ratios,
)
from rlhfv_ray.records import Answer
from rlhfv_ray.shapes.annotator import mistakes
from rlhfv_ray.shapes.balanced import HOLD_OUTS, hold_out
from rlhfv_ray.shapes.captions import caption
from rlhfv_ray.shapes.scenes import Group, Scene
from rlhfv_ray.shapes.world import read_scenes, write_benchmark
from rlhfv_ray.shapes.worlds import WorldName

STAR = Group(1, "red", "star", "top left")  # typical of a beach
SIGN = Group(1, "red", "milk sign", "top left")
RING = Group(2, "blue", "ring", "top right")  # typical of a beach
BAR = Group(3, "green", "bar", "bottom left")  # not typical
SCENE = Scene(0, "beach", (STAR, RING, BAR))


def ratios(*groups: Group, scene: Scene = SCENE) -> dict[str, Ratio]:
    text = caption(scene.setting, groups)
    return phrase_ratios(text, scene, mistakes(scene, text))


@pytest.mark.parametrize(
    ("said", "hits"),
    [
        ((STAR, RING, BAR), 3),
        ((STAR, RING), 2),  # one left out
        ((STAR, RING, Group(2, "green", "bar", "bottom left")), 2),  # a wrong number
        ((Group(1, "blue", "star", "bottom right"), RING, BAR), 2),  # wrong in two ways: one miss
        ((STAR, RING, Group(1, "red", "moon", "bottom left")), 2),  # made up
        ((STAR, STAR, RING, BAR), 3),  # the second one is about nothing
        ((), 0),
    ],
)
def test_f1_of_phrases_by_hand(said, hits):
    """Catches: half-right phrases as hits; two mistakes of a phrase as two misses; repetitions."""
    score = ratios(*said)
    assert score["phrase_f1"] == Ratio(2 * hits, len(said) + 3)
    assert score["exact_answers"] == Ratio(int(said == (STAR, RING, BAR)), 1)


def test_nothing_said_about_nothing_is_exact():
    """Catches: a division by zero, or a hit, on an empty picture."""
    empty = Scene(1, "room", ())
    nothing, star = ratios(scene=empty), ratios(STAR, scene=empty)
    assert (nothing["phrase_f1"], nothing["exact_answers"]) == (Ratio(0, 0), Ratio(1, 1))
    assert (star["phrase_f1"], star["exact_answers"]) == (Ratio(0, 1), Ratio(0, 1))


@pytest.mark.parametrize(
    ("setting", "wrong"),
    [("beach", Ratio(0, 1)), ("street", Ratio(1, 1)), ("picture", Ratio(0, 0))],
)
def test_a_wrong_setting_is_a_mistake_of_its_own(setting, wrong):
    """Catches: answers with all phrases right and the wrong setting, which no rate but that of
    exact answers sees.
    """
    text = caption(setting, SCENE.groups)
    score = phrase_ratios(text, SCENE, mistakes(SCENE, text))
    assert score["phrase_f1"] == Ratio(6, 6) and score["wrong_settings"] == wrong
    assert score["exact_answers"] == Ratio(int(setting == "beach"), 1)


def test_recall_is_split_by_what_is_usual():
    """Catches: both parts of the recall by all objects; made-up shapes as named ones."""
    split = recall_ratios(SCENE, {"star", "bar", "moon"})
    assert split == {"typical_recall": Ratio(1, 2), "untypical_recall": Ratio(1, 1)}
    street = Scene(0, "street", SCENE.groups)
    assert recall_ratios(street, {"star"}) == {
        "typical_recall": Ratio(0, 1),
        "untypical_recall": Ratio(1, 2),
    }


def test_number_of_groups_in_words():
    """Catches: a type of question that two counts share."""
    scenes = [Scene(0, "room", SCENE.groups[:count]) for count in range(4)]
    assert [count_of_groups(scene) for scene in scenes] == [
        "0 groups", "1 group", "2 groups", "3 groups"
    ]  # fmt: skip


@pytest.mark.parametrize(("world", "seen"), [("balanced", STAR), ("signs", SIGN)])
def test_held_out_scenes_are_reported_apart(world: WorldName, seen: Group, tmp_path: Path):
    """Catches: held-out scenes in the headline; a hold-out without its metric.

    All answers are true, but those to empty pictures, which name something.
    """
    write_benchmark(tmp_path, count=40, seed=0, world=world)
    benchmark = ShapesBenchmark(tmp_path, decoding={})
    answers = [
        Answer(prompt.id, prompt.question, caption(scene.setting, scene.groups or (seen,)))
        for prompt, scene in zip(benchmark.prompts, read_scenes(tmp_path), strict=True)
    ]
    scores = benchmark.score(answers, {})
    assert [metric.name for metric in scores.metrics[len(METRICS) :]] == [
        HELD_OUT[name].name for name in HOLD_OUTS
    ]
    sums = scores.sums()
    ordinary = [scene for scene in read_scenes(tmp_path) if not hold_out(scene)]
    groups = sum(len(scene.groups) for scene in ordinary)
    assert len(ordinary) == 24 and sums["exact_answers"] == (24, 24)
    assert sums["phrase_f1"] == (2 * groups, 2 * groups) and sums["response_rate_all"] == (0, 24)
    assert sums["empty_described"] == (4, 4)
    for name in HOLD_OUTS[:3]:
        numerator, denominator = sums[HELD_OUT[name].name]
        assert numerator == denominator > 0
    assert set(scores.groups) == {*HOLD_OUTS, *(count_of_groups(scene) for scene in ordinary)}


def test_the_biased_world_has_no_metric_of_held_out_scenes(tmp_path: Path):
    """Catches: rows without a value in the tables of today's world."""
    write_benchmark(tmp_path, count=5, seed=0)
    benchmark = ShapesBenchmark(tmp_path, decoding={})
    assert benchmark.metrics == METRICS
