"""Scores and their comparison, counted by hand."""

import time
from dataclasses import replace
from typing import Any

import pytest

from eval.benchmarks.contract import (
    CHAIR,
    MCNEMAR,
    SWAP_TEST,
    WORDS,
    JudgedAnswer,
    Metric,
    Ratio,
    Scores,
    chair_ratios,
    check_comparable,
    check_ids,
    check_scores,
    compare,
    in_order,
    missing_reason,
    read_votes,
)
from eval.chair import AnswerScore
from rlhfv_ray.endpoint.records import Reply
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import Answer, Prompt
from rlhfv_ray.stats import minimum_detectable_difference, wilson_interval

CAT = (("cat", "cat"),)
WRONG_NUMBERS = Metric("wrong_numbers", "lower")
ASKED = (Metric("accuracy", "higher"), Metric("f1", "higher", is_proportion=False))
RATING = Metric("average_score", "higher", scale=1, is_proportion=False)


def judged(
    mentions: int, hallucinated: int, named: int, true: int, **details: Ratio
) -> JudgedAnswer:
    objects = AnswerScore(mentions, CAT * hallucinated, named, true)
    return JudgedAnswer(Answer("0", "?", ""), chair_ratios(objects, 5) | details)


def scores(*answers: JudgedAnswer, **manifest: object) -> Scores:
    return Scores((*CHAIR, WRONG_NUMBERS, WORDS), answers, manifest)


def rated(*ratings: float | None, group: str = "") -> Scores:
    """A judge's ratings; None: it gave none."""
    answers = (
        JudgedAnswer(Answer("0", "?", ""), {}, missing="unparsed", group=group)
        if rating is None
        else JudgedAnswer(Answer("0", "?", ""), {"average_score": Ratio(rating, 1)}, group=group)
        for rating in ratings
    )
    return Scores((RATING,), tuple(answers), {})


def asked(right: int, images: int, *, each: int = 0, first: int = 0) -> Scores:
    """Answers to `each` questions about every image, or to 12 in all."""
    ratios = {"accuracy": Ratio(right, 1), "f1": Ratio(right, 1)}
    answers = [
        JudgedAnswer(Answer("0", "?", ""), ratios, cluster=f"{first + number % images}.jpg")
        for number in range(images * each or 12)
    ]
    return Scores(ASKED, tuple(answers), {})


def test_sums_and_rates_by_hand() -> None:
    result = scores(
        judged(3, 2, 1, 2, wrong_numbers=Ratio(1, 1)),
        judged(2, 0, 2, 3, wrong_numbers=Ratio(0, 2)),
        judged(0, 0, 0, 1),  # names nothing: counts for response_rate_all and recall only
    )
    assert result.sums() == {
        "response_rate": (1, 2),
        "response_rate_all": (1, 3),
        "mention_rate": (2, 5),
        "object_recall": (3, 6),
        "wrong_numbers": (1, 3),
        "words": (15, 3),
    }
    rates = {
        "response_rate": 1 / 2,
        "response_rate_all": 1 / 3,
        "mention_rate": 2 / 5,
        "object_recall": 1 / 2,
    }
    assert result.rates() == rates | {"wrong_numbers": 1 / 3, "words": 5.0, "n": 3, "missing": 0}
    intervals = result.intervals()
    assert intervals.pop("words") == (5.0, 5.0)
    for name, interval in intervals.items():
        rate = result.rates()[name]
        assert interval is not None and rate is not None and interval.low < rate < interval.high


@pytest.mark.parametrize("row", [{"id": "1", "question": None}, {"id": 1, "question": "What?"}])
def test_a_question_is_text(row: dict[str, Any]) -> None:
    """Catches: an AttributeError after the answers are made, for a null in a benchmark's file."""
    with pytest.raises(DataError, match="id and question must be text"):
        Prompt(image=b"", **row)


def test_rates_of_nothing_are_missing() -> None:
    result = scores(judged(0, 0, 0, 0))
    missing = ("response_rate", "mention_rate", "object_recall", "wrong_numbers")
    assert [result.rates()[name] for name in missing] == [None] * 4
    assert [result.intervals()[name] for name in missing] == [None] * 4
    assert result.rates()["response_rate_all"] == 0


def test_groups_of_a_number_stand_in_its_order() -> None:
    """Catches: "10 groups" before "2 groups", and a type of questions that loses its place."""
    names = ["2 groups", "other", "10 groups", "1 group", "counting", "2 groups"]
    answers = tuple(replace(judged(1, 0, 1, 1), group=group) for group in names)
    assert Scores(CHAIR, answers, {}).groups == (
        "other",
        "counting",
        "1 group",
        "2 groups",
        "10 groups",
    )


