"""MME's hallucination subset (arXiv 2306.13394): two yes/no questions about each image.

Four of MME's fourteen tasks are about hallucination: existence, count, position and color, with 30
images each. No judge is needed. Facts from the evaluation tool of the benchmark's repository
(github.com/BradyFU/Awesome-Multimodal-Large-Language-Models, branch Evaluation, `calculation.py`):

* An answer in lower case is yes if its first four characters hold "yes", else no if they hold "no",
  else neither; then it is wrong.
* Accuracy counts questions, accuracy+ images both of whose questions are answered rightly.
* The score of a task is 100 * (accuracy + accuracy+), so at most 200, and that of the subset is the
  sum over tasks, at most 800. These scores stand beside the metrics.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as parquet

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
from eval.config import MMEConfig
from eval.inputs.images import image_bytes
from rlhfv_ray.data.files.text import read_text
from rlhfv_ray.endpoint.records import Reply
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Answer, Prompt

TASKS = ("existence", "count", "position", "color")
METRICS = (
    Metric("accuracy", "higher", "answers that are right"),
    Metric("accuracy_plus", "higher", "images both of whose answers are right"),
    Metric("yes_rate", "", "answers yes; half of the right answers are yes"),
    WORDS,
)
QUESTIONS = 2  # about every image
COLUMNS = ("question_id", "question", "answer", "category")  # of the hub's Parquet files


class Question(NamedTuple):
    """A question with its truth."""

    id: str  # <task>-<image without ending>_<1 or 2>
    image: str
    text: str
    is_yes: bool
    task: str


def read_answer(answer: str) -> bool | None:
    """Return whether an answer is yes by the official rule, or None if it is neither yes nor no.

    Example:
        >>> [read_answer(text) for text in ("Yes, it is.", "NO", "I know", "There is no dog")]
        [True, False, None, None]
    """
    start = answer.lower()[:4]
    return True if "yes" in start else False if "no" in start else None


class MME(Benchmark):
    """The questions of the four tasks, in one of the three layouts in which MME is published."""

    name = "mme"

    def __init__(self, config: MMEConfig, *, decoding: dict[str, Any]) -> None:
        self.config = config
        self.decoding = decoding  # recorded in the manifest

    @cached_property
    def questions(self) -> list[Question]:
        """All questions, task after task, images in the order of their names.

        Raises:
            DataError: the folder has no layout of MME's, or an image has not two questions.
        """
        folder = Path(self.config.data).expanduser()
        rows = list(_read_rows(folder)) if self.config.data else []
        if {task for task, _, _, _ in rows} != set(TASKS):
            raise DataError(
                f"mme.data = {self.config.data!r}: expected a folder that has, for each of "
                f"{', '.join(TASKS)}, a folder of images with a text file for each, or a file "
                "TASK.txt of the evaluation tool; or the hub's Parquet files."
            )
        rows.sort(key=lambda row: (TASKS.index(row[0]), row[1]))
        return _number(rows, f"mme.data = {self.config.data!r}")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The numbers that its scores have."""
        return METRICS

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Every question as it stands in its file, with its image if there is one."""
        images = self._images()
        return [
            Prompt(question.id, images.get(f"{question.task}/{question.image}", b""), question.text)
            for question in self.questions
        ]

    def _images(self) -> dict[str, bytes]:
        """Return the images by task and name: from Parquet, else from files of either layout."""
        folder = Path(self.config.data).expanduser()
        files = _parquet_files(folder)
        if files:
            return dict(_parquet_images(files))
        if not any((folder / task).is_dir() for task in TASKS):
            return {}  # the evaluation tool's question files have no images
        names = [f"{question.task}/{question.image}" for question in self.questions]
        inner = {name: [name.replace("/", "/images/")] for name in names}
        return image_bytes(folder, names, aliases=inner)

    def score(self, answers: Sequence[Answer], verdicts: Mapping[str, Sequence[Reply]]) -> Scores:
        """Score the answers; each prompt has one answer."""
        ordered = in_order(self.prompts, answers)
        judged: list[JudgedAnswer] = []
        for start in range(0, len(ordered), QUESTIONS):
            pair = slice(start, start + QUESTIONS)
            judged += judge_image(ordered[pair], self.questions[pair])
        neither = sum(read_answer(answer.text) is None for answer in ordered)
        scores = Scores(self.metrics, tuple(judged), self.manifest())
        extras = {"release_compatible": task_scores(scores), "neither_yes_nor_no": neither}
        return Scores(self.metrics, scores.answers, scores.manifest, extras)

    def manifest(self) -> dict[str, Any]:
        """Return everything that scores on this benchmark depend on, except the model."""
        digest = hashlib.sha256()
        for question, prompt in zip(self.questions, self.prompts, strict=True):
            digest.update(json.dumps(question).encode() + prompt.image)
        return {
            "benchmark": self.name,
            "prompts": digest.hexdigest(),
            "n": len(self.questions),
            "decoding": self.decoding,
            **without_images(self.prompts),
            "reading": "yes or no in the first four characters",
        }


def judge_image(answers: Sequence[Answer], questions: Sequence[Question]) -> list[JudgedAnswer]:
    """Compare the answers about one image with the truth.

    The image's contribution to accuracy+ is with its last answer.
    """
    readings = [read_answer(answer.text) for answer in answers]
    right = [
        int(reading is question.is_yes)
        for reading, question in zip(readings, questions, strict=True)
    ]
    judged = []
    for number, (answer, question) in enumerate(zip(answers, questions, strict=True), 1):
        ratios = {
            "accuracy": Ratio(right[number - 1], 1),
            "yes_rate": Ratio(int(readings[number - 1] is True), 1),
            WORDS.name: Ratio(count_words(answer.text), 1),
        }
        if number == len(answers):
            ratios["accuracy_plus"] = Ratio(int(all(right)), 1)
        image = f"{question.task}/{question.image}"
        judged.append(JudgedAnswer(answer, ratios, group=question.task, cluster=image))
    return judged


def task_scores(scores: Scores) -> dict[str, float]:
    """Return each task's official score, 0 to 200, and their sum as `total`."""
    by_task = {}
    for task in scores.groups:
        rates = scores.rates(task)
        by_task[task] = sum(100 * (rates[name] or 0.0) for name in ("accuracy", "accuracy_plus"))
    return {**by_task, "total": sum(by_task.values())}


