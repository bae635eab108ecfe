"""Verdicts as rows of a file, and a judge that repeats them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhfv_ray.endpoint.records import Request, Verdict, digest
from rlhfv_ray.errors import DataError, JudgeError


class ReplayJudge:
    """Verdicts recorded earlier, by what was asked, the answer included."""

    def __init__(self, path: Path) -> None:
        self.verdicts: dict[str, list[Verdict]] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
            for row in rows:
                said = [Verdict(**one) for one in row["verdicts"]]
                self.verdicts[row["asked"]] = said
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"judge.verdicts = {str(path)!r} is no verdicts.jsonl of an evaluation: {error!r}"
            ) from error

    def __call__(self, request: Request) -> list[Verdict]:
        """What was said to this very request.

        Raises:
            JudgeError: nothing was recorded for it.
        """
        try:
            return self.verdicts[digest(request)]
        except KeyError:
            raise JudgeError(
                f"There is no recorded verdict on this answer {request.id!r}: it, or the judge's prompt, has changed since."
            ) from None


def verdict_rows(
    requests: Sequence[Request], verdicts: Mapping[str, Sequence[Verdict]]
) -> list[dict[str, Any]]:
    """What `ReplayJudge` reads back: one row per request."""
    return [
        {
            "id": request.id,
            "asked": digest(request),
            "verdicts": [asdict(one) for one in verdicts[request.id]],
        }
        for request in requests
    ]
