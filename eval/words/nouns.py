"""Nouns of a text, and which words mean nearly the same, with what is installed.

With NLTK's tagger and WordNet's lemmas, and spaCy's vectors, as AMBER's code reads answers. Without the tagger every word but `NO_NOUNS` counts
as a noun, and without the vectors nothing is near but equal words. Both change scores: `NounReader` says what was used.
"""

import logging
import re
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from functools import cache
from typing import Any, NamedTuple

from eval.words.lemmas import builtin_lemma, choose_lemmatizer, wordnet_lemma

NEAR = 0.8
VECTORS = "en_core_web_lg"
NO_NOUNS = {
    "can",
    "hot",
}  # known to AMBER as nouns; without a tagger, every "can be seen" would name a can
_WORD = re.compile(r"\w+(?:-\w+)*")

logger = logging.getLogger(__name__)


class Noun(NamedTuple):
    """A lemma, and where its word stands: `text[start:stop]`."""

    lemma: str
    start: int
    stop: int


def nearness(read: Callable[[str], Any]) -> Callable[[str, str], bool]:
    """Tell near words by the vectors of what `read` makes of them, spaCy's `Doc`s."""
    docs = cache(read)
    return cache(lambda one, other: one == other or docs(one).similarity(docs(other)) > NEAR)


class NounReader:
    """Finds the nouns of an answer, and tells which are near, with what is installed."""

    def __init__(self, known: AbstractSet[str]) -> None:
        import spacy  # slow to import

        self.known = known
        self.lemmatizer = choose_lemmatizer()
        self.tagger = "nltk" if _tagger_there() else "none"
        self.vectors, self.near = "none", str.__eq__
        if spacy.util.is_package(VECTORS):
            nlp = spacy.load(VECTORS)
            self.vectors, self.near = f"{VECTORS} {nlp.meta['version']}", nearness(nlp.make_doc)
        if "none" in (self.tagger, self.vectors):
            logger.warning(
                "AMBER: tagger %s, vectors %s; scores are a variant of their own",
                self.tagger,
                self.vectors,
            )

    def mentions(self, text: str) -> list[Noun]:
        """The nouns of a text that are known, in its order, repeats kept."""
        words = _tagged_nouns(text) if self.tagger == "nltk" else _all_words(text)
        nouns = [Noun(self._lemma(word), start, start + len(word)) for word, start in words]
        return [noun for noun in nouns if noun.lemma in self.known]

    def _lemma(
        self, word: str
    ) -> str:  # capitals are kept, as the code does: "TV" is known, "Trees" is not
        return (
            wordnet_lemma(word) if self.lemmatizer == "wordnet" else builtin_lemma(word, self.known)
        )


def _tagger_there() -> bool:
    try:
        _tagged_nouns("a dog")
    except (ImportError, LookupError):
        return False
    return True


def _tagged_nouns(text: str) -> list[tuple[str, int]]:
    import nltk  # its data is optional, and it is slow to import

    found, cursor = list[tuple[str, int]](), 0
    for word, tag in nltk.pos_tag(nltk.word_tokenize(text)):
        start = max(
            text.find(word, cursor), cursor
        )  # the tokeniser spells quotation marks in another way
        cursor = start + len(word) if text.startswith(word, start) and word[0].isalnum() else cursor
        if tag.startswith("NN"):
            found.append((word, start))
    return found


def _all_words(text: str) -> list[tuple[str, int]]:
    return [
        (word.group(), word.start())
        for word in _WORD.finditer(text)
        if word.group() not in NO_NOUNS
    ]
