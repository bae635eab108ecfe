"""The contract of every benchmark: prompts -> answers -> verdicts -> scores, and the comparison of two models on one.

Every metric is a ratio of sums over answers: each answer adds a numerator and a denominator. For a rate both count answers,
for a mean the denominator is 1, for F1 the numerator is twice the hits. So intervals, paired tests, tables and figures all
come from the same judged answers. Scores carry the manifest of what they were measured on; different manifests are not compared.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from eval.chair import AnswerScore
from eval.config import JudgeConfig
from eval.judge.prompts import JudgePrompt
from rlhfv_ray.config import fingerprint
from rlhfv_ray.endpoint.records import Reply, Request
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Answer, Prompt
from rlhfv_ray.stats import (
    Interval,
    RatioSample,
    bootstrap_interval,
    mcnemar,
    minimum_detectable_difference,
    paired_bootstrap,
    wilson_interval,
)

V = TypeVar("V")


class Span(NamedTuple):
    """A hallucinated stretch of an answer, characters [start, stop)."""

    start: int
    stop: int
    kind: str  # object, attribute, position, number


class Ratio(NamedTuple):
    """What one answer, or all of them, add to a measure: so much of so much."""

    numerator: float
    denominator: float


class Metric(NamedTuple):
    """A number that a benchmark reports."""

    name: str
    better: Literal["lower", "higher", ""]
    meaning: str = ""  # what it counts, for people
    scale: float = 100.0  # it is shown times this: 100 for per cent
    is_proportion: bool = (
        True  # cases of cases, so that Wilson's interval fits; else it is bootstrapped over answers
    )


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
    ratios: Mapping[str, Ratio]  # what it adds to each measure it says something about
    spans: tuple[Span, ...] = ()
    group: str = ""  # of the question, for tables per type
    verdict: str = ""  # the judge's own words
    missing: str = ""  # why it has no verdict; then it adds to no judged measure


@dataclass(frozen=True)
class Scores:
    """A model's scores on a benchmark."""

    metrics: tuple[Metric, ...]  # the first is the one that is tested
    answers: tuple[JudgedAnswer, ...]  # in the order of the prompts
    manifest: Mapping[str, Any]  # what they were measured on, and how
    extras: Mapping[str, Any] = field(
        default_factory=dict
    )  # what is reported but not compared, e.g. the release's own reading

    def sums(self, group: str | None = None) -> dict[str, Ratio]:
        """Every measure as share and whole, over all answers or one group of them."""
        chosen = [item for item in self.answers if group in (None, item.group)]
        parts = {
            m.name: [item.ratios[m.name] for item in chosen if m.name in item.ratios]
            for m in self.metrics
        }
        return {
            name: Ratio(sum(p.numerator for p in some), sum(p.denominator for p in some))
            for name, some in parts.items()
        }

    def rates(self, group: str | None = None) -> dict[str, float | None]:
        """Every measure as a number, None where nothing was counted, and the number of answers and of missing verdicts."""
        chosen = [item for item in self.answers if group in (None, item.group)]
        rates = {
            name: part.numerator / part.denominator if part.denominator else None
            for name, part in self.sums(group).items()
        }
        return {**rates, "n": len(chosen), "missing": sum(bool(item.missing) for item in chosen)}

    def intervals(self, group: str | None = None) -> dict[str, Interval | None]:
        """The 95 % interval of every measure: Wilson's of a rate, else the bootstrap's over answers."""
        sums = self.sums(group)
        return {
            m.name: wilson_interval(*map(round, sums[m.name]))
            if m.is_proportion
            else bootstrap_interval(self._ratio(m.name, group))
            for m in self.metrics
        }

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of questions, in the order in which they come up."""
        return tuple(dict.fromkeys(item.group for item in self.answers if item.group))

    @property
    def manifest_hash(self) -> str:
        """Twelve hex digits that stand for the manifest."""
        return fingerprint(self.manifest)

    def _ratio(self, name: str, group: str | None) -> RatioSample:
        parts = [
            i.ratios[name] for i in self.answers if group in (None, i.group) and name in i.ratios
        ]
        return RatioSample([part.numerator for part in parts], [part.denominator for part in parts])


class Benchmark(ABC):
    """Questions with a way to judge the answers."""

    name: ClassVar[str]  # under which it is asked for, and its scores are logged

    @property
    @abstractmethod
    def prompts(self) -> Sequence[Prompt]:
        """What is asked."""

    @property
    def judged(self) -> bool:
        """Whether a judge is needed."""
        return False

    def requests(self, answers: Sequence[Answer]) -> Sequence[Request]:
        """What a judge is to be asked, one request at most for an answer, under its id."""
        return []

    @staticmethod  # so that it travels to the callers without the images
    def readable(text: str) -> bool:
        """Whether a judge's reply holds a verdict."""
        return False

    def oracle(self, answers: Sequence[Answer]) -> Callable[[Request], str] | None:
        """A judge that knows the truth about these answers, where there is one."""
        return None

    @abstractmethod
    def score(self, answers: Sequence[Answer], verdicts: Mapping[str, Sequence[Reply]]) -> Scores:
        """Score answers, one per prompt, in any order, with the verdicts on each, by its id."""

    @abstractmethod
    def manifest(self) -> dict[str, Any]:
        """What scores depend on, besides the model; `prompts` is the digest of questions and images."""


