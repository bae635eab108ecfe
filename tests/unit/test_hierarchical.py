"""Estimates over seeds and scenes: by hand, and how often their intervals hold the truth."""

import numpy as np
import pytest

from rlhfv_ray.errors import DataError
from rlhfv_ray.hierarchical import holm, over_seeds, scene_error
from rlhfv_ray.stats import RatioSample, mean_interval

SCENES = 60
SIMULATIONS = 300
# Binomial standard deviation of a coverage of 0.95 in 300 simulations is 0.013: four below.
LOWEST_COVERAGE = 0.90


def sample(hits: np.ndarray) -> RatioSample:
    return RatioSample(list(hits.astype(float)), [1.0] * len(hits))


def test_without_scene_noise_it_is_students_t():
    """Catches: a normal interval for three seeds; an error of scenes that nobody gave."""
    for values in ([0.1, 0.2, 0.4], [0.5, 0.5, 0.7, 0.1]):
        estimate = over_seeds(values)
        mean, interval = mean_interval(values)
        assert interval is not None and estimate.interval is not None
        assert estimate.mean == mean and estimate.interval == pytest.approx(interval)


def test_variances_add_by_hand():
    """Catches: standard errors added in place of variances; degrees of freedom of seeds alone.

    Values 1 and 3, scene error sqrt(3): V = 1 + 3, df = 1 * (4 / 1)^2 = 16, t = 2.1199.
    """
    estimate = over_seeds([1.0, 3.0], 3**0.5)
    assert estimate.interval == pytest.approx((2 - 2.1199 * 2, 2 + 2.1199 * 2), abs=1e-3)
    # t = 2 / 2 = 1 with 16 degrees of freedom
    assert estimate.p_value == pytest.approx(0.3322, abs=1e-4)


def test_seeds_that_agree_are_still_uncertain():
    """Catches: 1.8 (1.8 to 1.8) from three seeds with 600 scenes each."""
    estimate = over_seeds([0.018] * 3, 0.003)
    assert estimate.interval == pytest.approx(
        (0.018 - 1.96 * 0.003, 0.018 + 1.96 * 0.003), abs=1e-5
    )
    assert over_seeds([0.0] * 3) == (0.0, (0.0, 0.0), 1.0)
    assert over_seeds([0.25] * 3).p_value == 0.0
    assert over_seeds([0.1]) == (0.1, None, None)


def test_the_scene_error_is_that_of_a_binomial():
    """Catches: an error of one seed given for the mean of all; shared scenes taken for more scenes.

    Half of 400 scenes are hits: sqrt(0.25 / 400) = 0.025 for a seed, and for shared scenes too.
    """
    hits = sample(np.arange(400) % 2)
    alone = scene_error([hits], is_shared=False)
    assert alone == pytest.approx(0.025, rel=0.1)
    assert scene_error([hits] * 4, is_shared=True) == pytest.approx(alone)
    assert scene_error([hits] * 4, is_shared=False) == pytest.approx(0.025 / 2, rel=0.1)


