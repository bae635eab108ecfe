"""The objects that an answer names, as a judge lists them: what it is asked for, and what is read from its replies."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from eval.chair import ObjectVocabulary, TaggedWord
from rlhfv_ray.endpoint.records import Verdict

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
    """What an answer names."""

    mentions: Sequence[tuple[str, str]] = ()  # (word, object)
    missing: str = ""  # why that is not known
    unanimous: bool | None = (
        None  # whether all votes name the same objects; None where there are not two
    )


def named_by(
    said: Sequence[Verdict],
    vocabulary: ObjectVocabulary,
    *,
    read: Callable[[str], Iterable[TaggedWord]] | None = None,
) -> Named:
    """What an answer names by the verdicts on it: what more than half of the readable ones list."""
    lists = [parse_objects(verdict.text) for verdict in said if verdict.status == "ok"]
    votes = [vocabulary.refine(names, read=read) for names in lists if names is not None]
    if not votes:
        why = next((verdict.status for verdict in said), "unavailable")
        return Named(missing="unparsed" if lists else why)
    objects = [{name for _, name in vocabulary.match(vote)} for vote in votes]
    unanimous = all(each == objects[0] for each in objects) if len(votes) > 1 else None
    return Named(vocabulary.match(majority(votes)), unanimous=unanimous)


def parse_objects(text: str) -> list[str] | None:
    """The list of strings that a reply holds, bare or as `objects` of a JSON object; None where it holds none, or more than one.

    Example:
        >>> parse_objects('["dog", "car"]'), parse_objects('Sure: ```{"objects": ["dog"]}```'), parse_objects("[]")
        (['dog', 'car'], ['dog'], [])
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
        "".join(names).encode()  # half a surrogate pair is no text: taggers and files refuse it
    except (ValueError, RecursionError):
        return None
    return None if re.search(r"[][{}]", text[stop:]) else names


def majority(votes: Sequence[Sequence[str]]) -> list[str]:
    """The names that more than half of the votes list, each of which lists a name once.

    Example:
        >>> majority([["dog", "cat"], ["cat"], ["cat", "dog"], ["car"]])
        ['cat']
    """
    return [
        name
        for name, count in Counter(chain.from_iterable(votes)).items()
        if 2 * count > len(votes)
    ]


def share_unanimous(named: Iterable[Named]) -> float | None:
    """The share of answers on which all votes name the same objects; None where there are not two."""
    alike = [one.unanimous for one in named if one.unanimous is not None]
    return sum(alike) / len(alike) if alike else None
