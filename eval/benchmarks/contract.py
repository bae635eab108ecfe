"""The contract of a benchmark: prompts -> answers -> verdicts -> scores, and their comparison.

Every metric is a ratio of sums over answers: each answer adds a numerator and a denominator. For a
rate, both count cases. For a mean, the denominator is 1. For F1, the numerator is twice the hits.
So intervals, paired tests, tables and figures all come from the same judged answers.

Scores carry a manifest, which states what they were measured on and how. Scores with different
manifests are not compared.
"""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from eval.chair import AnswerScore
from eval.config import JudgeConfig
from eval.judge.prompts import JudgePrompt
from rlhfv_ray.config import fingerprint
from rlhfv_ray.endpoint.records import Reply, Request
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.image_clusters import by_cluster, cluster_interval, has_clusters, swap_test
from rlhfv_ray.records import Answer, Prompt
from rlhfv_ray.stats import (
    Interval,
    PairedDifference,
    RatioSample,
    bootstrap_interval,
    mcnemar,
    minimum_detectable_difference,
    paired_bootstrap,
    wilson_interval,
)

V = TypeVar("V")
DIRECTIONS = ("lower", "higher", "")  # "": neither is better
MCNEMAR = "Exact McNemar test"
SWAP_TEST = "Permutation test over images"


class Span(NamedTuple):
    """A hallucinated stretch of an answer, characters [start, stop)."""

    start: int
    stop: int
    kind: str  # object, attribute, position, number


class Ratio(NamedTuple):
    """The contribution of one answer, or of all answers, to a metric."""

    numerator: float
    denominator: float


class Metric(NamedTuple):
    """A number that a benchmark reports."""

    name: str
    better: Literal["lower", "higher", ""]
    meaning: str = ""  # shown to readers of a report
    scale: float = 100.0  # factor for display; 100 shows per cent
    # Whether numerator and denominator count cases. Then Wilson's interval fits; otherwise the
    # interval is bootstrapped over images.
    is_proportion: bool = True

    @property
    def is_share(self) -> bool:
        """Return True if the number lies between 0 and 1: a proportion, or an F1."""
        return self.is_proportion or "f1" in self.name.split("_")


RESPONSE_RATE = Metric(
    "response_rate", "lower", "answers with a hallucinated object, of those that name any object"
)
OBJECT_RECALL = Metric("object_recall", "higher", "true objects named, of all true objects")
WORDS = Metric(
    "words",
    "",
    "mean length of an answer in words; shorter is not better",
    scale=1,
    is_proportion=False,
)
CHAIR = (
    RESPONSE_RATE,
    Metric("response_rate_all", "lower", "answers with a hallucinated object, of all answers"),
    Metric("mention_rate", "lower", "hallucinated object mentions, of all object mentions"),
    OBJECT_RECALL,
)


@dataclass(frozen=True)
class JudgedAnswer:
    """One answer with its verdict."""

    answer: Answer
    ratios: Mapping[str, Ratio]  # contribution by metric; some metrics may be absent
    spans: tuple[Span, ...] = ()
    group: str = ""  # type of the question, for tables per type
    verdict: str = ""  # the judge's own words
    missing: str = ""  # reason for a missing verdict; then it adds to no judged metric
    # Image of the question. Answers about one image are alike, so intervals and tests draw and swap
    # them together. Empty: an image of its own.
    cluster: str = ""


