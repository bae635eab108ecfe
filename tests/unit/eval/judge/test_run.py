"""Judges without a server, and the share of verdicts that may be missing."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from eval.config import JudgeConfig
from eval.judge.records import verdict_rows
from eval.judge.run import judge_answers, shortfall
from rlhfv_ray.endpoint.budget import Ledger
from rlhfv_ray.endpoint.records import Reply, Request
from rlhfv_ray.errors import ConfigError

REQUESTS = [Request(str(number), f"Answer {number}") for number in range(4)]


def is_rating(text: str) -> bool:
    return text.startswith("Rating")


def run(
    judge: JudgeConfig, oracle: Callable[[Request], str] | None = None
) -> tuple[dict[str, list[Reply]], Ledger]:
    return judge_answers(
        REQUESTS,
        judge,
        Path("/nowhere"),
        readable=is_rating,
        oracle=oracle,
        console=Console(file=io.StringIO()),
    )


def test_replay_returns_all_votes_in_order(tmp_path: Path) -> None:
    """Catches: votes mixed up between answers, or cut down to the votes of the configuration."""
    verdicts = {
        "0": [Reply("ok", "Rating: 0"), Reply("ok", "Rating: 1"), Reply("ok", "hm")],
        "1": [Reply("ok", "Rating: 2")],
        "2": [Reply("ok", "hm"), Reply("ok", "Rating: 3")],
        "3": [Reply("ok", "Rating: 4")],
    }
    path = tmp_path / "verdicts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in verdict_rows(REQUESTS, verdicts)))
    replayed, ledger = run(JudgeConfig(kind="replay", verdicts=str(path), max_missing=0.0))
    assert replayed == verdicts
    assert ledger == Ledger(requests=4)


def test_an_oracle_is_asked_once_and_must_exist() -> None:
    verdicts, _ = run(JudgeConfig(kind="oracle"), lambda request: f"Rating of {request.text}")
    assert verdicts["2"] == [Reply("ok", "Rating of Answer 2", "oracle")]
    with pytest.raises(ConfigError, match="only the shapes world knows the truth"):
        run(JudgeConfig(kind="oracle"))


def test_more_missing_verdicts_than_allowed_are_told() -> None:
    """Catches: scores over the few answers that happened to be judged. 1 of 4 is missing: 0.25."""

    def oracle(request: Request) -> str:
        return "hm" if request.id == "3" else "Rating: 1"

    verdicts, _ = run(JudgeConfig(kind="oracle"), oracle)
    assert verdicts["3"][0].text == "hm"
    assert shortfall(REQUESTS, verdicts, 0.25, is_rating) == ""
    told = shortfall(REQUESTS, verdicts, 0.24, is_rating)
    assert told.startswith("1 of 4 answers have no readable verdict (3), more than")
    assert "The first of their replies: 'hm'. " in told
    lost = {**verdicts, "3": [Reply("unavailable")]}
    assert "their replies" not in shortfall(REQUESTS, lost, 0.24, is_rating)


@pytest.mark.parametrize(
    "changed",
    [
        {"votes": 3},
        {"votes": 0},
        {"kind": "replay"},
        {"max_missing": 1.5},
        {"max_cost": 1.0},
        {"requests_per_minute": 0},
        {"attempts": 0},
    ],
)
def test_settings_that_contradict_are_refused(changed: dict) -> None:
    with pytest.raises(ConfigError, match="must be"):
        JudgeConfig(**changed)
