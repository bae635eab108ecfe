"""LLaVA Bench (COCO; arXiv 2304.08485): 90 questions of three categories; a judge gives the reference answer and ours a score each.

A review's first line holds two numbers from 1 to 10, the reference's first; a category's score is 100 * mean(ours) / mean(reference).
Reviews that do not begin so are dropped, as in the release, and counted.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    judged_by,
    missing_reason,
    read_votes,
)
from eval.chair import count_words
from eval.config import JudgeConfig, LLaVABenchConfig
from eval.inputs.images import image_bytes
from eval.inputs.json_rows import JsonRow, index_by, read_json_rows
from eval.judge.prompts import JudgePrompt, find_prompt
from rlhfv_ray.endpoint.records import Reply, Request
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import Answer, Prompt

CATEGORIES = ("conv", "detail", "complex")
LOWEST, HIGHEST = 1, 10
MEASURES = (
    Metric(
        "relative_score",
        "higher",
        "mean score of the answers over that of the references",
        is_proportion=False,
    ),
    Metric("score", "higher", "mean score of the answers, 1 to 10", scale=1, is_proportion=False),
    Metric(
        "reference_score", "", "mean score of the references, 1 to 10", scale=1, is_proportion=False
    ),
    WORDS,
)
FIELDS = ("context", "question", "reference", "answer", "category")
SYSTEM = "You check the quality of answers, helpfully and precisely."
# The order and the signs of the release's frame; its wording is in the file that the user points at.
FRAME = (
    "[Context]\n{context}\n\n[Question]\n{question}\n\n[%(role)s 1]\n{reference}\n\n[End of %(role)s 1]\n\n"
    "[%(role)s 2]\n{answer}\n\n[End of %(role)s 2]\n\n[System]\n"
)


def parse_score_pair(review: str) -> tuple[float, float] | None:
    r"""The two scores of a review's first line, the reference's and ours; None where it does not hold two from 1 to 10 and nothing else.

    One blank or one comma stands between them, as the release wants it.

    Example:
        >>> parse_score_pair("7,10\nBoth are good."), parse_score_pair("7, 10"), parse_score_pair("8 11"), parse_score_pair("Both: 8")
        ((7.0, 10.0), None, None, None)
    """
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        reference, ours = map(float, parts)
    except ValueError:
        return None
    return (
        (reference, ours)
        if all(LOWEST <= score <= HIGHEST for score in (reference, ours))
        else None
    )


@dataclass(frozen=True)
class Relative:
    """One category's score."""

    reference: float  # mean
    ours: float  # mean
    n: int
    unparsed: int

    @property
    def score(self) -> float:
        """100 * ours / reference."""
        return self.ours / self.reference * 100  # in the release's order: it rounds to one decimal


def relative_scores(reviews: Sequence[tuple[str, str]]) -> Mapping[str, Relative]:
    """Score every category, and `all`; a category without a readable review is left out.

    Args:
        reviews: category and text of each.

    Example:
        >>> relative_scores([("conv", "8 6"), ("conv", "8 10"), ("detail", "Both are good.")])["conv"].score
        100.0
    """
    pairs = [(category, parse_score_pair(review)) for category, review in reviews]
    scores = {}
    for category in (*dict.fromkeys(category for category, _ in pairs), "all"):
        mine = [pair for name, pair in pairs if category in (name, "all")]
        there = [pair for pair in mine if pair is not None]
        if there:
            means = (sum(column) / len(there) for column in zip(*there, strict=True))
            scores[category] = Relative(*means, n=len(there), unparsed=len(mine) - len(there))
    return scores


