"""Verdicts as rows of a file, and judges that need no server: a recording, or known truth."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhfv_ray.data.files.text import read_text
from rlhfv_ray.endpoint.records import Reply, Request, digest
from rlhfv_ray.errors import DataError, JudgeError

HEAD = 100  # characters at the start of a file that show its layout


class ReplayJudge:
    """Verdicts recorded earlier, by the wording of their request, which includes the answer.

    A file of the RLHF-V release has the judge's replies alone, in the order of the answers: whole
    responses of OpenAI's (MMHal-Bench), or rows with a `content` (LLaVA Bench). Each is the verdict
    on the request at its place. Object HalBench's file (hall_*.json) has the objects of each
    answer under the image's id.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.verdicts: dict[str, list[Reply]] = {}
        self.replies: list[Reply] = []  # of a release's file
        self.objects: dict[str, Reply] = {}  # of Object HalBench's file, by image id
        try:
            rows = _read_rows(path)
            for row in rows:
                if "asked" in row:
                    self.verdicts[row["asked"]] = [Reply(**verdict) for verdict in row["verdicts"]]
                elif "mscoco_generated_words" in row:
                    self.objects[str(row["image_id"])] = Reply("ok", json.dumps(row["words"]))
                else:
                    self.replies.append(_release_reply(row))
        except (DataError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(
                f"judge.verdicts = {str(path)!r} is no verdicts.jsonl of an evaluation and no file "
                f"of a judge's replies: {error!r}"
            ) from error

    def match(self, requests: Sequence[Request]) -> None:
        """Give the replies of a release's file to the requests, by image id or by place.

        Raises:
            DataError: there are more or fewer replies than requests.
        """
        for request in requests:
            image = request.id.rpartition("/")[2]  # after the model's name
            if image in self.objects:
                self.verdicts[digest(request)] = [self.objects[image]]
        if not self.replies:
            return
        if len(self.replies) != len(requests):
            raise DataError(
                f"judge.verdicts = {str(self.path)!r} has {len(self.replies)} replies, and there "
                f"are {len(requests)} answers to judge. Replies without their requests are matched "
                "by place: give the answers of one model that they are about."
            )
        for request, reply in zip(requests, self.replies, strict=True):
            self.verdicts[digest(request)] = [reply]

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


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of JSON lines, of one JSON list, or of Object HalBench's file."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        return json.loads(text)
    if '"sentences"' in text[:HEAD]:
        record = json.loads(text)
        if not record["overall_metrics"]["all_gpt_used_tokens"]:
            raise DataError("it was made without a judge; score its answers in rule mode")
        return record["sentences"]
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _release_reply(row: Mapping[str, Any]) -> Reply:
    """Return the reply in a row: an OpenAI response, or a row with the reply's text."""
    message = row["choices"][0]["message"] if "choices" in row else row
    text = message["content"]
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is no text")
    return Reply("ok", text, str(row.get("model", "")))


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
