"""Scores, their comparison, and the shapes benchmark on planted mistakes; every figure is counted by hand beside it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.benchmark import Count, JudgedAnswer, Mark, Scores, compare, in_order
from eval.chair import AnswerScore, ChairScores
from eval.shapes import ShapesBenchmark
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Answer, Prompt
from rlhfv_ray.shapes.captions import caption, phrase
from rlhfv_ray.shapes.scenes import COLORS, CORNERS, SHAPES, Group, Scene
from rlhfv_ray.shapes.world import read_scenes, write_benchmark

CAT = (("cat", "cat"),)


def judged(mentions: int, hallucinated: int, named: int, true: int, **details: Count) -> JudgedAnswer:
    objects = AnswerScore(mentions, CAT * hallucinated, named, true)
    return JudgedAnswer(Answer("0", "?", ""), objects, 5, (), details)


def scores(*answers: JudgedAnswer, **manifest: object) -> Scores:
    return Scores(ChairScores(None, None, None, None, 5.0, len(answers)), answers, manifest)


def test_counts_and_rates_by_hand() -> None:
    found = scores(
        judged(3, 2, 1, 2, wrong_numbers=Count(1, 1)),
        judged(2, 0, 2, 3, wrong_numbers=Count(0, 2)),
        judged(0, 0, 0, 1),  # names nothing: counts for response_rate_all and recall only
    )
    assert found.counts() == {
        "response_rate": (1, 2),
        "response_rate_all": (1, 3),
        "mention_rate": (2, 5),
        "object_recall": (3, 6),
        "wrong_numbers": (1, 3),
    }
    rates = {"response_rate": 1 / 2, "response_rate_all": 1 / 3, "mention_rate": 2 / 5, "object_recall": 1 / 2}
    assert found.rates() == rates | {"wrong_numbers": 1 / 3, "words": 5.0, "n": 3}
    for name, interval in found.intervals().items():
        rate = found.rates()[name]
        assert interval is not None and rate is not None and interval.low < rate < interval.high


def test_rates_of_nothing_are_missing() -> None:
    found = scores(judged(0, 0, 0, 0))
    missing = ("response_rate", "mention_rate", "object_recall")
    assert [found.rates()[name] for name in missing] == [None] * 3
    assert [found.intervals()[name] for name in missing] == [None] * 3
    assert found.rates()["response_rate_all"] == 0


def test_compare_by_hand() -> None:
    base = scores(*[judged(2, 1, 1, 2)] * 6, *[judged(1, 0, 1, 2)] * 2, n=8)
    aligned = scores(*[judged(1, 0, 2, 2)] * 5, judged(2, 1, 1, 2), *[judged(1, 0, 1, 2)] * 2, n=8)
    found = compare(base, aligned)
    assert found.relative_reduction == pytest.approx(1 - (1 / 8) / (6 / 8))
    assert found.recall_change == pytest.approx(13 / 16 - 8 / 16)
    assert found.p_value == pytest.approx(2 / 2**5)  # 5 answers differ, all the same way
    assert found.relative_reduction_interval is not None and found.relative_reduction_interval.low > 0
    assert found.recall_change_interval is not None and found.recall_change_interval.low > 0


def test_compare_refuses_different_manifests_and_names_the_fields() -> None:
    answer = judged(1, 0, 1, 1)
    base = scores(answer, prompts="a1", n=1, decoding={"temperature": 0.0})
    with pytest.raises(DataError, match=r"differ in decoding, judge\.") as caught:
        compare(base, scores(answer, prompts="a1", n=1, decoding={"temperature": 0.7}, judge="oracle"))
    assert "prompts" not in str(caught.value)
    assert compare(base, base).p_value == 1


def test_in_order_sorts_and_refuses() -> None:
    prompts = [Prompt(name, b"", "?") for name in ("a", "b", "c")]
    a, b, c = (Answer(name, "?", name) for name in ("a", "b", "c"))
    assert in_order(prompts, [c, a, b]) == [a, b, c]
    with pytest.raises(DataError, match=r"got 2 answers, 1 prompts without \(b\)"):
        in_order(prompts, [c, a])
    with pytest.raises(DataError, match="got 4 answers, 0 prompts without"):
        in_order(prompts, [a, b, c, a])
    with pytest.raises(DataError, match=r"1 prompts without \(c\)"):  # as many as asked, but one twice
        in_order(prompts, [a, b, b])


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> ShapesBenchmark:
    folder = tmp_path_factory.mktemp("shapes")
    write_benchmark(folder, count=6, seed=5)
    return ShapesBenchmark(folder, decoding={"temperature": 0.0})


@pytest.fixture(scope="module")
def scenes(benchmark: ShapesBenchmark) -> list[Scene]:
    return read_scenes(benchmark.folder)


def score(benchmark: ShapesBenchmark, texts: list[str]) -> Scores:
    answers = [Answer(prompt.id, prompt.question, text) for prompt, text in zip(benchmark.prompts, texts, strict=True)]
    return benchmark.score(answers[::-1])  # in any order


def test_a_perfect_caption_has_no_mistake(benchmark: ShapesBenchmark, scenes: list[Scene]) -> None:
    found = score(benchmark, [caption(scene.setting, scene.groups) for scene in scenes])
    rates = found.rates()
    assert rates["object_recall"] == 1 and rates["n"] == 6
    assert [rate for name, rate in rates.items() if name.startswith(("response", "mention", "wrong"))] == [0] * 6
    assert all(item.marks == () for item in found.answers)
    groups = sum(len(scene.groups) for scene in scenes)
    assert found.counts()["wrong_attributes"] == (0, groups) and found.counts()["mention_rate"] == (0, groups)


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
def test_a_planted_mistake_is_counted_and_marked(kind: str, benchmark: ShapesBenchmark, scenes: list[Scene]) -> None:
    """In the first scene one phrase is wrong in one way; all other answers are perfect."""
    wrong = PLANTS[kind](scenes[0].groups[0])
    texts = [caption(scene.setting, scene.groups) for scene in scenes]
    texts[0] = caption(scenes[0].setting, (wrong, *scenes[0].groups[1:]))
    found = score(benchmark, texts)
    groups = sum(len(scene.groups) for scene in scenes)
    for name in ("attribute", "position", "number"):
        assert found.counts()[f"wrong_{name}s"] == (int(name == kind), groups)
    assert found.counts()["response_rate"] == (0, 6) and found.rates()["object_recall"] == 1
    (mark,) = found.answers[0].marks
    assert mark.kind == kind and texts[0][mark.start : mark.stop] == phrase(wrong)
    assert all(item.marks == () for item in found.answers[1:])


def test_a_planted_object_is_counted_and_marked(benchmark: ShapesBenchmark, scenes: list[Scene]) -> None:
    """The first answer names one shape too many; the second names one instead of a true one."""
    first, second = scenes[:2]
    made_up = [Group(2, "red", absent(first), "top left"), Group(1, "red", absent(second), second.groups[0].corner)]
    texts = [caption(scene.setting, scene.groups) for scene in scenes]
    texts[0] = caption(first.setting, (*first.groups, made_up[0]))
    texts[1] = caption(second.setting, (made_up[1], *second.groups[1:]))
    found = score(benchmark, texts)
    groups = sum(len(scene.groups) for scene in scenes)
    assert found.counts()["response_rate"] == (2, 6)
    assert found.counts()["mention_rate"] == (2, groups + 1)
    assert found.counts()["object_recall"] == (groups - 1, groups)
    assert found.counts()["wrong_attributes"] == (0, groups - 1)  # of phrases about objects that are there
    for text, item, group in zip(texts, found.answers, made_up, strict=False):
        (mark,) = item.marks
        assert mark.kind == "object" and text[mark.start : mark.stop] == phrase(group)


def test_one_phrase_can_be_wrong_in_every_way(benchmark: ShapesBenchmark, scenes: list[Scene]) -> None:
    wrong = scenes[0].groups[0]
    for plant in PLANTS.values():
        wrong = plant(wrong)
    judgement = benchmark.judge(Answer("0", "?", caption(scenes[0].setting, (wrong,))), scenes[0])
    start = judgement.answer.text.index(phrase(wrong))
    stop = start + len(phrase(wrong))
    assert judgement.marks == tuple(Mark(start, stop, kind) for kind in ("attribute", "number", "position"))
    assert judgement.details["repeated_objects"] == Count(0, 1)
    assert {count for name, count in judgement.details.items() if name != "repeated_objects"} == {Count(1, 1)}


def test_an_object_named_twice_is_marked_where_it_is_not(benchmark: ShapesBenchmark, scenes: list[Scene]) -> None:
    """Catches: the true phrase blamed because a false one about the same shape came first; CHAIR sees neither."""
    true = scenes[0].groups[0]
    false = PLANTS["attribute"](true)
    text = caption(scenes[0].setting, (false, *scenes[0].groups))
    judgement = benchmark.judge(Answer("0", "?", text), scenes[0])
    start = text.index(phrase(false))
    assert judgement.marks == (Mark(start, start + len(phrase(false)), "object"),)
    assert judgement.details["repeated_objects"] == Count(1, len(scenes[0].groups) + 1)
    assert judgement.details["wrong_attributes"] == Count(0, len(scenes[0].groups))


def test_manifest_follows_questions_and_decoding(benchmark: ShapesBenchmark, tmp_path: Path) -> None:
    write_benchmark(tmp_path, count=6, seed=6)
    other_scenes = ShapesBenchmark(tmp_path, decoding={"temperature": 0.0}).manifest()
    differ = [name for name, value in benchmark.manifest().items() if other_scenes[name] != value]
    assert differ == ["prompts"]
    assert ShapesBenchmark(benchmark.folder, decoding={}).manifest()["prompts"] == benchmark.manifest()["prompts"]
