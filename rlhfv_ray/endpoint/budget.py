"""One budget for all callers of a server: pace, tokens, cost, and the stop where no call helps."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.endpoint.client import Outcome
from rlhfv_ray.endpoint.rate_limit import AdaptiveRateLimiter
from rlhfv_ray.endpoint.records import pinned

MAX_SLEEP_S = 0.5  # a waiting caller checks the limits at least this often
COST_SLEEP_S = 0.05  # the same while calls under way hold the rest of max_cost
TYPICAL_REPLY = 150  # tokens, assumed until the server reports the true number
HOPELESS = 3  # requests rejected in the same way in a row, after which all calls stop


class Call(NamedTuple):
    """One call, as its budget sees it."""

    request: str  # id of the request
    tokens_in: int  # of the prompt
    tokens_out: int  # of the longest possible reply


@dataclass
class Ledger:
    """Calls made to a server, with their outcomes, tokens and cost."""

    requests: int = 0  # requests of this run that had no reply in the cache
    known: int = 0  # replies found in the cache
    calls: int = 0
    # Calls by outcome: the status of a reply, or rate_limited, retryable, rejected.
    outcomes: dict[str, int] = field(default_factory=dict)
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0  # USD
    seconds: float = 0.0  # from the first call to the last reply
    models: tuple[str, ...] = ()  # model names that the server reported
    stopped: str = ""  # reason of the stop; empty if nothing stopped the calls

    def lines(self) -> list[str]:
        """Return the ledger as lines of text for the console."""
        counts = [f"{count} {name}" for name, count in sorted(self.outcomes.items())]
        cost = f", {self.cost:.2f} USD" if self.cost else ""
        return [
            f"{self.known} replies known before, {self.calls} calls in {self.seconds:.0f} s "
            f"({', '.join(counts) or 'none'}), {self.tokens_in:,} tokens in, "
            f"{self.tokens_out:,} out{cost}; answered by {', '.join(self.models) or 'nobody'}"
        ]


class CallBudget:
    """Admission of calls and their ledger, shared by the callers on all machines as a Ray actor.

    The cost cap holds for the worst case. Each admitted call reserves the cost of its longest
    possible reply until its true cost is recorded.
    """

    def __init__(self, endpoint: EndpointConfig) -> None:
        self.endpoint = endpoint
        self.ledger = Ledger()
        self.turn = asyncio.Lock()  # first come, first served
        self.limits: AdaptiveRateLimiter | None = None
        self.reserved = 0.0  # USD, worst-case cost of the calls under way
        self.rejected: set[str] = set()  # ids of requests since the last reply, of one cause
        self.cause = ""  # of these rejections
        self.done = 0
        self.started = 0.0

    async def admit(self, call: Call) -> str:
        """Wait until a call may be made.

        Returns:
            "" if the call may be made, else the reason why no further calls are made.
        """
        cost = self.endpoint.cost(call.tokens_in, call.tokens_out)
        async with self.turn:
            limits = self._start()
            while not self.ledger.stopped:
                if self._exceeds_cap(cost):
                    if self.reserved <= 1e-12:
                        self.ledger.stopped = (
                            f"the next call could go over max_cost = {self.endpoint.max_cost:g} USD"
                        )
                    wait = COST_SLEEP_S  # calls under way may cost less than they reserved
                else:
                    wait = limits.admit(time.monotonic(), tokens=call.tokens_in + TYPICAL_REPLY)
                    if not wait:
                        self.reserved += cost
                        self.ledger.calls += 1
                        return ""
                await asyncio.sleep(min(wait, MAX_SLEEP_S))
        return self.ledger.stopped

    def _start(self) -> AdaptiveRateLimiter:
        """Return the rate limiter; its clock starts at the first call."""
        if self.limits is None:
            self.started = time.monotonic()
            self.limits = AdaptiveRateLimiter(
                requests_per_minute=self.endpoint.requests_per_minute,
                tokens_per_minute=self.endpoint.tokens_per_minute,
                now=self.started,
            )
        return self.limits

    def _exceeds_cap(self, cost: float) -> bool:
        """Return True if a call of this cost (USD) could take the total over `max_cost`."""
        cap = self.endpoint.max_cost
        return cap > 0 and self.ledger.cost + self.reserved + cost > cap

    async def record(self, outcome: Outcome, call: Call) -> None:
        """Record the outcome of an admitted call."""
        ledger, reply, limits = self.ledger, outcome.reply, self.limits
        assert limits is not None
        cost = self.endpoint.cost(call.tokens_in, call.tokens_out)
        self.reserved = max(0.0, self.reserved - cost)
        status = pinned(reply, self.endpoint).status
        kind = status if outcome.kind == "reply" else outcome.kind
        ledger.outcomes[kind] = ledger.outcomes.get(kind, 0) + 1
        ledger.tokens_in += reply.tokens_in
        ledger.tokens_out += reply.tokens_out
        ledger.cost += self.endpoint.cost(reply.tokens_in, reply.tokens_out)
        ledger.seconds = time.monotonic() - self.started
        if reply.model:
            ledger.models = tuple(sorted({*ledger.models, reply.model}))
        if outcome.kind == "reply":
            self.rejected.clear()
            limits.succeeded()
            limits.correct(reply.tokens_in + reply.tokens_out - call.tokens_in - TYPICAL_REPLY)
        elif outcome.kind == "rate_limited":
            limits.throttled(time.monotonic(), retry_after=outcome.retry_after)
        elif outcome.kind == "rejected":
            self._reject(outcome, call.request)

    def _reject(self, outcome: Outcome, request: str) -> None:
        """Stop all calls if several requests in a row were rejected in the same way."""
        if outcome.cause != self.cause:
            self.cause = outcome.cause
            self.rejected.clear()
        self.rejected.add(request)
        if len(self.rejected) >= HOPELESS:
            self.ledger.stopped = self.ledger.stopped or outcome.reason

    async def stop(self, reason: str) -> None:
        """Stop all calls."""
        self.ledger.stopped = self.ledger.stopped or reason

    async def finish(self) -> None:
        """Count one more request as done: it has a reply, or was given up."""
        self.done += 1

    async def count(self) -> int:
        """Return the number of requests that are done."""
        return self.done

    async def spent(self) -> Ledger:
        """Return the ledger as of now."""
        return self.ledger
