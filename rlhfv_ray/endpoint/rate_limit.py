"""Two token buckets, requests and tokens per minute, whose pace adapts to a server's 429s.

The arithmetic uses a clock that the caller reads, so that tests need not wait.
"""

# Not aiolimiter (1.3): its AsyncLimiter has one fixed rate, raises ValueError for an amount above
# the burst, and cannot be corrected once the true token count is known. Nor can two limiters admit
# a call together, or be held for a Retry-After.

from dataclasses import dataclass, field

BURST_S = 5.0  # a full bucket holds what flows in during this many seconds
FIRST_BACKOFF = 0.95  # factor on the pace after a single 429
BACKOFF = 0.7  # factor on the pace after each further 429 without a success in between
RECOVERY = 0.02  # share of the configured pace that a success regains
SLOWEST = 0.05  # lower bound of the pace, as a share of the configured one


@dataclass
class TokenBucket:
    """A token bucket: it refills at a fixed rate up to its capacity, and may go into debt.

    The debt comes from amounts above the capacity, and from calls that took more than estimated.
    """

    per_second: float
    level: float = field(init=False)
    updated_at: float = 0.0  # seconds on the caller's clock

    def __post_init__(self) -> None:
        self.level = self.capacity

    @property
    def capacity(self) -> float:
        """The largest amount that can be taken at once without debt."""
        return self.per_second * BURST_S

    def refill(self, now: float, pace: float) -> None:
        """Bring the level up to date: `pace` (0 to 1) scales the rate since the last update."""
        inflow = (now - self.updated_at) * self.per_second * pace
        self.level = min(self.level + inflow, self.capacity)
        self.updated_at = now

    def wait(self, pace: float, amount: float) -> float:
        """Return the seconds until the amount, or the capacity if that is less, is available."""
        needed = min(amount, self.capacity)
        return max(0.0, needed - self.level) / (self.per_second * pace)


class AdaptiveRateLimiter:
    """Two coupled token buckets, and a pace that follows the server's 429s.

    A single 429 slows the pace a little, because servers send some at any pace. A second one
    without a success in between slows it a lot, and holds all callers for the Retry-After.

    Example:
        60 requests a minute: five are admitted at once, then one a second.

        >>> limits = AdaptiveRateLimiter(requests_per_minute=60, tokens_per_minute=0, now=0.0)
        >>> [limits.admit(0.0, tokens=10) for _ in range(6)]
        [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    """

    def __init__(self, *, requests_per_minute: float, tokens_per_minute: float, now: float) -> None:
        self.requests = TokenBucket(requests_per_minute / 60, updated_at=now)
        self.tokens: TokenBucket | None = None  # None: no limit
        if tokens_per_minute:
            self.tokens = TokenBucket(tokens_per_minute / 60, updated_at=now)
        self.pace = 1.0  # share of the configured rates
        self.held_until = now
        self.complaints = 0  # 429s since the last success

    def admit(self, now: float, *, tokens: float) -> float:
        """Return 0 and count the call if it may be made now, else the seconds to wait first."""
        amounts = [(self.requests, 1.0)]
        if self.tokens:
            amounts.append((self.tokens, tokens))
        wait = self.held_until - now
        for bucket, amount in amounts:
            bucket.refill(now, self.pace)
            wait = max(wait, bucket.wait(self.pace, amount))
        if wait > 1e-9:
            return wait
        for bucket, amount in amounts:
            bucket.level -= amount
        return 0.0

    def start_after(self, idle_s: float) -> None:
        """Start with what has flowed in during `idle_s` seconds, since the last call of others."""
        for bucket in (self.requests, self.tokens):
            if bucket:
                bucket.level = min(bucket.capacity, idle_s * bucket.per_second)

    def correct(self, tokens: float) -> None:
        """Take more tokens for a call admitted earlier; a negative number gives tokens back."""
        if self.tokens:
            self.tokens.level -= tokens

    def succeeded(self) -> None:
        """Record a call that succeeded."""
        self.complaints = 0
        self.pace = min(1.0, self.pace + RECOVERY)

    def throttled(self, now: float, *, retry_after: float) -> None:
        """Record a 429 and the wait that it asks for, in seconds."""
        self.complaints += 1
        repeated = self.complaints > 1
        self.pace = max(SLOWEST, self.pace * (BACKOFF if repeated else FIRST_BACKOFF))
        if repeated:
            self.held_until = max(self.held_until, now + retry_after)
