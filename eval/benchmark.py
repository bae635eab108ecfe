"""The contract of every benchmark: prompts -> answers -> verdicts -> scores, and the comparison of two models on one.

A benchmark judges each answer on its own (`JudgedAnswer`); scores are sums over those, so that intervals, paired tests and pictures all
come from the same verdicts. Scores carry the manifest of what they were measured on; different manifests are not compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from eval.chair import AnswerScore, ChairScores
from eval.statistics import Interval, PairedDifference, Ratio, mcnemar, paired_bootstrap, wilson_interval
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Answer, Prompt


class Mark(NamedTuple):
    """A hallucinated stretch of an answer, characters [start, stop)."""

    start: int
    stop: int
    kind: str  # object, attribute, position, number


class Count(NamedTuple):
    """So many of so many."""

    wrong: int
    of: int


@dataclass(frozen=True)
class JudgedAnswer:
    """One answer with its verdict."""

    answer: Answer
    objects: AnswerScore
    words: int
    marks: tuple[Mark, ...] = ()
    details: Mapping[str, Count] = field(default_factory=dict)  # further rates, by name: what this answer adds

    @property
    def hallucinates(self) -> bool:
        """Whether it names an object that is not there."""
        return bool(self.objects.hallucinated)


@dataclass(frozen=True)
class Scores:
    """A model's scores on a benchmark."""

    chair: ChairScores
    answers: tuple[JudgedAnswer, ...]
    manifest: Mapping[str, Any]  # what they were measured on, and how

    def counts(self) -> dict[str, Count]:
        """Every rate as a count, for intervals."""
        judged = self.answers
        hallucinating = sum(item.hallucinates for item in judged)
        counts = {
            "response_rate": Count(hallucinating, sum(item.objects.mentions > 0 for item in judged)),
            "response_rate_all": Count(hallucinating, len(judged)),
            "mention_rate": Count(
                sum(len(item.objects.hallucinated) for item in judged), sum(item.objects.mentions for item in judged)
            ),
            "object_recall": Count(
                sum(item.objects.true_objects_named for item in judged),
                sum(item.objects.true_objects for item in judged),
            ),
        }
        names = sorted({name for item in judged for name in item.details})
        for name in names:
            parts = [item.details[name] for item in judged if name in item.details]
            counts[name] = Count(sum(part.wrong for part in parts), sum(part.of for part in parts))
        return counts

    def rates(self) -> dict[str, float | None]:
        """Every rate as a fraction, with mean answer length in words and the number of answers."""
        rates = {name: count.wrong / count.of if count.of else None for name, count in self.counts().items()}
        return {**rates, "words": self.chair.words, "n": self.chair.n}

    def intervals(self) -> dict[str, Interval | None]:
        """Wilson's 95 % interval of every rate."""
        return {name: wilson_interval(count.wrong, count.of) for name, count in self.counts().items()}


class Benchmark(Protocol):
    """Questions with a way to judge the answers."""

    @property
    def prompts(self) -> Sequence[Prompt]:
        """What is asked."""
        ...

    def score(self, answers: Sequence[Answer]) -> Scores:
        """Judge answers, one per prompt, in any order."""
        ...


@dataclass(frozen=True)
class Comparison:
    """An aligned model against its base on the same items."""

    relative_reduction: float | None  # of response_rate: 1 - aligned / base
    relative_reduction_interval: Interval | None  # 95 %, paired bootstrap over answers
    p_value: float | None  # exact McNemar test: does an answer name an object that is not there?
    recall_change: float | None  # of object_recall, aligned - base
    recall_change_interval: Interval | None


def compare(base: Scores, aligned: Scores) -> Comparison:
    """Compare two models answer by answer.

    Raises:
        DataError: the scores were measured differently; names the fields of the manifest that differ.
    """
    differ = [
        key
        for key in base.manifest.keys() | aligned.manifest.keys()
        if base.manifest.get(key) != aligned.manifest.get(key)
    ]
    if differ:
        raise DataError(
            f"Scores with different manifests are not compared; they differ in {', '.join(sorted(differ))}."
        )
    rate = _paired(base, aligned, lambda a: a.hallucinates, lambda a: a.objects.mentions > 0)
    recall = _paired(base, aligned, lambda a: a.objects.true_objects_named, lambda a: a.objects.true_objects)
    p_value = mcnemar([a.hallucinates for a in base.answers], [a.hallucinates for a in aligned.answers])
    return Comparison(rate.reduction, rate.reduction_interval, p_value, recall.difference, recall.difference_interval)


def _paired(base: Scores, aligned: Scores, above: Any, below: Any) -> PairedDifference:
    ratios = [
        Ratio([above(a) for a in scores.answers], [below(a) for a in scores.answers]) for scores in (base, aligned)
    ]
    return paired_bootstrap(*ratios)


def in_order(prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[Answer]:
    """Answers in the order of the prompts.

    Raises:
        DataError: an answer is missing, or there is more than one to a prompt.
    """
    by_id = {answer.id: answer for answer in answers}
    missing = [prompt.id for prompt in prompts if prompt.id not in by_id]
    if missing or len(answers) != len(prompts):
        raise DataError(
            f"{len(prompts)} prompts need one answer each; got {len(answers)} answers, {len(missing)} prompts without "
            f"({', '.join(missing[:5])})."
        )
    return [by_id[prompt.id] for prompt in prompts]
