"""Intervals and tests of cases in clusters, against hand arithmetic and simulation."""

from itertools import product

import numpy as np
import pytest

from rlhfv_ray.errors import DataError
from rlhfv_ray.image_clusters import by_cluster, cluster_interval, swap_test
from rlhfv_ray.stats import RatioSample, bootstrap_interval, mcnemar, wilson_interval

CLUSTERS = (100, 300, 500)  # the numbers of images in benchmarks
SIZES = ((1, 5), (6, 6), (2, 20))  # cases an image: mentions, POPE's questions, AMBER's
RATES = (0.05, 0.15, 0.5, 0.95)
CORRELATIONS = (0.0, 0.1, 0.3)  # of two cases of one image
LOWEST, HIGHEST = 0.935, 0.97  # coverage of a 95 % interval
SETS = 2000


def beta_binomial(clusters, sizes, rate, correlation, seed=0):
    """Draw the cases with a property, and all cases, of clusters that each have their own rate."""
    draw = np.random.default_rng(seed)
    low, high = sizes
    cases = draw.integers(low, high + 1, size=clusters)
    rates = np.full(clusters, rate)
    if correlation:
        strength = (1 - correlation) / correlation
        rates = draw.beta(rate * strength, (1 - rate) * strength, size=clusters)
    return RatioSample(draw.binomial(cases, rates).tolist(), cases.tolist())


def coverage(setting, sets):
    """Return how many intervals contain the true rate: ours, and the plain one."""
    *_, rate, _ = setting
    covered = np.zeros(2)
    for seed in range(sets):
        sample = beta_binomial(*setting, seed=seed)
        plain = wilson_interval(int(sum(sample.numerators)), int(sum(sample.denominators)))
        bounds = (cluster_interval(sample), plain)
        covered += [interval.low <= rate <= interval.high for interval in bounds]
    return covered / sets


@pytest.mark.soak
@pytest.mark.parametrize("setting", product(CLUSTERS, SIZES, RATES, CORRELATIONS), ids=str)
def test_intervals_cover_the_rate(setting):
    """Catches: an interval that is too narrow, or too wide, for one kind of data."""
    ours, _ = coverage(setting, SETS)
    assert LOWEST <= ours <= HIGHEST


