"""RefoMB (RLAIF-V, arXiv 2405.17220): a judge compares an answer with GPT-4V's.

Facts from github.com/RLHF-V/RLAIF-V, `eval/eval_RefoMB_p0.py`: the judge sees a description of the
image, the question, answer A (GPT-4V's) and answer B (ours), and ends with [[A]], [[B]], or [[C]]
for a tie. The first such mark counts. The score is (wins + ties / 2) / n. There, a review without
a mark is asked for again until it has one; here, it is missing in the end.
The dev file has 99 questions of 8 types. The release's second question to the judge, which answer
hallucinates less (`eval/eval_hallucination.py`), is not asked.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from eval.benchmarks.contract import (
    WORDS,
    Benchmark,
    JudgedAnswer,
    Metric,
    Ratio,
    Scores,
    in_order,
    judge_manifest,
    missing_reason,
    read_votes,
    without_images,
)
from eval.chair import count_words
from eval.config import JudgeConfig, RefoMBConfig
from eval.inputs.images import image_bytes
from eval.inputs.json_rows import JsonRow, read_json_rows
from eval.judge.prompts import JudgePrompt
from rlhfv_ray.endpoint.records import Reply, Request
from rlhfv_ray.records import Answer, Prompt

METRICS = (
    Metric("score", "higher", "wins and half of the ties, of all answers", is_proportion=False),
    Metric("win_rate", "higher", "answers that the judge prefers to the opponent's"),
    Metric("tie_rate", "", "answers that the judge takes for as good as the opponent's"),
    WORDS,
)
FIELDS = ("image_url", "question", "description", "type", "answer")
POINTS = {"A": 0.0, "B": 1.0, "C": 0.5}
_MARK = re.compile(r"\[\[([ABC])\]\]")


def read_points(review: str) -> float | None:
    """Return our points in a review: 1 for a win, 0.5 for a tie, 0; None without a verdict.

    Example:
        >>> [read_points(text) for text in ("[[B]]", "... [[C]]", "[[A]], not [[B]]", "B wins")]
        [1.0, 0.5, 0.0, None]
    """
    match = _MARK.search(review)
    return None if match is None else POINTS[match[1]]


class RefoMB(Benchmark):
    """The questions with descriptions of their images and the opponent's answers."""

    name = "refomb"

    def __init__(
        self, config: RefoMBConfig, judge: JudgeConfig, *, decoding: dict[str, Any]
    ) -> None:
        self.config = config
        self.judge = judge
        self.decoding = decoding  # recorded in the manifest

    @cached_property
    def rows(self) -> dict[str, JsonRow]:
        """The questions by their number in the file, from 0, as in the release's reviews."""
        rows = read_json_rows(self.config.questions, FIELDS, what="refomb.questions")
        return {str(number): row for number, row in enumerate(rows)}

    @cached_property
    def judge_prompt(self) -> JudgePrompt:
        """The judge's prompt."""
        fields = ("context", "question", "reference", "answer")
        return JudgePrompt.load(self.judge.prompt, default="refomb.txt", fields=fields)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The numbers that its scores have."""
        return METRICS

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The questions with their images."""
        names = [image_name(row) for row in self.rows.values()]
        images = image_bytes(self.config.images, names)
        return [
            Prompt(number, images[image_name(row)], row["question"])
            for number, row in self.rows.items()
        ]

    @property
    def judged(self) -> bool:
        """True: a judge compares every answer."""
        return True

    @staticmethod
    def readable(text: str) -> bool:
        """Return whether a judge's reply holds a verdict."""
        return read_points(text) is not None

    def requests(self, answers: Sequence[Answer]) -> list[Request]:
        """Return one request for every answer."""
        return [self._request(answer) for answer in in_order(self.prompts, answers)]

    def _request(self, answer: Answer) -> Request:
        row = self.rows[answer.id]
        text = self.judge_prompt.fill(
            context=row["description"],
            question=row["question"],
            reference=row["answer"],
            answer=answer.text,
        )
        return Request(answer.id, text)

    def score(self, answers: Sequence[Answer], verdicts: Mapping[str, Sequence[Reply]]) -> Scores:
        """Score answers; several votes count by their mean."""
        ordered = in_order(self.prompts, answers)
        votes, agreement = read_votes(ordered, verdicts, read_points)
        judged = [
            self._judge(answer, votes[answer.id], verdicts.get(answer.id, ())) for answer in ordered
        ]
        return Scores(self.metrics, tuple(judged), self.manifest(), {"agreement": agreement})

    def _judge(
        self, answer: Answer, points: Sequence[float], verdicts: Sequence[Reply]
    ) -> JudgedAnswer:
        row = self.rows[answer.id]
        ratios = {WORDS.name: Ratio(count_words(answer.text), 1)}
        if points:
            mean = sum(points) / len(points)
            ratios["score"] = Ratio(mean, 1)
            ratios["win_rate"] = Ratio(int(mean > POINTS["C"]), 1)
            ratios["tie_rate"] = Ratio(int(mean == POINTS["C"]), 1)
        return JudgedAnswer(
            answer,
            ratios,
            group=row["type"],
            verdict="\n\n".join(verdict.text for verdict in verdicts),
            missing="" if points else missing_reason(verdicts),
            cluster=image_name(row),
        )

    def manifest(self) -> dict[str, Any]:
        """Return everything that scores on this benchmark depend on, except the model."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            row = self.rows[prompt.id]
            digest.update(json.dumps([row[name] for name in FIELDS]).encode() + prompt.image)
        return {
            "benchmark": self.name,
            "prompts": digest.hexdigest(),
            "n": len(self.rows),
            "decoding": self.decoding,
            **without_images(self.prompts),
            **judge_manifest(self.judge, self.judge_prompt),
        }


def image_name(row: JsonRow) -> str:
    """Return the file name of a question's image, the end of its address."""
    return str(row["image_url"]).rsplit("/", 1)[-1]