def test_groups_add_up_to_the_whole() -> None:
    """Catches: a group that counts another's answers, or loses those without a verdict."""
    counting = rated(1, 2, None, group="counting")
    second = rated(6, 4, group="other")
    answers = (*counting.answers[:2], *second.answers, *counting.answers[2:])
    both = Scores((RATING,), answers, {})
    assert both.groups == ("counting", "other")
    assert (
        both.rates("counting") == {"average_score": 1.5, "n": 3, "missing": 1} == counting.rates()
    )
    assert both.rates("other") == {"average_score": 5.0, "n": 2, "missing": 0} == second.rates()
    assert both.rates() == {"average_score": 13 / 4, "n": 5, "missing": 1}
    assert both.sums("counting") == {"average_score": (3, 2)} and both.sums() == {
        "average_score": (13, 4)
    }
    assert both.rates("nosuch") == {"average_score": None, "n": 0, "missing": 0}
    assert scores(judged(1, 0, 1, 1)).groups == ()


def test_intervals_and_comparisons_are_computed_once() -> None:
    """Catches: every table and figure that pays again, or one model's numbers for another's."""
    base, aligned = rated(*[0, 6, 5] * 9_000, group="a"), rated(*[2, 6, 4] * 9_000, group="a")
    worse = rated(*[0, 6, 4] * 9_000, group="a")
    start = time.process_time()
    first = (base.intervals(), base.intervals("b"), compare(base, aligned), compare(base, worse))
    computed = time.process_time()
    again = (base.intervals(), base.intervals("b"), compare(base, aligned), compare(base, worse))
    repeated = time.process_time()
    assert again == first and first[0] != first[1] and first[2] != first[3]
    assert repeated - computed < (computed - start) / 20
    base.intervals().clear()  # the caller's own copy
    assert base.intervals() == first[0] == replace(base).intervals()


def test_a_mean_has_a_bootstrap_interval() -> None:
    """Catches: Wilson's interval asked for what is no count, which fails or lies."""
    assert rated(3, 3, 3).intervals() == {"average_score": (3, 3)}
    assert rated(None).intervals() == {"average_score": None}
    interval = rated(*[0, 6] * 50).intervals()["average_score"]
    assert interval is not None
    # standard error 3 / 10: 3 +- 0.59; the bootstrap finds it within its own noise
    assert interval == pytest.approx((3 - 0.59, 3 + 0.59), abs=0.1)
    assert rated(*[0, 6] * 50, group="a").intervals("a")["average_score"] == interval


def test_compare_by_hand() -> None:
    base = scores(*[judged(2, 1, 1, 2)] * 6, *[judged(1, 0, 1, 2)] * 2, n=8)
    aligned = scores(*[judged(1, 0, 2, 2)] * 5, judged(2, 1, 1, 2), *[judged(1, 0, 1, 2)] * 2, n=8)
    result = compare(base, aligned)
    assert result.metric.name == "response_rate" and result.n == 8
    assert result.change == pytest.approx(1 / 8 - 6 / 8)
    assert result.change_interval is not None and result.change_interval.high < 0
    assert result.relative_reduction == pytest.approx(1 - (1 / 8) / (6 / 8))
    assert result.recall_change == pytest.approx(13 / 16 - 8 / 16)
    assert result.p_value == pytest.approx(2 / 2**5)  # 5 answers differ, all the same way
    assert (
        result.relative_reduction_interval is not None
        and result.relative_reduction_interval.low > 0
    )
    assert result.recall_change_interval is not None and result.recall_change_interval.low > 0


def test_compare_leaves_out_what_either_side_has_no_verdict_on() -> None:
    """Catches: a missing verdict counted as a hallucination, or as none."""
    wrong, right, silent = (
        judged(1, 1, 0, 1),
        judged(1, 0, 1, 1),
        JudgedAnswer(Answer("0", "?", ""), {}, missing="refused"),
    )
    base = scores(wrong, wrong, silent, wrong, right, silent)
    aligned = scores(right, silent, right, wrong, right, silent)
    result = compare(base, aligned)
    assert result.n == 3  # the first, the fourth and the fifth
    assert (result.change, result.relative_reduction) == (
        pytest.approx(-1 / 3),
        pytest.approx(1 / 2),
    )
    assert compare(base, aligned) == compare(
        scores(wrong, wrong, right), scores(right, wrong, right)
    )
    nothing = compare(scores(silent), scores(wrong))
    assert nothing.n == 0
    assert (nothing.change, nothing.relative_reduction, nothing.p_value, nothing.detectable) == (
        None,
    ) * 4


