"""CHAIR: which objects an answer names, and which of them are not in the image.

Rohrbach et al., "Object Hallucination in Image Captioning" (arXiv 1809.02156), with the vocabulary and the counting
of Object HalBench as RLHF-V (arXiv 2312.00849) released it. A *word* is what the answer says ("scooter"), an *object*
what it stands for ("motorcycle"), a *mention* the pair of both. There are two ways from an answer to its mentions:

    rule mode       `mentions(answer)`: the answer's own words, repeats kept
    extracted mode  `match(refine(names))`: object names that a judge took from the answer, each word once
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from eval.words.lemmas import LemmatizerName, builtin_lemma, choose_lemmatizer, wordnet_lemma
from rlhfv_ray.errors import DataError

# Two lemmas read as one word, besides the vocabulary's own two-word terms. "home plate" and "train track" keep "plate"
# and "train" from being read alone; "wine glas" is what some lemmatisers make of "wine glasses".
_ANIMALS = (
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "animal",
    "cub",
)
COCO_PHRASES: Mapping[str, str] = {
    **{f"{age} {animal}": animal for animal in _ANIMALS for age in ("baby", "adult")},
    **{f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")},
    **{"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"},
    **{"home plate": "home plate", "train track": "train track"},
}

# Hyphenated words stay whole and punctuation is a token of its own, so that "hot, dog" is no hot dog. On prose this
# gives the same mentions as the release's tokeniser; unlike it, "**dog**" and "cat/dog" are read as well.
_TOKEN = re.compile(r"\w+(?:-\w+)*|[^\w\s]")


class Mention(NamedTuple):
    """One naming of an object in an answer: `text[start:stop]`, read as `word`."""

    word: str
    object: str
    start: int
    stop: int


class AnswerScore(NamedTuple):
    """What one answer adds to the rates; also the item of a paired test between two systems."""

    mentions: int
    hallucinated: tuple[tuple[str, str], ...]  # (word, object), in the order of the mentions
    true_objects_named: int  # distinct
    true_objects: int


class ChairScores(NamedTuple):
    """CHAIR over n answers, as fractions; None where nothing was counted."""

    response_rate: float | None
    response_rate_all: float | None
    mention_rate: float | None
    object_recall: float | None
    words: float | None  # mean per answer
    n: int


class TaggedWord(Protocol):
    """What `ObjectVocabulary.refine` needs of a word; spaCy's `Token` is one."""

    lemma_: str
    tag_: str  # Penn Treebank


@dataclass
class _Noun:
    lemma_: str
    tag_: str = "NN"


