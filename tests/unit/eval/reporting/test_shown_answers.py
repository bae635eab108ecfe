"""Which answers are drawn for the page."""

import pytest

from eval.reporting.shown_answers import choose_answers, count_changes, harm_added
from tests.hand_scores import aligned, base, judged, models, pets, rated


def test_choice_is_half_changed_and_shows_what_got_worse() -> None:
    chosen = choose_answers(models(), count=4, seed=0)
    assert [choice.drawn for choice in chosen] == ["better", "worse", "random", "random"]
    assert chosen[0].item in (0, 1, 2) and chosen[1].item == 9
    assert chosen == choose_answers(models(), count=4, seed=0)
    assert len({tuple(choose_answers(models(), count=4, seed=seed)) for seed in range(10)}) > 1
    assert count_changes(models()) == (3, 1, 10)


@pytest.mark.parametrize("count", range(13))
def test_choice_takes_each_answer_once(count: int) -> None:
    items = [choice.item for choice in choose_answers(models(), count=count, seed=1)]
    assert len(items) == len(set(items)) == min(count, 10)
    alike = [
        choice.drawn for choice in choose_answers({"a": base(), "b": base()}, count=count, seed=1)
    ]
    assert alike == ["random"] * min(count, 10)
    turned = {"a": aligned(), "b": base()}  # more worse than better
    assert len(choose_answers(turned, count=count, seed=1)) == min(count, 10)
    alone = [choice.item for choice in choose_answers({"a": base()}, count=count, seed=1)]
    assert len(alone) == len(set(alone)) == min(count, 10)


def test_one_model_shows_half_its_worst() -> None:
    """6 answers have one span, answer 6 has two, three have none."""
    chosen = choose_answers({"base": base()}, count=4, seed=0)
    assert [choice.drawn for choice in chosen] == ["worst", "worst", "random", "random"]
    assert chosen[0].item == 6 and chosen[1].item in range(6)
    firsts = {choose_answers({"base": base()}, count=4, seed=seed)[1].item for seed in range(20)}
    assert len(firsts) > 1  # ties are broken at random
    perfect = pets([judged(n) for n in range(4)])
    assert {choice.drawn for choice in choose_answers({"base": perfect}, count=4, seed=0)} == {
        "random"
    }


def test_without_spans_the_first_metric_says_what_is_worse() -> None:
    """Catches: a judged benchmark without any changed answer; a missing verdict counted as one."""
    before, after = rated([0, 6, 6, 1, "refused", 5]), rated([6, 0, 6, 2, 0, "unparsed"])
    assert harm_added({"a": before, "b": after}) == [-1, 1, 0, 0, 0, 0]
    chosen = choose_answers({"a": after}, count=6, seed=0)
    assert {choice.item for choice in chosen if choice.drawn == "worst"} == {1, 3, 4}
    assert 5 not in {
        choice.item
        for choice in choose_answers({"a": after}, count=12, seed=0)
        if choice.drawn == "worst"
    }


def test_the_last_model_is_compared_with_the_first() -> None:
    assert count_changes({"a": base(), "b": base(), "c": aligned()}) == (3, 1, 10)
    assert count_changes({"a": base()}) == (0, 0, 10)
