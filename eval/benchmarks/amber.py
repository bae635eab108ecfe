"""AMBER (arXiv 2311.07397): descriptions and yes/no questions on annotated images, without a judge.

Facts from github.com/junyangwang0410/AMBER, `inference.py` and `data/`. Questions 1 to 1004 ask for
a description of an image. The others are yes/no questions about one.

Descriptions. The mentions of an answer are its nouns (NLTK's tags, WordNet's lemmas, capitals kept)
that are in `relation.json`, as objects or as words that go with one. An image has objects that are
in it (`truth`) and objects that one would expect there, but that are not (`hallu`):

    hal   = answers with a hallucinated mention / answers
    chair = hallucinated mentions / mentions
    cover = objects of truth named / objects of truth
    cog   = objects of hallu named / objects of hallu

Each is pooled over answers, as in the code; the paper writes means of ratios. A mention is true in
three cases: it is one of `safe_words.txt`; it is an object of truth or goes with one; or it is near
such a word (spaCy's en_core_web_lg, similarity > 0.8). A mention stands for the first word that it
equals. Words that go with objects come before the objects, so "ground" covers grass before ground.
An object that is annotated twice is covered once at most.

Yes/no questions. `No` is the positive class of precision, recall and F1: it says that something is
not there, or not so. The code accepts "Yes" and "No" alone, by the larger of two logits (its issue
2). Here an answer is its first word yes or no, in any case. An answer with neither is wrong,
whatever the truth. The rates by the code's own reading stand beside the scores. The code also adds
0.001 to every denominator and 0.0001 to F1's (existence: 0.001), which is left out here, and takes
F1 of the rounded precision and recall. `release_compatible` has what it prints, in per cent. The
paper defines AMBER score = (100 - chair + F1) / 2.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
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
    Span,
    in_order,
    without_images,
)
from eval.chair import count_words
from eval.config import AMBERConfig
from eval.inputs.images import image_bytes
from eval.inputs.json_rows import JsonRow, index_by, read_json_rows
from eval.words.nouns import NounReader
from rlhfv_ray.data.files.text import read_text
from rlhfv_ray.endpoint.records import Reply
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Answer, Prompt

GENERATIVE = "generative"
ATTRIBUTES = ("state", "number", "action")
DIMENSIONS = {"existence": ("existence",), "attribute": ATTRIBUTES, "relation": ("relation",)}
# Type in annotations.json -> group. Relation questions whose truth is no have the type "relation".
TYPES = {
    GENERATIVE: GENERATIVE,
    "discriminative-hallucination": "existence",
    **{f"discriminative-attribute-{name}": name for name in ATTRIBUTES},
    **{"discriminative-relation": "relation", "relation": "relation"},
}
DESCRIPTIONS = (
    Metric("hal", "lower", "descriptions with a hallucinated mention"),
    Metric("chair", "lower", "hallucinated mentions, of all mentions of objects known to AMBER"),
    Metric("cover", "higher", "objects in the images that are named, of all objects in the images"),
    Metric("cog", "lower", "expected but absent objects that are named, of all of them"),
    WORDS._replace(meaning="mean length of a description in words; shorter is not better"),
)
QUESTIONS = (
    Metric("accuracy", "higher", "right answers to yes/no questions"),
    Metric("precision", "higher", "right answers, of the answers no"),
    Metric("recall", "higher", "answered no, of the questions whose right answer is no"),
    Metric("f1", "higher", "harmonic mean of precision and recall", is_proportion=False),
)
QUERIES = "query/query_all.json"
FILES = (QUERIES, "annotations.json", "relation.json", "safe_words.txt")
EXACT = {"Yes": False, "No": True}  # the only answers that the code reads -> says no


def parts_of(group: str) -> tuple[str, ...]:
    """Return the parts of AMBER that questions of a group belong to.

    Example:
        >>> parts_of("generative"), parts_of("state")
        (('all', 'generative'), ('all', 'discriminative', 'attribute'))
    """
    if group == GENERATIVE:
        return "all", GENERATIVE
    dimensions = [name for name, groups in DIMENSIONS.items() if group in groups]
    return "all", "discriminative", *dimensions


class Item(NamedTuple):
    """A question with its annotation.

    The manifest's digest covers the fields in this order.
    """

    id: str
    image: str
    query: str
    group: str
    truth: tuple[str, ...] = ()  # objects in the image
    hallu: tuple[str, ...] = ()  # objects that one would expect, but that are not in the image
    is_no: bool = False  # whether no is the right answer to a yes/no question


class Description(NamedTuple):
    """The counts of one description."""

    mentions: int
    hallucinated: tuple[int, ...]  # indices of mentions
    covered: int  # objects of truth that are named
    expected: int  # objects of hallu that are named


def describe(
    mentions: Sequence[str],
    item: Item,
    related: Mapping[str, Sequence[str]],
    *,
    safe: AbstractSet[str] = frozenset(),
    near: Callable[[str, str], bool] = str.__eq__,
) -> Description:
    """Separate the hallucinated mentions of a description from the true ones.

    Args:
        mentions: the description's nouns that `related` knows.
        item: the question, with the objects of its image.
        related: the words that go with each object.
        safe: words that are never hallucinated.
        near: whether two words mean nearly the same; true for equal words.

    Example:
        >>> item = Item("1", "a.jpg", "?", "generative", ("forest", "dog"), ("cat",))
        >>> related = {"forest": ["tree"], "dog": [], "cat": [], "car": []}
        >>> describe(["tree", "cat", "car"], item, related)
        Description(mentions=3, hallucinated=(1, 2), covered=1, expected=1)
    """
    true_words = _words_of(item.truth, related)
    expected_words = _words_of(item.hallu, related)
    covered: set[int] = set()
    expected: set[int] = set()
    hallucinated: list[int] = []
    for position, noun in enumerate(mentions):
        if noun in safe:
            continue
        equal = _first_match(noun, true_words, str.__eq__)
        close = equal or _first_match(noun, true_words, near)
        covered.update(close)
        if not equal:
            # The expected object that it equals and the first that it is near can be two.
            expected.update(_first_match(noun, expected_words, str.__eq__))
            expected.update(_first_match(noun, expected_words, near))
        if not close:
            hallucinated.append(position)
    return Description(len(mentions), tuple(hallucinated), len(covered), len(expected))


def reads_no(answer: str) -> bool | None:
    """Return whether the first yes or no of an answer is no; None if it has neither.

    Example:
        >>> [reads_no(answer) for answer in ("No.", "Yes, and no cat is near.", "There is no dog.")]
        [True, False, True]
        >>> reads_no("It is cloudy.") is None
        True
    """
    match = re.search(r"\b(?:yes|no)\b", answer.lower())
    return match.group() == "no" if match else None


def question_ratios(says_no: bool | None, *, is_no: bool) -> dict[str, Ratio]:
    """Return the contribution of one answer to a yes/no question.

    Example:
        >>> ratios = question_ratios(None, is_no=True)
        >>> ratios["accuracy"], ratios["precision"]
        (Ratio(numerator=0, denominator=1), Ratio(numerator=0, denominator=0))
    """
    hit = int(bool(says_no) and is_no)
    return {
        "accuracy": Ratio(int(says_no is is_no), 1),
        "precision": Ratio(hit, int(bool(says_no))),
        "recall": Ratio(hit, int(is_no)),
        "f1": Ratio(2 * hit, bool(says_no) + is_no),
    }


class AMBER(Benchmark):
    """The user's copy of AMBER's data folder, or one part of the questions."""

    name = "amber"

    def __init__(self, config: AMBERConfig, *, decoding: dict[str, Any]) -> None:
        self.config = config
        self.decoding = decoding  # recorded in the manifest

    @property
    def answers_hint(self) -> str:
        """Advice where a file of answers does not fit: most publish descriptions alone."""
        if self.config.part != "all":
            return ""
        counts = Counter(chain.from_iterable(parts_of(item.group) for item in self.items))
        listed = ", ".join(f"{part} ({counts[part]})" for part in counts if part != "all")
        advice = f"For answers to one part of the questions add --amber.part: {listed}."
        if counts[GENERATIVE]:
            alone = f"For answers to the {counts[GENERATIVE]} descriptions alone add --amber.part"
            return f"{alone} {GENERATIVE}. {advice}"
        return advice

    @cached_property
    def related(self) -> dict[str, list[str]]:
        """The words that go with each object."""
        path = self._path("relation.json")
        try:
            related = json.loads(_read_text(path))
        except json.JSONDecodeError as error:
            raise DataError(
                f"amber.data: {path} is no whole JSON: {error}. Was its download cut off?"
            ) from error
        if not isinstance(related, dict) or not all(map(_are_words, related.values())):
            raise DataError(f"amber.data: {path}: expected a JSON object of lists of words.")
        return related

    @cached_property
    def safe(self) -> set[str]:
        """The words that are never hallucinated."""
        return set(_read_text(self._path("safe_words.txt")).splitlines())

    @cached_property
    def reader(self) -> NounReader:
        """The reader of nouns that AMBER knows."""
        return NounReader({*self.related, *chain.from_iterable(self.related.values())})

    @cached_property
    def items(self) -> list[Item]:
        """The questions of the configured part with their annotations, as in query_all.json."""
        queries = self._rows(QUERIES, "image", "query")
        annotations = self._rows("annotations.json", "type", "truth")
        missing = [name for name in queries if name not in annotations]
        if missing:
            raise DataError(
                f"amber.data, annotations.json: no row for {len(missing)} of {len(queries)} "
                f"questions, ids {', '.join(missing[:5])}."
            )
        items = []
        for name, query in queries.items():
            item = _parse_item(query, annotations[name], self.related)
            if self.config.part in parts_of(item.group):
                items.append(item)
        if not items:
            raise DataError(
                f"amber.part = {self.config.part!r}: no such questions in {self._path(QUERIES)}."
            )
        return items

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The numbers of the kinds of questions that it has."""
        are_descriptions = {item.group == GENERATIVE for item in self.items}
        descriptions = DESCRIPTIONS if True in are_descriptions else ()
        return (*descriptions, *(QUESTIONS if False in are_descriptions else ()))

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Every question as it stands in its file; questions about one image share its bytes."""
        images = image_bytes(self.config.images, [item.image for item in self.items])
        return [Prompt(item.id, images[item.image], item.query) for item in self.items]

    def score(self, answers: Sequence[Answer], verdicts: Mapping[str, Sequence[Reply]]) -> Scores:
        """Score answers, one per prompt."""
        judged = tuple(map(self.judge, in_order(self.prompts, answers), self.items))
        questions = [
            (answer, item.is_no)
            for answer, item in zip(judged, self.items, strict=True)
            if item.group != GENERATIVE
        ]
        extras = _question_extras(judged, questions) if questions else {}
        return Scores(self.metrics, judged, self.manifest(), extras)

    def judge(self, answer: Answer, item: Item) -> JudgedAnswer:
        """Judge one answer."""
        if item.group != GENERATIVE:
            ratios = question_ratios(reads_no(answer.text), is_no=item.is_no)
            return JudgedAnswer(answer, ratios, group=item.group, cluster=item.image)
        nouns = self.reader.mentions(answer.text)
        lemmas = [noun.lemma for noun in nouns]
        counts = describe(lemmas, item, self.related, safe=self.safe, near=self.reader.near)
        hallucinated = [nouns[index] for index in counts.hallucinated]
        spans = tuple(Span(noun.start, noun.stop, "object") for noun in hallucinated)
        ratios = {
            "hal": Ratio(int(bool(spans)), 1),
            "chair": Ratio(len(spans), counts.mentions),
            "cover": Ratio(counts.covered, len(item.truth)),
            "cog": Ratio(counts.expected, len(item.hallu)),
            WORDS.name: Ratio(count_words(answer.text), 1),
        }
        return JudgedAnswer(answer, ratios, spans, item.group, cluster=item.image)

    def manifest(self) -> dict[str, Any]:
        """Return everything that scores on this benchmark depend on, except the model."""
        contents: dict[str, bytes] = {}
        for item, prompt in zip(self.items, self.prompts, strict=True):
            contents[item.image] = prompt.image
        images = {image: _digest(data) for image, data in contents.items()}
        questions = [[*item, images[item.image]] for item in self.items]
        return {
            "benchmark": self.name,
            "part": self.config.part,
            "prompts": _digest(json.dumps(questions).encode()),
            "files": {name: _digest(self._path(name).read_bytes()) for name in FILES},
            "n": len(self.items),
            "decoding": self.decoding,
            **without_images(self.prompts),
            "reading": "first yes or no",
            **{name: getattr(self.reader, name) for name in ("tagger", "vectors", "lemmatizer")},
        }

    def _path(self, name: str) -> Path:
        folder = Path(self.config.data).expanduser()
        if not (folder / QUERIES).exists() and (folder / "data" / QUERIES).exists():
            folder /= "data"  # of AMBER's repository
        if not self.config.data or not folder.is_dir():
            raise DataError(
                f"amber.data = {self.config.data!r}: no such folder; "
                f"expected one with {', '.join(FILES)}."
            )
        return folder / name

    def _rows(self, name: str, *fields: str) -> dict[str, JsonRow]:
        source = f"amber.data, {name}"
        rows = read_json_rows(self._path(name), ("id", *fields), what=source)
        return index_by(rows, "id", what=source)


def _question_extras(
    judged: tuple[JudgedAnswer, ...], questions: Sequence[tuple[JudgedAnswer, bool]]
) -> dict[str, Any]:
    """Compute what is reported beside the scores on yes/no questions.

    Args:
        judged: all answers.
        questions: the answers to yes/no questions, each with whether no is right.
    """
    exact = tuple(
        replace(item, ratios=question_ratios(EXACT.get(item.answer.text), is_no=is_no))
        for item, is_no in questions
    )
    attributes = tuple(item for item in judged if item.group in ATTRIBUTES)
    extras: dict[str, Any] = {
        "neither_yes_nor_no": sum(reads_no(item.answer.text) is None for item, _ in questions),
        "attribute": Scores(QUESTIONS, attributes, {}).rates(),
        "exact_reading": Scores(QUESTIONS, exact, {}).rates(),
        "release_compatible": release_rates(exact),
    }
    rates = Scores((*DESCRIPTIONS, *QUESTIONS), judged, {}).rates()
    chair, f1 = rates["chair"], rates["f1"]
    if chair is not None and f1 is not None:
        extras["amber_score"] = 50 * (1 - chair + f1)  # both are fractions here
    return extras


def release_rates(exact: Sequence[JudgedAnswer]) -> dict[str, Any]:
    """Return what AMBER's code prints on yes/no questions, in per cent, in all and by dimension.

    Args:
        exact: the answers by the code's own reading.
    """
    rates: dict[str, Any] = printed_rates(exact, kinds=1, smoothing=0.0001)
    for dimension, groups in DIMENSIONS.items():
        items = [item for item in exact if item.group in groups]
        smoothing = 0.001 if dimension == "existence" else 0.0001
        if items:
            rates[dimension] = printed_rates(items, kinds=len(groups), smoothing=smoothing)
    return rates


def printed_rates(
    exact: Sequence[JudgedAnswer], *, kinds: int, smoothing: float
) -> dict[str, float]:
    """Return rates in per cent, each rounded to one decimal, with F1 of the rounded parts.

    Args:
        exact: answers to yes/no questions.
        kinds: counters that the code adds up; each starts at 0.001 in a denominator.
        smoothing: added to the denominator of F1.
    """
    rates: dict[str, float] = {}
    for name, ratio in Scores(QUESTIONS[:-1], tuple(exact), {}).sums().items():
        rates[name] = round(ratio.numerator / (ratio.denominator + 0.001 * kinds) * 100, 1)
    precision, recall = rates["precision"] / 100, rates["recall"] / 100
    f1 = 2 * precision * recall / (precision + recall + smoothing)
    return {**rates, "f1": round(f1 * 100, 1)}


def _words_of(
    objects: Sequence[str], related: Mapping[str, Sequence[str]]
) -> list[tuple[str, int]]:
    """List the words that stand for objects, each with the object's index."""
    words: list[tuple[str, int]] = []
    for index, name in enumerate(objects):
        words += [(word, index) for word in related[name]]
    return words + [(name, index) for index, name in enumerate(objects)]


