"""How fast to call: requests and tokens per minute, shared by all callers, slower while the server says it is too much.

Pure arithmetic on a clock that the caller reads, so that it is tested without waiting.
"""

from dataclasses import dataclass, field

BURST_S = 5.0  # what was not called for may be made up for, this many seconds' worth at most
FIRST_BACKOFF, BACKOFF = (
    0.95,
    0.7,
)  # of its pace a caller keeps after a single 429; after one more without a success between
RECOVERY, SLOWEST = 0.02, 0.05  # of the configured pace: regained by a success; never less


@dataclass
class TokenBucket:
    """So much per second flows in, up to a burst's worth; what is taken may leave it in debt."""

    per_second: float
    level: float = field(init=False)
    seen: float = 0.0  # when the level was right

    def __post_init__(self) -> None:
        self.level = self.per_second * BURST_S

    def flow(self, now: float, pace: float) -> None:
        """Bring the level up to now."""
        self.level = min(
            self.level + (now - self.seen) * self.per_second * pace, self.per_second * BURST_S
        )
        self.seen = now

    def wait(self, pace: float, amount: float) -> float:
        """Seconds until the amount can be taken: a call larger than a burst goes when the bucket is full."""
        wanted = min(amount, self.per_second * BURST_S)
        return max(0.0, wanted - self.level) / (self.per_second * pace)


class AdaptiveRateLimiter:
    """Two limits, and a pace that follows the server's complaints.

    A single 429 slows the pace a little, for servers send some at any pace; one more without a success between slows it a lot, and holds
    everyone for the time the server names.

    Example:
        60 requests a minute: five may go at once, then one a second.

        >>> limits = AdaptiveRateLimiter(requests_per_minute=60, tokens_per_minute=0, now=0.0)
        >>> [limits.admit(0.0, tokens=10) for _ in range(6)]
        [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    """

    def __init__(self, *, requests_per_minute: float, tokens_per_minute: float, now: float) -> None:
        self.requests = TokenBucket(requests_per_minute / 60)
        self.tokens = TokenBucket(tokens_per_minute / 60) if tokens_per_minute else None
        for bucket in self._buckets():
            bucket.seen = now
        self.pace = 1.0
        self.held_until = now
        self.complaints = 0  # since the last success

    def admit(self, now: float, *, tokens: float) -> float:
        """Let a call go: 0, and it counts; else the seconds after which to ask again."""
        wait = self.held_until - now
        for bucket in self._buckets():
            bucket.flow(now, self.pace)
        wait = max(
            wait,
            self.requests.wait(self.pace, 1),
            self.tokens.wait(self.pace, tokens) if self.tokens else 0,
        )
        if wait > 1e-9:
            return wait
        self.requests.level -= 1
        if self.tokens:
            self.tokens.level -= tokens
        return 0.0

    def correct(self, tokens: float) -> None:
        """Take so many tokens more than a call was admitted with (fewer, if negative)."""
        if self.tokens:
            self.tokens.level -= tokens

    def succeeded(self) -> None:
        """A call went through."""
        self.complaints = 0
        self.pace = min(1.0, self.pace + RECOVERY)

    def throttled(self, now: float, *, retry_after: float) -> None:
        """The server said 429."""
        self.complaints += 1
        again = self.complaints > 1
        self.pace = max(SLOWEST, self.pace * (BACKOFF if again else FIRST_BACKOFF))
        if again:
            self.held_until = max(self.held_until, now + retry_after)

    def _buckets(self) -> list[TokenBucket]:
        return [self.requests, *([self.tokens] if self.tokens else [])]