Row = tuple[str, str, str, str]  # task, image, question, Yes or No


def _read_rows(folder: Path) -> Iterator[Row]:
    """Read the questions of the four tasks from the layout that is there."""
    files = _parquet_files(folder)
    if files:
        yield from _parquet_rows(files)
        return
    for task in TASKS:
        table = folder / f"{task}.txt"
        if table.is_file():
            for line in _lines(table, 3):
                yield task, line[0], line[1], line[2]
            continue
        inner = folder / task / "questions_answers_YN"
        for path in sorted((inner if inner.is_dir() else folder / task).glob("*.txt")):
            for question, truth in _lines(path, 2):
                yield task, f"{path.stem}.jpg", question, truth


def _lines(path: Path, columns: int) -> Iterator[list[str]]:
    """Yield the tab-separated lines of a file, cut to so many columns.

    Raises:
        DataError: a line has fewer.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        cells = [cell.strip() for cell in line.split("\t")]
        if not line.strip():
            continue
        if len(cells) < columns:
            raise DataError(
                f"mme.data, {path.parent.name}/{path.name}, line {number}: {len(cells)} columns; "
                f"expected {columns}, separated by tabs."
            )
        yield cells[:columns]


def _parquet_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))


def _parquet_rows(files: Sequence[Path]) -> Iterator[Row]:
    for path in files:
        try:
            rows = parquet.read_table(path, columns=list(COLUMNS)).to_pylist()
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"mme.data, {path.name} cannot be read: {error}") from error
        for row in rows:
            if row["category"] in TASKS:
                image = str(row["question_id"]).rsplit("/", 1)[-1]
                yield row["category"], image, row["question"], row["answer"]


def _parquet_images(files: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    for path in files:
        table = parquet.read_table(path, columns=["question_id", "category", "image"])
        for row in table.to_pylist():
            if row["category"] in TASKS:
                name = str(row["question_id"]).rsplit("/", 1)[-1]
                yield f"{row['category']}/{name}", row["image"]["bytes"]


def _number(rows: Sequence[Row], source: str) -> list[Question]:
    """Give questions their ids; every image must have two.

    Raises:
        DataError: an image has another number of questions, or a truth is not Yes or No.
    """
    seen: Counter[str] = Counter()
    questions = []
    for task, image, text, truth in rows:
        key = f"{task}-{Path(image).stem}"
        seen[key] += 1
        if truth not in ("Yes", "No"):
            raise DataError(f"{source}, {key}: the truth is {truth!r}; expected Yes or No.")
        questions.append(Question(f"{key}_{seen[key]}", image, text, truth == "Yes", task))
    for key, count in seen.items():
        if count != QUESTIONS:
            raise DataError(f"{source}, {key}: {count} questions; expected {QUESTIONS}.")
    return questions
