"""The parts of a benchmark's pictures: a sweep prunes, chooses and reports on different ones.

The shapes world draws the pictures of each part. Other benchmarks are split by image, and only the
questions about the images of one part are answered and judged.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from eval.benchmarks.contract import Benchmark, Metric, Scores, in_order
from experiments.runners.config import Part
from rlhfv_ray.config import SHAPES
from rlhfv_ray.endpoint.records import Reply, Request
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.records import Answer, Prompt

# Part of an image by its hash: a fifth prunes, two fifths choose, two fifths are reported.
FIFTHS: tuple[Part, ...] = ("rungs", "choice", "choice", "fresh", "fresh")


def part_of_image(image: bytes) -> Part:
    """Return the part of an image, by the hash of its bytes."""
    return FIFTHS[hashlib.sha256(image).digest()[0] % len(FIFTHS)]


def questions_by_part(benchmark: Benchmark) -> dict[Part, int]:
    """Return the number of questions in each part of a benchmark with pictures of its own.

    Raises:
        ConfigError: a part would be empty.
    """
    parts = [part_of_image(prompt.image) for prompt in benchmark.prompts]
    counts: dict[Part, int] = {part: parts.count(part) for part in FIFTHS}
    empty = [part for part, count in counts.items() if not count]
    if empty:
        images = {prompt.image for prompt in benchmark.prompts}
        raise ConfigError(
            f"benchmark {benchmark.name}: its {len(images)} images leave none for "
            f"{', '.join(empty)}. A sweep prunes, chooses and reports on different images; "
            "use more of them."
        )
    return counts


def check_parts(benchmark: Benchmark) -> None:
    """Check that a benchmark with pictures of its own can be split into three parts.

    Raises:
        ConfigError: a part would be empty.
    """
    if benchmark.name != SHAPES:
        questions_by_part(benchmark)


class PartBenchmark(Benchmark):
    """The questions of another benchmark about the images of one part.

    The other benchmark reads all its answers at once. Those of other parts are given to it empty,
    and left out of its requests and scores.
    """

    def __init__(self, whole: Benchmark, part: Part) -> None:
        self.whole, self.part = whole, part
        self.name = whole.name  # pyright: ignore[reportAttributeAccessIssue] # of this instance
        self.readable = whole.readable

    @cached_property
    def prompts(self) -> Sequence[Prompt]:
        """The questions about the images of the part."""
        return [prompt for prompt in self.whole.prompts if part_of_image(prompt.image) == self.part]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The numbers that the scores of the whole benchmark have."""
        return self.whole.metrics

    @property
    def prompts_id(self) -> str:
        """Identify the prompts by those of the whole benchmark, and the part."""
        return f"{self.whole.prompts_id} {self.part}"

    @property
    def judged(self) -> bool:
        """Return True if answers need a judge."""
        return self.whole.judged

    def padded(self, answers: Sequence[Answer]) -> list[Answer]:
        """Return one answer for every question of the whole benchmark.

        Raises:
            DataError: a question of the part has no answer.
        """
        by_id = {answer.id: answer for answer in in_order(self.prompts, answers)}
        return [
            by_id.get(prompt.id, Answer(prompt.id, prompt.question, ""))
            for prompt in self.whole.prompts
        ]

    def requests(self, answers: Sequence[Answer]) -> Sequence[Request]:
        """Return the requests to a judge for the answers of the part."""
        ids = {prompt.id for prompt in self.prompts}
        requests = self.whole.requests(self.padded(answers))
        return [request for request in requests if request.id in ids]

    def oracle(self, answers: Sequence[Answer]) -> Callable[[Request], str] | None:
        """Return the judge of the whole benchmark that knows the truth, if it has one."""
        return self.whole.oracle(self.padded(answers))

    def score(self, answers: Sequence[Answer], verdicts: Mapping[str, Sequence[Reply]]) -> Scores:
        """Score the answers of the part; extras, which count all answers, are left out."""
        ids = {prompt.id for prompt in self.prompts}
        scores = self.whole.score(self.padded(answers), verdicts)
        members = tuple(item for item in scores.answers if item.answer.id in ids)
        return Scores(scores.metrics, members, self.manifest())

    def manifest(self) -> dict[str, Any]:
        """Return the manifest of the whole benchmark, with the part and its number of questions."""
        return {**self.whole.manifest(), "part": self.part, "n": len(self.prompts)}