@dataclass(frozen=True)
class Scores:
    """A model's scores on a benchmark."""

    metrics: tuple[Metric, ...]  # the first one is tested for a difference
    answers: tuple[JudgedAnswer, ...]  # in the order of the prompts
    manifest: Mapping[str, Any]  # what was measured, and how
    # Reported but not compared, e.g. the rates by the release's own reading.
    extras: Mapping[str, Any] = field(default_factory=dict)
    # Computed once, because every table, figure and page shows them.
    _sums: dict[str | None, dict[str, Ratio]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _intervals: dict[str | None, dict[str, Interval | None]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _comparisons: dict[int, "tuple[Scores, Comparison]"] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def sums(self, group: str | None = None) -> dict[str, Ratio]:
        """Sum numerators and denominators of every metric over all answers or one group."""
        if group not in self._sums:
            answers = self._answers_in(group)
            self._sums[group] = {metric.name: _sum(metric.name, answers) for metric in self.metrics}
        return dict(self._sums[group])

    def rates(self, group: str | None = None) -> dict[str, float | None]:
        """Compute every metric as a number, and count answers (`n`) and missing verdicts.

        A metric with a denominator of 0 is None.
        """
        answers = self._answers_in(group)
        rates = {
            name: ratio.numerator / ratio.denominator if ratio.denominator else None
            for name, ratio in self.sums(group).items()
        }
        return {**rates, "n": len(answers), "missing": sum(bool(item.missing) for item in answers)}

    def intervals(self, group: str | None = None) -> dict[str, Interval | None]:
        """Compute 95 % intervals, which know the cases that belong to one image.

        A proportion has Wilson's interval of the effective sample size, and any other metric a
        bootstrap over images.
        """
        if group not in self._intervals:
            answers = self._answers_in(group)
            self._intervals[group] = {
                metric.name: _interval(metric, answers) for metric in self.metrics
            }
        return dict(self._intervals[group])

    def sample(self, name: str) -> RatioSample:
        """Return every answer's contribution to a metric, in the order of the answers."""
        return _sample([item.ratios.get(name, Ratio(0, 0)) for item in self.answers])

    @property
    def groups(self) -> tuple[str, ...]:
        """Return the groups of questions in the order of their first question, those of a number
        ("2 groups") last and by it.
        """
        names = dict.fromkeys(item.group for item in self.answers if item.group)
        return tuple(sorted(names, key=_first_number))

    @property
    def manifest_hash(self) -> str:
        """Return a fingerprint of the manifest: twelve hex digits."""
        return fingerprint(self.manifest)

    def _answers_in(self, group: str | None) -> list[JudgedAnswer]:
        return [item for item in self.answers if group in (None, item.group)]


def _sum(name: str, answers: Sequence[JudgedAnswer]) -> Ratio:
    ratios = [item.ratios[name] for item in answers if name in item.ratios]
    numerator = sum(ratio.numerator for ratio in ratios)
    return Ratio(numerator, sum(ratio.denominator for ratio in ratios))


def _first_number(group: str) -> int:
    """Return the number that a group's name begins with; -1 if there is none."""
    first = group.split(" ")[0]
    return int(first) if first.isdecimal() else -1


def without_images(prompts: Sequence[Prompt]) -> dict[str, str]:
    """Return the manifest's entry on pictures that were not given; none if they were.

    So scores without pictures are compared with each other only.
    """
    return {} if all(prompt.image for prompt in prompts) else {"images": "not given"}


class Setup(NamedTuple):
    """The arguments of a benchmark besides its settings."""

    decoding: dict[str, Any]  # recorded in the manifest
    storage: Path  # folder for reduced annotations
    shapes_folder: Path | None  # pictures of the shapes benchmark


class Benchmark(ABC):
    """Questions with a way to judge the answers."""

    name: ClassVar[str]  # on the command line, in files and in MLflow

    @property
    @abstractmethod
    def prompts(self) -> Sequence[Prompt]:
        """The questions with their images."""

    @property
    @abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """The numbers that its scores have; the first one is tested for a difference."""

    @property
    def prompts_id(self) -> str:
        """Identify the prompts: a digest of questions and images."""
        return str(self.manifest()["prompts"])

    @property
    def answers_hint(self) -> str:
        """Advice for people whose file of answers does not fit the questions; mostly empty."""
        return ""

    @property
    def has_images(self) -> bool:
        """Return False if the pictures were not given: then only files of answers are scored."""
        return all(prompt.image for prompt in self.prompts)

    @property
    def judged(self) -> bool:
        """Return True if answers need a judge."""
        return False

    def requests(self, answers: Sequence[Answer]) -> Sequence[Request]:
        """Return the requests to a judge: at most one per answer, with the answer's id."""
        return []

    @staticmethod  # so that it is sent to the clients without the images
    def readable(text: str) -> bool:
        """Return whether a judge's reply holds a verdict."""
        return False

    def oracle(self, answers: Sequence[Answer]) -> Callable[[Request], str] | None:
        """Return a judge that knows the truth about these answers; None if there is none."""
        return None

    @abstractmethod
    def score(self, answers: Sequence[Answer], verdicts: Mapping[str, Sequence[Reply]]) -> Scores:
        """Score the answers.

        Args:
            answers: one per prompt, in any order.
            verdicts: the judge's verdicts by the answer's id.
        """

    @abstractmethod
    def manifest(self) -> dict[str, Any]:
        """Return everything that scores depend on, except the model.

        Its `prompts` is the digest of questions and images.
        """


Pair = tuple[JudgedAnswer, JudgedAnswer]  # the base's answer and the aligned model's


@dataclass(frozen=True)
class Comparison:
    """An aligned model against its base on the same items, by the benchmark's first metric.

    Object recall is compared too, where it is measured.
    """

    metric: Metric
    change: float | None  # of the metric, aligned - base
    change_interval: Interval | None  # 95 %, paired bootstrap over images
    relative_reduction: float | None  # of the metric: 1 - aligned / base
    relative_reduction_interval: Interval | None
    p_value: float | None  # two-sided; None if the metric is no proportion
    recall_change: float | None  # of object_recall, aligned - base
    recall_change_interval: Interval | None
    # The smallest decrease of the metric that these items would show with power 0.8.
    detectable: float | None = None
    n: int = 0  # items with a verdict on both sides
    test: str = ""  # the test of `p_value`; empty if there is none


def compare(base: Scores, aligned: Scores) -> Comparison:
    """Compare two models answer by answer, on answers with a verdict on both sides.

    Raises:
        DataError: the manifests differ; the message names the fields.
    """
    if id(aligned) not in base._comparisons:
        base._comparisons[id(aligned)] = aligned, _compare(base, aligned)
    return base._comparisons[id(aligned)][1]


def _compare(base: Scores, aligned: Scores) -> Comparison:
    check_comparable(base.manifest, aligned.manifest)
    metric = base.metrics[0]
    pairs = [
        (old, new)
        for old, new in zip(base.answers, aligned.answers, strict=True)
        if not (old.missing or new.missing)
        and metric.name in old.ratios
        and metric.name in new.ratios
    ]
    change = _paired(pairs, metric.name)
    recall = _paired(pairs, OBJECT_RECALL.name)
    test, p_value, detectable = _significance(metric, pairs)
    return Comparison(
        metric,
        change.difference,
        change.difference_interval,
        change.reduction,
        change.reduction_interval,
        p_value,
        recall.difference,
        recall.difference_interval,
        detectable,
        len(pairs),
        test,
    )


def check_comparable(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Refuse manifests that differ.

    Raises:
        DataError: the message has each field that differs with its two values.
    """
    differ = _differences(first, second)
    if differ:
        fields = dict.fromkeys(name.partition(".")[0] for name in differ)
        values = "; ".join(
            f"{name}: {_shortened(old)} against {_shortened(new)}"
            for name, (old, new) in differ.items()
        )
        hint = "Measure both models alike, or compare fewer of the runs."
        if "images" in fields:
            hint = f"One was scored without its pictures: give both the benchmark's images. {hint}"
        raise DataError(
            "Scores with different manifests are not compared; "
            f"they differ in {', '.join(fields)}. {values}. {hint}"
        )


def _differences(
    first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Return the two values of every setting that differs, by its dotted name."""
    differ: dict[str, tuple[Any, Any]] = {}
    for key in sorted(first.keys() | second.keys()):
        old, new = first.get(key), second.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            differ |= _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            differ[f"{prefix}{key}"] = old, new
    return differ


def _shortened(value: Any) -> str:
    """Return a value as text, with a digest's first digits in place of all 64."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1...", repr(value))


def _significance(metric: Metric, pairs: Sequence[Pair]) -> tuple[str, float | None, float | None]:
    """Return the name of the paired test, its p-value, and the detectable decrease.

    McNemar's test serves where an image has one case, right or wrong. Where it has several, whole
    images are exchanged; the detectable decrease is not known there.
    """
    if not metric.is_proportion or not pairs:
        return "", None, None
    base, aligned = _samples(pairs, metric.name)
    if has_clusters(base) or has_clusters(aligned):
        return SWAP_TEST, swap_test(base, aligned), None
    old, new = base.numerators, aligned.numerators
    p_value = mcnemar(list(map(bool, old)), list(map(bool, new)))
    if metric.better != "lower" or not any(old):
        return MCNEMAR, p_value, None
    discordant = sum(a != b for a, b in zip(old, new, strict=True)) / len(old)
    detectable = minimum_detectable_difference(
        len(old), sum(old) / len(old), discordant=discordant or None
    )
    return MCNEMAR, p_value, detectable


def _interval(metric: Metric, answers: Sequence[JudgedAnswer]) -> Interval | None:
    """Return the 95 % interval of a metric over the answers that have it."""
    items = [item for item in answers if metric.name in item.ratios]
    sample = _by_image([item.ratios[metric.name] for item in items], items)
    if metric.is_proportion:
        return cluster_interval(sample)
    if metric.is_share and sample.is_all_or_nothing:  # an F1 of which resamples say nothing
        images = sum(size > 0 for size in sample.denominators)
        return wilson_interval(images if any(sample.numerators) else 0, images)
    return bootstrap_interval(sample)


def _paired(pairs: Sequence[Pair], name: str) -> PairedDifference:
    return paired_bootstrap(*_samples(pairs, name))


def _samples(pairs: Sequence[Pair], name: str) -> tuple[RatioSample, RatioSample]:
    """Return both sides' contributions to a metric, summed over each image."""
    base = [old for old, _ in pairs]
    aligned = [new for _, new in pairs]
    return (
        _by_image([item.ratios.get(name, Ratio(0, 0)) for item in base], base),
        _by_image([item.ratios.get(name, Ratio(0, 0)) for item in aligned], base),
    )


def _by_image(ratios: Sequence[Ratio], items: Sequence[JudgedAnswer]) -> RatioSample:
    """Sum the contributions of answers about one image."""
    images = [item.cluster or number for number, item in enumerate(items)]
    return by_cluster(_sample(ratios), images)


def _sample(ratios: Sequence[Ratio]) -> RatioSample:
    return RatioSample(
        [ratio.numerator for ratio in ratios], [ratio.denominator for ratio in ratios]
    )


def chair_ratios(score: AnswerScore, words: int) -> dict[str, Ratio]:
    """Return one answer's contribution to CHAIR's metrics and to the mean length in words."""
    hallucinates = int(bool(score.hallucinated))
    return {
        "response_rate": Ratio(hallucinates, int(score.mentions > 0)),
        "response_rate_all": Ratio(hallucinates, 1),
        "mention_rate": Ratio(len(score.hallucinated), score.mentions),
        "object_recall": Ratio(score.true_objects_named, score.true_objects),
        WORDS.name: Ratio(words, 1),
    }


def judge_manifest(judge: JudgeConfig, prompt: JudgePrompt) -> dict[str, Any]:
    """Return the manifest's entry on everything that a judge's verdicts depend on."""
    settings = ("kind", "model", "temperature", "max_tokens", "votes", "seed")
    return {
        "judge": {
            **{name: getattr(judge, name) for name in settings},
            "prompt": prompt.name,
            "prompt_digest": prompt.digest,
        }
    }


def read_votes(
    answers: Sequence[Answer],
    verdicts: Mapping[str, Sequence[Reply]],
    read: Callable[[str], V | None],
) -> tuple[dict[str, list[V]], float | None]:
    """Read the votes on each answer.

    Args:
        answers: the judged answers.
        verdicts: the verdicts by the answer's id.
        read: function that reads one verdict and returns None if it is unreadable.

    Returns:
        Two values: the readable votes by the answer's id, and the fraction of the answers with
        several votes whose votes are all equal (None if no answer has several).
    """
    votes: dict[str, list[V]] = {}
    for answer in answers:
        replies = [verdict for verdict in verdicts.get(answer.id, ()) if verdict.status == "ok"]
        readings = [read(reply.text) for reply in replies]
        votes[answer.id] = [vote for vote in readings if vote is not None]
    several = [readings for readings in votes.values() if len(readings) > 1]
    unanimous = sum(readings.count(readings[0]) == len(readings) for readings in several)
    return votes, unanimous / len(several) if several else None


def missing_reason(verdicts: Sequence[Reply]) -> str:
    """Return why an answer without a vote has none: the status of its requests, or "unparsed"."""
    reasons = ("unparsed" if item.status == "ok" else item.status for item in verdicts)
    return ", ".join(dict.fromkeys(reasons)) or "not asked"


def check_ids(prompts: Sequence[Prompt]) -> None:
    """Refuse questions with one id, before any of them is answered.

    Raises:
        ConfigError: a benchmark's code returned no prompts.
        DataError: two prompts have one id, by which answers find theirs.
    """
    if not isinstance(prompts, Sequence):
        kind = type(prompts).__name__
        raise ConfigError(f"The prompts of a benchmark are {kind}, not a list. Correct its code.")
    counts = Counter(prompt.id for prompt in prompts)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise DataError(
            f"{len(repeated)} ids stand for several questions each ({', '.join(repeated[:5])}): "
            "give every question of the benchmark's file an id of its own."
        )


def in_order(prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers in the order of the prompts.

    Raises:
        DataError: an answer is missing, or a prompt has more than one.
    """
    by_id = {answer.id: answer for answer in answers}
    missing = [prompt.id for prompt in prompts if prompt.id not in by_id]
    if missing or len(answers) != len(prompts):
        raise DataError(
            f"{len(prompts)} prompts need one answer each; got {len(answers)} answers, "
            f"{len(missing)} prompts without ({', '.join(missing[:5])})."
        )
    return [by_id[prompt.id] for prompt in prompts]


def check_scores(scores: object, benchmark: str) -> None:
    """Check what a benchmark's `score` returned: somebody's own may have a slip.

    Raises:
        ConfigError: it is no `Scores`, a ratio is no `Ratio`, or an answer has one that is no
            metric, which would be left out of every sum.
    """
    fault = _fault_of(scores)
    if fault:
        raise ConfigError(f"The function `score` of {benchmark} {fault}. Correct it.")


def _fault_of(scores: object) -> str:
    if not isinstance(scores, Scores):
        return f"returns {type(scores).__name__}, not Scores"
    for part, kind in (("metrics", Sequence), ("answers", Sequence), ("manifest", Mapping)):
        if not isinstance(getattr(scores, part), kind):
            return f"gives {type(getattr(scores, part)).__name__} for {part}"
    if astray := [metric for metric in scores.metrics if metric.better not in DIRECTIONS]:
        name, better, *_ = astray[0]
        return f"gives {name} the direction {better!r}, not one of {DIRECTIONS}"
    metrics = {metric.name for metric in scores.metrics}
    for item in scores.answers:
        numbers = [name for name, ratio in item.ratios.items() if not isinstance(ratio, Ratio)]
        if numbers:
            return f"gives {numbers[0]} a value that is no Ratio"
        if unknown := sorted(set(item.ratios) - metrics):
            return (
                f"gives answer {item.answer.id} a ratio of {unknown[0]}, which is no metric: these "
                f"are {', '.join(sorted(metrics))}"
            )
    return ""
