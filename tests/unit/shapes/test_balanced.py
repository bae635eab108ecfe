"""The balanced world: mistakes in both directions, and what training never shows."""

import random
from collections import Counter

import pytest

from rlhfv_ray.shapes import balanced
from rlhfv_ray.shapes.annotator import mistakes
from rlhfv_ray.shapes.balanced import (
    ADDED,
    COLOR_MISTAKEN,
    COLOR_PAIRS,
    COUNT_DRAWS,
    HELD_COLORS,
    HELD_SHAPES,
    HOLD_OUTS,
    LOOK_ALIKE_WEIGHT,
    LOOK_ALIKES,
    NUMBER_REDRAWN,
    OMITTED,
    RARE_MISTAKEN,
    TYPICAL_MISTAKEN,
    TYPICAL_WEIGHT,
    careless_caption,
    hold_out,
    is_held,
    make_benchmark_scenes,
    make_plain_scenes,
)
from rlhfv_ray.shapes.captions import caption, read_phrases
from rlhfv_ray.shapes.scenes import (
    COLORS,
    CORNERS,
    SETTINGS,
    SHAPES,
    SIGN_SETTINGS,
    SIGNS,
    TYPICAL,
    Group,
    Scene,
    cells,
    composition,
    is_unseen,
    make_scenes,
    render,
)
from rlhfv_ray.shapes.text_audit import told_apart
from rlhfv_ray.shapes.worlds import WORLDS

SCENES = 3000


@pytest.fixture(scope="module", params=["balanced", "signs"])
def captioned(request: pytest.FixtureRequest) -> list[tuple[Scene, str]]:
    rng = random.Random(0)
    scenes = WORLDS[request.param].training_scenes(SCENES, seed=1)
    return [(scene, careless_caption(scene, rng)) for scene in scenes]


def test_text_alone_does_not_tell_truth_from_carelessness(captioned):
    """Catches: a kind of mistake that is more frequent in one direction than in the other."""
    texts = [(caption(scene.setting, scene.groups), text) for scene, text in captioned]
    wrong = [(truth, text) for truth, text in texts if truth != text]
    assert len(wrong) > SCENES / 2
    # The tables of mistakes are right if they hold in the mirror too: chance, within 4 deviations.
    assert told_apart(wrong) == pytest.approx(0.5, abs=4 * 0.5 / len(wrong) ** 0.5)


def test_mistakes_go_both_ways(captioned):
    """Catches: counts that balance only because mistakes of one kind hide those of another."""
    swaps: Counter[bool] = Counter()
    numbers: Counter[bool] = Counter()
    counts: Counter[int] = Counter()
    for scene, text in captioned:
        said = [group for group, _ in read_phrases(text)]
        counts[len(said) - len(scene.groups)] += 1
        shapes = {group.shape for group in scene.groups}
        if len(said) == len(scene.groups):
            for group in said:
                if group.shape not in shapes:
                    swaps[group.shape in TYPICAL[scene.setting]] += 1
        for mistake in mistakes(scene, text):
            if mistake.kind == "number" and mistake.truth:
                numbers[mistake.said.number > mistake.truth.number] += 1
    for one, other in ((swaps[True], swaps[False]), (numbers[True], numbers[False])):
        assert abs(one - other) < 4 * (one + other) ** 0.5
        assert min(one, other) > 50
    assert abs(counts[1] - counts[-1]) < 4 * (counts[1] + counts[-1]) ** 0.5
    assert min(counts[1], counts[-1]) > 100 and set(counts) == {-1, 0, 1}


def test_a_rare_shape_is_mostly_taken_for_a_usual_one(captioned):
    """Catches: a world without over-generalisation: greedy decoding would say the truth."""
    rare: Counter[bool] = Counter()
    usual: Counter[bool] = Counter()
    for scene, text in captioned:
        said = {group.shape for group, _ in read_phrases(text)}
        shapes = {group.shape for group in scene.groups}
        for shape in shapes:
            other = LOOK_ALIKES[scene.setting].get(shape)
            is_clear = (shape in said) != (other in said)  # one of the two is said
            if other and other not in shapes and is_clear:
                counter = usual if shape in TYPICAL[scene.setting] else rare
                counter[other in said] += 1
    assert rare[True] / sum(rare.values()) > 0.6
    assert usual[True] / sum(usual.values()) < 0.4
    assert COLOR_MISTAKEN > 0.5 > NUMBER_REDRAWN


