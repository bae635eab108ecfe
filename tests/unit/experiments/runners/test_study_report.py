"""Sentences, table and figure of a study, on numbers by hand."""

import json
from pathlib import Path

import pytest

from experiments.runners.contrasts import Claim, contrasts_of
from experiments.runners.study_report import arms_figure, markdown, sentences
from experiments.runners.study_results import StudyResults
from rlhfv_ray.errors import DataError
from tests.unit.experiments.runners.study_numbers import VALUES, small_study


@pytest.fixture
def results() -> StudyResults:
    return small_study()


def said(title: str, claim: Claim, results: StudyResults) -> list[str]:
    return sentences(title, contrasts_of(claim, results), results)


def test_sentences_say_what_the_data_support(results):
    """Catches: a claim reported as supported although it is not, or the reverse."""
    claim = Claim("DDPO", "DPO", ("object_recall", "words", "not_there"), (("DDPO", "base"),))
    first, recall, words, base = said("DDPO is better.", claim, results)
    assert first.startswith(
        "DDPO is better. Not resolved with 3 seeds: response rate 2.0 % with DDPO, 2.0 % with DPO"
    )
    assert first.endswith("p = 1.000 after correction).")
    assert recall.endswith("p < 0.001 after correction): better.")
    assert "difference +10.0 (95 % interval +10.0 to +10.0, p" in recall
    assert not words.endswith("better.") and " p " not in words
    assert "2.0 % with DDPO, 31.0 % with base" in base and base.endswith(": better.")
    assert said("So.", Claim("DDPO", "base"), results)[0].startswith("So. The data support it")
    assert said("So.", Claim("base", "DDPO"), results)[0].startswith(
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
