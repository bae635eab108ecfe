"""AMBER (arXiv 2311.07397): descriptions and yes/no questions on annotated images, without a judge.

Facts from github.com/junyangwang0410/AMBER, `inference.py` and `data/`. Ids 1 to 1004 describe an image each, the others ask about one.

Descriptions. The nouns of an answer (NLTK's tags, WordNet's lemmas, capitals kept) that are in `relation.json`, as objects or as words that
go with one, are its mentions. With the objects that are in the image (`truth`) and those one would expect there (`hallu`):

    chair = hallucinated mentions / mentions        cover = objects of truth named / objects of truth
    hal   = answers with a hallucinated mention     cog   = objects of hallu named / objects of hallu

each pooled over answers, as the code does; the paper writes means of ratios. A mention is true if it is one of `safe_words.txt`, an object of
truth or goes with one, or is near one (spaCy's en_core_web_lg, similarity > 0.8). It stands for the first word that it equals, where words
that go with objects come before the objects, so that "ground" covers grass before ground; and an object annotated twice is covered once at most.

Yes/no questions. `No` is the positive class of precision, recall and F1: it says that something is not there, or not so. The code takes "Yes"
and "No" and nothing else, by the larger of two logits (its issue 2); here an answer is its first word yes or no, in any case, and what has
neither is wrong whatever is true. The code's own reading of the same answers is kept beside the scores. The code also adds 0.001 to every
denominator and 0.0001 to F1's (existence: 0.001), which is left out. AMBER score = (100 - chair + F1) / 2, by the paper.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
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
)
from eval.chair import count_words
from eval.config import AMBERConfig
from eval.inputs.images import image_bytes
from eval.inputs.json_rows import JsonRow, index_by, read_json_rows
from eval.words.nouns import NounReader
from rlhfv_ray.endpoint.records import Reply
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Answer, Prompt

GENERATIVE = "generative"
ATTRIBUTES = ("state", "number", "action")
TYPES = {  # in annotations.json -> group; of questions about relations, those whose truth is no are just "relation"
    GENERATIVE: GENERATIVE,
    "discriminative-hallucination": "existence",
    **{f"discriminative-attribute-{name}": name for name in ATTRIBUTES},
    **{"discriminative-relation": "relation", "relation": "relation"},
}
DESCRIPTIONS = (
    Metric("hal", "lower", "descriptions with a hallucinated mention"),
    Metric("chair", "lower", "hallucinated mentions, of all mentions of objects that AMBER knows"),
    Metric("cover", "higher", "objects of the image that are named, of all of them"),
    Metric("cog", "lower", "objects named that one would expect there but are not, of all of them"),
    WORDS._replace(meaning="mean length of a description in words; shorter is not better"),
)
QUESTIONS = (
    Metric("accuracy", "higher", "yes/no answers that are right"),
    Metric("precision", "higher", "right ones, of the answers no"),
    Metric("recall", "higher", "answered no, of the questions where that is right"),
    Metric("f1", "higher", "harmonic mean of precision and recall", is_proportion=False),
)
QUERIES = "query/query_all.json"
FILES = (QUERIES, "annotations.json", "relation.json", "safe_words.txt")
EXACT = {"Yes": False, "No": True}


class Item(NamedTuple):
    """A question with its annotation."""

    id: str
    image: str
    query: str
    group: str
    truth: tuple[str, ...] = ()  # objects in the image
    hallu: tuple[str, ...] = ()  # objects that one would expect there
    is_no: bool = False  # the right answer to a yes/no question


class Description(NamedTuple):
    """What one description names."""

    mentions: int
    hallucinated: tuple[int, ...]  # which of the mentions
    covered: int  # of truth
    expected: int  # of hallu


def describe(
    mentions: Sequence[str],
    item: Item,
    related: Mapping[str, Sequence[str]],
    *,
    safe: AbstractSet[str] = frozenset(),
    near: Callable[[str, str], bool] = str.__eq__,
) -> Description:
    """Tell the hallucinated mentions of a description from the true ones.

    Args:
        mentions: its nouns that `related` knows.
        item: with the objects of its image.
        related: words that go with an object.
        safe: words that are never hallucinated.
        near: whether a mention means another word; true of equal words.

    Example:
        >>> item = Item("1", "a.jpg", "?", "generative", ("forest", "dog"), ("cat",))
        >>> describe(["tree", "cat", "car"], item, {"forest": ["tree"], "dog": [], "cat": [], "car": []})
        Description(mentions=3, hallucinated=(1, 2), covered=1, expected=1)
    """
    true, expected = (_words(objects, related) for objects in (item.truth, item.hallu))
    covered, fooled, wrong = set[int](), set[int](), list[int]()
    for position, noun in enumerate(mentions):
        if noun in safe:
            continue
        equal = _first(noun, true, str.__eq__)
        close = equal or _first(noun, true, near)
        covered.update(close)
        if (
            not equal
        ):  # the object one would expect that it equals, and the first that it is near, can be two
            fooled.update(_first(noun, expected, str.__eq__), _first(noun, expected, near))
        if not close:
            wrong.append(position)
    return Description(len(mentions), tuple(wrong), len(covered), len(fooled))


def reads_no(answer: str) -> bool | None:
    """Whether the first yes or no of an answer is a no; None if it has neither.

    Example:
        >>> [reads_no(answer) for answer in ("No.", "Yes, and no cat is near.", "There is no dog.", "It is cloudy.")]
        [True, False, True, None]
    """
    found = re.search(r"\b(?:yes|no)\b", answer.lower())
    return found.group() == "no" if found else None


def question_parts(says_no: bool | None, *, is_no: bool) -> dict[str, Ratio]:
    """What one yes/no answer adds to the measures.

    Example:
        >>> question_parts(None, is_no=True)["accuracy"], question_parts(None, is_no=True)["recall"]
        (Ratio(numerator=0, denominator=1), Ratio(numerator=0, denominator=1))
    """
    hit = int(bool(says_no) and is_no)
    return {
        "accuracy": Ratio(int(says_no is is_no), 1),
        "precision": Ratio(hit, int(bool(says_no))),
        "recall": Ratio(hit, int(is_no)),
        "f1": Ratio(2 * hit, bool(says_no) + is_no),
    }


class AMBER(Benchmark):
    """The user's copy of AMBER's data folder, or the part of it that is asked for."""

    name = "amber"

    def __init__(self, config: AMBERConfig, *, decoding: dict[str, Any]) -> None:
        self.config = config
        self.decoding = decoding  # recorded in the manifest

    @cached_property
    def related(self) -> dict[str, list[str]]:
        """Words that go with each object."""
        path = self._file("relation.json")
        try:
            found = json.loads(_read(path))
        except json.JSONDecodeError as error:
            raise DataError(
                f"amber.data: {path} is no whole JSON: {error}. Was its download cut off?"
            ) from error
        if not isinstance(found, dict) or not all(map(_are_words, found.values())):
            raise DataError(f"amber.data: {path}: expected a JSON object of lists of words.")
        return found

    @cached_property
    def safe(self) -> set[str]:
        """Words that are never hallucinated."""
        return set(_read(self._file("safe_words.txt")).splitlines())

    @cached_property
    def reader(self) -> NounReader:
        """Finds nouns."""
        return NounReader(
            {*self.related, *(word for words in self.related.values() for word in words)}
        )

    @cached_property
    def items(self) -> list[Item]:
        """The questions of the part that is asked for, with their annotations, in the order of query_all.json."""
        queries, notes = (
            self._rows(QUERIES, "image", "query"),
            self._rows("annotations.json", "type", "truth"),
        )
        bare = [name for name in queries if name not in notes]
        if bare:
            raise DataError(
                f"amber.data, annotations.json: nothing about {len(bare)} of {len(queries)} questions, ids {', '.join(bare[:5])}."
            )
        items = [_item(query, notes[name], self.related) for name, query in queries.items()]
        wanted = {"all": (True, False), "generative": (True,), "discriminative": (False,)}[
            self.config.part
        ]
        chosen = [item for item in items if (item.group == GENERATIVE) in wanted]
        if not chosen:
            raise DataError(
                f"amber.part = {self.config.part!r}: no such questions in {self._file(QUERIES)}."
            )
        return chosen

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Every question as it stands in its file; questions about one image share its bytes."""
        images = image_bytes(self.config.images, [item.image for item in self.items])
        return [Prompt(item.id, images[item.image], item.query) for item in self.items]

    def score(self, answers: Sequence[Answer], verdicts: Mapping[str, Sequence[Reply]]) -> Scores:
        """Judge answers, one per prompt."""
        judged = tuple(map(self.judge, in_order(self.prompts, answers), self.items))
        asked = [
            (one, item.is_no)
            for one, item in zip(judged, self.items, strict=True)
            if item.group != GENERATIVE
        ]
        described = DESCRIPTIONS if len(asked) < len(judged) else ()
        metrics = (*described, *(QUESTIONS if asked else ()))
        return Scores(metrics, judged, self.manifest(), _beside(judged, asked) if asked else {})

    def judge(self, answer: Answer, item: Item) -> JudgedAnswer:
        """One answer's verdict."""
        if item.group != GENERATIVE:
            return JudgedAnswer(
                answer, question_parts(reads_no(answer.text), is_no=item.is_no), group=item.group
            )
        nouns, near = self.reader.mentions(answer.text), self.reader.near
        found = describe(
            [noun.lemma for noun in nouns], item, self.related, safe=self.safe, near=near
        )
        spans = tuple(
            Span(nouns[place].start, nouns[place].stop, "object") for place in found.hallucinated
        )
        parts = {
            "hal": Ratio(int(bool(spans)), 1),
            "chair": Ratio(len(spans), found.mentions),
            "cover": Ratio(found.covered, len(item.truth)),
            "cog": Ratio(found.expected, len(item.hallu)),
            WORDS.name: Ratio(count_words(answer.text), 1),
        }
        return JudgedAnswer(answer, parts, spans, item.group)

    def manifest(self) -> dict[str, Any]:
        """What scores on this benchmark depend on, besides the model."""
        pairs = zip(self.items, self.prompts, strict=True)
        images = {
            image: _digest(data)
            for image, data in {item.image: prompt.image for item, prompt in pairs}.items()
        }
        return {
            "benchmark": self.name,
            "part": self.config.part,
            "prompts": _digest(
                json.dumps([[*item, images[item.image]] for item in self.items]).encode()
            ),
            "files": {name: _digest(self._file(name).read_bytes()) for name in FILES},
            "n": len(self.items),
            "decoding": self.decoding,
            "reading": "first yes or no",
            **{name: getattr(self.reader, name) for name in ("tagger", "vectors", "lemmatizer")},
        }

    def _file(self, name: str) -> Path:
        folder = Path(self.config.data).expanduser()
        if not self.config.data or not folder.is_dir():
            raise DataError(
                f"amber.data = {self.config.data!r}: no such folder; expected one with {', '.join(FILES)}."
            )
        return folder / name

    def _rows(self, name: str, *fields: str) -> dict[str, JsonRow]:
        what = f"amber.data, {name}"
        return index_by(
            read_json_rows(self._file(name), ("id", *fields), what=what), "id", what=what
        )


