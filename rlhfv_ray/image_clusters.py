"""Intervals and tests of rates whose cases come in clusters, such as questions about one image.

Cases of one cluster are alike: m clusters of n cases in all say less than n independent cases. A
rate is a ratio of sums over clusters, p = K / n. Near its value it is linear in its parts (Cochran,
Sampling Techniques, 1977, ch. 6), which gives its variance:

    V = m / (m - 1) * sum of r_c^2 / n^2,    r_c = k_c - p n_c of cluster c

The effective sample size has the same variance, and the interval is Wilson's of that size (Korn and
Graubard, Survey Methodology 24, 1998, p. 193; Franco et al., J. Survey Statistics and Methodology
7, 2019, p. 334):

    items = p (1 - p) / V * (z / t)^2

t is Student's quantile in place of the normal z. Its degrees of freedom are those that give V its
own variance (Satterthwaite, Biometrics Bulletin 2, 1946, p. 110). They are few where a few clusters
hold most of the variance, as with rare cases; m - 1 at most, and 4 at least, because a single case
says nothing of its cluster:

    df = 2 (sum of r_c^2)^2 / (sum of r_c^4 - (sum of r_c^2)^2 / m) - 1
"""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from scipy.special import stdtrit

from rlhfv_ray.errors import DataError
from rlhfv_ray.stats import (
    Interval,
    RatioSample,
    normal_quantile,
    wilson_interval,
    wilson_of_rate,
)

# Simulated coverage is the same with 1 to 4 as the least, and lower with more.
LEAST_FREEDOM = 4
PERMUTATIONS = 9_999
CHUNK = 1_000  # permutations computed at a time, which bounds the memory
ROUNDING = 1e-12  # two differences of rates that are closer are equal


def by_cluster(sample: RatioSample, clusters: Sequence[Hashable]) -> RatioSample:
    """Sum numerators and denominators over each cluster, in the order of the first members.

    Raises:
        DataError: the three sequences differ in length.

    Example:
        >>> by_cluster(RatioSample([1, 0, 1], [1, 1, 2]), ["a", "b", "a"])
        RatioSample(numerators=[2.0, 0.0], denominators=[3.0, 1.0])
    """
    numerators, denominators = sample
    if not len(numerators) == len(denominators) == len(clusters):
        raise DataError(
            f"by_cluster: {len(numerators)} numerators, {len(denominators)} denominators and "
            f"{len(clusters)} names of clusters; give one of each per item"
        )
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    index = np.array([numbers[name] for name in clusters], dtype=int)  # (items,)
    sums = (np.bincount(index, weights=column, minlength=len(numbers)) for column in sample)
    return RatioSample(*(column.tolist() for column in sums))


def has_clusters(sample: RatioSample) -> bool:
    """Return True if a cluster has several cases."""
    return max(sample.denominators, default=0) > 1


def cluster_interval(sample: RatioSample, confidence: float = 0.95) -> Interval | None:
    """Bound a proportion by Wilson's interval of the effective sample size.

    The plain interval stands where no cluster has several cases, where it is wider, and where the
    rate is 0 or 1, so that V is 0. A single cluster counts as one case.

    Args:
        sample: the cases with the property, and all cases, of each cluster.
        confidence: of the interval, 0 to 1.

    Returns:
        None if there is no case.

    Example:
        In 50 of 100 clusters, both cases have the property: half of 100 items, not of 200.

        >>> interval = cluster_interval(RatioSample([2, 0] * 50, [2, 2] * 50))
        >>> plain = wilson_interval(50, 100)
        >>> round(interval.low, 2) == round(plain.low, 2) == 0.4
        True
    """
    numerators, denominators = np.array(sample, dtype=float)  # (clusters,)
    successes, n = round(numerators.sum()), round(denominators.sum())
    plain = wilson_interval(successes, n, confidence)
    if not has_clusters(sample) or successes in (0, n):
        return plain
    rate = successes / n
    items = _effective_items(numerators, denominators, confidence)
    return wilson_of_rate(rate, items, normal_quantile(confidence)) if items < n else plain


