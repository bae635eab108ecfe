"""The text about scores and comparisons, with the arithmetic beside it."""

from dataclasses import replace

import pytest

from eval.benchmarks.contract import MCNEMAR, RESPONSE_RATE, Comparison, Metric, Ratio, compare
from eval.reporting.wording import (
    comparison_sentences,
    comparisons,
    format_cell,
    is_resolved,
    missing_reasons,
    missing_text,
    notes,
    result_sentences,
    rise_text,
    table_rows,
    title,
)
from rlhfv_ray.errors import DataError
from rlhfv_ray.stats import Interval
from tests.hand_scores import aligned, base, judged, models, pets, rated

RELATIVE = Metric("relative_score", "higher", is_proportion=False)
RATING = Metric("average_score", "higher", scale=1, is_proportion=False)
EMPTY = Comparison(RESPONSE_RATE, None, None, None, None, None, None, None)


def test_sentences_say_what_is_not_resolved() -> None:
    resolved = replace(
        EMPTY,
        relative_reduction=0.5,
        relative_reduction_interval=Interval(0.2, 0.7),
        p_value=0.0004,
        recall_change=-0.02,
        recall_change_interval=Interval(-0.03, -0.01),
        detectable=0.2,
        n=96,
        test=MCNEMAR,
    )
    assert comparison_sentences(resolved) == [
        "Relative reduction of the response rate: +50.0 % (95 % interval +20.0 to +70.0). "
        "Exact McNemar test: p < 0.001.",
        "Change of object recall: -2.0 points (95 % interval -3.0 to -1.0).",
    ]
    unresolved = replace(
        resolved,
        relative_reduction=0.1,
        relative_reduction_interval=Interval(0.0, 0.4),
        p_value=0.25,
        detectable=0.2011,
        recall_change=0.01,
        recall_change_interval=None,
    )
    assert comparison_sentences(unresolved) == [
        "Relative reduction of the response rate: +10.0 % (95 % interval +0.0 to +40.0), "
        "not resolved at n = 96: the interval includes 0. Exact McNemar test: p = 0.250. "
        "n = 96 finds a fall of 20.1 points or more (power 80 %).",
        "Change of object recall: +1.0 points, not resolved at n = 96: "
        "too few cases for an interval.",
    ]
    assert comparison_sentences(EMPTY) == [
        "Relative reduction of the response rate: not defined at n = 0."
    ]


def test_a_difference_that_its_test_does_not_find_is_not_resolved() -> None:
    """Catches: 5 mistakes of 36 that became none called resolved beside p = 0.062 (2 / 2^5), and an
    interval without width, since all resamples of no mistakes have none."""
    gone = replace(
        EMPTY,
        relative_reduction=1.0,
        relative_reduction_interval=Interval(1.0, 1.0),
        p_value=2 / 2**5,
        n=36,
        test=MCNEMAR,
    )
    assert not is_resolved(gone)
    assert comparison_sentences(gone) == [
        "Relative reduction of the response rate: +100.0 % (no interval, as nothing is left of "
        "it). Exact McNemar test: p = 0.062, not resolved at n = 36."
    ]
    more = replace(gone, p_value=2 / 2**6)
    assert is_resolved(more)
    assert comparison_sentences(more)[0].endswith("Exact McNemar test: p = 0.031.")


def test_sentences_on_other_metrics_give_changes_in_their_unit() -> None:
    """Catches: a rise shown as a reduction, points for a rating, or a test that was not made."""
    change = replace(EMPTY, change=0.031, change_interval=Interval(0.01, 0.05), n=90)
    assert comparison_sentences(replace(change, metric=RELATIVE)) == [
        "Change of the relative score: +3.1 points (95 % interval +1.0 to +5.0)."
    ]
    assert comparison_sentences(replace(change, metric=RATING)) == [
        "Change of the average score: +0.03 (95 % interval +0.01 to +0.05)."
    ]


def test_result_sentences_name_the_model_where_there_are_several() -> None:
    assert result_sentences(comparisons({"base": base()})) == []
    expected = comparison_sentences(compare(base(), aligned()))
    assert result_sentences(comparisons(models())) == expected
    sentences = result_sentences(comparisons({**models(), "third": base()}))
    names = [sentence.split(":")[0] for sentence in sentences]
    assert names == ["aligned", "aligned", "third", "third"]
    assert "+33.3 %" in sentences[0] and "+0.0 %" in sentences[2]


def test_title_names_benchmark_models_and_number() -> None:
    assert title({"base": base()}) == "pets: base, n = 10 answers"
    assert title(models()) == "pets: base and aligned, n = 10 answers each"
    assert (
        title({**models(), "third": base()}) == "pets: base, aligned and third, n = 10 answers each"
    )
    first, *others = base().answers
    apart = replace(base(), answers=(replace(first, ratios={"other": Ratio(1, 1)}), *others))
    assert title({"base": apart}) == "pets: base, n = 10 answers, 9 of them in the first rate"
    with pytest.raises(DataError, match="got none"):
        title({})


def test_rows_have_every_metric_in_its_unit() -> None:
    rates, ratings, words = table_rows(
        {"base": rated([0, 2, 3, 5]), "aligned": rated([3, 2, 3, 5])}
    )
    assert rates.label == "hallucination rate / %"
    assert [cell.number for cell in rates.cells] == ["50.0", "25.0"]  # 2 of 4 and 1 of 4
    assert rates.cells[0].interval == "15.0 to 85.0"  # Wilson for 2 of 4
    assert rates.changes == ("-25.0",)
    assert ratings.label == "average score"
    assert [cell.number for cell in ratings.cells] == ["2.50", "3.25"]  # 10 / 4 and 13 / 4
    assert ratings.changes == ("+0.75",)
    assert words.label == "words"
    assert list(map(str, words.cells)) == ["2.00 (2.00 to 2.00)"] * 2  # 2 words each
    assert words.changes == ("+0.00",)


def test_a_rate_of_nothing_is_no_zero() -> None:
    silent = replace(judged(0), ratios={})
    first, *_ = table_rows({"base": pets([silent]), "aligned": pets([judged(0)])})
    assert str(first.cells[0]) == "none counted" and first.changes == ("",)
    assert str(format_cell(RATING, 12.345)) == "12.3"
    assert str(format_cell(RATING, 2.345, Interval(1, 3))) == "2.35 (1.00 to 3.00)"


def test_missing_verdicts_are_counted_by_reason_and_noted() -> None:
    scores = rated([6, "unparsed", "refused", "unparsed", 0])
    assert missing_reasons(scores) == {"unparsed": 2, "refused": 1}
    assert missing_text(scores) == "3 of 5 answers without a verdict: unparsed 2, refused 1"
    assert missing_text(base()) == ""
    assert notes({"m": scores, "b": base()}) == [
        "m: 3 of 5 answers without a verdict: unparsed 2, refused 1",
        "m: release_compatible: average score 2.25, unparsed 1",
    ]


def test_notes_give_totals_and_not_every_part():
    """Catches: a screen full of parts beside six rates; a number whose name says nothing."""
    parts = {"street": {"in_scene": 0.5, "n": 10}, "mean_rise": 0.25}
    scores = replace(
        base(), extras={"over_generalization": parts, "only_parts": {"conv": {"n": 3}}}
    )
    assert notes({"m": scores}) == [
        f"m: {rise_text(0.25)}",
        "m: only_parts: conv n 3",
    ]
