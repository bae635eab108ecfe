"""Control arms of a study, and how much of a gain they keep."""

from dataclasses import replace

import pytest

from experiments.recipes import shapes
from experiments.runners.contrasts import Claim
from experiments.runners.controls import control_arm, kept_gain, kept_gains, with_controls
from experiments.runners.study_arms import Arm, Study, plain_dpo
from experiments.runners.study_results import StudyResults
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
