"""The pace of calls, on a clock set by hand."""

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
    """Make calls as fast as allowed and return the seconds; a share gets a 429 and is repeated."""
    now = 0.0
    draw = random.Random(seed)
    successes = 0
    while successes < calls:
        while wait := limits.admit(now, tokens=tokens):
            now += wait
        if draw.random() < complain:
            limits.throttled(now, retry_after=1.0)
        else:
            limits.succeeded()
            successes += 1
    return now


@pytest.mark.parametrize(("calls", "per_minute"), [(300, 500), (96, 60), (20, 6)])
def test_pace_is_the_limit_after_the_burst(calls: int, per_minute: int) -> None:
    """Catches: calls faster than the limit, or slower than necessary.

    n calls take (n - burst) / rate seconds.
    """
    limits = AdaptiveRateLimiter(requests_per_minute=per_minute, tokens_per_minute=0, now=0.0)
    rate = per_minute / 60
    assert drive(limits, calls) == pytest.approx((calls - rate * BURST_S) / rate, abs=1.01 / rate)


def test_tokens_bind_where_they_are_scarcer() -> None:
    """Catches: a token limit without effect.

    6000 tokens a minute are 100 a second: 50 calls of 100 tokens take 50 s less the burst.
    """
    limits = AdaptiveRateLimiter(requests_per_minute=600, tokens_per_minute=6000, now=0.0)
    assert drive(limits, 50, tokens=100) == pytest.approx(50 - BURST_S, abs=1.01)
    limits = AdaptiveRateLimiter(requests_per_minute=600, tokens_per_minute=6000, now=0.0)
    now = drive(limits, 3, tokens=2000)
    # Each call is larger than a burst, and waits until the debt of the call before is paid.
    assert now == pytest.approx(40, abs=1.01)
    assert limits.admit(now, tokens=100) == pytest.approx(16.0)
    limits.correct(-2000)  # the last call used no tokens
    assert limits.admit(now, tokens=100) == 0


def test_idle_time_saves_up_one_burst_at_most() -> None:
    """Catches: an hour without calls, while answers are generated, followed by 3600 calls at once.

    One request a second: after the hour five are admitted at once, and the sixth waits a second.
    """
    limits = AdaptiveRateLimiter(requests_per_minute=60, tokens_per_minute=0, now=0.0)
    waits = [limits.admit(3600.0, tokens=0) for _ in range(6)]
    assert waits == [0.0] * 5 + [pytest.approx(1.0)]
    limits = AdaptiveRateLimiter(requests_per_minute=600, tokens_per_minute=6000, now=0.0)
    assert limits.admit(3600.0, tokens=500) == 0.0  # 100 tokens a second: the bucket is empty now
    assert limits.admit(3600.0, tokens=100) == pytest.approx(1.0)


@pytest.mark.parametrize(("idle_s", "at_once"), [(0.0, 0), (2.0, 4), (60.0, 10)])
def test_right_after_the_calls_of_others_no_burst_is_left(idle_s: float, at_once: int) -> None:
    """Catches: a burst at the start of each of many short runs. Two calls a second, ten at once."""
    limits = AdaptiveRateLimiter(requests_per_minute=120, tokens_per_minute=0, now=0.0)
    limits.start_after(idle_s)
    assert sum(limits.admit(0.0, tokens=0.0) == 0.0 for _ in range(20)) == at_once


def test_a_call_larger_than_the_bucket_goes_when_it_is_full() -> None:
    """Catches: a long prompt that waits for ever. 500 tokens fit, so 2000 leave a debt of 1500."""
    limits = AdaptiveRateLimiter(requests_per_minute=600, tokens_per_minute=6000, now=0.0)
    assert limits.admit(0.0, tokens=2000) == 0.0
    assert limits.admit(0.0, tokens=2000) == pytest.approx(20.0)


def test_stray_complaints_hardly_slow_down() -> None:
    """Catches: a pace that random 429s reduce to its minimum.

    With 5 % of them, 300 calls take less than 1.05 of the time that the limit alone needs.
    """
    for seed in range(20):
        limits = AdaptiveRateLimiter(requests_per_minute=500, tokens_per_minute=0, now=0.0)
        assert drive(limits, 300, complain=0.05, seed=seed) < 1.05 * 300 / (500 / 60)


def test_a_server_that_allows_less_is_followed() -> None:
    """Catches: a storm of 429s that goes on at full speed; a pace that never comes back."""
    limits = AdaptiveRateLimiter(requests_per_minute=600, tokens_per_minute=0, now=0.0)
    now = 0.0
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
