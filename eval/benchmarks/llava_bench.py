"""LLaVA Bench (COCO; arXiv 2304.08485): 90 questions of three categories, scored by a judge.

The judge scores the reference answer and ours. The first line of a review holds two numbers from 1
to 10, the reference's first. A category's score is 100 * mean(ours) / mean(reference). Reviews that
do not begin so are dropped, as in the release, and counted. The release rounds the two means to
three decimals before it divides (`eval/summarize_gpt_llava_review.py`); such scores are kept as
`release_compatible`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

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
from eval.config import JudgeConfig, LLaVABenchConfig, LLaVAWildConfig
from eval.inputs.images import image_bytes
from eval.inputs.json_rows import JsonRow, index_by, read_json_rows
from eval.judge.prompts import JudgePrompt, find_prompt
from rlhfv_ray.data.files.text import read_text
from rlhfv_ray.endpoint.records import Reply, Request
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import Answer, Prompt

CATEGORIES = ("conv", "detail", "complex")
ALL = "all"  # the score over all categories
LOWEST, HIGHEST = 1, 10
METRICS = (
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
# What the release sends with the rule file (`eval/gpt4_grpc.py`).
RELEASE_SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
# Order and markers of the release's prompt. Its wording is in the rule file, which the user names.
FRAME = (
    "[Context]\n{context}\n\n[Question]\n{question}\n\n"
    "[%(role)s 1]\n{reference}\n\n[End of %(role)s 1]\n\n"
    "[%(role)s 2]\n{answer}\n\n[End of %(role)s 2]\n\n[System]\n"
)


def parse_score_pair(review: str) -> tuple[float, float] | None:
    r"""Return the scores in a review's first line: the reference's and ours.

    The line must hold two numbers from 1 to 10 and nothing else, separated by one space or one
    comma, as in the release. Otherwise the result is None.

    Example:
        >>> parse_score_pair("7,10\nBoth are good.")
        (7.0, 10.0)
        >>> [parse_score_pair(review) for review in ("7, 10", "8 11", "Both: 8")]
        [None, None, None]
    """
    numbers = review.split("\n")[0].replace(",", " ").split(" ")
    try:
        reference, ours = map(float, numbers)
    except ValueError:
        return None
    in_range = LOWEST <= reference <= HIGHEST and LOWEST <= ours <= HIGHEST
    return (reference, ours) if in_range else None


@dataclass(frozen=True)
class RelativeScore:
    """The score of one category."""

    reference: float  # mean
    ours: float  # mean
    n: int  # reviews with two scores
    unparsed: int  # reviews without

    @property
    def score(self) -> float:
        """100 * ours / reference."""
        return self.ours / self.reference * 100

    @property
    def release_score(self) -> float:
        """The score as the release prints it: of means that it rounds to three decimals first.

        Example:
            >>> detail = RelativeScore(reference=112 / 23, ours=133 / 23, n=23, unparsed=0)
            >>> round(detail.score, 1), detail.release_score
            (118.8, 118.7)
        """
        return round(round(self.ours, 3) / round(self.reference, 3) * 100, 1)


def relative_scores(reviews: Sequence[tuple[str, str]]) -> Mapping[str, RelativeScore]:
    """Score every category, and `all`; a category without a readable review is left out.

    Args:
        reviews: category and text of each.

    Example:
        >>> reviews = [("conv", "8 6"), ("conv", "8 10"), ("detail", "Both are good.")]
        >>> relative_scores(reviews)["conv"].score
        100.0
    """
    pairs = [(category, parse_score_pair(review)) for category, review in reviews]
    scores = {}
    for category in (*dict.fromkeys(category for category, _ in pairs), ALL):
        category_pairs = [pair for name, pair in pairs if category in (name, ALL)]
        readable = [pair for pair in category_pairs if pair is not None]
        if readable:
            reference, ours = _mean_pair(readable)
            unparsed = len(category_pairs) - len(readable)
            scores[category] = RelativeScore(reference, ours, len(readable), unparsed)
    return scores


class LLaVABench(Benchmark):
    """The benchmark's questions, references and contexts, from the user's copies of its files."""

    name = "llava_bench"
    context_fields: ClassVar[tuple[str, ...]] = ("id", "captions", "instances")
    rule_prefix: ClassVar[str] = ""  # of categories in the release's rule file

    def __init__(
        self,
        config: LLaVABenchConfig | LLaVAWildConfig,
        judge: JudgeConfig,
        *,
        decoding: dict[str, Any],
    ) -> None:
        self.config = config
        self.judge = judge
        self.decoding = decoding
        question_fields = ("question_id", "image", "text", "category")
        self.rows = _read_rows(config.questions, question_fields, f"{self.name}.questions")
        references = f"{self.name}.references"
        self.references = _read_rows(config.references, ("question_id", "text"), references)
        contexts = read_json_rows(config.context, self.context_fields, what=f"{self.name}.context")
        self.contexts = {context_id(row[self.context_fields[0]]): row for row in contexts}
        self._check_files_fit()

    def _check_files_fit(self) -> None:
        """Raise a DataError if a question lacks its reference or context."""
        unmatched = [name for name in self.rows if name not in self.references]
        unmatched += [name for name in self.references if name not in self.rows]
        if unmatched:
            raise DataError(
                f"{self.name}.references does not fit {self.name}.questions: "
                f"question_id {unmatched[0]} is in only one of them."
            )
        for name, row in self.rows.items():
            if context_id(row["image"]) not in self.contexts:
                raise DataError(
                    f"{self.name}.context has no row for image {row['image']!r} "
                    f"of question {name}. Use the context file of these questions."
                )

    @cached_property
    def judge_prompts(self) -> dict[str, JudgePrompt]:
        """The judge's prompt by category: from the release's rule file, or one prompt for all."""
        path = find_prompt(self.judge.prompt, "llava.txt", "llava.json")
        if path.suffix in (".json", ".jsonfile"):
            return _rule_prompts(path, self.rule_prefix)
        prompt = JudgePrompt.load(self.judge.prompt, default="llava.txt", fields=FIELDS)
        return dict.fromkeys(CATEGORIES, prompt)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The numbers that its scores have."""
        return METRICS

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The questions with their images."""
        images = image_bytes(self.config.images, [row["image"] for row in self.rows.values()])
        return [Prompt(name, images[row["image"]], row["text"]) for name, row in self.rows.items()]

    def requests(self, answers: Sequence[Answer]) -> list[Request]:
        """Return one request for every answer."""
        return [self._request(answer) for answer in in_order(self.prompts, answers)]

    def _request(self, answer: Answer) -> Request:
        row = self.rows[answer.id]
        prompt = self.judge_prompts[row["category"]]
        text = prompt.fill(
            context=self.describe(self.contexts[context_id(row["image"])]),
            question=row["text"],
            reference=self.references[answer.id]["text"],
            category=row["category"],
            answer=answer.text,
        )
        return Request(answer.id, text, system=SYSTEM if prompt.is_shipped else RELEASE_SYSTEM)

    def describe(self, context: JsonRow) -> str:
        """Return the description of an image for the judge."""
        return describe_image(context)

    @property
    def judged(self) -> bool:
        """True: a judge scores every answer."""
        return True

    @staticmethod
    def readable(text: str) -> bool:
        """Return whether the first line of a judge's reply holds two scores."""
        return parse_score_pair(text) is not None

    def score(self, answers: Sequence[Answer], verdicts: Mapping[str, Sequence[Reply]]) -> Scores:
        """Score answers; several votes count by their mean."""
        ordered = in_order(self.prompts, answers)
        votes, agreement = read_votes(ordered, verdicts, parse_score_pair)
        judged = []
        reviews = []  # the release takes the first review
        for answer in ordered:
            replies = verdicts.get(answer.id, ())
            judged.append(self._judge(answer, votes[answer.id], replies))
            category = self.rows[answer.id]["category"]
            reviews.append((category, replies[0].text if replies else ""))
        release = {name: score.release_score for name, score in relative_scores(reviews).items()}
        extras = {"release_compatible": release, "agreement": agreement}
        return Scores(self.metrics, tuple(judged), self.manifest(), extras)

    def _judge(
        self, answer: Answer, pairs: Sequence[tuple[float, float]], verdicts: Sequence[Reply]
    ) -> JudgedAnswer:
        ratios = {WORDS.name: Ratio(count_words(answer.text), 1)}
        review = "\n\n".join(verdict.text for verdict in verdicts)
        row = self.rows[answer.id]
        judged = JudgedAnswer(
            answer, ratios, group=row["category"], verdict=review, cluster=str(row["image"])
        )
        if not pairs:
            return replace(judged, missing=missing_reason(verdicts))
        reference, ours = _mean_pair(pairs)
        scored = {
            "relative_score": Ratio(ours, reference),
            "score": Ratio(ours, 1),
            "reference_score": Ratio(reference, 1),
        }
        return replace(judged, ratios=ratios | scored)

    def manifest(self) -> dict[str, Any]:
        """Return everything that scores on this benchmark depend on, except the model."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            context = self.contexts[context_id(self.rows[prompt.id]["image"])]
            texts = [
                prompt.id,
                prompt.question,
                self.references[prompt.id]["text"],
                *(context[name] for name in self.context_fields[1:]),
            ]
            digest.update(json.dumps(texts, sort_keys=True).encode() + prompt.image)
        judge = judge_manifest(self.judge, self.judge_prompts[CATEGORIES[0]])
        prompt_digests = dict.fromkeys(prompt.digest for prompt in self.judge_prompts.values())
        judge["judge"]["prompt_digest"] = " ".join(prompt_digests)
        return {
            "benchmark": self.name,
            "prompts": digest.hexdigest(),
            "n": len(self.rows),
            "decoding": self.decoding,
            **without_images(self.prompts),
            **judge,
        }


def context_id(image: Any) -> str:
    """Return an image's number without leading zeros, from any form of its name.

    Example:
        >>> context_id("000000441147.jpg"), context_id(441147)
        ('441147', '441147')
        >>> context_id("COCO_val2014_000000441147")
        '441147'
    """
    return str(image).rsplit("_", 1)[-1].split(".")[0].lstrip("0")


def describe_image(context: JsonRow) -> str:
    """Return the description of an image for the judge: its captions, then one line for each object
    with its box.
    """
    boxes = [f"{instance['category']}: {instance['bbox']}" for instance in context["instances"]]
    return "\n".join([*context["captions"], "", *boxes])


def _mean_pair(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    references, ours = zip(*pairs, strict=True)
    return sum(references) / len(pairs), sum(ours) / len(pairs)


def _read_rows(path: str, fields: Sequence[str], setting: str) -> dict[str, JsonRow]:
    rows = index_by(read_json_rows(path, fields, what=setting), "question_id", what=setting)
    for question, row in rows.items():
        if row.get("category", CATEGORIES[0]) not in CATEGORIES:
            raise DataError(
                f"{setting}: question {question} is of category {row['category']!r}; "
                f"known: {', '.join(CATEGORIES)}."
            )
    return rows


def _rule_prompts(path: Path, prefix: str) -> dict[str, JudgePrompt]:
    """Build the judge's prompts from the release's rule file, which has one rule per category."""
    prompts: dict[str, JudgePrompt] = {}
    try:
        rules = json.loads(read_text(path))
        for category in CATEGORIES:
            rule = rules[prefix + category]
            if "{" in rule["prompt"]:
                raise ValueError(f"the prompt of {category} has a brace; a rule is not a template")
            text = FRAME % {"role": rule["role"]} + rule["prompt"] + "\n\n"
            prompts[category] = JudgePrompt(f"{path.name} {category}", text, FIELDS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"judge.prompt = {str(path)!r} is no rule file with "
            f"{', '.join(prefix + category for category in CATEGORIES)}: {error!r}"
        ) from error
    return prompts