@pytest.mark.slow
def test_intervals_cover_the_rate_in_a_tenth():
    """The same on a tenth, over all settings: the plain interval covers far less."""
    settings = list(product(CLUSTERS, SIZES, RATES, CORRELATIONS))
    covered = np.array([coverage(setting, SETS // 10) for setting in settings])
    ours, plain = covered.mean(axis=0)
    assert LOWEST <= ours <= HIGHEST and plain < 0.90
    assert covered[:, 0].min() >= 0.90  # three standard errors of 200 sets below the lowest


def test_effective_sample_size_by_hand():
    """Catches: another variance, or other degrees of freedom.

    Four clusters of two cases: 2, 1, 1 and 0 of them. p = 1/2, r = 1, 0, 0, -1, so
    V = 4/3 * 2 / 64 = 1/24 and p (1 - p) / V = 6. df = 2 * 4 / (2 - 4/4) - 1 = 7, at most 3:
    t = 3.1824, items = 6 (1.95996 / 3.1824)^2 = 2.2758.
    The half width is z sqrt(1/4n + z^2/4n^2) / (1 + z^2/n) = 0.3962.
    """
    interval = cluster_interval(RatioSample([2, 1, 1, 0], [2, 2, 2, 2]))
    assert interval == pytest.approx((0.5 - 0.3962, 0.5 + 0.3962), abs=5e-5)


def test_the_plain_interval_stands_without_clusters_and_at_the_edges():
    """Catches: a point at 0 or 1, and another interval for a case an image."""
    assert cluster_interval(RatioSample([1, 0, 0], [1, 1, 0])) == wilson_interval(1, 2)
    assert cluster_interval(RatioSample([0, 0], [3, 2])) == wilson_interval(0, 5)
    assert cluster_interval(RatioSample([3, 2], [3, 2])) == wilson_interval(5, 5)
    alike = RatioSample([1] * 20, [2] * 20)  # V is 0: more alike than chance
    assert cluster_interval(alike) == wilson_interval(20, 40)
    assert cluster_interval(RatioSample([0, 0], [0, 0])) is None
    assert cluster_interval(RatioSample([], [])) is None


def test_a_single_case_has_no_interval_of_a_tenth():
    """Catches: degrees of freedom so few that one case in a thousand could be one in ten."""
    interval = cluster_interval(RatioSample([1] + [0] * 599, [2] * 600))
    assert interval is not None and 0.004 < interval.high < 0.01


def test_one_cluster_says_as_much_as_one_case():
    """Catches: a division by zero clusters, or an interval as if its cases were independent."""
    interval = cluster_interval(RatioSample([50, 0], [100, 0]))
    assert interval is not None and interval.high - interval.low > 0.8


@pytest.mark.parametrize("setting", [(300, (1, 5), 0.15, 0.1), (500, (6, 6), 0.85, 0.3)], ids=str)
def test_intervals_are_as_wide_as_the_bootstraps(setting):
    """Catches: a width that agrees with no other method; the bootstrap draws whole clusters."""
    sample = beta_binomial(*setting)
    ours, theirs = cluster_interval(sample), bootstrap_interval(sample)
    assert ours is not None and theirs is not None
    assert ours == pytest.approx(theirs, abs=0.006)


def test_clusters_are_summed_in_the_order_of_their_first_member():
    sample = by_cluster(RatioSample([1, 2, 3], [4, 5, 6]), ["b", 0, "b"])
    assert sample == ([4, 2], [10, 5])
    assert by_cluster(RatioSample([], []), []) == ([], [])
    with pytest.raises(DataError, match="2 names of clusters"):
        by_cluster(RatioSample([1], [1]), ["a", "b"])


@pytest.mark.parametrize("differing", [0, 1, 5, 11])
def test_exchanges_of_single_cases_are_mcnemars_test(differing):
    """Catches: a test that is one-sided, or that leaves out the observed exchange."""
    old = [index < differing - 2 for index in range(40)]
    new = [differing - 2 <= index < differing for index in range(40)]
    ones = [1] * 40
    p_value = swap_test(RatioSample(old, ones), RatioSample(new, ones))
    assert p_value == pytest.approx(mcnemar(old, new), rel=1e-12)


def test_random_exchanges_agree_with_all_of_them():
    """Catches: random exchanges of another distribution than the complete list."""
    base = beta_binomial(13, (1, 5), 0.5, 0.1)
    better = RatioSample([0, *base.numerators[1:7], *[0] * 6], base.denominators)
    complete = swap_test(base, better)
    drawn = swap_test(base, better, permutations=9_000)
    assert complete is not None and 0.001 < complete < 0.5
    assert drawn == pytest.approx(complete, abs=0.015)


def test_equal_systems_are_rarely_told_apart():
    """Catches: a test that takes cases of one image as independent, as McNemar's does.

    Both systems fail on images of their own: 5 % of p-values may be below 0.05.
    """
    p_values = []
    for seed in range(400):
        one, two = (beta_binomial(40, (6, 6), 0.3, 0.5, seed=(seed, side)) for side in (0, 1))
        p_values.append(swap_test(one, two, permutations=199))
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.08


def test_a_test_without_cases_has_no_result():
    nothing, something = RatioSample([0, 0], [0, 0]), RatioSample([1, 0], [2, 2])
    assert swap_test(nothing, something) is None and swap_test(something, nothing) is None
    assert swap_test(RatioSample([], []), RatioSample([], [])) is None
    with pytest.raises(DataError, match="lengths"):
        swap_test(something, RatioSample([1], [1]))
