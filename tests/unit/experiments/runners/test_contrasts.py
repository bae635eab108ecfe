"""Contrasts of a study and their verdicts, on numbers by hand."""

import pytest

from eval.benchmarks.contract import OBJECT_RECALL, RESPONSE_RATE
from experiments.runners.contrasts import LEVEL, Claim, contrasts_of, verdict
from tests.unit.experiments.runners.study_numbers import small_study

ALL = Claim(
    "DDPO", "DPO", ("object_recall", "words", "not_there"), (("DDPO", "base"), ("DPO", "base"))
)


@pytest.mark.parametrize(
    ("arm", "than", "metric", "expected"),
    [
        ("DDPO", "base", RESPONSE_RATE, "better"),
        ("base", "DDPO", RESPONSE_RATE, "worse"),
        ("DDPO", "DPO", RESPONSE_RATE, "not resolved"),
        ("DDPO", "DPO", OBJECT_RECALL, "better"),
        ("DPO", "base", OBJECT_RECALL, "worse"),
    ],
)
def test_verdicts(arm, than, metric, expected):
    """Catches: lower taken for better where higher is, and a claim made of noise."""
    difference = small_study().difference(arm, than, metric.name)
    assert verdict(metric, difference, difference.p_value) == expected
    assert verdict(metric, difference, None) == "not resolved"


def test_contrasts_stand_in_the_claims_order():
    """Catches: an arm compared with another one; a metric that no scores have."""
    contrasts = contrasts_of(ALL, small_study())
    assert [(item.metric.name, item.arm, item.than) for item in contrasts] == [
        ("response_rate", "DDPO", "DPO"),
        ("object_recall", "DDPO", "DPO"),
        ("words", "DDPO", "DPO"),
        ("response_rate", "DDPO", "base"),
        ("response_rate", "DPO", "base"),
    ]
    assert [item.verdict for item in contrasts] == [
        "not resolved", "better", "not resolved", "better", "better"
    ]  # fmt: skip
    words = contrasts[2]
    assert words.adjusted_p is None  # longer is neither better nor worse
    assert contrasts[0].as_json()["verdict"] == "not resolved"


def test_every_test_of_the_study_counts():
    """Catches: eight contrasts that each get the level of one.

    DPO against base in recall: differences -0.05, -0.04, -0.03, so t = -0.04 / (0.01 / sqrt(3)) =
    -6.93 and p = 0.0202 with two degrees of freedom. Alone it is resolved, beside another test
    with a larger p-value it is not.
    """
    results = small_study()
    alone = contrasts_of(Claim("DPO", "base", ("object_recall",)), results)
    recall = alone[1]
    assert recall.difference.p_value == pytest.approx(0.0202, abs=1e-4)
    assert alone[0].difference.p_value < recall.difference.p_value / 2
    assert recall.adjusted_p == recall.difference.p_value  # the larger one of two keeps its value
    noisy = contrasts_of(Claim("DDPO", "DPO", (), (("DPO", "DDPO"), ("base", "base"))), results)
    assert [item.adjusted_p for item in noisy] == [1.0, 1.0, 1.0]
    recall_first = Claim("DPO", "base", ("object_recall",), (("DDPO", "DPO"),))
    beside = contrasts_of(recall_first, results)[1]
    assert beside.adjusted_p == pytest.approx(2 * 0.0202, abs=1e-3)
    assert beside.adjusted_p < LEVEL
    more = (("DDPO", "DPO"), ("DPO", "DDPO"), ("DDPO", "DPO"))
    last = contrasts_of(Claim("DPO", "base", ("object_recall",), more), results)[1]
    assert last.adjusted_p == pytest.approx(4 * 0.0202, abs=1e-3)
    assert last.verdict == "not resolved"
