"""Admission by cost and the ledger, with prices that make the sums easy."""

import asyncio

import pytest

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.endpoint.budget import HOPELESS, Call, CallBudget, Ledger
from rlhfv_ray.endpoint.client import Outcome
from rlhfv_ray.endpoint.records import Reply

# A reply token costs 1 USD and a prompt token nothing: a call of at most 10 tokens reserves 10 USD.
# The requests are far below the pace, so that cost alone decides.
CALL = Call("1", 5, 10)


def make_budget(max_cost: float) -> CallBudget:
    return CallBudget(
        EndpointConfig(
            model="judge", price_out=1e6, max_cost=max_cost, max_tokens=10, requests_per_minute=6000
        )
    )


def reply(tokens_out: int) -> Outcome:
    return Outcome("reply", Reply("ok", "4", "judge", tokens_in=5, tokens_out=tokens_out))


async def is_waiting(budget: CallBudget) -> bool:
    """Return True if the next call is neither admitted nor refused within 0.2 s."""
    try:
        await asyncio.wait_for(budget.admit(CALL), timeout=0.2)
    except TimeoutError:
        return True
    return False


def test_calls_under_way_count_against_the_cap_at_their_worst() -> None:
    """Catches: a cap that ignores calls under way, so that 64 at a time pass it by 64 replies."""

    async def scenario() -> None:
        budget = make_budget(max_cost=25.0)
        assert [await budget.admit(CALL) for _ in range(2)] == ["", ""]  # 20 of 25 reserved
        assert await is_waiting(budget)  # 20 + 10 > 25
        await budget.record(reply(tokens_out=1), CALL)  # 1 spent, 10 reserved
        assert await budget.admit(CALL) == ""  # 1 + 10 + 10 <= 25
        assert budget.ledger.calls == 3

    asyncio.run(scenario())


def test_the_cap_stops_all_calls_before_it_is_passed() -> None:
    """Catches: a cap compared the wrong way round, or only after it was passed."""

    async def scenario() -> None:
        budget = make_budget(max_cost=25.0)
        for _ in range(2):
            assert await budget.admit(CALL) == ""
            await budget.record(reply(tokens_out=8), CALL)
        reason = await budget.admit(CALL)  # 16 spent, 16 + 10 > 25
        assert reason == "the next call could go over max_cost = 25 USD"
        assert await budget.admit(Call("2", 0, 0)) == reason  # a stop holds for cheaper calls too
        ledger = await budget.spent()
        assert (ledger.calls, ledger.cost, ledger.tokens_out) == (2, 16.0, 16)

    asyncio.run(scenario())


def test_a_cap_can_be_spent_to_the_last_cent() -> None:
    """Catches: a cap that refuses the call which just reaches it."""

    async def scenario() -> None:
        budget = make_budget(max_cost=20.0)
        assert [await budget.admit(CALL) for _ in range(2)] == ["", ""]

    asyncio.run(scenario())


def test_without_a_cap_nothing_is_refused() -> None:
    """Catches: max_cost = 0, which means no limit, taken for a limit of nothing."""

    async def scenario() -> None:
        budget = make_budget(max_cost=0.0)
        assert [await budget.admit(CALL) for _ in range(9)] == [""] * 9

    asyncio.run(scenario())


def rejected(reason: str, cause: str = "") -> Outcome:
    return Outcome("rejected", Reply("rejected"), reason, cause or reason)


async def reason_after(*outcomes: tuple[str, Outcome]) -> str:
    """Return why calls stop after these outcomes, by the id of their request; "" if they go on."""
    budget = make_budget(max_cost=0.0)
    for request, outcome in outcomes:
        call = CALL._replace(request=request)
        if not await budget.admit(call):
            await budget.record(outcome, call)
    return await budget.admit(CALL)


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
    outcomes: list[tuple[str, Outcome]], reason: str
) -> None:
    """Catches: one long prompt that stops all calls; 300 calls with a wrong key."""
    assert asyncio.run(reason_after(*outcomes)) == reason


def test_token_corrections_reach_the_rate_limiter() -> None:
    """Catches: token limits kept by estimates alone, which replies ten times as long pass by far.

    6000 tokens a minute are 100 a second, 500 at once. A call is admitted with 5 + 150 tokens and
    takes 1005: 850 more, so the level is 500 - 155 - 850 = -505.
    """

    async def scenario() -> None:
        budget = CallBudget(EndpointConfig(model="judge", tokens_per_minute=6000))
        assert await budget.admit(Call("1", 5, 1000)) == ""
        await budget.record(reply(tokens_out=1000), Call("1", 5, 1000))
        assert budget.limits is not None and budget.limits.tokens is not None
        assert budget.limits.tokens.level == pytest.approx(-505, abs=1)

    asyncio.run(scenario())


def test_the_ledger_in_words() -> None:
    ledger = Ledger(known=3, calls=2, outcomes={"ok": 1, "rejected": 1}, tokens_in=1500, cost=0.5)
    assert ledger.lines() == [
        "3 replies known before, 2 calls in 0 s (1 ok, 1 rejected), 1,500 tokens in, 0 out, "
        "0.50 USD; answered by nobody"
    ]
