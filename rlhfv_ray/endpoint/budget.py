"""The desk that all callers ask before a call: it keeps the pace, counts tokens and cost, and stops everyone where no retry helps."""

import asyncio
import time
from dataclasses import dataclass, field

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.endpoint.client import Outcome
from rlhfv_ray.endpoint.rate_limit import AdaptiveRateLimiter

LOOK_S = 0.5  # longest sleep before looking at the limits again
TYPICAL_REPLY = 150  # tokens, where the true number is not known yet


@dataclass
class Ledger:
    """What was asked of a server, and what it took."""

    requests: int = 0  # of this run, without those known before
    known: int = 0  # replies found in the cache
    calls: int = 0
    outcomes: dict[str, int] = field(
        default_factory=dict
    )  # of the calls: reply statuses, rate_limited, retryable, fatal
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0  # USD
    seconds: float = 0.0  # from the first call to the last reply
    models: tuple[str, ...] = ()  # that the server says it used
    stopped: str = ""  # why, if it was stopped

    def lines(self) -> list[str]:
        """For people."""
        outcomes = ", ".join(f"{count} {name}" for name, count in sorted(self.outcomes.items()))
        cost = f", {self.cost:.2f} USD" if self.cost else ""
        return [
            f"{self.known} replies known before, {self.calls} calls in {self.seconds:.0f} s ({outcomes or 'none'}), "
            f"{self.tokens_in:,} tokens in, {self.tokens_out:,} out{cost}; answered by {', '.join(self.models) or 'nobody'}"
        ]


class CallBudget:
    """Who may call when, and the books. Lives in a Ray actor, so that callers on all machines share it."""

    def __init__(self, endpoint: EndpointConfig) -> None:
        self.endpoint, self.ledger = endpoint, Ledger()
        self.turn = asyncio.Lock()  # first come, first served
        self.limits: AdaptiveRateLimiter | None = None
        self.reserved, self.done, self.started = 0.0, 0, 0.0

    async def admit(self, tokens_in: int, tokens_out: int) -> str:
        """Wait until a call may be made; "" to make it, else why no more are."""
        endpoint, cost = self.endpoint, self.endpoint.cost(tokens_in, tokens_out)
        async with self.turn:
            if self.limits is None:
                self.started = time.monotonic()
                per_minute = {
                    name: getattr(endpoint, name)
                    for name in ("requests_per_minute", "tokens_per_minute")
                }
                self.limits = AdaptiveRateLimiter(**per_minute, now=self.started)
            while not self.ledger.stopped:
                if (
                    endpoint.max_cost
                    and self.ledger.cost + self.reserved + cost > endpoint.max_cost
                ):
                    if self.reserved <= 1e-12:
                        self.ledger.stopped = (
                            f"the next call could go over max_cost = {endpoint.max_cost:g} USD"
                        )
                    wait = LOOK_S / 10  # calls under way may turn out cheaper
                else:
                    wait = self.limits.admit(time.monotonic(), tokens=tokens_in + TYPICAL_REPLY)
                    if not wait:
                        self.reserved += cost
                        self.ledger.calls += 1
                        return ""
                await asyncio.sleep(min(wait, LOOK_S))
        return self.ledger.stopped

    async def record(self, outcome: Outcome, tokens_in: int, tokens_out: int) -> None:
        """Enter what came of an admitted call."""
        ledger, verdict, limits = self.ledger, outcome.verdict, self.limits
        assert limits is not None
        self.reserved = max(0.0, self.reserved - self.endpoint.cost(tokens_in, tokens_out))
        kind = verdict.status if outcome.kind == "reply" else outcome.kind
        ledger.outcomes[kind] = ledger.outcomes.get(kind, 0) + 1
        ledger.tokens_in += verdict.tokens_in
        ledger.tokens_out += verdict.tokens_out
        ledger.cost += self.endpoint.cost(verdict.tokens_in, verdict.tokens_out)
        ledger.seconds = time.monotonic() - self.started
        if verdict.model:
            ledger.models = tuple(sorted({*ledger.models, verdict.model}))
        if outcome.kind == "reply":
            limits.succeeded()
            limits.correct(verdict.tokens_in + verdict.tokens_out - tokens_in - TYPICAL_REPLY)
        elif outcome.kind == "rate_limited":
            limits.throttled(time.monotonic(), retry_after=outcome.retry_after)
        elif outcome.kind == "fatal":
            ledger.stopped = ledger.stopped or outcome.reason

    async def finish(self) -> None:
        """One more request is settled, or given up."""
        self.done += 1

    async def count(self) -> int:
        """How many requests are done."""
        return self.done

    async def spent(self) -> Ledger:
        """What it took so far."""
        return self.ledger
