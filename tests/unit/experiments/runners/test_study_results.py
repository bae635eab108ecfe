"""The values of a study and their intervals, by hand."""

import pytest

from eval.benchmarks.contract import RESPONSE_RATE, WORDS, JudgedAnswer, Metric, Ratio, Scores
from experiments.runners.study_results import StudyResults, study_results
from rlhfv_ray.records import Answer
from tests.unit.experiments.runners.study_numbers import small_study, trial, unordered_trials

SCENES = 200
SEEDS = (0, 1, 2)


@pytest.fixture
def results() -> StudyResults:
    return small_study()


def scored(share: float, pictures: str) -> Scores:
    """Return the scores of answers of which the first share hallucinates."""
    answers = [
        JudgedAnswer(
            Answer(str(number), "?", "a."),
            {"response_rate": Ratio(int(number < share * SCENES), 1), "words": Ratio(2, 1)},
        )
        for number in range(SCENES)
    ]
    return Scores((RESPONSE_RATE, WORDS), tuple(answers), {"prompts": pictures})


def of_scenes(*, is_shared: bool) -> StudyResults:
    """Return the study's results with the scenes of every trial."""
    trials = unordered_trials()
    scores = {
        (row.trial_params["arm"], row.trial_params["seed"]): scored(
            row.rates["response_rate"] or 0.0, "" if is_shared else str(row.trial_params["seed"])
        )
        for row in trials
    }
    return study_results(trials, ["base", "DDPO", "DPO"], scores)


def test_values_stand_under_their_arm_and_seed(results):
    """Catches: seeds of one arm compared with other seeds of another; counts shown as metrics."""
    assert results.names == ["response_rate", "object_recall", "words", "rise"]
    assert results.seeds == SEEDS
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
    # a difference may be below 0
    assert results.mean("base", "rise").interval == pytest.approx((-0.01, -0.01))


def test_an_f1_stays_below_100_per_cent():
    """Catches: "96.0 (91.3 to 100.7)" for a measure that ends at 100 and is no proportion."""
    metrics = tuple(
        Metric(name, "higher", is_proportion=False) for name in ("phrase_f1", "f1_new", "ratio")
    )
    values = {("a", metric.name): (0.99, 0.8) for metric in metrics}
    study = StudyResults(("a",), (0, 1), metrics, values)
    tops = [(study.mean("a", metric.name).interval or (0, 0))[1] for metric in metrics]
    assert tops[:2] == [1.0, 1.0] and tops[2] > 1


def test_scenes_widen_the_interval_of_seeds_that_agree():
    """Catches: scenes left out; the error of one seed given to the mean of three.

    The rate is 0.31, of 200 scenes each: sqrt(0.31 * 0.69 / 200) = 0.0327, for three seeds of
    their own scenes 0.0189.
    """
    own, shared = of_scenes(is_shared=False), of_scenes(is_shared=True)
    assert not own.is_shared and shared.is_shared
    assert own.mean("base", "response_rate").scene_error == pytest.approx(0.0189, rel=0.1)
    assert shared.mean("base", "response_rate").scene_error == pytest.approx(0.0327, rel=0.1)
    assert own.mean("base", "object_recall").scene_error == 0.0  # no scene has a share in it
    alone = small_study().mean("base", "response_rate").interval
    interval = shared.mean("base", "response_rate").interval
    assert alone is not None and interval is not None
    assert interval.high - interval.low > 1.2 * (alone.high - alone.low)


def test_differences_are_paired_by_scene():
    """Catches: the noise of scenes that both arms share counted twice."""
    shared = of_scenes(is_shared=True)
    difference = shared.difference("DDPO", "base", "response_rate")
    # 29 of 100 answers differ, all in one direction: sqrt(0.29 * 0.71 / 200)
    assert difference.scene_error == pytest.approx(0.0321, rel=0.1)
    assert shared.difference("base", "base", "response_rate")[:2] == (0.0, (0.0, 0.0))


def test_results_come_back_from_their_file():
    """Catches: a table that cannot be made again from study.json, so that no test can check it."""
    results = of_scenes(is_shared=False)
    arms = results.as_json()["arms"]
    errors = {(arm, name): mean["scene_error"] for arm in arms for name, mean in arms[arm].items()}
    again = StudyResults(
        results.arms, results.seeds, results.metrics, results.values, errors=errors
    )
    assert [again.mean(arm, "response_rate") for arm in results.arms] == [
        results.mean(arm, "response_rate") for arm in results.arms
    ]
    assert arms["DPO"]["response_rate"]["values"] == (0.02, 0.01, 0.03)


def test_a_metric_that_one_trial_lacks_is_left_out():
    """Catches: a missing number counted as 0."""
    trials = [trial(arm, seed) for arm in ("base", "DDPO") for seed in SEEDS]
    trials[0].rungs[1]["rates"]["rise"] = None
    assert study_results(trials, ["base", "DDPO"]).names == [
        "response_rate", "object_recall", "words"
    ]  # fmt: skip