def test_rates_are_those_of_detailed_balance():
    """Catches: a rate that is tuned without its reverse, rare where its shape is common."""
    assert pytest.approx(TYPICAL_WEIGHT * TYPICAL_MISTAKEN) == LOOK_ALIKE_WEIGHT * RARE_MISTAKEN
    shares = {n: COUNT_DRAWS.count(n) / len(COUNT_DRAWS) for n in (1, 2, 3, 4)}
    for n, added in ADDED.items():
        assert shares[n] * added == pytest.approx(shares[n + 1] * OMITTED[n + 1])
    for setting, table in LOOK_ALIKES.items():
        assert all(table[other] == shape for shape, other in table.items())
        assert len(table) == 6 and sum(shape in TYPICAL[setting] for shape in table) == 3
        assert HELD_SHAPES[setting] not in table
        assert len(set(COLOR_PAIRS[setting])) == 2
    held = list(zip(*HELD_COLORS.values(), strict=True))
    assert HELD_COLORS.keys() == COLORS.keys()
    assert [len(set(names)) for names in held] == [len(COLORS)] * 2
    assert set(held[0]) < set(SHAPES) and set(held[1]) < set(SIGNS)


def test_the_setting_says_which_of_two_similar_words_is_usual():
    """Catches: signs that can be told without reading; a word that is usual in two settings."""
    usual = [sign for setting in SIGN_SETTINGS for sign in TYPICAL[setting]]
    assert sorted(usual) == sorted(SIGNS)
    for setting in SIGN_SETTINGS:
        for sign, other in LOOK_ALIKES[setting].items():
            assert sum(a != b for a, b in zip(sign, other, strict=True)) == 1


def test_training_never_shows_or_says_what_is_held_out(captioned):
    """Catches: a hold-out that the pictures keep but the captions tell."""
    for scene, text in captioned:
        assert hold_out(scene) == "" and not is_unseen(scene)
        said = [group for group, _ in read_phrases(text)]
        assert 1 <= len(said) <= 4
        assert not any(is_held(scene.setting, group) for group in said)
        assert len({group.shape for group in said}) == len({group.corner for group in said})
    # The biased world shows all of it, so the rules above are no matter of course.
    biased = make_scenes(500, seed=1)
    assert {"setting and shape", "colour and shape"} < {hold_out(scene) for scene in biased}


def test_plain_scenes_have_no_setting_and_show_nothing_that_is_held_out():
    """Catches: a true caption of a setting, or a held-out pair, that a base model learns."""
    scenes = make_plain_scenes(SCENES, seed=1)
    assert {scene.setting for scene in scenes} == {"picture"} and "picture" not in SETTINGS
    assert not any(is_unseen(scene) for scene in scenes)
    groups = [group for scene in scenes for group in scene.groups]
    assert not any(group.shape in HELD_COLORS[group.color] for group in groups)
    counts = Counter(group.shape for group in groups)
    assert min(counts.values()) > 0.8 * len(groups) / len(SHAPES)  # nothing is usual
    assert make_plain_scenes(40, seed=1) == scenes[:40] != make_plain_scenes(40, seed=2)
    for scene in scenes[:40]:
        assert [group for group, _ in read_phrases(caption("picture", scene.groups))] == [
            *scene.groups
        ]
        assert render(scene)


def test_the_benchmark_has_a_tenth_of_each_hold_out():
    """Catches: held-out scenes among the others; a composition that is scored twice."""
    scenes = make_benchmark_scenes(300, seed=0)
    assert [scene.id for scene in scenes] == list(range(300))
    counts = Counter(hold_out(scene) for scene in scenes)
    assert counts == {"": 180, **dict.fromkeys(HOLD_OUTS, 30)}
    ordinary = [scene for scene in scenes if not hold_out(scene)]
    assert all(is_unseen(scene) for scene in ordinary)
    compositions = [composition(scene) for scene in scenes if scene.groups]
    assert len(set(compositions)) == len(compositions)
    assert make_benchmark_scenes(40, seed=0) == scenes[:40] != make_benchmark_scenes(40, seed=1)


def test_five_groups_fit_into_four_corners():
    """Catches: shapes drawn on top of each other where two groups share a corner."""
    for scene in make_benchmark_scenes(400, seed=2):
        placed = [cell for cell, _ in cells(scene)]
        assert len(set(placed)) == len(placed) == sum(group.number for group in scene.groups)
        if hold_out(scene) == "five groups":
            assert {group.corner for group in scene.groups} == set(CORNERS)


def test_a_mistake_that_would_show_a_held_out_pair_is_not_made(monkeypatch):
    """Catches: a colour put on a shape that training must not show in it."""
    monkeypatch.setattr(balanced, "COLOR_MISTAKEN", 1.0)
    monkeypatch.setattr(balanced, "NUMBER_REDRAWN", 0.0)
    monkeypatch.setattr(balanced, "TYPICAL_MISTAKEN", 0.0)
    monkeypatch.setattr(balanced, "RARE_MISTAKEN", 0.0)
    assert HELD_COLORS["yellow"][0] == "diamond"
    free, blocked = (
        Scene(0, "beach", (Group(1, "white", shape, "top left"),)) for shape in ("star", "diamond")
    )
    rng = random.Random(0)
    said = [read_phrases(careless_caption(scene, rng))[0][0] for scene in (free, blocked)]
    assert [group.color for group in said] == ["yellow", "white"]
