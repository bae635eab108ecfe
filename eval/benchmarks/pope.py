"""POPE (arXiv 2305.10355): yes/no questions about objects in COCO images, without a judge.

Half of the objects in the questions are in the image. The other objects are drawn at random, from
the most frequent objects, or from those that often occur together with what is in the image. These
are three files and three groups. Facts from github.com/AoiDragon/POPE, `output/coco` and
`evaluate.py`:

* A line of a question file is a JSON object with question_id, image, text and label (yes or no).
* The question is asked as it stands in the file. An added instruction ("Please answer yes or no.")
  makes another benchmark.
* The text of an answer before the first full stop is read, without commas. If one of its words,
  split at single spaces, is `No`, `no` or `not`, the answer is no. Otherwise it is yes: also "NO!",
  "isn't" and an answer to something else. Scores follow this rule. Two counts stand beside them:
  answers with neither word, and answers read as yes although they hold `no` or `not`.
* Yes is the positive class of precision, recall and F1. The paper's tables are per group; the
  pooled rates over all groups are ours.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

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
from eval.config import POPEConfig
from eval.inputs.images import image_bytes
from eval.inputs.json_rows import JsonRow, index_by, read_json_rows
from rlhfv_ray.endpoint.records import Reply
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Answer, Prompt

GROUPS = ("random", "popular", "adversarial")
METRICS = (
    Metric("accuracy", "higher", "answers that are right"),
    Metric("precision", "higher", "right answers, of the answers yes"),
    Metric("recall", "higher", "answered yes, of the objects in the images"),
    Metric("f1", "higher", "harmonic mean of precision and recall", is_proportion=False),
    Metric("yes_rate", "", "answers yes; half of the objects are in the images"),
    WORDS,
)


class Question(NamedTuple):
    """A line of a question file."""

    id: str
    image: str
    text: str
    present: bool  # whether the object is in the image
    group: str


def reads_yes(answer: str) -> bool:
    """Return whether an answer is yes by the official rule.

    Example:
        >>> [reads_yes(answer) for answer in ("Yes, there is.", "No, there is not.")]
        [True, False]
        >>> [reads_yes(answer) for answer in ("There is no dog", "There isn't.", "NO!")]
        [False, True, True]
    """
    words = _first_sentence(answer).replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def read_questions(path: Path) -> list[Question]:
    """Read a question file; the end of its name is the group of its questions.

    Raises:
        DataError: a question cannot be used; the message names it and the file.
    """
    group = path.stem.removeprefix("coco_pope_") if _order(path) else path.stem
    source = f"pope.questions, {path.name}"
    rows = read_json_rows(path, ("question_id", "image", "text", "label"), what=source)
    by_id = index_by(rows, "question_id", what=source)
    return [_parse_question(row, name, group, source) for name, row in by_id.items()]


class POPE(Benchmark):
    """The question files in a folder, or one such file."""

    name = "pope"

    def __init__(self, config: POPEConfig, *, decoding: dict[str, Any]) -> None:
        self.config = config
        self.decoding = decoding  # recorded in the manifest

    @cached_property
    def files(self) -> list[Path]:
        """The question files, in the order of `GROUPS`."""
        source = Path(self.config.questions).expanduser()
        files = [source] if source.is_file() else []
        for folder in (source, source / "output" / "coco", source / "coco"):
            files = files or [path for path in folder.glob("*_pope_*.json*") if _order(path)]
        if not files or not self.config.questions:
            names = ", ".join(f"coco_pope_{group}.json" for group in GROUPS)
            raise DataError(
                f"pope.questions = {self.config.questions!r}: expected one of POPE's question "
                f"files, or a folder with at least one of {names}, or with those of another "
                "dataset (aokvqa_pope_random.json)."
            )
        return sorted(files, key=_order)

    @cached_property
    def questions(self) -> list[Question]:
        """All questions, file after file."""
        return list(chain.from_iterable(map(read_questions, self.files)))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The numbers that its scores have."""
        return METRICS

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Every question as it stands in its file; questions about one image share its bytes."""
        images = image_bytes(self.config.images, [question.image for question in self.questions])
        return [
            Prompt(question.id, images[question.image], question.text)
            for question in self.questions
        ]

    def score(self, answers: Sequence[Answer], verdicts: Mapping[str, Sequence[Reply]]) -> Scores:
        """Score the answers; each prompt has one answer."""
        ordered = in_order(self.prompts, answers)
        judged = tuple(map(judge, ordered, self.questions))
        neither = 0
        yes_despite_no = 0
        for answer in ordered:
            sentence = _first_sentence(answer.text).lower()
            neither += not re.search(r"\b(yes|no|not)\b", sentence)
            has_no = bool(re.search(r"\b(no|not)\b", sentence))
            yes_despite_no += has_no and reads_yes(answer.text)
        extras = {"neither_yes_nor_no": neither, "yes_despite_no": yes_despite_no}
        return Scores(self.metrics, judged, self.manifest(), extras)

    def manifest(self) -> dict[str, Any]:
        """Return everything that scores on this benchmark depend on, except the model."""
        contents: dict[str, bytes] = {}
        for question, prompt in zip(self.questions, self.prompts, strict=True):
            contents[question.image] = prompt.image
        images = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
        digest = hashlib.sha256()
        for question in self.questions:
            digest.update(json.dumps([*question, images[question.image]]).encode())
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in self.files}
        return {
            "benchmark": self.name,
            "prompts": digest.hexdigest(),
            "files": files,
            "n": len(self.questions),
            "decoding": self.decoding,
            **without_images(self.prompts),
            "reading": "first sentence, no or not",
        }


def judge(answer: Answer, question: Question) -> JudgedAnswer:
    """Compare a yes-or-no answer with the truth.

    Example:
        >>> question = Question("random-1", "a.jpg", "?", present=True, group="random")
        >>> judge(Answer("random-1", "?", "No."), question).ratios["recall"]
        Ratio(numerator=0, denominator=1)
    """
    says_yes = reads_yes(answer.text)
    hit = int(says_yes and question.present)
    ratios = {
        "accuracy": Ratio(int(says_yes == question.present), 1),
        "precision": Ratio(hit, int(says_yes)),
        "recall": Ratio(hit, int(question.present)),
        "f1": Ratio(2 * hit, says_yes + question.present),
        "yes_rate": Ratio(int(says_yes), 1),
        WORDS.name: Ratio(count_words(answer.text), 1),
    }
    return JudgedAnswer(answer, ratios, group=question.group, cluster=question.image)


def _order(path: Path) -> tuple[str | int, ...]:
    """Return the place of a question file among those of a folder; empty for other files."""
    dataset, _, ending = path.stem.partition("_pope_")
    group = ending.rpartition("_")[2]  # SEEM's files are called gqa_pope_seem_random
    return (dataset, GROUPS.index(group)) if group in GROUPS else ()


def _first_sentence(answer: str) -> str:
    return answer.split(".")[0]


def _parse_question(row: JsonRow, number: str, group: str, source: str) -> Question:
    image, text, label = row["image"], row["text"], row["label"]
    if label not in ("yes", "no") or not isinstance(image, str) or not isinstance(text, str):
        raise DataError(
            f"{source}, question_id {number}: label {label!r}, image {image!r}, text {text!r}; "
            "expected yes or no, and two strings."
        )
    return Question(f"{group}-{number}", image, text, label == "yes", group)
