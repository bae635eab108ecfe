"""The objects that an answer names according to a judge: what it is asked, and its replies read."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from eval.chair import ObjectVocabulary, TaggedWord
from rlhfv_ray.endpoint.records import Reply

PROMPT, FIELDS = "objects.txt", ("question", "answer")
_NAMES = {"type": "array", "items": {"type": "string"}}
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"objects": _NAMES},
        "required": ["objects"],
        "additionalProperties": False,
    }
)


class Named(NamedTuple):
    """The objects that an answer names."""

    mentions: Sequence[tuple[str, str]] = ()  # (word, object)
    missing: str = ""  # reason why they are unknown; empty if they are known
    unanimous: bool | None = None  # True if all votes name the same objects; None below two votes


def named_by(
    verdicts: Sequence[Reply],
    vocabulary: ObjectVocabulary,
    *,
    read: Callable[[str], Iterable[TaggedWord]] | None = None,
) -> Named:
    """Return the objects that more than half of the readable verdicts on an answer list."""
    lists = [parse_objects(verdict.text) for verdict in verdicts if verdict.status == "ok"]
    votes = [vocabulary.refine(names, read=read) for names in lists if names is not None]
    if not votes:
        reason = next((verdict.status for verdict in verdicts), "unavailable")
        return Named(missing="unparsed" if lists else reason)
    unanimous = None
    if len(votes) > 1:
        distinct = {frozenset(name for _, name in vocabulary.match(vote)) for vote in votes}
        unanimous = len(distinct) == 1
    return Named(vocabulary.match(majority(votes)), unanimous=unanimous)


def parse_objects(text: str) -> list[str] | None:
    """Return the list of strings in a reply: a JSON list, or `objects` of a JSON object.

    The result is None if the reply holds no such list, or more than one.

    Example:
        >>> parse_objects('["dog", "car"]'), parse_objects("[]")
        (['dog', 'car'], [])
        >>> parse_objects('Sure: ```{"objects": ["dog"]}```')
        ['dog']
        >>> parse_objects('["dog"] or ["cat"]'), parse_objects('["dog", 2]'), parse_objects("a dog")
        (None, None, None)
    """
    start = re.search(r"[\[{]", text)
    if start is None:
        return None
    try:
        value, stop = json.JSONDecoder().raw_decode(text, start.start())
        names = value.get("objects") if isinstance(value, dict) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return None
        "".join(names).encode()  # taggers and files refuse half a surrogate pair
    except (ValueError, RecursionError):
        return None
    return None if re.search(r"[][{}]", text[stop:]) else names


def majority(votes: Sequence[Sequence[str]]) -> list[str]:
    """Return the names that more than half of the votes list; no vote lists a name twice.

    Example:
        >>> majority([["dog", "cat"], ["cat"], ["cat", "dog"], ["car"]])
        ['cat']
    """
    counts = Counter(chain.from_iterable(votes))
    return [name for name, count in counts.items() if 2 * count > len(votes)]


def share_unanimous(named: Iterable[Named]) -> float | None:
    """Return the share of answers whose votes all name the same objects, or None without votes.

    Answers with fewer than two votes do not count.

    Example:
        >>> share_unanimous([Named(unanimous=True), Named(unanimous=False), Named()])
        0.5
    """
    unanimous = [answer.unanimous for answer in named if answer.unanimous is not None]
    return sum(unanimous) / len(unanimous) if unanimous else None
