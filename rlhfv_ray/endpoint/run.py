"""JOB: replies to many requests, by Ray Data actors that call a server under limits they share.

What is known already is not asked again: every reply is in the cache before its request counts as done, so a run that was killed goes on
where it was. All callers ask one desk before a call; it keeps the pace, counts tokens and cost, and stops everyone at the first error
that no retry mends.
"""

import asyncio
import pickle
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError
from rich.console import Console

from rlhfv_ray.cluster import configure_data, unwrap
from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.console import poll, progress_bar
from rlhfv_ray.endpoint.budget import TYPICAL_REPLY, CallBudget, Ledger
from rlhfv_ray.endpoint.cache import VerdictCache
from rlhfv_ray.endpoint.client import ChatClient, Outcome, call_once
from rlhfv_ray.endpoint.records import Request, Verdict
from rlhfv_ray.errors import ConfigError, JudgeError, RlhfvError

CALLER_CPUS = 0.25
POLL_S = 0.5
PROBE = Request("preflight", "Reply with the word ok.")
BACK_OFF_S, LONGEST_BACK_OFF_S = 0.5, 8.0


class CallActor:
    """Settles its share of the requests, many at a time."""

    def __init__(
        self, endpoint: EndpointConfig, cache: str, readable: Callable[[str], bool], desk: Any
    ) -> None:
        self.endpoint, self.cache, self.readable, self.desk = (
            endpoint,
            VerdictCache(Path(cache)),
            readable,
            desk,
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Settle one batch's requests; gives back those that could not be."""
        failed = asyncio.run(self.settle_all(pickle.loads(batch["requests"][0])))
        return {"failed": [pickle.dumps(failed)]}

    async def settle_all(self, requests: Sequence[Request]) -> list[tuple[Request, Verdict]]:
        """All at once, as far as the slots go."""
        slots = asyncio.Semaphore(max(1, self.endpoint.concurrency // self.endpoint.actors))

        async def one(caller: ChatClient, request: Request) -> Verdict:
            async with slots:
                verdict = await self.settle(caller, request)
                await self.desk.finish.remote()
                return verdict

        async with ChatClient(self.endpoint) as caller:
            verdicts = await asyncio.gather(*(one(caller, request) for request in requests))
        return [pair for pair in zip(requests, verdicts, strict=True) if not pair[1].kept]

    async def settle(self, caller: ChatClient, request: Request) -> Verdict:
        """Ask, and once more where the reply is of no use; what is known is not asked."""
        while (settled := self.cache.settle(request, self.endpoint, self.readable)).ask is not None:
            verdict = await self.reply(caller, settled.ask)
            if not verdict.kept:
                return verdict
            await asyncio.to_thread(self.cache.put, settled.ask.key(self.endpoint), verdict)
        assert settled.verdict is not None
        return settled.verdict

    async def reply(self, caller: ChatClient, request: Request) -> Verdict:
        """Call until there is a reply, a few times at most."""
        size = (request.tokens, self.endpoint.max_tokens * (1 + request.again))
        verdict = Verdict("unavailable")
        for attempt in range(self.endpoint.attempts):
            if await self.desk.admit.remote(*size):
                return Verdict("stopped")
            outcome = await caller.call(request)
            await self.desk.record.remote(outcome, *size)
            verdict = outcome.verdict
            if outcome.kind in ("reply", "fatal"):
                return verdict
            back_off = min(LONGEST_BACK_OFF_S, BACK_OFF_S * 2**attempt) * random.uniform(0.75, 1.25)
            await asyncio.sleep(outcome.retry_after or back_off)
        return verdict


def ask(
    requests: Sequence[Request],
    endpoint: EndpointConfig,
    cache: Path,
    *,
    readable: Callable[[str], bool],
    title: str,
    console: Console,
) -> tuple[list[Verdict], Ledger]:
    """Have every request answered that is not yet, and give all replies, in order.

    Args:
        requests: with ids of their own (and votes).
        endpoint: who is asked, and how fast.
        cache: folder of the replies.
        readable: whether a reply's text holds what was asked for; if not it is asked for once more.
        title: of the progress bar.
        console: where estimate and ledger are printed.

    Raises:
        JudgeError: the server refuses every call, or max_cost is reached; what was answered is kept.
        ConfigError: there is no key.
    """
    store = VerdictCache(cache)
    # Two models' equal answers make the same request: it is asked once.
    keys = [request.key(endpoint) for request in requests]
    unsettled = {
        key: request
        for key, request in zip(keys, requests, strict=True)
        if store.settle(request, endpoint, readable).ask
    }
    ledger, failed = Ledger(), {}
    if unsettled:
        todo = list(unsettled.values())
        console.print(
            estimate(todo, len(requests) - len(todo), endpoint), highlight=False, soft_wrap=True
        )
        ledger, failed = _run(todo, endpoint, store, readable=readable, title=title)
    ledger = replace(ledger, requests=len(unsettled), known=len(requests) - len(unsettled))
    for line in ledger.lines():
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    if ledger.stopped:
        there = sum(key not in failed for key in keys)
        raise JudgeError(
            f"{endpoint.model} at {endpoint.base_url}: {ledger.stopped}. {there} of {len(requests)} replies are "
            f"kept in {cache}; once this is mended, the same command goes on from there."
        )
    known = (store.settle(request, endpoint, readable).verdict for request in requests)
    return [
        failed.get(key) or v or Verdict("unavailable") for key, v in zip(keys, known, strict=True)
    ], ledger


def estimate(requests: Sequence[Request], known: int, endpoint: EndpointConfig) -> str:
    """What is about to be asked, and about what it takes."""
    tokens_in, tokens_out = (
        sum(request.tokens for request in requests),
        TYPICAL_REPLY * len(requests),
    )
    minutes = len(requests) / endpoint.requests_per_minute
    if endpoint.tokens_per_minute:
        minutes = max(minutes, (tokens_in + tokens_out) / endpoint.tokens_per_minute)
    most = endpoint.cost(tokens_in, endpoint.max_tokens * len(requests))
    cost = (
        f", about {endpoint.cost(tokens_in, tokens_out):.2f} USD and {most:.2f} at most"
        if most
        else ""
    )
    return (
        f"{endpoint.model}: {len(requests)} calls ({known} replies are there), about {tokens_in:,} tokens in and {tokens_out:,} out"
        f"{cost}, {max(minutes, 0.1):.1f} minutes or more"
    )


def check_endpoint(endpoint: EndpointConfig, cache: Path) -> None:
    """Call once, before long work relies on the server: to learn whether it is there, takes the key and knows the model.

    Raises:
        ConfigError: model or key are missing.
        JudgeError: the server cannot be reached, or refuses.
    """
    if not endpoint.model:
        raise ConfigError(
            "judge.model is not set: name the model that judges (--judge.model), or use --judge.kind replay."
        )
    store, key = VerdictCache(cache), PROBE.key(endpoint)
    if store.get(key) is not None:
        return
    try:
        outcome: Outcome = ray.get(_probe.remote(endpoint))
    except (RayError, RlhfvError) as error:
        raise unwrap(error) from None
    if outcome.kind in ("fatal", "retryable") or outcome.verdict.status == "other_model":
        answered = f"it answers as {outcome.verdict.model!r}, not {endpoint.reported_model!r}"
        raise JudgeError(
            f"{endpoint.model} at {endpoint.base_url} cannot be used: {outcome.reason or answered}"
        )
    if outcome.verdict.kept:
        store.put(key, outcome.verdict)


@ray.remote(num_cpus=CALLER_CPUS)
def _probe(endpoint: EndpointConfig) -> Outcome:
    return asyncio.run(call_once(endpoint, PROBE))


def _run(
    requests: Sequence[Request],
    endpoint: EndpointConfig,
    store: VerdictCache,
    *,
    readable: Callable[[str], bool],
    title: str,
) -> tuple[Ledger, dict[str, Verdict]]:
    configure_data()
    desk = (
        ray.remote(CallBudget)
        .options(num_cpus=0, max_concurrency=2 * endpoint.concurrency + 8)
        .remote(endpoint)
    )
    shares = [
        requests[first :: endpoint.actors] for first in range(min(endpoint.actors, len(requests)))
    ]
    rows = [{"requests": pickle.dumps(share)} for share in shares]
    replies = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        CallActor,
        fn_constructor_args=(endpoint, str(store.folder), readable, desk),
        batch_size=1,
        num_cpus=CALLER_CPUS,
        compute=ray.data.ActorPoolStrategy(size=len(rows)),
    )
    failed: dict[str, Verdict] = {}
    done = desk.count.remote
    with (
        progress_bar(title, len(requests)) as counter,
        poll(lambda: counter.advance(ray.get(done())), POLL_S),
    ):
        try:
            for batch in replies.iter_batches(batch_size=1):
                failed |= {
                    r.key(endpoint): verdict
                    for r, verdict in pickle.loads(bytes(batch["failed"][0]))
                }
        except (RayError, RlhfvError) as error:
            raise unwrap(error) from error
    return ray.get(desk.spent.remote()), failed
