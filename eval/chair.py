"""CHAIR: the objects that an answer names, and those of them that are not in the image.

Rohrbach et al., "Object Hallucination in Image Captioning" (arXiv 1809.02156), with the vocabulary
and the counting of Object HalBench as RLHF-V (arXiv 2312.00849) released it. A *word* is in the
answer ("scooter"), an *object* is what the word stands for ("motorcycle"), a *mention* is the pair.
There are two ways from an answer to its mentions:

    rule mode       `mentions(answer)`: the answer's own words, repeats kept
    extracted mode  `match(refine(names))`: names that a judge took from the answer, each word once
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from eval.words.lemmas import LemmatizerName, builtin_lemma, choose_lemmatizer, wordnet_lemma
from eval.words.tokens import Token, nltk_tokens, split_tokens
from rlhfv_ray.data.files.text import read_text
from rlhfv_ray.errors import DataError

COCO_SYNONYMS = Path(__file__).parent / "data" / "coco_object_synonyms.txt"
_ANIMALS = [
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
]
# Two lemmas that are read as one word, besides the vocabulary's own two-word terms.
COCO_PHRASES: Mapping[str, str] = {
    **{f"baby {animal}": animal for animal in _ANIMALS},
    **{f"adult {animal}": animal for animal in _ANIMALS},
    "passenger jet": "jet",
    "passenger train": "train",
    "bow tie": "tie",
    "toilet seat": "toilet",
    "wine glas": "wine glass",  # some lemmatisers turn "wine glasses" into "wine glas"
    "home plate": "home plate",  # so that "plate" is not read alone
    "train track": "train track",  # so that "train" is not read alone
}


class Mention(NamedTuple):
    """A mention and its position in the answer: `text[start:stop]`, read as `word`."""

    word: str
    object: str
    start: int
    stop: int


class AnswerScore(NamedTuple):
    """One answer's counts, which rates sum and which paired tests compare."""

    mentions: int
    hallucinated: tuple[tuple[str, str], ...]  # mentions (word, object), in text order
    true_objects_named: int  # distinct
    true_objects: int  # in the image


class ChairScores(NamedTuple):
    """CHAIR over n answers, as fractions; None if the denominator is 0."""

    response_rate: float | None
    response_rate_all: float | None
    mention_rate: float | None
    object_recall: float | None
    words: float | None  # mean per answer
    n: int


class TaggedWord(Protocol):
    """A word with its lemma and tag, for `ObjectVocabulary.refine`; spaCy's `Token` is one."""

    lemma_: str
    tag_: str  # Penn Treebank


@dataclass
class _Noun:
    lemma_: str
    tag_: str = "NN"


