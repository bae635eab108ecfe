"""Tokens of a text with their positions, as NLTK makes them.

The release of Object HalBench reads `nltk.word_tokenize` of an answer: NLTK's rules for words,
sentence by sentence. "A bird's-eye view" has the word "bird's-eye", which is no bird, and
"cups/mugs" is one word. The rules come with NLTK. The sentences need its data (punkt), which is a
download, so they are found by its rule alone: a sentence may end at a full stop before a space or
such a mark. Its data also knows abbreviations, after which none ends; no abbreviation names an
object.
"""

import functools
import re
from typing import Any, NamedTuple

_SENTENCE = re.compile(r"""\S.*?(?:\.(?=[\s)"';:}\]*@({\[!?])|\Z)""", re.DOTALL)
# Most captions. NLTK splits "cannot" and its like in them, and the last full stop.
_PLAIN = re.compile(r"(?:[A-Za-z ]|, )*\.?\s*")
_PUNCTUATION = re.compile(r"\w+(?:-\w+)*|[^\w\s]")


class Token(NamedTuple):
    """A word or a punctuation mark at `text[start:stop]`; NLTK rewrites quotation marks."""

    word: str
    start: int
    stop: int


def nltk_tokens(text: str) -> list[Token]:
    """Return the tokens of a text by NLTK's rules, in lower case.

    Plain texts, such as captions, are split by spaces, which takes a tenth of the time. NLTK would
    also split contractions there ("cannot"), which name nothing.

    Example:
        >>> [token.word for token in nltk_tokens("Cups/mugs. A bird's-eye view: **dogs**")]
        ['cups/mugs', '.', 'a', "bird's-eye", 'view', ':', '*', '*', 'dogs', '*', '*']
    """
    if _PLAIN.fullmatch(text):
        return split_tokens(text)
    tokens: list[Token] = []
    tokenizer = _tokenizer()
    cursor = 0
    for sentence in _SENTENCE.finditer(text):
        for word in tokenizer.tokenize(sentence.group()):
            start = text.find(word, cursor, sentence.end())
            # A quotation mark that was rewritten stands where the token before it ended.
            start, stop = (cursor, cursor) if start < 0 else (start, start + len(word))
            tokens.append(Token(word.lower(), start, stop))
            cursor = stop
    return tokens


def split_tokens(text: str) -> list[Token]:
    """Return the tokens of a text, in lower case; every punctuation mark but a hyphen splits words.

    Example:
        >>> [token.word for token in split_tokens("Cups/mugs. A tie-dye shirt")]
        ['cups', '/', 'mugs', '.', 'a', 'tie-dye', 'shirt']
    """
    return [
        Token(match.group().lower(), match.start(), match.end())
        for match in _PUNCTUATION.finditer(text)
    ]


@functools.cache
def _tokenizer() -> Any:
    from nltk.tokenize.destructive import NLTKWordTokenizer  # slow to import

    return NLTKWordTokenizer()
