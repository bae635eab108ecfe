"""A small study by hand, for the tests of its results, contrasts and report."""

from eval.benchmarks.contract import OBJECT_RECALL, RESPONSE_RATE, WORDS
from experiments.runners.study_results import StudyResults, study_results
from experiments.runners.sweep_report import TrialResult

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
    """Return the trials of the study, with neither arms nor seeds in order."""
    return [trial(arm, seed) for seed in (2, 0, 1) for arm in VALUES]


def small_study() -> StudyResults:
    """Return the results of the study, without scenes."""
    return study_results(unordered_trials(), list(VALUES))
