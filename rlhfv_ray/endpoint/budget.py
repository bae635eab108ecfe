"""One budget for all callers of a server: pace, tokens, cost, and the stop where no call helps."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.endpoint.rate_limit import AdaptiveRateLimiter
from rlhfv_ray.endpoint.records import Outcome, Usage, pinned
from rlhfv_ray.endpoint.spending import Spending

MAX_SLEEP_S = 0.5  # a waiting caller checks the limits at least this often
COST_SLEEP_S = 0.05  # the same while calls under way hold the rest of max_cost
TYPICAL_REPLY = 150  # tokens, assumed until the server reports the true number
OUTCOMES = {"retryable": "failed and tried again", "rate_limited": "told to wait"}  # as people read
HOPELESS = 3  # requests rejected in the same way in a row, after which all calls stop


class Call(NamedTuple):
    """One call, as its budget sees it."""

    id: str  # of this call alone
    request: str  # id of the request
    tokens_in: int  # of the prompt, about
    most_in: int  # of the prompt, an upper bound
    most_out: int  # of the longest possible reply


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
    estimated: float = 0.0  # USD, the part of the cost that no server stated: an upper bound
    seconds: float = 0.0  # from the first call to the last reply
    models: tuple[str, ...] = ()  # model names that the server reported
    stopped: str = ""  # reason of the stop; empty if nothing stopped the calls

    def lines(self) -> list[str]:
        """Return the ledger as lines of text for the console."""
        counts = [
            f"{count} {OUTCOMES.get(name, name)}" for name, count in sorted(self.outcomes.items())
        ]
        cost = f", {self.cost:.2f} USD" if self.cost else ""
        if self.estimated:
            cost += f" ({self.estimated:.2f} of it estimated, as the server did not state it)"
        return [
            f"{self.known} replies needed no call, {self.calls} calls in {self.seconds:.0f} s "
            f"({', '.join(counts) or 'none'}), {self.tokens_in:,} tokens in, "
            f"{self.tokens_out:,} out{cost}; answered by {', '.join(self.models) or 'nobody'}"
        ]


class CallBudget:
    """Admission of calls and their ledger, shared by the callers on all machines as a Ray actor.

    The cost cap holds for the worst case, and for all calls whose replies are in the same folder.
    Each call is claimed at the most that it can cost until its true cost is recorded. A call whose
    cost the server does not state is recorded at its most.
    """

    def __init__(self, endpoint: EndpointConfig, cache: Path) -> None:
        self.endpoint = endpoint
        self.spending = Spending(
            cache,
            server=endpoint.address,
            limit=endpoint.max_cost,
            timeout_s=endpoint.timeout_s,
        )
        self.ledger = Ledger()
        self.turn = asyncio.Lock()  # first come, first served
        self.limits: AdaptiveRateLimiter | None = None
        self.rejected: set[str] = set()  # ids of requests since the last reply, of one cause
        self.cause = ""  # of these rejections
        self.done = 0
        self.started = 0.0

    async def admit(self, call: Call) -> str:
        """Wait until a call may be made.

        Returns:
            "" if the call may be made, else the reason why no further calls are made.
        """
        async with self.turn:
            limits = self._start()
            await self._claim(call)
            while not self.ledger.stopped:
                wait = limits.admit(time.monotonic(), tokens=call.tokens_in + TYPICAL_REPLY)
                if not wait:
                    self.ledger.calls += 1
                    self.spending.mark_call()
                    return ""
                await asyncio.sleep(min(wait, MAX_SLEEP_S))
            self.spending.settle(call.id, 0.0)
        return self.ledger.stopped

    async def _claim(self, call: Call) -> None:
        """Wait until the most that a call can cost is within `max_cost`, or stop all calls."""
        cost = self.endpoint.cost(call.most_in, call.most_out)
        while not self.ledger.stopped:
            claimed = await asyncio.to_thread(self.spending.claim, call.id, cost)
            if claimed == "granted":
                return
            if claimed == "spent":
                await self.stop(
                    f"the next call could go over max_cost = {self.endpoint.max_cost:g} USD, which "
                    "counts all calls of earlier and other runs in the same storage"
                )
            await asyncio.sleep(COST_SLEEP_S)  # calls under way may cost less than was claimed

    def _start(self) -> AdaptiveRateLimiter:
        """Return the rate limiter. Its clock starts at the first call, after those of others."""
        if self.limits is None:
            self.started = time.monotonic()
            self.limits = AdaptiveRateLimiter(
                requests_per_minute=self.endpoint.requests_per_minute,
                tokens_per_minute=self.endpoint.tokens_per_minute,
                now=self.started,
            )
            self.limits.start_after(self.spending.idle_s())
        return self.limits

    async def record(self, outcome: Outcome, call: Call) -> None:
        """Record the outcome of an admitted call."""
        ledger, reply, limits = self.ledger, outcome.reply, self.limits
        assert limits is not None
        status = pinned(reply, self.endpoint).status
        kind = status if outcome.kind == "reply" else outcome.kind
        ledger.outcomes[kind] = ledger.outcomes.get(kind, 0) + 1
        self._settle(call, outcome.usage)
        ledger.seconds = time.monotonic() - self.started
        if reply.model:
            ledger.models = tuple(sorted({*ledger.models, reply.model}))
        if outcome.kind == "reply":
            self.rejected.clear()
            limits.succeeded()
            if outcome.usage:
                limits.correct(sum(outcome.usage) - call.tokens_in - TYPICAL_REPLY)
        elif outcome.kind == "rate_limited":
            limits.throttled(time.monotonic(), retry_after=outcome.retry_after)
        elif outcome.kind == "rejected":
            self._reject(outcome, call.request)

    def _settle(self, call: Call, usage: Usage | None) -> None:
        """Book what a call cost, or the most that it can have cost if the server did not say."""
        cost = self.endpoint.cost(*(usage or (call.most_in, call.most_out)))
        self.spending.settle(call.id, cost)
        self.ledger.cost += cost
        if usage is None:
            self.ledger.estimated += cost
        else:
            self.ledger.tokens_in += usage.tokens_in
            self.ledger.tokens_out += usage.tokens_out

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

    async def close(self) -> Ledger:
        """Return the ledger at the end; calls of lost callers are booked at their most."""
        for call in list(self.spending.claims):
            cost = self.spending.claims[call].cost
            self.spending.settle(call, cost)
            self.ledger.cost += cost
            self.ledger.estimated += cost
        await asyncio.to_thread(self.spending.close)
        return self.ledger