def _effective_items(numerators: np.ndarray, denominators: np.ndarray, confidence: float) -> float:
    """Return the number of independent cases that say as much as the clusters."""
    clusters = int((denominators > 0).sum())
    if clusters == 1:
        return 1.0
    n = denominators.sum()
    rate = numerators.sum() / n
    squares = (numerators - rate * denominators) ** 2  # (clusters,)
    total = squares.sum()
    if total == 0:  # every cluster has the same rate
        return float("inf")
    variance = clusters / (clusters - 1) * total / n**2
    excess = (squares**2).sum() - total**2 / clusters  # 0 if all squares are equal
    freedom = 2 * total**2 / excess - 1 if excess > 0 else float("inf")
    freedom = min(max(freedom, LEAST_FREEDOM), clusters - 1)
    quantile = float(stdtrit(freedom, (1 + confidence) / 2))  # Student's
    return float(rate * (1 - rate) / variance * (normal_quantile(confidence) / quantile) ** 2)


def swap_test(
    baseline: RatioSample,
    candidate: RatioSample,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> float | None:
    """Test if two systems have the same rate on the same clusters; return the two-sided p-value.

    Paired permutation test (Fisher, The Design of Experiments, 1935, ch. 3): if the systems are
    equally good, each cluster could as well have their results the other way round. So p is the
    share of exchanges of whole clusters with at least the observed difference. All exchanges are
    tried, or, if they are too many, random ones and the observed one (Phipson and Smyth, Stat.
    Appl. Genet. Mol. Biol. 9, 2010, article 39).

    Args:
        baseline: numerators and denominators of each cluster.
        candidate: of the other system, with the same clusters in the same order.
        permutations: number of random exchanges.
        seed: of the random exchanges.

    Returns:
        None if a system has no case.

    Raises:
        DataError: the two differ in length.

    Example:
        On 4 clusters the candidate has 1 of 3 cases less: 2 of 2^4 exchanges differ as much.

        >>> swap_test(RatioSample([2] * 4, [3] * 4), RatioSample([1] * 4, [3] * 4))
        0.125
    """
    lengths = [len(column) for column in (*baseline, *candidate)]
    if len(set(lengths)) > 1:
        raise DataError(f"swap_test: give one value per cluster, but the lengths are {lengths}")
    ours = np.array(candidate, dtype=float).T  # (clusters, 2): numerators, denominators
    theirs = np.array(baseline, dtype=float).T
    if not (ours[:, 1].sum() and theirs[:, 1].sum()):
        return None
    differs = (ours != theirs).any(axis=1)
    gap = (ours - theirs)[differs]  # what an exchange moves from one system to the other
    ours, theirs = ours.sum(axis=0), theirs.sum(axis=0)  # (2,)
    observed = ours[0] / ours[1] - theirs[0] / theirs[1]
    extreme = 0
    exchanges = 0
    for moved in _exchanges(gap, permutations, seed):
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = (ours - moved)[:, 0] / (ours - moved)[:, 1]
            difference = rates - (theirs + moved)[:, 0] / (theirs + moved)[:, 1]
        # A rate without cases is no number; it counts against the difference.
        extreme += int((~(np.abs(difference) < abs(observed) - ROUNDING)).sum())
        exchanges += len(moved)
    return extreme / exchanges


def _exchanges(gap: np.ndarray, permutations: int, seed: int) -> Iterator[np.ndarray]:
    """Yield what exchanges of clusters move from one system to the other, (chunk, 2).

    Args:
        gap: what each cluster's exchange moves, (clusters, 2).
        permutations: number of random exchanges.
        seed: of the random exchanges.
    """
    clusters = len(gap)
    if clusters < permutations.bit_length():  # all 2^clusters exchanges
        codes = np.arange(2**clusters)[:, None]
        yield ((codes >> np.arange(clusters)) & 1) @ gap
        return
    yield np.zeros((1, 2))  # the observed one
    # Of n clusters with equal gaps, Binomial(n, 1/2) are exchanged.
    kinds, counts = np.unique(gap, axis=0, return_counts=True)
    draw = np.random.default_rng(seed)
    for start in range(0, permutations, CHUNK):
        size = (min(CHUNK, permutations - start), len(kinds))
        yield draw.binomial(counts, 0.5, size=size) @ kinds
