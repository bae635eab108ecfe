"""Verdicts as rows of a file, and judges that need no server: a recording, or known truth."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhfv_ray.endpoint.records import Reply, Request, digest
from rlhfv_ray.errors import DataError, JudgeError


class ReplayJudge:
    """Verdicts recorded earlier, by the wording of their request, which includes the answer."""

    def __init__(self, path: Path) -> None:
        self.verdicts: dict[str, list[Reply]] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
            for row in rows:
                self.verdicts[row["asked"]] = [Reply(**verdict) for verdict in row["verdicts"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"judge.verdicts = {str(path)!r} is no verdicts.jsonl of an evaluation: {error!r}"
            ) from error

    def votes(self, request: Request) -> int:
        """Return the number of verdicts recorded for a request.

        Raises:
            JudgeError: the recording does not have the request.
        """
        return len(self._recorded(request))

    def __call__(self, request: Request) -> Reply:
        """Return the recorded verdict for a request and its vote.

        Raises:
            JudgeError: the recording does not have the request.
        """
        return self._recorded(request)[request.vote]

    def _recorded(self, request: Request) -> list[Reply]:
        try:
            return self.verdicts[digest(request)]
        except KeyError:
            raise JudgeError(
                f"There is no recorded verdict on this answer {request.id!r}: the answer or the "
                "judge's prompt has changed since. Judge it again with --judge.kind openai."
            ) from None


class OracleJudge:
    """A judge that gets the verdict on each request from a function that knows the truth."""

    def __init__(self, oracle: Callable[[Request], str]) -> None:
        self.oracle = oracle

    def votes(self, request: Request) -> int:
        """Return 1: all votes would agree."""
        return 1

    def __call__(self, request: Request) -> Reply:
        """Return the true verdict."""
        return Reply("ok", self.oracle(request), "oracle")


def verdict_rows(
    requests: Sequence[Request], verdicts: Mapping[str, Sequence[Reply]]
) -> list[dict[str, Any]]:
    """Return one row per request with all its verdicts, as `ReplayJudge` reads them."""
    rows: list[dict[str, Any]] = []
    for request in requests:
        recorded = [asdict(verdict) for verdict in verdicts[request.id]]
        rows.append({"id": request.id, "asked": digest(request), "verdicts": recorded})
    return rows
