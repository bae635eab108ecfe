"""Tokens as NLTK's `word_tokenize` makes them, where its data is installed, and their positions."""

import json
from itertools import chain
from pathlib import Path

import nltk
import pytest

from eval.words.tokens import nltk_tokens, split_tokens

GOLDEN = json.loads((Path(__file__).parents[3] / "golden" / "chair.json").read_text())
TEXTS = [
    *(row["answer"] for row in GOLDEN["answers"]),
    *(row["caption"] for row in GOLDEN["captions"]),
    'He said "dogs." Then: (two cats.) A bird\'s-eye view; cups/mugs... The end.',
    "**Bowl:** a cup.\n\n1. A dog.\n2. A cat.",
    "A 3.5 m boat, 10,000 birds & a dog--or a cat? The dog's bed, the dogs' beds!",
]


def test_tokens_of_prose() -> None:
    """Catches: a full stop that stays at its word, or one that splits a number."""
    words = [token.word for token in nltk_tokens("A dog. 3.5 cups, and the cat's bed (old.)")]
    assert words == [
        *("a", "dog", ".", "3.5", "cups", ",", "and", "the", "cat", "'s", "bed"),
        *("(", "old", ".", ")"),
    ]
    assert nltk_tokens("") == nltk_tokens("  ") == []


def test_tokens_are_word_tokenize_s() -> None:
    """Catches: other words than the release reads.

    Numbers and marks name nothing: sentences do not end after the numbers of a list there.
    """
    try:
        expected = [nltk.word_tokenize(text.lower()) for text in TEXTS]
    except LookupError:
        pytest.skip("NLTK's punkt_tab is not installed")
    for text, words in zip(TEXTS, expected, strict=True):
        ours = [token.word for token in nltk_tokens(text)]
        assert list(filter(has_letter, ours)) == list(filter(has_letter, words))


def has_letter(word: str) -> bool:
    return any(character.isalpha() for character in word)


def test_positions_are_those_of_the_words() -> None:
    """Catches: positions that shift after a quotation mark that NLTK rewrites."""
    for text in TEXTS:
        for token in chain(nltk_tokens(text), split_tokens(text)):
            if token.word not in ("``", "''"):
                assert text[token.start : token.stop].lower() == token.word


def test_a_quotation_mark_far_away_does_not_move_positions() -> None:
    text = 'A "dog" sees. Two `` cats.'
    (dog,) = (token for token in nltk_tokens(text) if token.word == "dog")
    assert text[dog.start : dog.stop] == "dog"
