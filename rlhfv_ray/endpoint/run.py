"""JOB: replies to many requests, by Ray Data actors that call a server under shared limits.

Every reply is in the cache before its request counts as done, so a killed run resumes where it was.
All actors ask one `CallBudget` before a call. It keeps the pace, counts tokens and cost, and stops
all calls when several requests in a row are rejected in the same way.
"""

import asyncio
import pickle
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.data
from ray.exceptions import RayError
from rich.console import Console
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_result,
    stop_after_attempt,
    wait_exponential,
)

from rlhfv_ray.cluster import configure_data, unwrap
from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.console import poll, print_sentence, progress_bar
from rlhfv_ray.endpoint.budget import TYPICAL_REPLY, Call, CallBudget, Ledger
from rlhfv_ray.endpoint.cache import ReplyCache
from rlhfv_ray.endpoint.records import Outcome, Reply, Request, pinned
from rlhfv_ray.errors import ConfigError, JudgeError, RlhfvError, StorageError

if TYPE_CHECKING:  # it loads openai, which a driver does not need
    from rlhfv_ray.endpoint.client import ChatClient

CALLER_CPUS = 0.25
POLL_S = 0.5
PROBE = Request("preflight", "Reply with the word ok.")
JITTER = (0.75, 1.25)  # range of the random factor on the backoff

Replay = Callable[[Request], Reply]  # returns a recorded reply

_exponential = wait_exponential(multiplier=0.5, max=8.0)  # seconds


def retry_wait(state: RetryCallState) -> float:
    """Return the seconds until the next attempt: Retry-After, else exponential with jitter."""
    outcome = _last_outcome(state)
    return outcome.retry_after or _exponential(state) * random.uniform(*JITTER)


def _last_outcome(state: RetryCallState) -> Outcome:
    assert state.outcome is not None
    return state.outcome.result()


def retrying(attempts: int) -> AsyncRetrying:
    """Return tenacity's loop: it repeats failed calls, and returns the last outcome at its end."""
    return AsyncRetrying(
        stop=stop_after_attempt(attempts),
        wait=retry_wait,
        retry=retry_if_result(lambda outcome: outcome.kind in ("rate_limited", "retryable")),
        retry_error_callback=_last_outcome,
    )


