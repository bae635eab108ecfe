"""The names, numbers and rows that an evaluation sends to MLflow."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eval.reporting.html import Section
from eval.reporting.mlflow_log import (
    answer_rows,
    description,
    experiment_of,
    first_metric,
    metrics,
)
from tests.hand_scores import CAT, RED_DOGS, TEXT, base, judged, models, pets, rated


def test_metrics_carry_the_benchmark_and_the_bounds_of_intervals() -> None:
    """Catches: metrics of two benchmarks under one name; a rate without its interval."""
    logged = metrics("pets", base())
    assert logged["pets/response_rate"] == 0.6  # 6 of 10 answers
    assert logged["pets/response_rate_low"] == pytest.approx(0.313, abs=5e-4)  # Wilson
    assert logged["pets/response_rate_high"] == pytest.approx(0.832, abs=5e-4)
    assert logged["pets/n"] == 10 and logged["pets/missing"] == 0
    assert all(name.startswith("pets/") for name in logged)


def test_a_metric_without_answers_is_left_out() -> None:
    """Catches: None or 0 logged for a rate whose verdicts are all missing."""
    logged = metrics("mmhal_bench", rated(["refused", "unparsed"]))
    assert "mmhal_bench/hallucination_rate" not in logged
    assert logged["mmhal_bench/missing"] == 2


def test_the_first_rate_comes_first_and_in_per_cent() -> None:
    """Catches: a comparison of runs that opens with another metric, or with fractions."""
    first = first_metric("aligned", base())
    assert first == {"aligned response rate percent": pytest.approx(60)}  # 6 of 10 answers
    assert min([*metrics("aligned", base()), *metrics("pets", base()), *first]) in first
    silent = pets([replace(judged(0), ratios={})])
    assert first_metric("aligned", silent) == {}


def test_tags_say_rate_interval_and_if_it_is_resolved() -> None:
    """Catches: a run whose interval or test stands in its report alone."""
    tags = description([Section("pets", models())])
    assert tags["model.base"] == "60.0 % (31.3 to 83.2) response rate"
    assert tags["model.aligned"] == "40.0 % (16.8 to 68.7) response rate"
    assert tags["result"].startswith("not resolved: Relative reduction of the response rate: ")
    assert "| response rate / % |" in tags["mlflow.note.content"]
    assert "result" not in description([Section("pets", {"base": base()})])
    controls = description([Section("pets", {**models(), "base'": base()})])
    assert controls["result"] == tags["result"]
    assert controls["result.base_"].startswith("not resolved: ")  # MLflow takes no quotes
    assert "model.base_" in controls
    assert description([]) == {}


def test_rows_name_the_hallucinated_objects_and_other_mistakes() -> None:
    """Catches: text of the wrong span; an answer that is lost because it has no verdict."""
    marked, clean = answer_rows(pets([judged(0, spans=[*RED_DOGS, CAT]), judged(1)]))
    assert (marked["answer"], marked["response_rate"]) == (TEXT, 1)
    assert (marked["hallucinated"], marked["other mistakes"]) == ("cat", "attribute, number")
    assert (clean["hallucinated"], clean["other mistakes"], clean["response_rate"]) == ("", "", 0)
    (refused,) = answer_rows(rated(["refused"]))
    assert (refused["hallucination_rate"], refused["missing"]) == (None, "refused")


def test_a_model_belongs_to_the_experiment_that_names_its_training(tmp_path: Path) -> None:
    """Catches: an evaluation logged to another experiment beside the model's own."""
    for name, stages in (("mine-1", ["train-1"]), ("other-2", ["train-2"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"stages": stages}))
        (tmp_path / name / "tracking.jsonl").write_text("")
    (tmp_path / "train-1" / "model").mkdir(parents=True)
    assert experiment_of(tmp_path / "train-1" / "model") == tmp_path / "mine-1"
    assert experiment_of(tmp_path / "train-1") is None
    assert experiment_of(tmp_path / "train-3" / "model") is None
