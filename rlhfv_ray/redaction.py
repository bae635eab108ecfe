"""The one function that takes secrets out of a text before people or files get it."""

import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

HIDDEN = "***"
SHORTEST = 8  # characters; a shorter key is a placeholder ("EMPTY"), and may be part of any word
# In an address: user and password, and the values of query fields with such names.
_USER = re.compile(r"(?<=://)[^/?#\s\"'<>]*(?=@)")
_NAMES = "key|token|secret|sig|pass|auth|cred|code"
_QUERY = re.compile(rf"([?&;][^=&;#\s\"'<>]*(?:{_NAMES})[^=&;#\s\"'<>]*=)[^&;#\s\"'<>]+", re.I)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a text without the secrets, and without those in the addresses that it holds.

    Args:
        text: any text.
        secrets: secrets to hide wherever they stand, also as an address spells them; those with
            fewer than `SHORTEST` characters are left.

    Example:
        >>> redact("401: Incorrect API key sk-canary-1234", ["sk-canary-1234"])
        '401: Incorrect API key ***'
        >>> redact("http://me:pass@host/v1?api-version=2&api-key=abc")
        'http://***@host/v1?api-version=2&api-key=***'
    """
    long_enough = {secret for secret in secrets if len(secret) >= SHORTEST}
    spellings = set(long_enough)
    for spell in (quote, quote_plus, lambda secret: quote(secret, safe="")):
        spellings.update(map(spell, long_enough))
    for secret in sorted(spellings, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _QUERY.sub(rf"\1{HIDDEN}", _USER.sub(HIDDEN, text))


def secrets_in(address: str) -> tuple[str, ...]:
    """Return the secrets in an address: user, password, and values of the query.

    Example:
        >>> secrets_in("http://me:p%40ss@host/v1?api-version=2&api-key=abc")
        ('me', 'p@ss', 'abc')
    """
    parts = urlsplit(address)
    secret_fields = [
        value for name, value in parse_qsl(parts.query) if re.search(_NAMES, name, re.I)
    ]
    return (*map(unquote, filter(None, (parts.username, parts.password))), *secret_fields)
