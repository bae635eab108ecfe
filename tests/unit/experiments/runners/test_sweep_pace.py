"""Two trials of a sweep that judge at the same time, against a real local server, without Ray."""

import asyncio
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from eval.config import JudgeConfig
from experiments.recipes import shapes_small
from experiments.runners.sweep_plan import with_shared_pace
from rlhfv_ray.endpoint.budget import CallBudget
from rlhfv_ray.endpoint.rate_limit import BURST_S
from rlhfv_ray.endpoint.records import Request
from rlhfv_ray.endpoint.run import CallActor
from tests.openai_server import OpenAIServer
from tests.unit.endpoint.generated_replies import Handle

TRIALS, EVALUATIONS, QUESTIONS = 2, 2, 35  # more at once than the burst of one pace
ALL = TRIALS * EVALUATIONS * QUESTIONS
PER_S, PRICE = 10, 10e-6  # calls; USD of a reply's 10 tokens
JITTER_S = 1.0  # between the admission of a call and its line in the server's log


def judge_all(trial: int, judge: JudgeConfig, cache: Path) -> int:
    """Judge as a trial does, rung after rung; return how many requests have no reply."""
    failed = 0
    for rung in range(EVALUATIONS):
        requests = [
            Request(str(number), f"trial {trial} rung {rung} question {number}")
            for number in range(QUESTIONS)
        ]
        budget = CallBudget(judge, cache)
        actor = CallActor(judge, str(cache), bool, Handle(budget))
        failed += len(asyncio.run(actor.settle_all(requests)))
        asyncio.run(budget.close())
    return failed


def judge_together(judge: JudgeConfig, cache: Path) -> int:
    """Judge in all trials at the same time; return how many requests have no reply."""
    shared = with_shared_pace(replace(shapes_small(), judge=judge), TRIALS).judge
    with ThreadPoolExecutor(TRIALS) as pool:
        trials = [pool.submit(judge_all, trial, shared, cache) for trial in range(TRIALS)]
        return sum(trial.result() for trial in trials)


@pytest.mark.slow
def test_all_trials_and_rungs_keep_one_budget_and_one_pace(tmp_path: Path) -> None:
    """Catches: a budget or a pace for each trial, a burst at the start of each rung, replies paid
    for twice after a budget was raised.

    A reply has 10 tokens of at most 100: a call claims 100 micro-USD and costs 10.
    """
    key = tmp_path / "key"
    key.write_text("sk-canary")
    key.chmod(0o600)
    limit = PRICE * 0.8 * ALL
    with OpenAIServer(lambda text: "Rating: 3", log=tmp_path / "log") as server:
        judge = JudgeConfig(
            model="judge",
            base_url=server.url,
            key_file=str(key),
            max_tokens=100,
            requests_per_minute=60 * PER_S,
            price_out=1.0,
            max_cost=limit,
            actors=1,
        )
        missing = judge_together(judge, tmp_path / "cache")
        paid = len(server.requests())
        assert limit - 10 * PRICE <= PRICE * paid <= limit
        assert missing == ALL - paid
        assert judge_together(replace(judge, max_cost=1.0), tmp_path / "cache") == 0
        served = server.requests()
    assert len({entry["prompt"] for entry in served}) == len(served) == ALL
    spending = [json.loads(path.read_text()) for path in tmp_path.glob("cache/spending/*.json")]
    assert sum(budget["settled"] for budget in spending) == pytest.approx(PRICE * ALL)
    times = [entry["at"] for entry in served]
    for start, stop in itertools.combinations(range(ALL), 2):
        seconds = times[stop] - times[start] + JITTER_S
        assert stop - start + 1 <= PER_S * (seconds + BURST_S)