def test_compare_tests_only_what_is_right_or_wrong() -> None:
    """Catches: McNemar's test on ratings, of which every one but 0 would count as a case."""
    result = compare(rated(1, 2, 3, 4), rated(2, 3, 4, 5))
    assert (result.p_value, result.detectable, result.recall_change) == (None, None, None)
    assert result.change == 1 and result.change_interval == (1, 1)
    one = compare(scores(judged(2, 1, 1, 1)), scores(judged(1, 0, 1, 1)))
    assert (one.p_value, one.test) == (1.0, MCNEMAR)  # 1 differs: 2 / 2


def test_compare_exchanges_images_where_they_have_several_cases() -> None:
    """Catches: McNemar's test on mentions, or on questions about one image, which are alike."""
    mentions = (Metric("mention_rate", "lower"),)
    base = Scores(mentions, (judged(3, 2, 1, 1),) * 4, {})
    aligned = Scores(mentions, (judged(3, 0, 1, 1),) * 4, {})
    result = compare(base, aligned)
    assert (result.p_value, result.test, result.detectable) == (2 / 2**4, SWAP_TEST, None)
    # 12 questions about 3 images: 2 of 2^3 exchanges, where McNemar's test would have 2 of 2^12
    wrong, right = asked(0, 3), asked(1, 3)
    assert compare(wrong, right).p_value == 2 / 2**3
    assert compare(asked(0, 12), asked(1, 12)).p_value == 2 / 2**12
    assert compare(asked(0, 12), asked(1, 12)).test == MCNEMAR


def test_an_f1_of_nothing_or_of_all_is_no_certainty() -> None:
    """Catches: 0.0 (0.0 to 0.0) of 50 answers, because resamples of nothing are nothing too."""
    f1 = Metric("phrase_f1", "higher", is_proportion=False)
    for right, expected in ((0, wilson_interval(0, 50)), (6, wilson_interval(50, 50))):
        answers = [
            JudgedAnswer(Answer(str(number), "?", "."), {"phrase_f1": Ratio(right, 6)})
            for number in range(50)
        ]
        empty = JudgedAnswer(Answer("50", "?", "."), {"phrase_f1": Ratio(0, 0)})  # is no case
        result = Scores((f1,), (*answers, empty), {"benchmark": "shapes"})
        assert result.intervals()["phrase_f1"] == pytest.approx(expected)


def test_intervals_know_the_questions_about_one_image() -> None:
    """Catches: an interval of a proportion, of F1 or of a difference over answers, not images.

    25 images are right on all 8 questions, 25 are wrong: 50 cases, not 400.
    """
    right, wrong = asked(1, 25, each=8).answers, asked(0, 25, each=8, first=25).answers
    shared = Scores(ASKED, right + wrong, {})
    alone = Scores(ASKED, tuple(replace(item, cluster="") for item in right + wrong), {})
    for name, tolerance in (("accuracy", 0.01), ("f1", 0.03)):
        interval = shared.intervals()[name]
        assert interval == pytest.approx(wilson_interval(25, 50), abs=tolerance)
        assert alone.intervals()[name] == pytest.approx(wilson_interval(200, 400), abs=tolerance)
    assert shared.rates() == alone.rates()
    better = Scores(ASKED, asked(1, 50, each=8).answers, {})
    low, high = compare(shared, better).change_interval or (0, 0)
    assert (low, high) == pytest.approx((0.36, 0.64), abs=0.03)  # 0.5 +- 1.96 / 2 / sqrt(50)


def test_compare_states_the_detectable_decrease() -> None:
    """Catches: another formula for the detectable decrease.

    40 of 100 answers differ, 50 are wrong at first: 10 d = 1.96 sqrt(0.4) + 0.8416 sqrt(0.4 - d^2),
    so d = 0.1751.
    """
    wrong, right = judged(1, 1, 0, 1), judged(1, 0, 1, 1)
    base = scores(*[wrong] * 50, *[right] * 50)
    aligned = scores(*[right] * 20, *[wrong] * 50, *[right] * 30)
    assert compare(base, aligned).detectable == pytest.approx(0.1751, abs=5e-5)
    # alike on every answer: the pessimistic psi of two that err independently
    assert (
        compare(base, base).detectable
        == minimum_detectable_difference(100, 0.5)
        == pytest.approx(0.196, abs=5e-3)
    )
    assert compare(scores(right), scores(wrong)).detectable is None  # nothing can fall below 0


def test_compare_refuses_different_manifests_and_names_the_fields() -> None:
    answer = judged(1, 0, 1, 1)
    base = scores(answer, prompts="a1", n=1, decoding={"temperature": 0.0})
    with pytest.raises(DataError, match=r"differ in decoding, judge\.") as caught:
        compare(
            base, scores(answer, prompts="a1", n=1, decoding={"temperature": 0.7}, judge="oracle")
        )
    assert "prompts" not in str(caught.value)
    assert compare(base, base).p_value == 1


