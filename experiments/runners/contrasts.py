"""Differences between arms of a study, and which of them hold after correction for their number.

Every contrast of a study is one test. Holm's correction over all of them decides which are
resolved. The intervals are 95 % each, without correction.
"""

from typing import Any, Literal, NamedTuple

from eval.benchmarks.contract import Metric
from experiments.runners.study_results import Mean, StudyResults
from rlhfv_ray.hierarchical import holm

LEVEL = 0.05  # of the adjusted p-values
F1_OF_PHRASES = "phrase_f1"  # measure of the shapes world: it counts mistakes and omissions
Verdict = Literal["better", "worse", "not resolved"]


class Claim(NamedTuple):
    """The claim that one arm is better than another in one metric, and further contrasts."""

    arm: str
    than: str
    extras: tuple[str, ...] = ()  # more metrics of these two arms; unknown names are skipped
    others: tuple[tuple[str, str], ...] = ()  # more pairs of arms, in the claim's metric
    measure: str = ""  # the claim's metric; empty: F1_OF_PHRASES, else the first of the results


class Contrast(NamedTuple):
    """One difference between two arms, and its verdict within its study."""

    metric: Metric
    arm: str
    than: str
    difference: Mean
    adjusted_p: float | None  # by Holm over the study's contrasts; None for a single seed
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        """Return the contrast for `study.json`."""
        return {
            "metric": self.metric.name,
            "arm": self.arm,
            "than": self.than,
            **self.difference._asdict(),
            "adjusted_p": self.adjusted_p,
            "verdict": self.verdict,
        }


def contrasts_of(claim: Claim, results: StudyResults) -> list[Contrast]:
    """Return the contrasts of a study: the claim first, then its other ones."""
    metrics = {metric.name: metric for metric in results.metrics}
    main = metrics.get(claim.measure or F1_OF_PHRASES, results.metrics[0])
    tested = [(main, claim.arm, claim.than)]
    extras = [metrics[name] for name in claim.extras if name in metrics and name != main.name]
    tested += [(metric, claim.arm, claim.than) for metric in extras]
    tested += [(main, arm, than) for arm, than in claim.others]
    differences = [results.difference(arm, than, metric.name) for metric, arm, than in tested]
    # A metric without a better direction, such as words, is no test.
    counted = [
        index
        for index, (metric, _, _) in enumerate(tested)
        if metric.better and differences[index].p_value is not None
    ]
    p_values = [float(differences[index].p_value or 0.0) for index in counted]
    adjusted = dict(zip(counted, holm(p_values), strict=True))
    contrasts: list[Contrast] = []
    for index, (metric, arm, than) in enumerate(tested):
        p_value, difference = adjusted.get(index), differences[index]
        row = (metric, arm, than, difference, p_value, verdict(metric, difference, p_value))
        contrasts.append(Contrast(*row))
    return contrasts


def verdict(metric: Metric, difference: Mean, adjusted_p: float | None) -> Verdict:
    """Return the direction of a difference, which is resolved if its adjusted p-value is small."""
    if adjusted_p is None or adjusted_p >= LEVEL or not metric.better:
        return "not resolved"
    return "better" if (difference.mean < 0) == (metric.better == "lower") else "worse"
