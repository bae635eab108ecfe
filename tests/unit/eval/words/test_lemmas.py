"""Lemmas with WordNet and without."""

import subprocess
import sys
from pathlib import Path

import pytest

from eval.chair import ObjectVocabulary
from eval.words.lemmas import choose_lemmatizer
from rlhfv_ray.errors import ConfigError


@pytest.fixture(scope="module")
def builtin() -> ObjectVocabulary:
    return ObjectVocabulary.load(lemmatizer="builtin")


@pytest.fixture(scope="module")
def wordnet() -> ObjectVocabulary:
    if choose_lemmatizer() != "wordnet":
        pytest.skip(
            "WordNet is not installed: sh tests/fetch_wordnet.sh FOLDER; export NLTK_DATA=FOLDER"
        )
    return ObjectVocabulary.load(lemmatizer="wordnet")


@pytest.mark.slow
def test_builtin_lemmas_are_wordnet_s_on_the_vocabulary(
    builtin: ObjectVocabulary, wordnet: ObjectVocabulary
) -> None:
    """Catches: a score that depends on whether WordNet is installed (see "men" and "vases")."""
    words = set(" ".join((*builtin.objects, *builtin.phrases)).split()) - {"iPhone"}
    forms = words | {word + "s" for word in words} | {word + "es" for word in words}
    forms |= {word[:-1] + "ies" for word in words if word.endswith("y")}
    forms |= {
        word.removesuffix("fe").removesuffix("f") + "ves"
        for word in words
        if word.endswith(("f", "fe"))
    }
    forms |= {
        "men",
        "women",
        "policemen",
        "children",
        "geese",
        "mice",
        "oxen",
        "busses",
        "flamingoes",
        "glasses",
    }
    nonsense = {"hots", "potteds", "skiss", "skises", "sportss", "sportses"}
    different = {form for form in forms - nonsense if builtin.lemma(form) != wordnet.lemma(form)}
    assert {
        form for form in different if {builtin.lemma(form), wordnet.lemma(form)} & words
    } == set()


@pytest.mark.slow
def test_without_wordnet_the_builtin_lemmatizer_is_chosen_and_named() -> None:
    """Catches: a crash without WordNet, or another lemmatiser than the report names."""
    script = (
        "import nltk; nltk.data.path[:] = []\n"
        "from eval.chair import ObjectVocabulary\n"
        "print(ObjectVocabulary.load().lemmatizer)\n"
        "ObjectVocabulary.load(lemmatizer='wordnet')\n"
    )
    root = Path(__file__).parents[4]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "builtin"
    assert "ConfigError: lemmatizer 'wordnet'" in done.stderr


def test_unknown_lemmatizer() -> None:
    """Catches: a misspelt lemmatiser falls through to another one."""
    with pytest.raises(ConfigError, match="'spacy'"):
        choose_lemmatizer("spacy")  # pyright: ignore[reportArgumentType]
