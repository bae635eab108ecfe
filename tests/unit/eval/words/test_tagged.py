"""Tagged words and their lemmas."""

import nltk
import pytest

from eval.words.lemmas import choose_lemmatizer
from eval.words.tagged import positioned, tagged_lemma, tagged_words
from rlhfv_ray.errors import ConfigError


def test_tokens_have_positions_also_where_the_tokeniser_rewrites_them():
    """Catches: marks at another word after a quotation mark, which NLTK writes as two others."""
    pairs = [(word, "NN") for word in ("a", "``", "dog", "''", "and", "a", "dog")]
    text = 'a "dog" and a dog'
    tokens = positioned(text, pairs)
    assert [text[t.start : t.stop] for t in tokens] == ["a", "", "dog", "", "and", "a", "dog"]
    assert tokens[-1].start == len(text) - 3


def test_lemmas_follow_the_part_of_speech():
    """Catches: every word read as a noun, by which "is booking" names no book."""
    if choose_lemmatizer() != "wordnet":
        pytest.skip("WordNet is missing: sh tests/fetch_wordnet.sh FOLDER; export NLTK_DATA=FOLDER")
    assert (tagged_lemma("booking", "VBG"), tagged_lemma("booking", "NN")) == ("book", "booking")
    assert (tagged_lemma("knives", "NNS"), tagged_lemma("smaller", "JJR")) == ("knife", "small")
    assert tagged_lemma("dogs", "CD") == "dog"  # what is no noun, verb or other is read as a noun


def test_missing_data_is_said_with_the_command(monkeypatch):
    """Catches: NLTK's page of text on data that is not there."""
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(ConfigError, match="nltk.downloader punkt_tab averaged_perceptron"):
        tagged_words("a dog")