@dataclass(frozen=True)
class ObjectVocabulary:
    """The words that name objects, and a lemmatiser that reduces inflected words to them.

    Every report states `lemmatizer`: "wordnet" is the release's rule mode, "builtin" a substitute
    that needs no download.
    """

    objects: Mapping[str, str]  # word or phrase -> object
    phrases: Mapping[str, str]  # two lemmas -> the word they are read as
    lemmatizer: LemmatizerName

    @classmethod
    def load(
        cls, path: str | Path | None = None, *, lemmatizer: LemmatizerName | None = None
    ) -> Self:
        """Read a synonym file: one object per line, then its other names after commas.

        Args:
            path: None for the packaged COCO list of Object HalBench.
            lemmatizer: None for WordNet if NLTK finds its data, otherwise the built-in one.

        Raises:
            DataError: the file cannot be read or is no synonym list.
        """
        path = COCO_SYNONYMS if path is None else Path(path)
        try:
            lines = read_text(path).splitlines()
        except (OSError, ValueError) as error:
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
        """Build another vocabulary from rows of (object, synonym, ...), in lower case.

        Examples:
            >>> synonyms = [("circle", "disc"), ("star",)]
            >>> shapes = ObjectVocabulary.from_synonyms(synonyms, lemmatizer="builtin")
            >>> shapes.mentions("Two discs beside a blue star.")
            [('disc', 'circle'), ('star', 'star')]
        """
        objects: dict[str, str] = {}
        for row in synonyms:
            for word in row:
                if not word or objects.setdefault(word, row[0]) != row[0]:
                    raise DataError(
                        f"object vocabulary: {word!r} in {list(row)} is empty, "
                        "or it names another object too"
                    )
        if not objects:
            raise DataError(
                "object vocabulary: no objects; expected lines such as 'person, girl, boy'"
            )
        own_phrases = {word: word for word in objects if " " in word}
        return cls(objects, {**own_phrases, **(phrases or {})}, choose_lemmatizer(lemmatizer))

    def mentions(self, text: str) -> list[tuple[str, str]]:
        """List the mentions (word, object) in an answer's own words (rule mode).

        They are in text order, and repeats are kept.

        Examples:
            >>> vocabulary = ObjectVocabulary.load(lemmatizer="builtin")
            >>> vocabulary.mentions("Two scooters beside a hot dog stand; the scooters are red.")
            [('scooter', 'motorcycle'), ('hot dog', 'hot dog'), ('scooter', 'motorcycle')]
        """
        return [(mention.word, mention.object) for mention in self.locate(text)]

    def locate(self, text: str) -> list[Mention]:
        """Return the mentions with their character positions, e.g. to highlight hallucinations."""
        return self.read(nltk_tokens(text))

    def read(self, tokens: Sequence[Token]) -> list[Mention]:
        """Return the mentions in the tokens of a text."""
        lemmas = [self.lemma(token.word) for token in tokens]
        words: list[tuple[str, int, int]] = []  # (word, start, stop)
        for position, phrase in self._phrases_in(lemmas):
            last = position if phrase is None else position + 1
            words.append((phrase or lemmas[position], tokens[position].start, tokens[last].stop))
        counted = self._counted([word for word, _, _ in words])
        return [
            Mention(word, self.objects[word], start, stop)
            for word, start, stop in words
            if word in counted
        ]

    def refine(
        self, names: Iterable[str], *, read: Callable[[str], Iterable[TaggedWord]] | None = None
    ) -> list[str]:
        """Reduce a judge's names of objects to the vocabulary's words: the step before `match`.

        As in the release, each name is read as "a NAME". Its two-word terms replace it; without
        one, its runs of nouns do. Repeats are dropped.

        Args:
            names: as the judge wrote them.
            read: a tagger, e.g. `spacy.load("en_core_web_trf")`, which is the release's. Without
                one, every word of a name counts as a noun. Then "wooden table" stays whole and
                matches nothing, so the judge must leave out attributes.

        Examples:
            >>> vocabulary = ObjectVocabulary.load(lemmatizer="builtin")
            >>> vocabulary.refine(["Wine glasses", "baby elephants", "dogs", "dog"])
            ['wine glass', 'elephant', 'dog']
        """
        refined: list[str] = []
        for name in names:
            words = list(read(f"a {name}") if read else self._read_nouns(name))
            lemmas = [word.lemma_ for word in words]
            phrases = [phrase for _, phrase in self._phrases_in(lemmas) if phrase]
            refined += phrases or _noun_runs(words)
        return list(dict.fromkeys(refined))

    def match(self, names: Iterable[str]) -> list[tuple[str, str]]:
        """Return the mentions (word, object) among refined names, each word once (extracted mode).

        Examples:
            >>> vocabulary = ObjectVocabulary.load(lemmatizer="builtin")
            >>> vocabulary.match(["scooter", "sky", "scooter", "bow tie"])
            [('scooter', 'motorcycle'), ('bow tie', 'tie')]
        """
        unique = list(dict.fromkeys(names))
        counted = self._counted(unique)
        return [(word, self.objects[word]) for word in unique if word in counted]

    def lemma(self, word: str) -> str:
        """Return the singular of a lower-case noun; an unknown word is returned unchanged."""
        if self.lemmatizer == "wordnet":
            return wordnet_lemma(word)
        return builtin_lemma(word, self._known_words)

    @cached_property
    def _known_words(self) -> frozenset[str]:
        return frozenset(" ".join((*self.objects, *self.phrases)).split())

    def _phrases_in(self, lemmas: Sequence[str]) -> Iterator[tuple[int, str | None]]:
        """Yield the position of each word, with the word it is read as if it spans two lemmas."""
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
        if name in self.objects and name != name.lower():
            return [_Noun(name)]  # the COCO list has one word with a capital: "iPhone"
        return [_Noun(self.lemma(token.word)) for token in split_tokens(name)]


