"""Words with what they are in their sentence, by NLTK's tokeniser and tagger, and their lemmas."""

from typing import NamedTuple

from rlhfv_ray.errors import ConfigError

# WordNet's parts of speech by the first letter of a Penn Treebank tag; all others are nouns.
PARTS = {"J": "a", "V": "v", "N": "n", "R": "r"}
MISSING = (
    "NLTK's tokeniser and tagger are not installed here ({error}); run "
    "`python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet`"
)


class Tagged(NamedTuple):
    """A token of a text, in lower case, at `text[start:stop]`."""

    word: str
    tag: str  # Penn Treebank
    start: int
    stop: int


def tagged_words(text: str) -> list[Tagged]:
    """Return the tokens of a text with their tags and positions.

    Raises:
        ConfigError: NLTK or its data is missing; the message has the command.
    """
    lower = text.lower()
    try:
        import nltk  # slow to import

        pairs = nltk.pos_tag(nltk.word_tokenize(lower))
    except (ImportError, LookupError) as error:
        raise ConfigError(MISSING.format(error=str(error).strip().split("\n")[0])) from error
    return positioned(lower, pairs)


def positioned(text: str, pairs: list[tuple[str, str]]) -> list[Tagged]:
    """Return tagged tokens with their positions in the lower-case text.

    The tokeniser rewrites quotation marks: such a token stands where the one before it ended.

    Example:
        >>> positioned("two dogs.", [("two", "CD"), ("dogs", "NNS"), (".", ".")])[1]
        Tagged(word='dogs', tag='NNS', start=4, stop=8)
    """
    tokens: list[Tagged] = []
    cursor = 0
    for word, tag in pairs:
        start = text.find(word, cursor)
        stop = cursor if start < 0 else start + len(word)
        tokens.append(Tagged(word, tag, cursor if start < 0 else start, stop))
        cursor = stop
    return tokens


def tagged_lemma(word: str, tag: str) -> str:
    """Return WordNet's lemma of a word as its tag's part of speech."""
    from nltk.stem import WordNetLemmatizer  # slow to import

    return WordNetLemmatizer().lemmatize(word, PARTS.get(tag[:1], "n"))
