"""What a study says of its arms, on numbers by hand."""

import json
from pathlib import Path

import pytest

from eval.benchmarks.contract import OBJECT_RECALL, RESPONSE_RATE, WORDS
from experiments.runners.study_report import (
    Claim,
    Findings,
    arms_figure,
    found_in,
    markdown,
    sentences,
    verdict,
)
from experiments.runners.sweep_report import Found
from rlhfv_ray.errors import DataError

MEASURES = (RESPONSE_RATE, OBJECT_RECALL, WORDS)
VALUES = {
    "base": ((0.30, 0.32, 0.31), (0.85, 0.85, 0.85), (20.0, 21.0, 22.0)),
    "DDPO": ((0.02, 0.03, 0.01), (0.90, 0.91, 0.92), (19.0, 19.5, 20.0)),
    "DPO": ((0.02, 0.01, 0.03), (0.80, 0.81, 0.82), (18.0, 18.0, 18.0)),
}


def trials() -> list[Found]:
    """As their folders tell, in no order."""
    found = []
    for arm, columns in VALUES.items():
        for seed in (2, 0, 1):
            rates = {m.name: column[seed] for m, column in zip(MEASURES, columns, strict=True)} | {
                "n": 600,
                "missing": 0,
            }
            look = {"rates": {**rates, "rise": -0.01}, "metrics": [m._asdict() for m in MEASURES]}
            found.append(
                Found(
                    f"{arm}{seed}",
                    {"arm": arm, "seed": seed},
                    {1: look},
                    "finished",
                    "",
                    1.0,
                    "",
                    False,
                )
            )
    return found


@pytest.fixture
def found() -> Findings:
    return found_in(trials(), list(VALUES))


def test_values_stand_under_their_arm_and_seed(found):
    """Catches: seeds of one arm compared with other seeds of another; counts shown as measures."""
    assert found.names == ["response_rate", "object_recall", "words", "rise"]
    assert found.seeds == (0, 1, 2)
    assert found.values["DDPO", "response_rate"] == (0.02, 0.03, 0.01)
    assert found.difference("DDPO", "base", "response_rate").values == pytest.approx(
        (-0.28, -0.29, -0.30)
    )


def test_intervals_by_hand(found):
    """Catches: a normal interval for three runs. Mean 0.02, s 0.01, t(2) 4.3027: 0.02 +- 0.0248, cut at 0."""
    mean = found.mean("DDPO", "response_rate")
    assert mean.mean == pytest.approx(0.02)
    assert mean.interval == pytest.approx((0.0, 0.02 + 4.30265 * 0.01 / 3**0.5), abs=1e-6)
    assert found.mean("base", "rise").interval == pytest.approx(
        (-0.01, -0.01)
    )  # a difference may be below 0


@pytest.mark.parametrize(
    ("arm", "than", "metric", "said"),
    [
        ("DDPO", "base", RESPONSE_RATE, "better"),
        ("base", "DDPO", RESPONSE_RATE, "worse"),
        ("DDPO", "DPO", RESPONSE_RATE, "not resolved"),
        ("DDPO", "DPO", OBJECT_RECALL, "better"),
        ("DPO", "base", OBJECT_RECALL, "worse"),
    ],
)
def test_verdicts(found, arm, than, metric, said):
    """Catches: lower taken for better where higher is, and a claim made of noise."""
    assert verdict(metric, found.difference(arm, than, metric.name)) == said


def test_sentences_say_what_the_data_support(found):
    """Catches: a claim reported as shown that is not, or the other way round."""
    claim = Claim("DDPO", "DPO", ("object_recall", "words", "not_there"), (("DDPO", "base"),))
    first, recall, words, base = sentences("DDPO is better.", claim, found)
    assert first.startswith(
        "DDPO is better. Not resolved with 3 seeds: response rate 2.0 % with DDPO, 2.0 % with DPO"
    )
    assert (
        recall.endswith(": better.") and "difference +10.0 (95 % interval +10.0 to +10.0)" in recall
    )
    assert not words.endswith("better.")
    assert "2.0 % with DDPO, 31.0 % with base" in base and base.endswith(": better.")
    assert sentences("So.", Claim("DDPO", "base"), found)[0].startswith("So. The data support it")
    assert sentences("So.", Claim("base", "DDPO"), found)[0].startswith(
        "So. The data say the opposite"
    )


def test_table_figure_and_json(found, tmp_path: Path):
    """Catches: an arm or measure that is lost on the way to people."""
    text = markdown("A title.", found, ["One."])
    assert text.count("\n|") == 2 + len(found.names) and all(arm in text for arm in VALUES)
    arms_figure(found, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10_000
    kept = json.loads(json.dumps(found.as_json()))
    assert kept["arms"]["DPO"]["response_rate"]["values"] == [0.02, 0.01, 0.03]


def test_no_run_is_an_error():
    """Catches: a study of nothing that reports a number."""
    from rlhfv_ray.stats import mean_interval

    with pytest.raises(DataError, match="no values"):
        mean_interval([])
    assert mean_interval([0.5]) == (0.5, None)
