"""Nouns and near words."""

import pytest

from eval.words.nouns import NounReader


def test_the_tagger_leaves_verbs_out() -> None:
    """Catches: verbs counted as objects where NLTK's tagger is there to tell."""
    reader = NounReader({"watch", "dog"})
    if reader.tagger == "none":
        pytest.skip(
            "NLTK's data is not installed: "
            "python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng"
        )
    assert [noun.lemma for noun in reader.mentions("They watch the dog. The watch is new.")] == [
        "dog",
        "watch",
    ]


def test_without_a_tagger_every_word_is_a_noun() -> None:
    """Catches: the verb "can" named as an object, plurals missed, capitals or positions lost."""
    reader = NounReader({"dog", "TV", "can", "tree"})
    reader.tagger = "none"
    text = "Two dogs can see a TV. Trees-to-be"
    nouns = reader.mentions(text)
    assert [(noun.lemma, text[noun.start : noun.stop]) for noun in nouns] == [
        ("dog", "dogs"),
        ("TV", "TV"),
    ]
