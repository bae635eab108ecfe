"""Verdicts on many answers: from a model behind an endpoint, from a recording, or from the shapes world."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from eval.config import JudgeConfig
from eval.judge.records import ReplayJudge
from rlhfv_ray.endpoint.budget import Ledger
from rlhfv_ray.endpoint.records import Request, Verdict, useful
from rlhfv_ray.endpoint.run import ask
from rlhfv_ray.errors import ConfigError, JudgeError


def judge_answers(
    requests: Sequence[Request],
    judge: JudgeConfig,
    cache: Path,
    *,
    readable: Callable[[str], bool],
    oracle: Callable[[Request], str] | None,
    console: Console,
) -> tuple[dict[str, list[Verdict]], Ledger]:
    """The judge's verdicts on every request, by its id, one per vote; and what they took.

    Raises:
        JudgeError: more than `judge.max_missing` of the requests are left without a readable verdict, or the judge cannot be used.
        ConfigError: there is no oracle for this benchmark.
    """
    ledger = Ledger(requests=len(requests))
    if judge.kind == "replay":
        replay = ReplayJudge(Path(judge.verdicts).expanduser())
        verdicts = {request.id: replay(request) for request in requests}
    elif judge.kind == "oracle":
        if oracle is None:
            raise ConfigError(
                "judge.kind = 'oracle': only the shapes world knows the truth; use 'openai' or 'replay' here."
            )
        verdicts = {request.id: [Verdict("ok", oracle(request), "oracle")] for request in requests}
    else:
        votes = [replace(request, vote=vote) for request in requests for vote in range(judge.votes)]
        replies, ledger = ask(
            votes, judge, cache, readable=readable, title="Verdicts", console=console
        )
        verdicts = {
            request.id: replies[n * judge.votes :][: judge.votes]
            for n, request in enumerate(requests)
        }
    without = [
        r.id for r in requests if not any(useful(one, readable, r) for one in verdicts[r.id])
    ]
    if len(without) > judge.max_missing * len(requests):
        raise JudgeError(
            f"{len(without)} of {len(requests)} answers have no readable verdict ({', '.join(without[:5])}), more than judge.max_missing = "
            f"{judge.max_missing:g}. The same command asks again for those that never came; or allow more with --judge.max-missing."
        )
    return verdicts, ledger
