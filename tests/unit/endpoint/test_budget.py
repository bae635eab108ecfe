"""Admission by cost and the ledger, with prices that make the sums easy."""

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.endpoint import budget as budget_module
from rlhfv_ray.endpoint import spending
from rlhfv_ray.endpoint.budget import HOPELESS, Call, CallBudget, Ledger
from rlhfv_ray.endpoint.records import Outcome, Reply, Usage

# A reply token costs 1 USD and a prompt token nothing: a call of at most 10 tokens claims 10 USD.
# The requests are far below the pace, so that cost alone decides.
ENDPOINT = EndpointConfig(
    model="judge", price_out=1e6, max_tokens=10, requests_per_minute=6000, timeout_s=30
)


def a_call(number: int, *, most_out: int = 10) -> Call:
    return Call(str(number), str(number), tokens_in=5, most_in=5, most_out=most_out)


FIRST, SECOND, THIRD, FOURTH = map(a_call, range(4))


def make_budget(cache: Path, max_cost: float) -> CallBudget:
    return CallBudget(replace(ENDPOINT, max_cost=max_cost), cache)


def reply(tokens_out: int | None) -> Outcome:
    """Return a reply; None: the server does not say how long it is."""
    usage = None if tokens_out is None else Usage(5, tokens_out)
    return Outcome("reply", Reply("ok", "4", "judge"), usage=usage)


async def is_waiting(budget: CallBudget, call: Call) -> bool:
    """Return True if a call is neither admitted nor refused within 0.5 s."""
    admission = asyncio.create_task(budget.admit(call))
    done, _ = await asyncio.wait([admission], timeout=0.5)
    admission.cancel()
    await asyncio.wait([admission])
    return not done


def test_calls_under_way_count_against_the_cap_at_their_worst(tmp_path: Path) -> None:
    """Catches: a cap that ignores calls under way, so that 64 at a time pass it by 64 replies."""

    async def scenario() -> None:
        budget = make_budget(tmp_path, max_cost=25.0)
        assert [await budget.admit(call) for call in (FIRST, SECOND)] == ["", ""]  # 20 of 25
        assert await is_waiting(budget, THIRD)  # 20 + 10 > 25
        await budget.record(reply(tokens_out=1), FIRST)  # 1 spent, 10 claimed
        assert await budget.admit(THIRD) == ""  # 1 + 10 + 10 <= 25
        assert budget.ledger.calls == 3

    asyncio.run(scenario())


def test_the_cap_stops_all_calls_before_it_is_passed(tmp_path: Path) -> None:
    """Catches: a cap compared the wrong way round, or only after it was passed."""

    async def scenario() -> None:
        budget = make_budget(tmp_path, max_cost=25.0)
        for call in (FIRST, SECOND):
            assert await budget.admit(call) == ""
            await budget.record(reply(tokens_out=8), call)
        reason = await budget.admit(THIRD)  # 16 spent, 16 + 10 > 25
        assert reason.startswith("the next call could go over max_cost = 25 USD")
        assert await budget.admit(a_call(4, most_out=0)) == reason  # also for cheaper calls
        ledger = await budget.close()
        assert (ledger.calls, ledger.cost, ledger.tokens_out) == (2, 16.0, 16)
        assert ledger.estimated == 0

    asyncio.run(scenario())


def test_a_cap_can_be_spent_to_the_last_cent(tmp_path: Path) -> None:
    """Catches: a cap that refuses the call which just reaches it."""

    async def scenario() -> None:
        budget = make_budget(tmp_path, max_cost=20.0)
        assert [await budget.admit(call) for call in (FIRST, SECOND)] == ["", ""]

    asyncio.run(scenario())


def test_without_a_cap_nothing_is_refused(tmp_path: Path) -> None:
    """Catches: max_cost = 0, which means no limit, taken for a limit of nothing."""

    async def scenario() -> None:
        budget = make_budget(tmp_path, max_cost=0.0)
        assert [await budget.admit(a_call(number)) for number in range(9)] == [""] * 9

    asyncio.run(scenario())


def test_a_reply_without_usage_costs_the_most_it_can(tmp_path: Path) -> None:
    """Catches: a server that states no usage and is paid without a limit. 25 USD are two calls."""

    async def scenario() -> None:
        budget = make_budget(tmp_path, max_cost=25.0)
        for call in (FIRST, SECOND):
            assert await budget.admit(call) == ""
            await budget.record(reply(tokens_out=None), call)
        assert await budget.admit(THIRD) != ""
        ledger = await budget.close()
        assert (ledger.cost, ledger.estimated, ledger.tokens_out) == (20.0, 20.0, 0)
        assert "20.00 USD (20.00 of it estimated" in ledger.lines()[0]

    asyncio.run(scenario())


def test_later_and_other_runs_share_one_cap(tmp_path: Path) -> None:
    """Catches: a limit that each benchmark, trial and re-run has for itself."""

    async def scenario() -> None:
        first, trial = make_budget(tmp_path, 35.0), make_budget(tmp_path, 35.0)
        assert [await first.admit(FIRST), await trial.admit(SECOND)] == ["", ""]
        await first.record(reply(tokens_out=7), FIRST)
        await first.close()
        rerun = make_budget(tmp_path, 35.0)
        assert await rerun.admit(THIRD) == ""  # 7 + 10 + 10 <= 35
        assert await is_waiting(rerun, FOURTH)  # 27 + 10 > 35
        await trial.record(reply(tokens_out=8), SECOND)
        await trial.close()
        assert await rerun.admit(FOURTH) == ""  # 7 + 8 + 10 + 10 = 35

    asyncio.run(scenario())