@dataclass(frozen=True)
class Comparison:
    """An aligned model against its base on the same items, in the benchmark's first measure, and in recall where that is measured."""

    metric: Metric
    change: float | None  # of the measure, aligned - base
    change_interval: Interval | None  # 95 %, paired bootstrap over answers
    relative_reduction: float | None  # of the measure: 1 - aligned / base
    relative_reduction_interval: Interval | None
    p_value: float | None  # exact McNemar test; None where an answer is more than right or wrong
    recall_change: float | None  # of object_recall, aligned - base
    recall_change_interval: Interval | None
    detectable: float | None = (
        None  # the smallest fall of the measure that these items would show with power 0.8
    )
    n: int = 0  # items that both have a verdict on


def compare(base: Scores, aligned: Scores) -> Comparison:
    """Compare two models answer by answer; answers without a verdict on either side are left out.

    Raises:
        DataError: the scores were measured differently; names the fields of the manifest that differ.
    """
    check_comparable(base.manifest, aligned.manifest)
    pairs = [
        (a, b)
        for a, b in zip(base.answers, aligned.answers, strict=True)
        if not a.missing and not b.missing
    ]
    metric = base.metrics[0]
    pairs = [(a, b) for a, b in pairs if metric.name in a.ratios and metric.name in b.ratios]
    main, recall = _paired(pairs, metric.name), _paired(pairs, OBJECT_RECALL.name)
    verdicts = [(_part(a, metric.name), _part(b, metric.name)) for a, b in pairs]
    binary = metric.is_proportion and all(
        part.numerator in (0, 1) for both in verdicts for part in both
    )
    p_value = (
        mcnemar([bool(a.numerator) for a, _ in verdicts], [bool(b.numerator) for _, b in verdicts])
        if binary
        else None
    )
    detectable = None
    if binary and metric.better == "lower" and pairs:
        psi = sum(a.numerator != b.numerator for a, b in verdicts) / len(pairs)
        rate = sum(a.numerator for a, _ in verdicts) / len(pairs)
        detectable = (
            minimum_detectable_difference(len(pairs), rate, discordant=psi or None)
            if rate
            else None
        )
    return Comparison(
        metric,
        main.difference,
        main.difference_interval,
        main.reduction,
        main.reduction_interval,
        p_value,
        recall.difference,
        recall.difference_interval,
        detectable,
        len(pairs),
    )


def check_comparable(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuse manifests that differ.

    Raises:
        DataError: with each field that differs and its two values.
    """
    differ = [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]
    if differ:
        values = "; ".join(f"{key}: {one.get(key)!r} against {other.get(key)!r}" for key in differ)
        raise DataError(
            f"Scores with different manifests are not compared; they differ in {', '.join(differ)}. {values}"
        )


def _part(item: JudgedAnswer, name: str) -> Ratio:
    return item.ratios.get(name, Ratio(0, 0))


def _paired(pairs: Sequence[tuple[JudgedAnswer, JudgedAnswer]], name: str) -> Any:
    columns = ([_part(pair[side], name) for pair in pairs] for side in (0, 1))
    return paired_bootstrap(
        *(
            RatioSample([p.numerator for p in column], [p.denominator for p in column])
            for column in columns
        )
    )


def chair_parts(objects: AnswerScore, words: int) -> dict[str, Ratio]:
    """What one answer adds to the measures of CHAIR, and its length."""
    wrong = int(bool(objects.hallucinated))
    return {
        "response_rate": Ratio(wrong, int(objects.mentions > 0)),
        "response_rate_all": Ratio(wrong, 1),
        "mention_rate": Ratio(len(objects.hallucinated), objects.mentions),
        "object_recall": Ratio(objects.true_objects_named, objects.true_objects),
        WORDS.name: Ratio(words, 1),
    }


def judged_by(judge: JudgeConfig, prompt: JudgePrompt) -> dict[str, Any]:
    """What a judge's verdicts depend on, for the manifest."""
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
    """What can be read from each answer's verdicts, and the share of answers with several on which all of them are alike."""
    said = {
        answer.id: [read(one.text) for one in verdicts.get(answer.id, ()) if one.status == "ok"]
        for answer in answers
    }
    votes = {name: [vote for vote in some if vote is not None] for name, some in said.items()}
    several = [some for some in votes.values() if len(some) > 1]
    alike = sum(all(vote == some[0] for vote in some) for some in several)
    return votes, alike / len(several) if several else None


def missing_reason(verdicts: Sequence[Reply]) -> str:
    """Why an answer has no verdict: what became of its requests, or that nothing could be read from the replies."""
    statuses = dict.fromkeys("unparsed" if one.status == "ok" else one.status for one in verdicts)
    return ", ".join(statuses) or "not asked"


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
