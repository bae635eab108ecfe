"""The pace of calls on a clock that is set by hand."""

import random

import pytest

from rlhfv_ray.endpoint.rate_limit import BURST_S, FIRST_BACKOFF, SLOWEST, AdaptiveRateLimiter


def drive(
    limits: AdaptiveRateLimiter,
    calls: int,
    *,
    tokens: float = 0.0,
    complain: float = 0.0,
    seed: int = 0,
) -> float:
    """Make calls as fast as allowed, a share of them answered by 429 and made again; the seconds it took."""
    now, draw, made = 0.0, random.Random(seed), 0
    while made < calls:
        while wait := limits.admit(now, tokens=tokens):
            now += wait
        if draw.random() < complain:
            limits.throttled(now, retry_after=1.0)
        else:
            limits.succeeded()
            made += 1
    return now


@pytest.mark.parametrize(("calls", "per_minute"), [(300, 500), (96, 60), (20, 6)])
def test_pace_is_the_limit_after_the_burst(calls: int, per_minute: int) -> None:
    """Catches: calls faster than the limit, or slower than need be. n calls take (n - burst) / rate seconds."""
    limits = AdaptiveRateLimiter(requests_per_minute=per_minute, tokens_per_minute=0, now=0.0)
    rate = per_minute / 60
    assert drive(limits, calls) == pytest.approx((calls - rate * BURST_S) / rate, abs=1.01 / rate)


def test_tokens_bind_where_they_are_scarcer() -> None:
    """Catches: a token limit that does nothing. 6000 tokens a minute are 100 a second: 50 calls of 100 take 50 s less the burst."""
    limits = AdaptiveRateLimiter(requests_per_minute=600, tokens_per_minute=6000, now=0.0)
    assert drive(limits, 50, tokens=100) == pytest.approx(50 - BURST_S, abs=1.01)
    limits = AdaptiveRateLimiter(requests_per_minute=600, tokens_per_minute=6000, now=0.0)
    now = drive(limits, 3, tokens=2000)
    assert now == pytest.approx(
        40, abs=1.01
    )  # larger than a burst: each waits until the debt of the one before is paid
    assert limits.admit(now, tokens=100) == pytest.approx(16.0)
    limits.correct(-2000)  # the last call used none: its tokens are free again
    assert limits.admit(now, tokens=100) == 0


def test_stray_complaints_hardly_slow_down() -> None:
    """Catches: a pace that random 429s drive to the ground: with 5 % of them 300 calls stay within 1.05 of their floor."""
    for seed in range(20):
        limits = AdaptiveRateLimiter(requests_per_minute=500, tokens_per_minute=0, now=0.0)
        assert drive(limits, 300, complain=0.05, seed=seed) < 1.05 * 300 / (500 / 60)


def test_a_server_that_allows_less_is_followed() -> None:
    """Catches: a storm of 429s that goes on at full speed; a pace that never comes back."""
    limits, now = AdaptiveRateLimiter(requests_per_minute=600, tokens_per_minute=0, now=0.0), 0.0
    limits.throttled(now, retry_after=0.0)
    assert limits.pace == FIRST_BACKOFF
    for _ in range(10):
        limits.throttled(now, retry_after=0.0)
    assert limits.pace == SLOWEST
    for _ in range(60):
        limits.succeeded()
    assert limits.pace == 1.0


def test_the_servers_wait_holds_everyone_only_when_it_complains_again() -> None:
    """Catches: one 429 among many that stops all callers; a Retry-After that is ignored."""
    limits = AdaptiveRateLimiter(requests_per_minute=600, tokens_per_minute=0, now=0.0)
    limits.throttled(0.0, retry_after=30.0)
    assert limits.admit(0.0, tokens=0) == 0
    limits.throttled(0.0, retry_after=30.0)
    assert limits.admit(0.0, tokens=0) == 30.0
    assert limits.admit(29.0, tokens=0) == 1.0
    assert limits.admit(30.0, tokens=0) == 0