def _beside(
    judged: tuple[JudgedAnswer, ...], asked: Sequence[tuple[JudgedAnswer, bool]]
) -> dict[str, Any]:
    exact = tuple(
        JudgedAnswer(i.answer, question_parts(EXACT.get(i.answer.text), is_no=no))
        for i, no in asked
    )
    rates = Scores((*DESCRIPTIONS, *QUESTIONS), judged, {}).rates()
    chair, f1 = rates["chair"], rates["f1"]
    return {
        "neither_yes_nor_no": sum(reads_no(item.answer.text) is None for item, _ in asked),
        "attribute": Scores(
            QUESTIONS, tuple(item for item in judged if item.group in ATTRIBUTES), {}
        ).rates(),
        "exact_reading": Scores(QUESTIONS, exact, {}).rates(),
        **(
            {} if chair is None or f1 is None else {"amber_score": 50 * (1 - chair + f1)}
        ),  # both are fractions here
    }


def _words(objects: Sequence[str], related: Mapping[str, Sequence[str]]) -> list[tuple[str, int]]:
    going = [(word, place) for place, name in enumerate(objects) for word in related[name]]
    return going + [(name, place) for place, name in enumerate(objects)]


def _first(
    noun: str, words: Sequence[tuple[str, int]], near: Callable[[str, str], bool]
) -> list[int]:
    return next(([place] for word, place in words if near(noun, word)), [])


def _item(query: JsonRow, note: JsonRow, related: Mapping[str, Any]) -> Item:
    where = f"amber.data, annotations.json, id {note['id']}"
    group, truth, hallu = TYPES.get(str(note["type"])), note["truth"], note.get("hallu", [])
    if group is None:
        raise DataError(f"{where}: unknown type {note['type']!r}; known: {', '.join(TYPES)}.")
    item = Item(str(query["id"]), str(query["image"]), str(query["query"]), group)
    if group != GENERATIVE and truth in ("yes", "no"):
        return item._replace(is_no=truth == "no")
    if (
        group == GENERATIVE
        and _are_words(truth)
        and _are_words(hallu)
        and related.keys() >= {*truth, *hallu}
    ):
        return item._replace(truth=tuple(truth), hallu=tuple(hallu))
    allowed = "lists of objects of relation.json" if group == GENERATIVE else "truth yes or no"
    raise DataError(f"{where}: truth {truth!r}, hallu {hallu!r}; expected {allowed}.")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"amber.data: {path} cannot be read: {error}") from error


def _are_words(words: object) -> bool:
    return isinstance(words, list) and all(isinstance(word, str) for word in words)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
