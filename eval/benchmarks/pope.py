"""POPE (arXiv 2305.10355): is there such an object in the image? Yes or no, without a judge.

Half of the objects asked for are there. The others are drawn at random, from the most frequent objects, or from those that come with what is
in the image: three files, three groups. Facts from github.com/AoiDragon/POPE, `output/coco` and `evaluate.py`:

* a question file has one JSON object on a line, with question_id, image, text and label ("yes" or "no");
* the question is asked as it stands there. Others append an instruction ("Please answer yes or no."), which makes another benchmark of it;
* of an answer, the text before the first full stop is read, without commas. If one of its words, split at single spaces, is `No`, `no` or `not`,
  the answer is no, otherwise it is yes - also "NO!", "isn't" and what answers nothing. Scores follow that rule; how many answers have neither
  word is kept beside them, and how many it takes for yes although they have a `no` or `not`;
* yes is the positive class of precision, recall and F1. The pooled rates over all groups are ours, the paper's tables are per group.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from eval.benchmarks.contract import WORDS, Benchmark, JudgedAnswer, Metric, Ratio, Scores, in_order
from eval.chair import count_words
from eval.config import POPEConfig
from eval.inputs.images import image_bytes
from eval.inputs.json_rows import JsonRow, index_by, read_json_rows
from rlhfv_ray.endpoint.records import Reply
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Answer, Prompt

GROUPS = ("random", "popular", "adversarial")
MEASURES = (
    Metric("accuracy", "higher", "answers that are right"),
    Metric("precision", "higher", "right ones, of the answers yes"),
    Metric("recall", "higher", "answered yes, of the objects that are there"),
    Metric("f1", "higher", "harmonic mean of precision and recall", is_proportion=False),
    Metric("yes_rate", "", "answers yes; half of the objects are there"),
    WORDS,
)


class Question(NamedTuple):
    """A line of a question file."""

    id: str
    image: str
    text: str
    there: bool
    group: str


def reads_yes(answer: str) -> bool:
    """Read an answer by the official rule.

    Example:
        >>> [reads_yes(answer) for answer in ("Yes, there is.", "No, there is not.", "There is no dog", "There isn't.", "NO!")]
        [True, False, False, True, True]
    """
    return not {"No", "no", "not"} & set(answer.split(".")[0].replace(",", "").split(" "))


def read_questions(path: Path) -> list[Question]:
    """Read a question file; its group is the end of its name.

    Raises:
        DataError: names the file, and the question that cannot be used.
    """
    group = next((name for name in GROUPS if path.stem.endswith(name)), path.stem)
    where = f"pope.questions, {path.name}"
    rows = read_json_rows(path, ("question_id", "image", "text", "label"), what=where)
    return [
        _question(row, name, group, where)
        for name, row in index_by(rows, "question_id", what=where).items()
    ]


class POPE(Benchmark):
    """The question files that are in a folder, or one such file."""

    name = "pope"

    def __init__(self, config: POPEConfig, *, decoding: dict[str, Any]) -> None:
        self.config = config
        self.decoding = decoding  # recorded in the manifest

    @cached_property
    def files(self) -> list[Path]:
        """The question files, in the order of `GROUPS`."""
        source = Path(self.config.questions).expanduser()
        paths = (
            [source]
            if source.is_file()
            else [source / f"coco_pope_{group}.json" for group in GROUPS]
        )
        there = [path for path in paths if path.is_file()] if self.config.questions else []
        if not there:
            raise DataError(
                f"pope.questions = {self.config.questions!r}: expected one of POPE's question files, or a folder with at least one "
                f"of {', '.join(f'coco_pope_{group}.json' for group in GROUPS)}"
            )
        return there

    @cached_property
    def questions(self) -> list[Question]:
        """All questions, file after file."""
        return [question for path in self.files for question in read_questions(path)]

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Every question as it stands in its file; questions about one image share its bytes."""
        images = image_bytes(self.config.images, [question.image for question in self.questions])
        return [
            Prompt(question.id, images[question.image], question.text)
            for question in self.questions
        ]

    def score(self, answers: Sequence[Answer], verdicts: Mapping[str, Sequence[Reply]]) -> Scores:
        """Judge answers, one per prompt."""
        ordered = in_order(self.prompts, answers)
        judged = tuple(
            judge(answer, question)
            for answer, question in zip(ordered, self.questions, strict=True)
        )
        sentences = [answer.text.split(".")[0].lower() for answer in ordered]
        beside = {
            "neither_yes_nor_no": sum(
                not re.search(r"\b(yes|no|not)\b", sentence) for sentence in sentences
            ),
            "yes_despite_no": sum(
                reads_yes(answer.text) and bool(re.search(r"\b(no|not)\b", sentence))
                for answer, sentence in zip(ordered, sentences, strict=True)
            ),
        }
        return Scores(MEASURES, judged, self.manifest(), beside)

    def manifest(self) -> dict[str, Any]:
        """What scores on this benchmark depend on, besides the model."""
        images = {name: hashlib.sha256(data).hexdigest() for name, data in self._images.items()}
        digest = hashlib.sha256()
        for question in self.questions:
            digest.update(json.dumps([*question, images[question.image]]).encode())
        return {
            "benchmark": self.name,
            "prompts": digest.hexdigest(),
            "files": {
                path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in self.files
            },
            "n": len(self.questions),
            "decoding": self.decoding,
            "reading": "first sentence, no or not",
        }

    @property
    def _images(self) -> dict[str, bytes]:
        return {
            question.image: prompt.image
            for question, prompt in zip(self.questions, self.prompts, strict=True)
        }


def judge(answer: Answer, question: Question) -> JudgedAnswer:
    """One answer's verdict.

    Example:
        >>> judge(Answer("random-1", "?", "No."), Question("random-1", "a.jpg", "?", True, "random")).ratios["recall"]
        Ratio(numerator=0, denominator=1)
    """
    said = reads_yes(answer.text)
    hit = int(said and question.there)
    parts = {
        "accuracy": Ratio(int(said == question.there), 1),
        "precision": Ratio(hit, int(said)),
        "recall": Ratio(hit, int(question.there)),
        "f1": Ratio(2 * hit, said + question.there),
        "yes_rate": Ratio(int(said), 1),
        WORDS.name: Ratio(count_words(answer.text), 1),
    }
    return JudgedAnswer(answer, parts, group=question.group)


def _question(row: JsonRow, number: str, group: str, where: str) -> Question:
    image, text, label = row["image"], row["text"], row["label"]
    if label not in ("yes", "no") or not isinstance(image, str) or not isinstance(text, str):
        raise DataError(
            f"{where}, question_id {number}: label {label!r}, image {image!r}, text {text!r}; expected yes or no, and two strings."
        )
    return Question(f"{group}-{number}", image, text, label == "yes", group)
