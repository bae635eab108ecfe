"""The results and sentences of a study, on numbers by hand."""

import json
from pathlib import Path

import pytest

from eval.benchmarks.contract import OBJECT_RECALL, RESPONSE_RATE, WORDS
from experiments.runners.study_report import (
    Claim,
    StudyResults,
    arms_figure,
    markdown,
    sentences,
    study_results,
    verdict,
)
from experiments.runners.sweep_report import TrialResult
from rlhfv_ray.errors import DataError

METRICS = (RESPONSE_RATE, OBJECT_RECALL, WORDS)
VALUES = {
    "base": ((0.30, 0.32, 0.31), (0.85, 0.85, 0.85), (20.0, 21.0, 22.0)),
    "DDPO": ((0.02, 0.03, 0.01), (0.90, 0.91, 0.92), (19.0, 19.5, 20.0)),
    "DPO": ((0.02, 0.01, 0.03), (0.80, 0.81, 0.82), (18.0, 18.0, 18.0)),
}


def trial(arm: str, seed: int) -> TrialResult:
    """Return a trial as its folder records it."""
    columns = zip(METRICS, VALUES[arm], strict=True)
    rates = {metric.name: values[seed] for metric, values in columns}
    rung = {
        "rates": {**rates, "n": 600, "missing": 0, "rise": -0.01},
        "metrics": [metric._asdict() for metric in METRICS],
    }
    return TrialResult(
        f"{arm}{seed}",
        trial_params={"arm": arm, "seed": seed},
        rungs={1: rung},
        status="finished",
        error="",
        seconds=1.0,
        train="",
        made=False,
    )


def unordered_trials() -> list[TrialResult]:
    return [trial(arm, seed) for seed in (2, 0, 1) for arm in VALUES]


@pytest.fixture
def results() -> StudyResults:
    return study_results(unordered_trials(), list(VALUES))


def test_values_stand_under_their_arm_and_seed(results):
    """Catches: seeds of one arm compared with other seeds of another; counts shown as metrics."""
    assert results.names == ["response_rate", "object_recall", "words", "rise"]
    assert results.seeds == (0, 1, 2)
    assert results.values["DDPO", "response_rate"] == (0.02, 0.03, 0.01)
    assert results.difference("DDPO", "base", "response_rate").values == pytest.approx(
        (-0.28, -0.29, -0.30)
    )


def test_intervals_by_hand(results):
    """Catches: a normal interval for three runs.

    Mean 0.02, s 0.01, t(2) 4.3027: 0.02 +- 0.0248, cut at 0.
    """
    mean = results.mean("DDPO", "response_rate")
    assert mean.mean == pytest.approx(0.02)
    assert mean.interval == pytest.approx((0.0, 0.02 + 4.30265 * 0.01 / 3**0.5), abs=1e-6)
    assert results.mean("base", "rise").interval == pytest.approx(
        (-0.01, -0.01)
    )  # a difference may be below 0


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
def test_verdicts(results, arm, than, metric, expected):
    """Catches: lower taken for better where higher is, and a claim made of noise."""
    assert verdict(metric, results.difference(arm, than, metric.name)) == expected


def test_sentences_say_what_the_data_support(results):
    """Catches: a claim reported as supported although it is not, or the reverse."""
    claim = Claim("DDPO", "DPO", ("object_recall", "words", "not_there"), (("DDPO", "base"),))
    first, recall, words, base = sentences("DDPO is better.", claim, results)
    assert first.startswith(
        "DDPO is better. Not resolved with 3 seeds: response rate 2.0 % with DDPO, 2.0 % with DPO"
    )
    assert (
        recall.endswith(": better.") and "difference +10.0 (95 % interval +10.0 to +10.0)" in recall
    )
    assert not words.endswith("better.")
    assert "2.0 % with DDPO, 31.0 % with base" in base and base.endswith(": better.")
    assert sentences("So.", Claim("DDPO", "base"), results)[0].startswith("So. The data support it")
    assert sentences("So.", Claim("base", "DDPO"), results)[0].startswith(
        "So. The data say the opposite"
    )


def test_table_figure_and_json(results, tmp_path: Path):
    """Catches: an arm or metric that is missing from the table or from JSON."""
    text = markdown("A title.", results, ["One."])
    assert text.count("\n|") == 2 + len(results.names) and all(arm in text for arm in VALUES)
    arms_figure(results, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10_000
    loaded = json.loads(json.dumps(results.as_json()))
    assert loaded["arms"]["DPO"]["response_rate"]["values"] == [0.02, 0.01, 0.03]


def test_no_run_is_an_error():
    """Catches: a study of nothing that reports a number."""
    from rlhfv_ray.stats import mean_interval

    with pytest.raises(DataError, match="no values"):
        mean_interval([])
    assert mean_interval([0.5]) == (0.5, None)
