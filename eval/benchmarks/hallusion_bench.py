"""HallusionBench (arXiv 2310.14566): yes/no questions in pairs about figures, without a judge.

Facts from github.com/tianyi-lab/HallusionBench, `HallusionBench.json` and `utils.py`:

* A question is asked about a figure and about edited figures (figure_id 0 and higher), and one
  figure has several questions. In the category VS (visual supplement), figure_id 0 is no figure:
  the question is asked without one.
* aAcc counts questions. qAcc counts questions with all their figures: category, subcategory, set_id
  and question_id are equal. fAcc counts figures with all their questions: set_id and figure_id
  are equal in place of question_id; questions without a figure do not count.
* An answer is right, wrong or uncertain. Uncertain is right where there is no figure, else wrong.
* aAcc on easy questions (their figure is not edited) and on hard ones is printed too, under that
  name although the script counts question pairs. Both are beside the scores.

The script asks GPT-4 whether an answer is right. Here an answer is its first word yes or no, in any
case; with neither, it is uncertain. This is text matching as in the paper's second evaluation.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from eval.benchmarks.amber import reads_no
from eval.benchmarks.contract import (
    WORDS,
    Benchmark,
    JudgedAnswer,
    Metric,
    Ratio,
    Scores,
    in_order,
    without_images,
)
from eval.chair import count_words
from eval.config import HallusionBenchConfig
from eval.inputs.images import image_bytes
from eval.inputs.json_rows import JsonRow, read_json_rows
from rlhfv_ray.endpoint.records import Reply
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Answer, Prompt

METRICS = (
    Metric("a_acc", "higher", "aAcc: questions that are answered rightly"),
    Metric("q_acc", "higher", "qAcc: questions that are answered rightly about all their figures"),
    Metric("f_acc", "higher", "fAcc: figures all of whose questions are answered rightly"),
    Metric("uncertain_rate", "", "answers with neither yes nor no"),
    WORDS,
)
KEYS = ("category", "subcategory", "set_id", "figure_id", "question_id")
FIELDS = (*KEYS, "visual_input", "question", "gt_answer", "filename")
EDITED = "2"  # visual_input of an edited figure


class Question(NamedTuple):
    """A question about a figure, or about none."""

    id: str  # the five keys
    text: str
    is_yes: bool
    pair: str  # the question, whatever the figure
    figure: str  # empty if there is none
    image: str  # file name; empty if there is no figure
    edited: bool
    group: str

    @property
    def topic(self) -> str:
        """The figures and questions that belong together, drawn as a whole by intervals."""
        return self.id.rsplit("_", 2)[0]


class HallusionBench(Benchmark):
    """The questions of HallusionBench.json."""

    name = "hallusion_bench"

    def __init__(self, config: HallusionBenchConfig, *, decoding: dict[str, Any]) -> None:
        self.config = config
        self.decoding = decoding  # recorded in the manifest

    @cached_property
    def questions(self) -> list[Question]:
        """The questions in the order of the file.

        Raises:
            DataError: a row cannot be used, or two rows are the same question.
        """
        source = "hallusion_bench.questions"
        rows = read_json_rows(self.config.questions, FIELDS, what=source)
        questions = [_parse_question(row, source) for row in rows]
        if len({question.id for question in questions}) < len(questions):
            raise DataError(f"{source}: two rows have the same {', '.join(KEYS)}.")
        if self.config.part == "figures":
            return [question for question in questions if question.figure]
        return questions

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The numbers that its scores have."""
        return METRICS

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Every question as it stands in its file; those without a figure have no image."""
        names = [question.image for question in self.questions if question.image]
        images = {"": b"", **image_bytes(self.config.images, names)}
        return [
            Prompt(question.id, images[question.image], question.text)
            for question in self.questions
        ]

    def score(self, answers: Sequence[Answer], verdicts: Mapping[str, Sequence[Reply]]) -> Scores:
        """Score the answers; each prompt has one answer."""
        ordered = in_order(self.prompts, answers)
        right = list(map(is_right, ordered, self.questions))
        pairs = _complete(self.questions, right, lambda question: question.pair)
        figures = _complete(self.questions, right, lambda question: question.figure)
        judged = []
        for number, (answer, question) in enumerate(zip(ordered, self.questions, strict=True)):
            ratios = {
                "a_acc": Ratio(int(right[number]), 1),
                "uncertain_rate": Ratio(int(reads_no(answer.text) is None), 1),
                WORDS.name: Ratio(count_words(answer.text), 1),
            }
            if number in pairs:
                ratios["q_acc"] = pairs[number]
            if number in figures:
                ratios["f_acc"] = figures[number]
            item = JudgedAnswer(answer, ratios, group=question.group, cluster=question.topic)
            judged.append(item)
        extras = {
            "easy_acc": self._pair_rate(right, edited=False),
            "hard_acc": self._pair_rate(right, edited=True),
        }
        return Scores(self.metrics, tuple(judged), self.manifest(), extras)

    def _pair_rate(self, right: Sequence[bool], *, edited: bool) -> float | None:
        """Return qAcc among the questions about edited figures, or among the others."""
        chosen = [
            (question, hit)
            for question, hit in zip(self.questions, right, strict=True)
            if question.edited is edited
        ]
        pairs = _complete(
            [question for question, _ in chosen],
            [hit for _, hit in chosen],
            lambda question: question.pair,
        )
        return sum(ratio.numerator for ratio in pairs.values()) / len(pairs) if pairs else None

    def manifest(self) -> dict[str, Any]:
        """Return everything that scores on this benchmark depend on, except the model."""
        digest = hashlib.sha256()
        for question, prompt in zip(self.questions, self.prompts, strict=True):
            digest.update(json.dumps(question).encode() + prompt.image)
        with_figure = [
            prompt
            for question, prompt in zip(self.questions, self.prompts, strict=True)
            if question.image
        ]
        return {
            "benchmark": self.name,
            "prompts": digest.hexdigest(),
            "n": len(self.questions),
            "decoding": self.decoding,
            **without_images(with_figure),
            "reading": "first yes or no",
        }


def is_right(answer: Answer, question: Question) -> bool:
    """Return whether an answer is right; without a figure, an uncertain one is.

    Example:
        >>> question = Question("VS_map_0_0_0", "?", True, "VS_map_0_0", "", "", False, "VS")
        >>> [is_right(Answer("1", "?", text), question) for text in ("Yes.", "No.", "Unknown.")]
        [True, False, True]
    """
    says = reads_no(answer.text)
    return not question.figure if says is None else says is not question.is_yes


def _complete(
    questions: Iterable[Question], right: Sequence[bool], key: Callable[[Question], str]
) -> dict[int, Ratio]:
    """Return 1 of 1 for every set of questions that are all right, else 0 of 1.

    Each is under the number of the set's last question. An empty key is no set.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        if key(question):
            members[key(question)].append(number)
    complete: dict[int, Ratio] = {}
    for numbers in members.values():
        complete[numbers[-1]] = Ratio(int(all(right[number] for number in numbers)), 1)
    return complete


def _parse_question(row: JsonRow, source: str) -> Question:
    category, subcategory, part, figure, number = (str(row[name]) for name in KEYS)
    name = "_".join((category, subcategory, part, figure, number))
    if str(row["gt_answer"]) not in ("0", "1") or not isinstance(row["question"], str):
        raise DataError(
            f"{source}, {name}: gt_answer {row['gt_answer']!r}, question {row['question']!r}; "
            "expected 0 or 1, and a text."
        )
    has_figure = category != "VS" or figure != "0"
    return Question(
        name,
        row["question"],
        str(row["gt_answer"]) == "1",
        "_".join((category, subcategory, part, number)),
        "_".join((category, subcategory, part, figure)) if has_figure else "",
        str(row["filename"] or "").removeprefix("./") if has_figure else "",
        str(row["visual_input"]) == EDITED,
        category,
    )
