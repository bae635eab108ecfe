"""The shapes benchmark on planted mistakes, counted by hand."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks.contract import (
    Ratio,
    Scores,
    Span,
)
from eval.benchmarks.shapes import ShapesBenchmark
from rlhfv_ray.records import Answer
from rlhfv_ray.shapes.captions import caption, phrase
from rlhfv_ray.shapes.scenes import COLORS, CORNERS, SETTINGS, SHAPES, Group, Scene
from rlhfv_ray.shapes.world import read_scenes, write_benchmark


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> ShapesBenchmark:
    folder = tmp_path_factory.mktemp("shapes")
    write_benchmark(folder, count=6, seed=5)
    return ShapesBenchmark(folder, decoding={"temperature": 0.0})


@pytest.fixture(scope="module")
def scenes(benchmark: ShapesBenchmark) -> list[Scene]:
    return read_scenes(benchmark.folder)


def score(benchmark: ShapesBenchmark, texts: list[str]) -> Scores:
    answers = [
        Answer(prompt.id, prompt.question, text)
        for prompt, text in zip(benchmark.prompts, texts, strict=True)
    ]
    return benchmark.score(answers[::-1], {})  # in any order


def test_a_perfect_caption_has_no_mistake(benchmark: ShapesBenchmark, scenes: list[Scene]) -> None:
    result = score(benchmark, [caption(scene.setting, scene.groups) for scene in scenes])
    rates = result.rates()
    assert rates["object_recall"] == 1 and rates["n"] == 6
    assert [
        rate for name, rate in rates.items() if name.startswith(("response", "mention", "wrong"))
    ] == [0] * 7
    assert all(item.spans == () for item in result.answers)
    groups = sum(len(scene.groups) for scene in scenes)
    assert result.sums()["wrong_attributes"] == (0, groups) and result.sums()["mention_rate"] == (
        0,
        groups,
    )


def absent(scene: Scene) -> str:
    return next(shape for shape in SHAPES if shape not in {group.shape for group in scene.groups})


def other(value: Any, choices: Sequence[Any]) -> Any:
    return next(choice for choice in choices if choice != value)


PLANTS: dict[str, Callable[[Group], Group]] = {
    "attribute": lambda group: replace(group, color=other(group.color, tuple(COLORS))),
    "position": lambda group: replace(group, corner=other(group.corner, CORNERS)),
    "number": lambda group: replace(group, number=other(group.number, (1, 2, 3))),
}


@pytest.mark.parametrize("kind", PLANTS)
def test_a_planted_mistake_is_counted_and_marked(
    kind: str, benchmark: ShapesBenchmark, scenes: list[Scene]
) -> None:
    """In the first scene one phrase is wrong in one way; all other answers are perfect."""
    wrong = PLANTS[kind](scenes[0].groups[0])
    texts = [caption(scene.setting, scene.groups) for scene in scenes]
    texts[0] = caption(scenes[0].setting, (wrong, *scenes[0].groups[1:]))
    result = score(benchmark, texts)
    groups = sum(len(scene.groups) for scene in scenes)
    for name in ("attribute", "position", "number"):
        assert result.sums()[f"wrong_{name}s"] == (int(name == kind), groups)
    assert result.sums()["response_rate"] == (0, 6) and result.rates()["object_recall"] == 1
    (span,) = result.answers[0].spans
    assert span.kind == kind and texts[0][span.start : span.stop] == phrase(wrong)
    assert all(item.spans == () for item in result.answers[1:])


def test_a_planted_object_is_counted_and_marked(
    benchmark: ShapesBenchmark, scenes: list[Scene]
) -> None:
    """The first answer names one shape too many; the second names one instead of a true one."""
    first, second = scenes[:2]
    made_up = [
        Group(2, "red", absent(first), "top left"),
        Group(1, "red", absent(second), second.groups[0].corner),
    ]
    texts = [caption(scene.setting, scene.groups) for scene in scenes]
    texts[0] = caption(first.setting, (*first.groups, made_up[0]))
    texts[1] = caption(second.setting, (made_up[1], *second.groups[1:]))
    result = score(benchmark, texts)
    groups = sum(len(scene.groups) for scene in scenes)
    assert result.sums()["response_rate"] == (2, 6)
    assert result.sums()["mention_rate"] == (2, groups + 1)
    assert result.sums()["object_recall"] == (groups - 1, groups)
    assert result.sums()["wrong_attributes"] == (
        0,
        groups - 1,
    )  # of phrases about objects that are there
    for text, item, group in zip(texts, result.answers, made_up, strict=False):
        (span,) = item.spans
        assert span.kind == "object" and text[span.start : span.stop] == phrase(group)


def test_another_setting_is_marked(benchmark: ShapesBenchmark, scenes: list[Scene]) -> None:
    """Catches: an answer that counts as a wrong setting, and has no mark in the report."""
    scene = scenes[0]
    other = next(setting for setting in SETTINGS if setting != scene.setting)
    judgement = benchmark.judge(Answer("0", "?", caption(other, scene.groups)), scene)
    assert judgement.ratios["wrong_settings"] == Ratio(1, 1)
    (span,) = judgement.spans
    assert span.kind == "setting"
    assert judgement.answer.text[span.start : span.stop] == other
    hidden = benchmark.judge(Answer("0", "?", f"sub{other} a {other}."), scene)
    assert [span.start for span in hidden.spans] == [len(f"sub{other} a ")]
    unnamed = benchmark.judge(Answer("0", "?", "a place."), scene)
    assert unnamed.spans == () and unnamed.ratios["wrong_settings"] == Ratio(0, 0)


def test_one_phrase_can_be_wrong_in_every_way(
    benchmark: ShapesBenchmark, scenes: list[Scene]
) -> None:
    wrong = scenes[0].groups[0]
    for plant in PLANTS.values():
        wrong = plant(wrong)
    judgement = benchmark.judge(Answer("0", "?", caption(scenes[0].setting, (wrong,))), scenes[0])
    start = judgement.answer.text.index(phrase(wrong))
    stop = start + len(phrase(wrong))
    assert judgement.spans == tuple(
        Span(start, stop, kind) for kind in ("attribute", "number", "position")
    )
    assert judgement.ratios["repeated_objects"] == Ratio(0, 1)
    assert {
        judgement.ratios[name] for name in ("wrong_attributes", "wrong_numbers", "wrong_positions")
    } == {Ratio(1, 1)}


def test_an_object_named_twice_is_marked_where_it_is_not(
    benchmark: ShapesBenchmark, scenes: list[Scene]
) -> None:
    """Catches: a true phrase blamed because a false one about the same shape comes first."""
    true = scenes[0].groups[0]
    false = PLANTS["attribute"](true)
    text = caption(scenes[0].setting, (false, *scenes[0].groups))
    judgement = benchmark.judge(Answer("0", "?", text), scenes[0])
    start = text.index(phrase(false))
    assert judgement.spans == (Span(start, start + len(phrase(false)), "object"),)
    assert judgement.ratios["repeated_objects"] == Ratio(1, len(scenes[0].groups) + 1)
    assert judgement.ratios["wrong_attributes"] == Ratio(0, len(scenes[0].groups))


def test_manifest_follows_questions_and_decoding(
    benchmark: ShapesBenchmark, tmp_path: Path
) -> None:
    write_benchmark(tmp_path, count=6, seed=6)
    other_scenes = ShapesBenchmark(tmp_path, decoding={"temperature": 0.0}).manifest()
    differ = [name for name, value in benchmark.manifest().items() if other_scenes[name] != value]
    assert differ == ["prompts"]
    assert (
        ShapesBenchmark(benchmark.folder, decoding={}).manifest()["prompts"]
        == benchmark.manifest()["prompts"]
    )
