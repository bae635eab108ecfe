"""Verdicts on many answers: from a model behind an endpoint, a recording, or known truth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from eval.config import JudgeConfig
from eval.judge.records import OracleJudge, ReplayJudge
from rlhfv_ray.endpoint.budget import Ledger
from rlhfv_ray.endpoint.records import Reply, Request, useful
from rlhfv_ray.endpoint.run import ask
from rlhfv_ray.errors import ConfigError

LONGEST_REPLY = 100  # characters of a reply that an error shows


def judge_answers(
    requests: Sequence[Request],
    judge: JudgeConfig,
    cache: Path,
    *,
    readable: Callable[[str], bool],
    oracle: Callable[[Request], str] | None,
    console: Console,
) -> tuple[dict[str, list[Reply]], Ledger]:
    """Return the judge's verdicts by request id, one per vote, and the ledger of the calls.

    Args:
        requests: one per answer, each with an id of its own.
        judge: the kind of judge and its settings.
        cache: folder of the replies of judges behind an endpoint.
        readable: returns True if a verdict's text can be read.
        oracle: returns the true verdict; None for benchmarks that do not know it.
        console: where the estimate and the ledger are printed.

    Raises:
        JudgeError: the judge cannot be used.
        ConfigError: `judge.kind` is oracle, and this benchmark has none.
    """
    replay = _replay(judge, oracle)
    if isinstance(replay, ReplayJudge):
        replay.match(requests)
    ballots: list[Request] = []
    for request in requests:
        votes = judge.votes if replay is None else replay.votes(request)
        ballots += [replace(request, vote=vote) for vote in range(votes)]
    replies, ledger = ask(
        ballots, judge, replay or cache, readable=readable, title="Verdicts", console=console
    )
    verdicts: dict[str, list[Reply]] = {request.id: [] for request in requests}
    for ballot, reply in zip(ballots, replies, strict=True):
        verdicts[ballot.id].append(reply)
    return verdicts, ledger


def _replay(
    judge: JudgeConfig, oracle: Callable[[Request], str] | None
) -> ReplayJudge | OracleJudge | None:
    """Return the judge that needs no server, or None if the judge is behind an endpoint."""
    if judge.kind == "replay":
        return ReplayJudge(Path(judge.verdicts).expanduser())
    if judge.kind != "oracle":
        return None
    if oracle is None:
        raise ConfigError(
            "judge.kind = 'oracle': only the shapes world knows the truth; use 'openai' or "
            "'replay' here."
        )
    return OracleJudge(oracle)


def shortfall(
    requests: Sequence[Request],
    verdicts: Mapping[str, Sequence[Reply]],
    max_missing: float,
    readable: Callable[[str], bool],
) -> str:
    """Return a sentence if too large a share of the requests has no readable verdict, else nothing.

    Args:
        requests: one per answer.
        verdicts: by request id, as `judge_answers` returns them.
        max_missing: largest share that may have none, 0 to 1.
        readable: returns True if a verdict's text can be read.
    """
    unjudged = [
        request.id
        for request in requests
        if not any(useful(verdict, readable, request) for verdict in verdicts[request.id])
    ]
    if len(unjudged) <= max_missing * len(requests):
        return ""
    replies = (reply.text for name in unjudged for reply in verdicts[name] if reply.text)
    first = " ".join(next(replies, "").split())
    example = f"The first of their replies: {first[:LONGEST_REPLY]!r}. " if first else ""
    return (
        f"{len(unjudged)} of {len(requests)} answers have no readable verdict "
        f"({', '.join(unjudged[:5])}), more than judge.max_missing = {max_missing:g}. {example}"
        "The same command asks again only for verdicts that never came. For others, name another "
        "model (--judge.model) or a higher --judge.max-missing."
    )