@dataclass(frozen=True)
class ObjectVocabulary:
    """The words that name objects, and how inflected words are led back to them.

    `lemmatizer` belongs in every report: "wordnet" is the release's rule mode, "builtin" a smaller stand-in.
    """

    objects: Mapping[str, str]  # word or phrase -> object
    phrases: Mapping[str, str]  # two lemmas -> the word they are read as
    lemmatizer: LemmatizerName

    @classmethod
    def load(
        cls, path: str | Path | None = None, *, lemmatizer: LemmatizerName | None = None
    ) -> Self:
        """Read a synonym file: one object per line, the object first, its other names after commas.

        Args:
            path: None for the packaged COCO list of Object HalBench.
            lemmatizer: None for WordNet where NLTK finds its data, otherwise the built-in one.

        Raises:
            DataError: the file cannot be read or is no synonym list.
        """
        path = (
            Path(path)
            if path is not None
            else Path(__file__).parent / "data" / "coco_object_synonyms.txt"
        )
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read the object vocabulary {path}: {error}") from error
        synonyms = [[word.strip() for word in line.split(",")] for line in lines if line.strip()]
        return cls.from_synonyms(synonyms, phrases=COCO_PHRASES, lemmatizer=lemmatizer)

    @classmethod
    def from_synonyms(
        cls,
        synonyms: Iterable[Sequence[str]],
        *,
        phrases: Mapping[str, str] | None = None,
        lemmatizer: LemmatizerName | None = None,
    ) -> Self:
        """Build the vocabulary of another world from rows of (object, synonym, ...), in lower case.

        Example:
            >>> shapes = ObjectVocabulary.from_synonyms([("circle", "disc"), ("star",)], lemmatizer="builtin")
            >>> shapes.mentions("Two discs beside a blue star.")
            [('disc', 'circle'), ('star', 'star')]
        """
        objects: dict[str, str] = {}
        for row in synonyms:
            for word in row:
                if not word or objects.setdefault(word, row[0]) != row[0]:
                    raise DataError(
                        f"object vocabulary: {word!r} in {list(row)} is empty or names another object too"
                    )
        if not objects:
            raise DataError(
                "object vocabulary: no objects; expected lines such as 'person, girl, boy'"
            )
        own_phrases = {word: word for word in objects if " " in word}
        return cls(objects, {**own_phrases, **(phrases or {})}, choose_lemmatizer(lemmatizer))

    def mentions(self, text: str) -> list[tuple[str, str]]:
        """List what an answer's own words name, as (word, object) in text order, repeats kept (rule mode).

        Example:
            >>> vocabulary = ObjectVocabulary.load(lemmatizer="builtin")
            >>> vocabulary.mentions("Two scooters beside a hot dog stand; the scooters are red.")
            [('scooter', 'motorcycle'), ('hot dog', 'hot dog'), ('scooter', 'motorcycle')]
        """
        return [(mention.word, mention.object) for mention in self.locate(text)]

    def locate(self, text: str) -> list[Mention]:
        """Find the same mentions with their character positions, e.g. to colour the hallucinated ones."""
        tokens = list(_TOKEN.finditer(text))
        lemmas = [self.lemma(token.group().lower()) for token in tokens]
        read: list[tuple[str, int, int]] = []
        for position, phrase in self._phrases_in(lemmas):
            last = position if phrase is None else position + 1
            read.append((phrase or lemmas[position], tokens[position].start(), tokens[last].end()))
        kept = self._counted([word for word, _, _ in read])
        return [
            Mention(word, self.objects[word], start, stop)
            for word, start, stop in read
            if word in kept
        ]

    def refine(
        self, names: Iterable[str], *, read: Callable[[str], Iterable[TaggedWord]] | None = None
    ) -> list[str]:
        """Bring object names from a judge into the vocabulary's form: the step before `match`.

        As the release does it, each name is read as "a NAME"; if it holds two-word terms, they replace it,
        otherwise its runs of nouns do; what comes up twice is kept once.

        Args:
            names: as the judge wrote them.
            read: a tagger, e.g. `spacy.load("en_core_web_trf")`, which is the release's. Without one every word of a
                name counts as a noun, so "wooden table" stays whole and matches nothing: the judge must leave
                attributes out.

        Example:
            >>> ObjectVocabulary.load(lemmatizer="builtin").refine(["Wine glasses", "baby elephants", "dogs", "dog"])
            ['wine glass', 'elephant', 'dog']
        """
        refined: list[str] = []
        for name in names:
            words = list(read(f"a {name}") if read else self._read_nouns(name))
            phrases = [
                phrase for _, phrase in self._phrases_in([word.lemma_ for word in words]) if phrase
            ]
            refined += phrases or _noun_runs(words)
        return list(dict.fromkeys(refined))

    def match(self, names: Iterable[str]) -> list[tuple[str, str]]:
        """Look up refined names: (word, object) of those in the vocabulary, each word once (extracted mode).

        Example:
            >>> ObjectVocabulary.load(lemmatizer="builtin").match(["scooter", "sky", "scooter", "bow tie"])
            [('scooter', 'motorcycle'), ('bow tie', 'tie')]
        """
        unique = list(dict.fromkeys(names))
        kept = self._counted(unique)
        return [(word, self.objects[word]) for word in unique if word in kept]

    def lemma(self, word: str) -> str:
        """Lead a lower-case noun back to its singular; an unknown word stays as it is."""
        return (
            wordnet_lemma(word)
            if self.lemmatizer == "wordnet"
            else builtin_lemma(word, self._known_words)
        )

    @cached_property
    def _known_words(self) -> frozenset[str]:
        return frozenset(" ".join((*self.objects, *self.phrases)).split())

    def _phrases_in(self, lemmas: Sequence[str]) -> Iterator[tuple[int, str | None]]:
        """Step through the lemmas, two at a time where they read as one word: (position, that word or None)."""
        position = 0
        while position < len(lemmas):
            phrase = self.phrases.get(" ".join(lemmas[position : position + 2]))
            yield position, phrase
            position += 1 if phrase is None else 2

    def _counted(self, words: Sequence[str]) -> AbstractSet[str]:
        # "the seat of the toilet" names no chair
        dropped = {"seat"} if "toilet" in words else set()
        return {word for word in words if word in self.objects} - dropped

    def _read_nouns(self, name: str) -> list[_Noun]:
        text = (
            name if name in self.objects else name.lower()
        )  # "iPhone" is spelled so in the COCO list
        return [_Noun(self.lemma(token)) for token in _TOKEN.findall(text)]