def _first_match(
    noun: str, words: Sequence[tuple[str, int]], near: Callable[[str, str], bool]
) -> list[int]:
    """Return the object of the first word that is near the noun, as a list of one or none."""
    return next(([index] for word, index in words if near(noun, word)), [])


def _parse_item(query: JsonRow, annotation: JsonRow, related: Mapping[str, Any]) -> Item:
    """Join a question and its annotation.

    Raises:
        DataError: the annotation is of an unknown type or has no usable truth.
    """
    source = f"amber.data, annotations.json, id {annotation['id']}"
    group = TYPES.get(str(annotation["type"]))
    truth = annotation["truth"]
    hallu = annotation.get("hallu", [])
    if group is None:
        known = ", ".join(TYPES)
        raise DataError(f"{source}: unknown type {annotation['type']!r}; known: {known}.")
    item = Item(str(query["id"]), str(query["image"]), str(query["query"]), group)
    if group != GENERATIVE:
        if truth in ("yes", "no"):
            return item._replace(is_no=truth == "no")
        allowed = "truth yes or no"
    else:
        if _are_words(truth) and _are_words(hallu) and related.keys() >= {*truth, *hallu}:
            return item._replace(truth=tuple(truth), hallu=tuple(hallu))
        allowed = "lists of objects of relation.json"
    raise DataError(f"{source}: truth {truth!r}, hallu {hallu!r}; expected {allowed}.")


def _read_text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(f"amber.data: {path} cannot be read: {error}") from error


def _are_words(words: object) -> bool:
    return isinstance(words, list) and all(isinstance(word, str) for word in words)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