def test_check_comparable_shows_both_values() -> None:
    """Catches: a refusal that leaves people looking for what differs."""
    with pytest.raises(DataError) as caught:
        check_comparable({"judge": "gpt-4o", "n": 96}, {"judge": "gpt-4-0314", "n": 96, "votes": 3})
    assert "judge: 'gpt-4o' against 'gpt-4-0314'; votes: None against 3" in str(caught.value)
    check_comparable({"n": 96}, {"n": 96})


def test_check_comparable_shows_only_what_differs() -> None:
    """Catches: a screen of settings that agree, and of whole digests, without a way on."""
    first = {"decoding": {"beams": 1, "tokens": 256}, "prompts": "ab" * 32}
    second = {"decoding": {"beams": 1, "tokens": 8}, "prompts": "cd" * 32}
    with pytest.raises(DataError) as caught:
        check_comparable(first, second)
    message = str(caught.value)
    assert "differ in decoding, prompts. decoding.tokens: 256 against 8; prompts: 'abab" in message
    assert "beams" not in message and "ab" * 32 not in message
    assert message.endswith("Measure both models alike, or compare fewer of the runs.")


def test_votes_are_read_and_their_agreement_counted() -> None:
    answers = [Answer(name, "?", "") for name in ("a", "b", "c", "d")]
    verdicts = {
        "a": [Reply("ok", "3"), Reply("ok", "3")],
        "b": [Reply("ok", "3"), Reply("ok", "4"), Reply("ok", "what?")],
        "c": [Reply("refused", "5"), Reply("ok", "5")],  # one vote alone agrees with nobody
    }
    votes, agreement = read_votes(
        answers, verdicts, lambda text: int(text) if text.isdigit() else None
    )
    assert votes == {"a": [3, 3], "b": [3, 4], "c": [5], "d": []}
    assert agreement == 1 / 2
    assert read_votes(answers, {}, int) == ({"a": [], "b": [], "c": [], "d": []}, None)


def test_missing_reasons() -> None:
    assert missing_reason([Reply("ok", "what?")]) == "unparsed"
    assert (
        missing_reason([Reply("refused"), Reply("ok", "?"), Reply("refused")])
        == "refused, unparsed"
    )
    assert missing_reason([]) == "not asked"


def test_questions_with_one_id_are_refused() -> None:
    """Catches: a benchmark's file in which one answer is scored for two questions."""
    prompts = [Prompt(name, b"", "?") for name in ("a", "b")]
    check_ids(prompts)
    with pytest.raises(DataError, match=r"1 ids stand for several questions each \(a\)"):
        check_ids([*prompts, prompts[0]])


def test_slips_in_the_scores_of_a_new_benchmark_are_named() -> None:
    """Catches: a name that is mistyped in one answer, whose count is left out without a word; a
    traceback of the report.
    """
    right = rated(5.0, None)
    check_scores(right, "mine")
    for ratios, fault in (
        ({"my_score": Ratio(5, 1)}, "gives answer 0 a ratio of my_score, which is no metric"),
        ({"rating": 5.0}, "gives rating a value that is no Ratio"),
    ):
        slip = replace(right.answers[0], ratios=ratios)
        with pytest.raises(ConfigError, match=f"`score` of mine .*{fault}"):
            check_scores(replace(right, answers=(*right.answers[1:], slip)), "mine")
    with pytest.raises(ConfigError, match="returns NoneType, not Scores"):
        check_scores(None, "mine")
    upwards = tuple(metric._replace(better="up") for metric in right.metrics)
    with pytest.raises(ConfigError, match="the direction 'up', not one of"):
        check_scores(replace(right, metrics=upwards), "mine")
    with pytest.raises(ConfigError, match="gives NoneType for manifest"):
        check_scores(replace(right, manifest=None), "mine")  # pyright: ignore
    with pytest.raises(ConfigError, match="prompts of a benchmark are NoneType"):
        check_ids(None)  # pyright: ignore


def test_in_order_sorts_and_refuses() -> None:
    prompts = [Prompt(name, b"", "?") for name in ("a", "b", "c")]
    a, b, c = (Answer(name, "?", name) for name in ("a", "b", "c"))
    assert in_order(prompts, [c, a, b]) == [a, b, c]
    with pytest.raises(DataError, match=r"got 2 answers, 1 prompts without \(b\)"):
        in_order(prompts, [c, a])
    with pytest.raises(DataError, match="got 4 answers, 0 prompts without"):
        in_order(prompts, [a, b, c, a])
    with pytest.raises(
        DataError, match=r"1 prompts without \(c\)"
    ):  # as many as asked, but one twice
        in_order(prompts, [a, b, b])