def ground_truth(
    instances: Iterable[tuple[int, str]],
    captions: Iterable[tuple[int, str]],
    vocabulary: ObjectVocabulary,
) -> dict[int, set[str]]:
    """Collect the objects of each image that has instances (image id, category) or captions (image id, caption).

    Raises:
        DataError: a category is not in the vocabulary.
    """
    truth: dict[int, set[str]] = {}
    for image, category in instances:
        if category not in vocabulary.objects:
            raise DataError(
                f"image {image}: category {category!r} is not in the object vocabulary; add it there"
            )
        truth.setdefault(image, set()).add(vocabulary.objects[category])
    for image, caption in captions:
        truth.setdefault(image, set()).update(name for _, name in vocabulary.mentions(caption))
    return truth


def count_words(answer: str) -> int:
    """Count the words of an answer as the release does: only single spaces separate them, not line ends."""
    return len(answer.strip().split(" "))


def score_answer(mentions: Sequence[tuple[str, str]], truth: AbstractSet[str]) -> AnswerScore:
    """Tell the hallucinated mentions of one answer from the true ones.

    Example:
        >>> score_answer([("pup", "dog"), ("dog", "dog"), ("cat", "cat")], {"dog", "car"})
        AnswerScore(mentions=3, hallucinated=(('cat', 'cat'),), true_objects_named=1, true_objects=2)
    """
    named = {name for _, name in mentions}
    hallucinated = tuple(mention for mention in mentions if mention[1] not in truth)
    return AnswerScore(len(mentions), hallucinated, len(named & truth), len(truth))


def chair_scores(
    mentions: Sequence[Sequence[tuple[str, str]]],
    truth: Sequence[AbstractSet[str]],
    words: Sequence[int],
) -> ChairScores:
    """Aggregate CHAIR over answers (arXiv 1809.02156, sec. 2.1; the release's CHAIRs_refine, CHAIRs, CHAIRi, obj_rec).

        response_rate     = answers with a hallucinated mention / answers with any mention
        response_rate_all = answers with a hallucinated mention / answers
        mention_rate      = hallucinated mentions / mentions
        object_recall     = distinct true objects named / true objects, both summed over answers

    Args:
        mentions: (word, object) of each answer.
        truth: the objects in the image of each answer.
        words: the length of each answer, e.g. from `count_words`.

    Raises:
        DataError: the three differ in length.

    Example:
        A true dog and a false cat; then nothing named where a car is.

        >>> chair_scores([[("dog", "dog"), ("cat", "cat")], []], [{"dog"}, {"car"}], [6, 2])
        ChairScores(response_rate=1.0, response_rate_all=0.5, mention_rate=0.5, object_recall=0.5, words=4.0, n=2)
    """
    if not len(mentions) == len(truth) == len(words):
        lengths = f"{len(mentions)} mentions, {len(truth)} truth, {len(words)} words"
        raise DataError(f"CHAIR needs one of each per answer, got {lengths}")
    scores = [
        score_answer(answer, objects) for answer, objects in zip(mentions, truth, strict=True)
    ]
    wrong = sum(bool(score.hallucinated) for score in scores)
    return ChairScores(
        response_rate=_share(wrong, sum(score.mentions > 0 for score in scores)),
        response_rate_all=_share(wrong, len(scores)),
        mention_rate=_share(
            sum(len(s.hallucinated) for s in scores), sum(s.mentions for s in scores)
        ),
        object_recall=_share(
            sum(s.true_objects_named for s in scores), sum(s.true_objects for s in scores)
        ),
        words=_share(sum(words), len(scores)),
        n=len(scores),
    )


def _noun_runs(words: Iterable[TaggedWord]) -> list[str]:
    runs: list[list[str]] = [[]]
    for word in words:
        if word.tag_ in ("NN", "NNS", "NNP", "NNPS"):
            runs[-1].append(word.lemma_)
        else:
            runs.append([])
    return [" ".join(run) for run in runs if run]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