def test_no_case_in_any_scene_is_no_certainty():
    """Catches: 0.0 (0.0 to 0.0) from 5 seeds of 600 scenes; the bound of one seed for five."""
    none, every = sample(np.zeros(600)), sample(np.ones(600))
    for hits in (none, every):
        estimate = over_seeds([hits.numerators[0]] * 5, scene_error([hits] * 5, is_shared=False))
        assert estimate.interval is not None
        width = estimate.interval.high - estimate.interval.low
        assert width == pytest.approx(2 * 1.96 * 1.5 / 3000, rel=1e-3)
    assert scene_error([none] * 5, is_shared=True) == pytest.approx(1.5 / 600)
    assert scene_error([none] * 5, [none] * 5, is_shared=False) == 0
    half = RatioSample([0.0] * 600, [1.0, 0.0] * 300)  # 300 scenes are no case
    assert scene_error([half], is_shared=False) == pytest.approx(1.5 / 300)
    pairs = [[number // 2 for number in range(600)]]
    assert scene_error([none], is_shared=False, clusters=pairs) == pytest.approx(1.5 / 300)
    assert scene_error([none, sample(np.arange(600) == 3)], is_shared=False) < 1.5 / 600


def test_a_difference_is_paired_scene_by_scene():
    """Catches: two systems resampled apart, which hides how alike they are."""
    base = np.arange(400) % 2
    better = base.copy()
    better[:20] = 1  # 10 of these 20 are new hits: 2.5 points
    error = scene_error([sample(better)], [sample(base)], is_shared=True)
    assert error == pytest.approx((0.025 * 0.975 / 400) ** 0.5, rel=0.15)
    assert error < scene_error([sample(better)], is_shared=True) / 2


def test_scenes_that_are_alike_are_drawn_together():
    """Catches: copies of a scene counted as further scenes. Ten copies of 40 scenes are 40."""
    hits = np.repeat(np.arange(40) % 2, 10)
    names = [np.repeat(np.arange(40), 10).tolist()]
    together = scene_error([sample(hits)], is_shared=True, clusters=names)
    assert together == pytest.approx((0.25 / 40) ** 0.5, rel=0.12)
    assert scene_error([sample(hits)], is_shared=True) < together / 2


@pytest.mark.parametrize(
    ("is_shared", "seed_spread"), [(True, 0.0), (True, 0.1), (False, 0.0), (False, 0.1)]
)
def test_intervals_hold_the_truth(is_shared, seed_spread):
    """Catches: scenes or seeds whose noise is left out. With three seeds and 60 scenes, an interval
    over shared scenes without scene noise holds the truth in about half of the cases.
    """
    rng = np.random.default_rng(1)
    held = 0
    widths = []
    for _ in range(SIMULATIONS):
        rates = np.clip(0.5 + seed_spread * rng.standard_normal(3), 0, 1)
        difficulty = rng.random((1 if is_shared else 3, SCENES))
        hits = (difficulty < rates[:, None]).astype(float)  # (seeds, scenes)
        error = scene_error([sample(row) for row in hits], is_shared=is_shared, resamples=200)
        interval = over_seeds(list(hits.mean(axis=1)), error).interval
        assert interval is not None
        held += interval.low <= 0.5 <= interval.high
        widths.append(interval.high - interval.low)
    assert held / SIMULATIONS >= LOWEST_COVERAGE
    assert np.median(widths) < 0.9  # an interval of everything would hold the truth as well


def test_holm_by_hand():
    """Catches: Bonferroni's factor for all; adjusted values out of order; more than 1."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04] and holm([]) == []
    with pytest.raises(DataError, match="0 to 1"):
        holm([1.2])


def test_holm_keeps_false_findings_rare():
    """Catches: eight true null hypotheses of which one in three studies rejects one."""
    rng = np.random.default_rng(2)
    studies = rng.random((2000, 8))
    false = sum(min(holm(list(p_values))) < 0.05 for p_values in studies)
    assert false / 2000 == pytest.approx(0.05, abs=0.015)
    assert (studies.min(axis=1) < 0.05).mean() > 0.3


@pytest.mark.parametrize("arguments", [([], 0.0), ([0.1], -1.0)])
def test_estimates_of_nothing_are_errors(arguments):
    """Catches: a mean of no seed that reports a number."""
    with pytest.raises(DataError, match="one value or more"):
        over_seeds(*arguments)


def test_lengths_that_differ_are_errors():
    """Catches: a system compared with another one on other scenes."""
    hits = sample(np.ones(3))
    with pytest.raises(DataError, match="baselines"):
        scene_error([hits, hits], [hits], is_shared=True)
    with pytest.raises(DataError, match="per scene"):
        scene_error([hits], is_shared=True, clusters=[["a"]])
