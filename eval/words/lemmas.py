"""Lemmas: from an inflected noun to its singular, with WordNet or without.

The release reads words with NLTK's WordNet 3.0 lemmatiser, whose data is a separate download.
Without the data, a small built-in lemmatiser is used. It applies WordNet's detachment rules for
nouns (manual page morphy(7WN)), with the words of the given vocabulary as its dictionary. On the
COCO vocabulary both give the same lemmas.
"""

import logging
from functools import lru_cache
from typing import Literal

from rlhfv_ray.errors import ConfigError

logger = logging.getLogger(__name__)

LemmatizerName = Literal["wordnet", "builtin"]
LEMMAS_KEPT = 2**16  # of the words of a language; answers repeat most of them

_SUFFIXES = (  # (ending, replacement)
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)
_IRREGULAR = {
    "children": "child",
    "grandchildren": "grandchild",
    "brethren": "brother",
    "oxen": "ox",
    "busses": "bus",
    "geese": "goose",
    "mice": "mouse",
    "knives": "knife",
    "pocketknives": "pocketknife",
    "taxies": "taxi",
    "buffaloes": "buffalo",
    "flamingoes": "flamingo",
    # WordNet's own reading of three plurals. It knows "men" (the workforce) and "vas" (the duct),
    # so the release counts neither "men" nor "vases". Both lemmatisers must give the same score.
    "men": "men",
    "vases": "vas",
    "sports": "sport",
}
# Nouns of the COCO vocabulary that WordNet 3.0 lacks: the release counts only their singular.
_NOT_IN_WORDNET = {
    "biker",
    "bluejay",
    "brindle",
    "children",
    "coworker",
    "firetruck",
    "glas",
    "hairdryer",
    "lenovo",
    "longboard",
    "macbook",
    "netbook",
    "paddleboat",
    "pitbull",
    "riverboat",
    "sailboard",
    "shortboard",
    "skimboard",
    "smartphone",
    "solider",
    "stovetop",
    "teddybear",
    "televison",
}


def choose_lemmatizer(name: LemmatizerName | None = None) -> LemmatizerName:
    """Return the named lemmatiser; without a name, WordNet if its data exists, else the built-in.

    Raises:
        ConfigError: the name is unknown, or it is WordNet and WordNet is not installed.
    """
    if name not in (None, "wordnet", "builtin"):
        raise ConfigError(f"unknown lemmatizer {name!r}; allowed: 'wordnet', 'builtin'")
    if name == "builtin":
        return "builtin"
    try:
        from nltk.corpus import wordnet  # optional, and slow to import

        wordnet.ensure_loaded()
    except (ImportError, LookupError) as error:
        if name == "wordnet":
            raise ConfigError(
                "lemmatizer 'wordnet': NLTK or its WordNet is not installed here; run "
                "`python -m nltk.downloader wordnet`, or choose 'builtin'"
            ) from error
        logger.info("WordNet is not installed: words are read with the built-in lemmatiser")
        return "builtin"
    return "wordnet"


@lru_cache(LEMMAS_KEPT)
def wordnet_lemma(word: str) -> str:
    """Return the shortest noun lemma of a word in WordNet; an unknown word is its own lemma."""
    from nltk.stem import WordNetLemmatizer  # optional, and slow to import

    return WordNetLemmatizer().lemmatize(word)


@lru_cache(LEMMAS_KEPT)
def builtin_lemma(word: str, known: frozenset[str]) -> str:
    """Return the shortest form of a word among the known nouns; an unknown word is its own lemma.

    Example:
        >>> nouns = frozenset({"bus", "bench", "hobby"})
        >>> [builtin_lemma(word, nouns) for word in ("bus", "benches", "hobbies", "pens")]
        ['bus', 'bench', 'hobby', 'pens']
    """
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    forms = [word]
    for ending, replacement in _SUFFIXES:
        if word.endswith(ending):
            forms.append(word.removesuffix(ending) + replacement)
    nouns = [form for form in forms if form in known and form not in _NOT_IN_WORDNET]
    return min(nouns, key=len, default=word)
