"""The nouns of a text, and which words mean nearly the same, as AMBER's code reads answers.

AMBER uses NLTK's tagger, WordNet's lemmas and spaCy's vectors. Without the tagger, every word but
`NO_NOUNS` counts as a noun. Without the vectors, only equal words are near. Both change scores, so
`NounReader` states what was used.
"""

import logging
import re
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from functools import cache
from typing import Any, NamedTuple

from eval.words.lemmas import builtin_lemma, choose_lemmatizer, wordnet_lemma

NEAR = 0.8  # two words are near if their similarity is above
VECTORS = "en_core_web_lg"
# AMBER knows them as nouns. Without a tagger, every "can be seen" would name a can.
NO_NOUNS = {"can", "hot"}
_WORD = re.compile(r"\w+(?:-\w+)*")

logger = logging.getLogger(__name__)


class Noun(NamedTuple):
    """A lemma and the position of its word: `text[start:stop]`."""

    lemma: str
    start: int
    stop: int


def nearness(read: Callable[[str], Any]) -> Callable[[str, str], bool]:
    """Return a test for near words, by the vectors of the spaCy `Doc`s that `read` returns."""
    docs = cache(read)

    def near(word: str, target: str) -> bool:
        return word == target or docs(word).similarity(docs(target)) > NEAR

    return cache(near)


class NounReader:
    """Finds the known nouns of an answer and compares words, with the tools that are installed."""

    def __init__(self, known: AbstractSet[str]) -> None:
        import spacy  # slow to import

        self.known = frozenset(known)
        self.lemmatizer = choose_lemmatizer()
        self.tagger = "nltk" if _has_tagger() else "none"
        self.vectors = "none"
        self.near = str.__eq__
        if spacy.util.is_package(VECTORS):
            pipeline = spacy.load(VECTORS)
            self.vectors = f"{VECTORS} {pipeline.meta['version']}"
            self.near = nearness(pipeline.make_doc)
        if "none" in (self.tagger, self.vectors):
            logger.warning(
                "AMBER: tagger %s, vectors %s; scores are a variant, not comparable with others",
                self.tagger,
                self.vectors,
            )

    def mentions(self, text: str) -> list[Noun]:
        """Return the known nouns of a text, in its order, repeats kept."""
        words = _tagged_nouns(text) if self.tagger == "nltk" else _all_words(text)
        nouns = [Noun(self._lemma(word), start, start + len(word)) for word, start in words]
        return [noun for noun in nouns if noun.lemma in self.known]

    def _lemma(self, word: str) -> str:
        # Capitals are kept, as in AMBER's code: "TV" is known, "Trees" is not.
        if self.lemmatizer == "wordnet":
            return wordnet_lemma(word)
        return builtin_lemma(word, self.known)


def _has_tagger() -> bool:
    try:
        _tagged_nouns("a dog")
    except (ImportError, LookupError):
        return False
    return True


def _tagged_nouns(text: str) -> list[tuple[str, int]]:
    """Return the words that NLTK tags as nouns, with their positions."""
    import nltk  # its data is optional, and it is slow to import

    nouns: list[tuple[str, int]] = []
    cursor = 0
    for word, tag in nltk.pos_tag(nltk.word_tokenize(text)):
        # The tokeniser rewrites quotation marks, so a token may be absent from the text.
        start = max(text.find(word, cursor), cursor)
        if text.startswith(word, start) and word[0].isalnum():
            cursor = start + len(word)
        if tag.startswith("NN"):
            nouns.append((word, start))
    return nouns


def _all_words(text: str) -> list[tuple[str, int]]:
    matches = [match for match in _WORD.finditer(text) if match.group() not in NO_NOUNS]
    return [(match.group(), match.start()) for match in matches]