def test_calls_of_a_dead_caller_are_paid_and_waited_for_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: claims of a dead actor that make all others wait for ever, or are forgotten."""
    monkeypatch.setattr(spending, "SLACK_S", -29.5)  # with 30 s for a call, it is lost after 0.5 s

    async def scenario() -> None:
        budget, other = make_budget(tmp_path, 25.0), make_budget(tmp_path, 25.0)
        assert [await budget.admit(call) for call in (FIRST, SECOND)] == ["", ""]
        reasons = await asyncio.gather(budget.admit(THIRD), other.admit(THIRD))
        assert all(reason.startswith("the next call could go over") for reason in reasons)
        await budget.record(reply(tokens_out=2), FIRST)  # late, but known all the same
        ledger = await budget.close()
        assert (ledger.cost, ledger.estimated) == (12.0, 10.0)

    asyncio.run(asyncio.wait_for(scenario(), 20))


def rejected(reason: str, cause: str = "") -> Outcome:
    return Outcome("rejected", Reply("rejected"), reason, cause or reason)


async def reason_after(cache: Path, *outcomes: tuple[str, Outcome]) -> str:
    """Return why calls stop after these outcomes, by the id of their request; "" if they go on."""
    budget = make_budget(cache, max_cost=0.0)
    for number, (request, outcome) in enumerate(outcomes):
        call = a_call(number)._replace(request=request)
        if not await budget.admit(call):
            await budget.record(outcome, call)
    return await budget.admit(a_call(len(outcomes)))


WRONG_KEY = [rejected(f"401: wrong key, request {number}", "401") for number in range(HOPELESS)]
TOO_LONG = [rejected(f"400: {number} tokens are too many") for number in range(9)]
SAME = rejected("400: no such parameter")


@pytest.mark.parametrize(
    ("outcomes", "reason"),
    [
        ([("1", WRONG_KEY[0]), ("2", WRONG_KEY[1]), ("3", WRONG_KEY[2])], WRONG_KEY[2].reason),
        ([("1", SAME), ("2", SAME), ("3", SAME)], SAME.reason),
        ([("1", SAME), ("2", SAME)], ""),
        ([("1", SAME), ("1", SAME), ("1", SAME)], ""),  # three votes on one answer
        ([("1", SAME), ("2", SAME), ("3", reply(1)), ("4", SAME), ("5", SAME)], ""),
        ([("1", SAME), ("2", SAME), ("3", TOO_LONG[0]), ("4", SAME), ("5", SAME)], ""),
        ([(str(number), outcome) for number, outcome in enumerate(TOO_LONG)], ""),
    ],
)
def test_only_several_requests_rejected_alike_in_a_row_stop_all(
    outcomes: list[tuple[str, Outcome]], reason: str, tmp_path: Path
) -> None:
    """Catches: one long prompt that stops all calls; 300 calls with a wrong key."""
    assert asyncio.run(reason_after(tmp_path, *outcomes)) == reason


def test_token_corrections_reach_the_rate_limiter(tmp_path: Path) -> None:
    """Catches: token limits kept by estimates alone, which replies ten times as long pass by far.

    6000 tokens a minute are 100 a second, 500 at once. A call is admitted with 5 + 150 tokens and
    takes 1005: 850 more, so the level is 500 - 155 - 850 = -505.
    """

    async def scenario() -> None:
        budget = CallBudget(EndpointConfig(model="judge", tokens_per_minute=6000), tmp_path)
        assert await budget.admit(FIRST) == ""
        await budget.record(reply(tokens_out=1000), FIRST)
        assert budget.limits is not None and budget.limits.tokens is not None
        assert budget.limits.tokens.level == pytest.approx(-505, abs=1)

    asyncio.run(scenario())


def test_the_next_budget_of_a_server_goes_on_at_its_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: every evaluation of a sweep beginning with a burst of its own. A call a second, five
    at once. The clocks stand still, so that all calls are made at one moment.
    """

    async def give_up(seconds: float) -> None:
        raise TimeoutError

    monkeypatch.setattr(asyncio, "sleep", give_up)
    clock = SimpleNamespace(time=lambda: 0.0, monotonic=lambda: 0.0)
    for module in (budget_module, spending):
        monkeypatch.setattr(module, "time", clock)

    async def admitted(endpoint: EndpointConfig) -> int:
        budget, count = CallBudget(endpoint, tmp_path), 0
        with contextlib.suppress(TimeoutError):
            for number in range(9):
                await budget.admit(a_call(number))
                count += 1
        return count

    slow = replace(ENDPOINT, requests_per_minute=60)
    assert [asyncio.run(admitted(slow)) for _ in range(2)] == [5, 0]
    assert asyncio.run(admitted(replace(slow, base_url="http://other/v1"))) == 5


def test_the_ledger_in_words() -> None:
    ledger = Ledger(known=3, calls=2, outcomes={"ok": 1, "rejected": 1}, tokens_in=1500, cost=0.5)
    assert ledger.lines() == [
        "3 replies needed no call, 2 calls in 0 s (1 ok, 1 rejected), 1,500 tokens in, 0 out, "
        "0.50 USD; answered by nobody"
    ]