class CallActor:
    """Settles its share of the requests, many at a time."""

    def __init__(
        self, endpoint: EndpointConfig, cache: str, readable: Callable[[str], bool], budget: Any
    ) -> None:
        self.endpoint = endpoint
        self.cache = ReplyCache(Path(cache))
        self.cache.check_writable()  # this machine may see another folder than the driver's
        self.readable = readable
        self.budget = budget  # handle of the CallBudget actor

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Settle a batch of requests and return those without a reply."""
        failed = asyncio.run(self.settle_all(pickle.loads(batch["requests"][0])))
        return {"failed": [pickle.dumps(failed)]}

    async def settle_all(self, requests: Sequence[Request]) -> list[tuple[Request, Reply]]:
        """Settle requests concurrently and return those without a reply, with the reason."""
        from rlhfv_ray.endpoint.client import ChatClient

        slots = asyncio.Semaphore(max(1, self.endpoint.concurrency // self.endpoint.actors))

        async def settle_in_slot(client: "ChatClient", request: Request) -> Reply:
            async with slots:
                reply = await self.settle(client, request)
                await self.budget.finish.remote()
                return reply

        async with ChatClient(self.endpoint) as client:
            settling = [asyncio.create_task(settle_in_slot(client, each)) for each in requests]
            await asyncio.wait(settling)  # paid replies under way arrive before an error is raised
        pairs = zip(requests, [task.result() for task in settling], strict=True)
        return [(request, reply) for request, reply in pairs if not reply.received]

    async def settle(self, client: "ChatClient", request: Request) -> Reply:
        """Return the reply from the cache or the server; stop all calls if the cache fails."""
        try:
            return await self._settle(client, request)
        except (OSError, StorageError) as error:  # every further reply would be lost as well
            await self.budget.stop.remote(f"the cache of replies failed: {error}")
            return Reply("stopped")

    async def _settle(self, client: "ChatClient", request: Request) -> Reply:
        """Return the reply from the cache or the server; one that is not useful is asked twice."""
        while (settled := self.cache.settle(request, self.endpoint, self.readable)).ask is not None:
            reply = await self.reply(client, settled.ask)
            if not reply.received:
                return reply
            await asyncio.to_thread(self.cache.put, settled.ask.key(self.endpoint), reply)
        assert settled.reply is not None
        return settled.reply

    async def reply(self, client: "ChatClient", request: Request) -> Reply:
        """Call until the server replies, at most `attempts` times."""
        outcome = await retrying(self.endpoint.attempts)(self.attempt, client, request)
        return outcome.reply

    async def attempt(self, client: "ChatClient", request: Request) -> Outcome:
        """Make one call within the budget."""
        call = call_of(request, self.endpoint)
        stopped = await self.budget.admit.remote(call)
        if stopped:
            return Outcome("stopped", Reply("stopped"), stopped)
        outcome = await client.call(request)
        await self.budget.record.remote(outcome, call)
        return outcome


def call_of(request: Request, endpoint: EndpointConfig) -> Call:
    """Return a new call for a request, as its budget sees it."""
    return Call(
        id=uuid.uuid4().hex,
        request=request.id,
        tokens_in=request.tokens,
        most_in=request.most_tokens,
        most_out=endpoint.max_tokens * (1 + request.again),
    )


def ask(
    requests: Sequence[Request],
    endpoint: EndpointConfig,
    cache: Path | Replay,
    *,
    readable: Callable[[str], bool],
    title: str,
    console: Console,
) -> tuple[list[Reply], Ledger]:
    """Return the replies to all requests, in order, and the ledger of the calls made for them.

    Args:
        requests: each with an id of its own, or with a vote of its own.
        endpoint: the server, and the limits on calls to it.
        cache: folder of the replies, shared between runs; or a replay, and no server is called.
        readable: returns True if a reply's text is usable; if not, it is asked for once more.
        title: of the progress bar.
        console: where the estimate and the ledger are printed.

    Raises:
        JudgeError: the server rejects every call, or `max_cost` is reached; all replies so far are
            in the cache. Or the replay has no reply to a request.
        ConfigError: no key is set, or replies cannot be stored.
    """
    if not isinstance(cache, Path):
        replies = [cache(request) for request in requests]
        return replies, Ledger(requests=len({request.id for request in requests}))
    store = ReplyCache(cache)
    # Equal answers of two models make the same request, which is sent once.
    keys = [request.key(endpoint) for request in requests]
    unsettled = {
        key: request
        for key, request in zip(keys, requests, strict=True)
        if store.settle(request, endpoint, readable).ask
    }
    ledger = Ledger()
    failed: dict[str, Reply] = {}
    if unsettled:
        store.check_writable()
        pending = list(unsettled.values())
        print_sentence(console, estimate(pending, len(requests), endpoint))
        ledger, failed = _run(pending, endpoint, store, readable=readable, title=title)
    ledger = replace(ledger, requests=len(unsettled), known=len(requests) - len(unsettled))
    for line in ledger.lines():
        print_sentence(console, f"  {line}")
    if ledger.stopped:
        cached = sum(key not in failed for key in keys)
        raise JudgeError(
            f"{endpoint.model} at {endpoint.address}: {ledger.stopped}. {cached} of "
            f"{len(requests)} replies are kept in {cache}. Fix the cause and run the same command "
            "again: it continues from there."
        )
    replies = []
    for key, request in zip(keys, requests, strict=True):
        reply = failed.get(key) or store.settle(request, endpoint, readable).reply
        replies.append(reply or Reply("unavailable"))
    return replies, ledger


def estimate(requests: Sequence[Request], replies: int, endpoint: EndpointConfig) -> str:
    """Return a line with the calls to be made, their tokens, cost and least time.

    Args:
        requests: that need a call.
        replies: number of all that are needed; others are known, or equal to one of these.
        endpoint: the server.

    Example:
        >>> print(estimate([Request("1", "x" * 35)] * 100, 120, EndpointConfig(model="judge")))
        judge: 100 calls for 120 replies, about 1,000 tokens in and 15,000 out,
        0.2 minutes or more
    """
    tokens_in = sum(request.tokens for request in requests)
    tokens_out = TYPICAL_REPLY * len(requests)
    minutes = len(requests) / endpoint.requests_per_minute
    if endpoint.tokens_per_minute:
        minutes = max(minutes, (tokens_in + tokens_out) / endpoint.tokens_per_minute)
    typical = endpoint.cost(tokens_in, tokens_out)
    most_in = sum(request.most_tokens for request in requests)
    most = endpoint.cost(most_in, endpoint.max_tokens * len(requests))
    cost = f", about {typical:.2f} USD and {most:.2f} at most" if most else ""
    return (
        f"{endpoint.model}: {len(requests)} calls for {replies} replies, about "
        f"{tokens_in:,} tokens in and {tokens_out:,} out{cost}, {max(minutes, 0.1):.1f} minutes or "
        "more"
    )


def check_endpoint(endpoint: EndpointConfig, cache: Path) -> None:
    """Call the server once, to find a wrong address, key or model before long work relies on it.

    Raises:
        ConfigError: the model or the key is missing, or replies cannot be stored.
        JudgeError: the server cannot be reached, or refuses the call.
    """
    if not endpoint.model:
        raise ConfigError(
            "judge.model is not set: name the model that judges (--judge.model), or use "
            "--judge.kind replay."
        )
    store = ReplyCache(cache)
    store.check_writable()
    key = PROBE.key(endpoint)
    reply = store.get(key)
    problem = ""
    if reply is None:
        try:
            outcome: Outcome = ray.get(_probe.remote(endpoint, cache))
        except (RayError, RlhfvError) as error:
            raise unwrap(error) from None
        reply = outcome.reply
        if outcome.kind in ("rejected", "retryable", "stopped"):
            problem = outcome.reason
        elif reply.received:
            store.put(key, reply)
    if pinned(reply, endpoint).status == "other_model":
        problem = f"it answers as {reply.model!r}, not {endpoint.reported_model!r}"
    if problem:
        raise JudgeError(f"{endpoint.model} at {endpoint.address} cannot be used: {problem}")


@ray.remote(num_cpus=CALLER_CPUS)
def _probe(endpoint: EndpointConfig, cache: Path) -> Outcome:
    return asyncio.run(_probe_within_budget(endpoint, cache))


async def _probe_within_budget(endpoint: EndpointConfig, cache: Path) -> Outcome:
    """Make the first call, which counts against `max_cost` like any other."""
    budget = CallBudget(endpoint, cache)
    call = call_of(PROBE, endpoint)
    stopped = await budget.admit(call)
    if stopped:
        return Outcome("stopped", Reply("stopped"), stopped)
    from rlhfv_ray.endpoint.client import call_once

    outcome = await call_once(endpoint, PROBE)
    await budget.record(outcome, call)
    await budget.close()
    return outcome


def _run(
    requests: Sequence[Request],
    endpoint: EndpointConfig,
    store: ReplyCache,
    *,
    readable: Callable[[str], bool],
    title: str,
) -> tuple[Ledger, dict[str, Reply]]:
    """Fan requests out over actors; return the ledger, and by key those without a reply."""
    configure_data()
    # Every caller may wait in `admit` while another records; the rest is for counts and the ledger.
    budget = (
        ray.remote(CallBudget)
        .options(num_cpus=0, max_concurrency=2 * endpoint.concurrency + 8)
        .remote(endpoint, store.folder)
    )
    actors = min(endpoint.actors, len(requests))
    shares = [requests[first :: endpoint.actors] for first in range(actors)]
    rows = [{"requests": pickle.dumps(share)} for share in shares]
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        CallActor,
        fn_constructor_args=(endpoint, str(store.folder), readable, budget),
        batch_size=1,
        num_cpus=CALLER_CPUS,
        compute=ray.data.ActorPoolStrategy(size=len(rows)),
    )
    failed: dict[str, Reply] = {}
    done = budget.count.remote
    with (
        progress_bar(title, len(requests)) as progress,
        poll(lambda: progress.advance(ray.get(done())), POLL_S),
    ):
        try:
            for batch in results.iter_batches(batch_size=1):
                for request, reply in pickle.loads(bytes(batch["failed"][0])):
                    failed[request.key(endpoint)] = reply
        except (RayError, RlhfvError) as error:
            raise unwrap(error) from error
    return ray.get(budget.close.remote()), failed
