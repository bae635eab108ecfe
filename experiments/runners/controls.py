"""Control arms: the claimed arm of a study, trained on pairs that cannot teach to look.

A study's claim is about what is learnt from pictures. So the claim stands as the difference between
the arm and its controls, and a sentence says how much of the gain a control keeps.
"""

from collections.abc import Sequence
from dataclasses import replace

from experiments.runners.contrasts import Claim
from experiments.runners.study_arms import Arm, Change, Study
from experiments.runners.study_results import StudyResults
from rlhfv_ray.config import DDPOConfig
from rlhfv_ray.pipeline import Pipeline
from rlhfv_ray.shapes.controls import Control

KEPT = ("response_rate", "phrase_f1")  # metrics whose gain the sentences speak of


def control_arm(arm: str, control: Control) -> str:
    """Return the name of a control arm."""
    return f"{arm}, {control.replace('_', ' ')}"


def with_controls(study: Study, controls: Sequence[Control]) -> Study:
    """Return a study with control arms of its claimed arm, and with the contrasts against them."""
    claim = study.claim
    (claimed,) = [arm for arm in study.arms if arm.name == claim.arm]
    if claimed.change is None:
        return study
    names = [control_arm(claim.arm, control) for control in controls]
    arms = [
        Arm(name, _controlled(claimed.change, control))
        for name, control in zip(names, controls, strict=True)
    ]
    comparisons = (*claim.others, *((claim.arm, name) for name in names))
    return replace(study, arms=(*study.arms, *arms), claim=claim._replace(others=comparisons))


def kept_gains(
    claim: Claim, results: StudyResults, base: str, controls: Sequence[Control]
) -> list[str]:
    """Say how much of the claimed arm's gain over the base model its controls keep."""
    texts: list[str] = []
    for control in controls:
        name = control_arm(claim.arm, control)
        shares = {metric: kept_gain(results, base, claim.arm, name, metric) for metric in KEPT}
        gain_sentences = [
            f"{round(100 * share)} % of the gain in {metric.replace('_', ' ')}"
            for metric, share in shares.items()
            if share is not None
        ]
        if gain_sentences:
            texts.append(f"{name} keeps {' and '.join(gain_sentences)}.")
    return texts


def kept_gain(
    results: StudyResults, base: str, arm: str, control: str, metric: str
) -> float | None:
    """Return the control's gain over the base as a share of the arm's; None without a gain.

    A share below 0 is a loss.
    """
    better = {known.name: known.better for known in results.metrics}
    if metric not in better:
        return None
    sign = -1 if better[metric] == "lower" else 1
    gain = sign * results.difference(arm, base, metric).mean
    if gain <= 0:
        return None
    return sign * results.difference(control, base, metric).mean / gain


def _controlled(change: Change, control: Control) -> Change:
    def trained(config: DDPOConfig, pipeline: Pipeline) -> DDPOConfig:
        changed = change(config, pipeline)
        return replace(changed, shapes=replace(changed.shapes, control=control))

    return trained
