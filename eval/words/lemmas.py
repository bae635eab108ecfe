"""Lemmas: from an inflected noun back to its singular, with WordNet or without.

The release reads words with NLTK's WordNet 3.0 lemmatiser. Its data is a download of its own, so a small built-in
lemmatiser stands in where it is absent: WordNet's detachment rules for nouns (manual page morphy(7WN)), with the
words of the vocabulary at hand as the dictionary. On the COCO vocabulary both give the same lemmas.
"""

import logging
from collections.abc import Set as AbstractSet
from typing import Literal

from rlhfv_ray.errors import ConfigError

logger = logging.getLogger(__name__)

LemmatizerName = Literal["wordnet", "builtin"]

_SUFFIXES = (
    *(("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z")),
    *(("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y")),
)
# The last line is WordNet's own reading of three plurals: it knows "men" (the workforce) and "vas" (the duct), so the
# release counts neither "men" nor "vases". Kept, so that both lemmatisers give one score.
_IRREGULAR = {
    **{
        "children": "child",
        "grandchildren": "grandchild",
        "brethren": "brother",
        "oxen": "ox",
        "busses": "bus",
    },
    **{
        "geese": "goose",
        "mice": "mouse",
        "knives": "knife",
        "pocketknives": "pocketknife",
        "taxies": "taxi",
    },
    **{"buffaloes": "buffalo", "flamingoes": "flamingo"},
    **{"men": "men", "vases": "vas", "sports": "sport"},
}
# Nouns of the COCO vocabulary that WordNet 3.0 lacks: the release counts their singular alone.
_NOT_IN_WORDNET = {
    *(
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
    ),
    *(
        "macbook",
        "netbook",
        "paddleboat",
        "pitbull",
        "riverboat",
        "sailboard",
        "shortboard",
        "skimboard",
        "smartphone",
    ),
    *("solider", "stovetop", "teddybear", "televison"),
}


def choose_lemmatizer(wanted: LemmatizerName | None = None) -> LemmatizerName:
    """Pick WordNet if its data is there, else the built-in lemmatiser, unless one is asked for by name.

    Raises:
        ConfigError: the name is unknown, or WordNet was asked for and is not installed.
    """
    if wanted not in (None, "wordnet", "builtin"):
        raise ConfigError(f"unknown lemmatizer {wanted!r}; allowed: 'wordnet', 'builtin'")
    if wanted == "builtin":
        return "builtin"
    try:
        from nltk.corpus import wordnet  # optional, and slow to import

        wordnet.ensure_loaded()
    except (ImportError, LookupError) as error:
        if wanted == "wordnet":
            raise ConfigError(
                "lemmatizer 'wordnet': NLTK or its WordNet is not installed here; run "
                "`python -m nltk.downloader wordnet`, or choose 'builtin'"
            ) from error
        logger.info("WordNet is not installed: words are read with the built-in lemmatiser")
        return "builtin"
    return "wordnet"


def wordnet_lemma(word: str) -> str:
    """Give the shortest noun lemma WordNet knows for `word`; an unknown word stays as it is."""
    from nltk.stem import WordNetLemmatizer  # optional, and slow to import

    return WordNetLemmatizer().lemmatize(word)


def builtin_lemma(word: str, known: AbstractSet[str]) -> str:
    """Give the shortest form of `word` among the known nouns; an unknown word stays as it is.

    Example:
        >>> [builtin_lemma(word, {"bus", "bench", "hobby"}) for word in ("bus", "benches", "hobbies", "pens")]
        ['bus', 'bench', 'hobby', 'pens']
    """
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    forms = [word, *(word.removesuffix(old) + new for old, new in _SUFFIXES if word.endswith(old))]
    return min(
        (form for form in forms if form in known and form not in _NOT_IN_WORDNET),
        key=len,
        default=word,
    )