class LLaVABench(Benchmark):
    """The benchmark's questions, references and contexts, from the user's copies of its files."""

    name = "llava_bench"

    def __init__(
        self, config: LLaVABenchConfig, judge: JudgeConfig, *, decoding: dict[str, Any]
    ) -> None:
        self.config, self.judge, self.decoding = config, judge, decoding
        self.rows = _rows(
            config.questions, ("question_id", "image", "text", "category"), "questions"
        )
        self.references = _rows(config.references, ("question_id", "text"), "references")
        contexts = read_json_rows(
            config.context, ("id", "captions", "instances"), what="llava_bench.context"
        )
        self.contexts = {context_id(row["id"]): row for row in contexts}
        without = [
            name for name in self.rows if name not in self.references
        ] or self.references.keys() - self.rows.keys()
        if without:
            raise DataError(
                f"llava_bench.references does not fit llava_bench.questions: question_id {next(iter(without))} is in one alone."
            )
        bare = [
            name for name, row in self.rows.items() if context_id(row["image"]) not in self.contexts
        ]
        if bare:
            raise DataError(
                f"llava_bench.context: nothing about the image {self.rows[bare[0]]['image']!r} of question {bare[0]}."
            )

    @cached_property
    def judge_prompts(self) -> dict[str, JudgePrompt]:
        """The judge's prompt by category: the release's rules (a .json file), or one for all."""
        file = find_prompt(self.judge.prompt, "llava.txt", "llava.json")
        if file.suffix != ".json":
            prompt = JudgePrompt.load(self.judge.prompt, default="llava.txt", fields=FIELDS)
            return dict.fromkeys(CATEGORIES, prompt)
        try:
            rules = {
                name: (rule["prompt"], rule["role"])
                for name, rule in json.loads(file.read_text()).items()
            }
            texts = {
                name: FRAME % {"role": rules[name][1]} + _plain(rules[name][0])
                for name in CATEGORIES
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"judge.prompt = {str(file)!r} is no rule file with conv, detail and complex: {error!r}"
            ) from error
        return {
            name: JudgePrompt(f"{file.name} {name}", text, FIELDS) for name, text in texts.items()
        }

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The questions with their images."""
        images = image_bytes(self.config.images, [row["image"] for row in self.rows.values()])
        return [Prompt(name, images[row["image"]], row["text"]) for name, row in self.rows.items()]

    def requests(self, answers: Sequence[Answer]) -> list[Request]:
        """One for every answer."""
        return [self._request(answer) for answer in in_order(self.prompts, answers)]

    def _request(self, answer: Answer) -> Request:
        row = self.rows[answer.id]
        asked = {
            "question": row["text"],
            "reference": self.references[answer.id]["text"],
            "category": row["category"],
        }
        context = describe(self.contexts[context_id(row["image"])])
        text = self.judge_prompts[row["category"]].fill(
            context=context, **asked, answer=answer.text
        )
        return Request(answer.id, text, system=SYSTEM)

    @property
    def judged(self) -> bool:
        """Every answer is shown to one."""
        return True

    @staticmethod
    def readable(text: str) -> bool:
        """Whether its first line holds two scores."""
        return parse_score_pair(text) is not None

    def score(self, answers: Sequence[Answer], verdicts: Mapping[str, Sequence[Reply]]) -> Scores:
        """Score answers; several votes count by their mean."""
        ordered = in_order(self.prompts, answers)
        votes, agreement = read_votes(ordered, verdicts, parse_score_pair)
        judged = tuple(
            self._judged(answer, votes[answer.id], verdicts.get(answer.id, ()))
            for answer in ordered
        )
        said = [
            (self.rows[a.id]["category"], next((v.text for v in verdicts.get(a.id, ())), ""))
            for a in ordered
        ]
        release = {name: round(score.score, 1) for name, score in relative_scores(said).items()}
        return Scores(
            MEASURES,
            judged,
            self.manifest(),
            {"release_compatible": release, "agreement": agreement},
        )

    def _judged(
        self, answer: Answer, pairs: Sequence[tuple[float, float]], verdicts: Sequence[Reply]
    ) -> JudgedAnswer:
        parts = {WORDS.name: Ratio(count_words(answer.text), 1)}
        words, group = "\n\n".join(one.text for one in verdicts), self.rows[answer.id]["category"]
        if not pairs:
            return JudgedAnswer(
                answer, parts, group=group, verdict=words, missing=missing_reason(verdicts)
            )
        reference, ours = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        parts |= {
            "relative_score": Ratio(ours, reference),
            "score": Ratio(ours, 1),
            "reference_score": Ratio(reference, 1),
        }
        return JudgedAnswer(answer, parts, group=group, verdict=words)

    def manifest(self) -> dict[str, Any]:
        """What scores on this benchmark depend on, besides the model."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            context = self.contexts[context_id(self.rows[prompt.id]["image"])]
            seen = [
                prompt.id,
                prompt.question,
                self.references[prompt.id]["text"],
                context["captions"],
                context["instances"],
            ]
            digest.update(json.dumps(seen, sort_keys=True).encode() + prompt.image)
        by = judged_by(self.judge, self.judge_prompts[CATEGORIES[0]])
        by["judge"]["prompt_digest"] = " ".join(
            dict.fromkeys(prompt.digest for prompt in self.judge_prompts.values())
        )
        decoding = {"n": len(self.rows), "decoding": self.decoding}
        return {"benchmark": self.name, "prompts": digest.hexdigest(), **decoding, **by}


def _rows(path: str, fields: Sequence[str], which: str) -> dict[str, JsonRow]:
    what = f"llava_bench.{which}"
    rows = index_by(read_json_rows(path, fields, what=what), "question_id", what=what)
    odd = [
        name for name, row in rows.items() if row.get("category", CATEGORIES[0]) not in CATEGORIES
    ]
    if odd:
        raise DataError(
            f"{what}: question {odd[0]} is of category {rows[odd[0]]['category']!r}; known: {', '.join(CATEGORIES)}."
        )
    return rows


def context_id(image: Any) -> str:
    """An image's number, however it is written.

    Example:
        >>> context_id("000000441147.jpg"), context_id(441147), context_id("COCO_val2014_000000441147")
        ('441147', '441147', '441147')
    """
    return str(image).rsplit("_", 1)[-1].split(".")[0].lstrip("0")


def describe(context: JsonRow) -> str:
    """What the judge sees of an image: its captions, then its objects with their boxes, one a line."""
    return "\n".join(
        [
            *context["captions"],
            "",
            *(f"{one['category']}: {one['bbox']}" for one in context["instances"]),
        ]
    )


def _plain(text: str) -> str:
    if "{" in text:
        raise ValueError("its prompts are no templates: no braces")
    return text
