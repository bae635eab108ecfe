"""Control arms of a study, and how much of a gain they keep."""

from dataclasses import replace

import pytest

from eval.benchmarks.contract import RESPONSE_RATE, JudgedAnswer, Ratio, Scores
from eval.benchmarks.shapes_metrics import METRICS
from experiments.recipes import shapes, shapes_sft
from experiments.runners.config import ExperimentConfig
from experiments.runners.contrasts import Claim
from experiments.runners.controls import (
    control_arm,
    control_pipelines,
    controls_table,
    kept_gain,
    kept_gains,
    kept_sentence,
    kept_shares,
    with_controls,
)
from experiments.runners.study_arms import Arm, Study, plain_dpo
from experiments.runners.study_results import StudyResults
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.pipeline import plan_pipeline
from rlhfv_ray.records import Answer
from tests.unit.experiments.runners.study_numbers import small_study

CLAIM = Claim("DPO", "base", ("object_recall",), (("DPO", "other"),))
STUDY = Study("So.", (Arm("base"), Arm("DPO", plain_dpo)), CLAIM)


@pytest.fixture
def results() -> StudyResults:
    """Return results in which a control loses half of the gain, and another one all of it."""
    small = small_study()
    values = dict(small.values)
    base, aligned = values["base", "response_rate"], values["DPO", "response_rate"]
    half = tuple((old + new) / 2 for old, new in zip(base, aligned, strict=True))
    values[control_arm("DPO", "permuted"), "response_rate"] = half
    values[control_arm("DPO", "blank"), "response_rate"] = base
    return StudyResults(small.arms, small.seeds, small.metrics, values)


def test_controls_train_as_the_claimed_arm_does():
    """Catches: a control of another arm, or with the true pairs; a contrast that is not tested."""
    study = with_controls(STUDY, ("permuted", "permuted_all"))
    assert [arm.name for arm in study.arms] == [
        "base", "DPO", "DPO, permuted", "DPO, permuted all"
    ]  # fmt: skip
    assert study.claim.others == (
        ("DPO", "other"), ("DPO", "DPO, permuted"), ("DPO", "DPO, permuted all")
    )  # fmt: skip
    recipe = shapes()
    for arm, control in zip(study.arms[2:], ("permuted", "permuted_all"), strict=True):
        assert arm.change is not None
        trained = arm.change(recipe, None)  # this arm's change does not look at the pipeline
        assert trained.loss.gamma == 1.0 and trained.shapes.control == control
        uncontrolled = replace(trained, shapes=recipe.shapes)
        assert uncontrolled == plain_dpo(recipe, None)


def test_without_controls_a_study_stays_as_it_is():
    """Catches: studies whose folders change, so that they are trained again."""
    assert with_controls(STUDY, ()) == STUDY
    of_base = STUDY.claim._replace(arm="base", than="DPO")
    assert with_controls(replace(STUDY, claim=of_base), ("blank",)).arms == STUDY.arms


def test_kept_gains_by_hand(results):
    """Catches: a gain with the wrong sign where lower is better; a share of nothing."""
    shares = [
        kept_gain(results, "base", "DPO", control_arm("DPO", control), "response_rate")
        for control in ("permuted", "blank")
    ]
    assert shares == [pytest.approx(0.5), pytest.approx(0.0)]
    assert kept_gain(results, "DPO", "base", "DPO", "response_rate") is None  # base gains nothing
    assert kept_gain(results, "base", "DPO", "DPO", "nosuch") is None
    said = kept_gains(CLAIM, results, "base", ("permuted", "blank"))
    assert said == [
        "DPO, permuted keeps 50 % of the gain in response rate.",
        "DPO, blank keeps 0 % of the gain in response rate.",
    ]


def scored(name: str, rates: dict[str, float]) -> Scores:
    """Return scores of one answer with these rates."""
    metrics = (RESPONSE_RATE, *(metric for metric in METRICS if metric.name == "phrase_f1"))
    ratios = {metric: Ratio(rate, 1.0) for metric, rate in rates.items()}
    answers = (JudgedAnswer(Answer("0", "?", "a."), ratios),)
    return Scores(metrics, answers, {"benchmark": "shapes", "model": name})


@pytest.fixture
def models() -> dict[str, Scores]:
    """Return a control that keeps a quarter of the gain in F1, and loses in the response rate."""
    rates = {"base": (0.4, 0.5), "aligned": (0.2, 0.9), "blank": (0.5, 0.6)}
    return {
        name: scored(name, {"response_rate": response, "phrase_f1": phrases})
        for name, (response, phrases) in rates.items()
    }


def test_controls_of_an_experiment_by_hand(models):
    """Catches: a share of the wrong gain, or with the wrong sign where lower is better."""
    shares = kept_shares(*models.values())
    assert shares == {"response_rate": pytest.approx(-0.5), "phrase_f1": pytest.approx(0.25)}
    assert kept_sentence("blank", shares) == (
        "blank keeps -50 % of the gain in response rate and 25 % of the gain in phrase f1."
    )
    worse = models["aligned"], models["base"], models["blank"]
    assert kept_shares(*worse) == {} and kept_sentence("blank", {}) == ""


def test_table_of_controls_has_the_headline_first(models):
    """Catches: a model without its column; numbers of another model."""
    table = controls_table(models)
    assert [column.header for column in table.columns] == ["metric", *models]
    rows = [list(column.cells) for column in table.columns]
    assert rows[0] == ["phrase f1 / %", "response rate / %"]
    assert rows[1:] == [["50.0", "40.0"], ["90.0", "20.0"], ["60.0", "50.0"]]


def test_controls_share_the_stages_before_their_pairs(tmp_path):
    """Catches: corrections made again for each control; two trainings of the same name."""
    recipe = shapes()
    line = plan_pipeline(recipe, tmp_path, seen=lambda records: None)
    planned = control_pipelines(
        recipe, ("permuted", "permuted_all"), tmp_path, seen=lambda records: None
    )
    assert list(planned) == ["permuted", "permuted all"]
    folders = [stage.folder(tmp_path) for stage in line.stages]
    for name, control in planned.items():
        own = [stage for stage in control.stages if stage.folder(tmp_path) not in folders]
        assert [stage.name for stage in own] == ["control", "reference", "train"]
        assert control.train is own[-1] and own[-1].title == f"training, {name}"
        assert control.train.folder(tmp_path) != line.train.folder(tmp_path)


def test_controls_need_pairs_of_the_shapes_world():
    """Catches: a control that would be the same training again."""
    own = replace(shapes(), data=replace(shapes().data, path="rows.parquet"))
    for recipe in (own, shapes_sft()):
        with pytest.raises(ConfigError, match="controls"):
            replace(ExperimentConfig.of(recipe), controls=("blank",))
    with pytest.raises(ConfigError, match="none"):
        replace(ExperimentConfig.of(shapes()), controls=("none",))