def ground_truth(
    instances: Iterable[tuple[int, str]],
    captions: Iterable[tuple[int, str]],
    vocabulary: ObjectVocabulary,
) -> dict[int, set[str]]:
    """Return the objects in each image: annotated, or mentioned in one of its captions.

    Args:
        instances: (image id, category) of each annotated object.
        captions: (image id, caption).
        vocabulary: reads categories and captions.

    Raises:
        DataError: a category is not in the vocabulary.
    """
    truth: dict[int, set[str]] = {}
    for image, category in instances:
        if category not in vocabulary.objects:
            raise DataError(
                f"image {image}: category {category!r} is not in the object vocabulary; "
                "add it there"
            )
        truth.setdefault(image, set()).add(vocabulary.objects[category])
    for image, caption in captions:
        truth.setdefault(image, set()).update(name for _, name in vocabulary.mentions(caption))
    return truth


def count_words(answer: str) -> int:
    """Count the words of an answer as the release does: single spaces alone separate words."""
    return len(answer.strip().split(" "))


def score_answer(mentions: Sequence[tuple[str, str]], truth: AbstractSet[str]) -> AnswerScore:
    """Separate the hallucinated mentions of one answer from the true ones, and count.

    Examples:
        >>> score = score_answer([("pup", "dog"), ("dog", "dog"), ("cat", "cat")], {"dog", "car"})
        >>> score.hallucinated
        (('cat', 'cat'),)
        >>> score.mentions, score.true_objects_named, score.true_objects
        (3, 1, 2)
    """
    named = {name for _, name in mentions}
    hallucinated = tuple(mention for mention in mentions if mention[1] not in truth)
    return AnswerScore(len(mentions), hallucinated, len(named & truth), len(truth))


def chair_scores(
    mentions: Sequence[Sequence[tuple[str, str]]],
    truth: Sequence[AbstractSet[str]],
    words: Sequence[int],
) -> ChairScores:
    """Aggregate CHAIR over answers (arXiv 1809.02156, sec. 2.1).

    The release calls these rates CHAIRs_refine, CHAIRs, CHAIRi and obj_rec.

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

    Examples:
        The first answer names a true dog and a false cat. The second misses the car.

        >>> mentions = [[("dog", "dog"), ("cat", "cat")], []]
        >>> scores = chair_scores(mentions, [{"dog"}, {"car"}], [6, 2])
        >>> scores.response_rate, scores.response_rate_all
        (1.0, 0.5)
        >>> scores.mention_rate, scores.object_recall, scores.words, scores.n
        (0.5, 0.5, 4.0, 2)
    """
    if not len(mentions) == len(truth) == len(words):
        lengths = f"{len(mentions)} mentions, {len(truth)} truth, {len(words)} words"
        raise DataError(f"CHAIR needs all three for every answer, got {lengths}")
    scores = [
        score_answer(answer, objects) for answer, objects in zip(mentions, truth, strict=True)
    ]
    hallucinating = sum(bool(score.hallucinated) for score in scores)
    hallucinated_mentions = sum(len(score.hallucinated) for score in scores)
    true_objects_named = sum(score.true_objects_named for score in scores)
    return ChairScores(
        response_rate=_ratio(hallucinating, sum(score.mentions > 0 for score in scores)),
        response_rate_all=_ratio(hallucinating, len(scores)),
        mention_rate=_ratio(hallucinated_mentions, sum(score.mentions for score in scores)),
        object_recall=_ratio(true_objects_named, sum(score.true_objects for score in scores)),
        words=_ratio(sum(words), len(scores)),
        n=len(scores),
    )


def _noun_runs(words: Iterable[TaggedWord]) -> list[str]:
    """Join the lemmas of nouns that follow each other."""
    runs: list[list[str]] = [[]]
    for word in words:
        if word.tag_ in ("NN", "NNS", "NNP", "NNPS"):
            runs[-1].append(word.lemma_)
        else:
            runs.append([])
    return [" ".join(run) for run in runs if run]


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None
