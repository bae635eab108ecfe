"""Fields of a stored row that say how it is to be used, and the errors of unusable rows.

A field that asks for something that is not done here sets its row aside. It is never ignored: the
model would learn something else than the row says.
"""

import functools
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from operator import index
from typing import Any, TypeVar

from rlhfv_ray.errors import DataError, RlhfvError
from rlhfv_ray.records import Span

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
T = TypeVar("T")
REASON_LENGTH = 400  # characters
# NUL and unpaired surrogates: Arrow refuses them.
UNUSABLE_TEXT = re.compile("[\0\ud800-\udfff]")

UNSUPPORTED = {  # column -> what it asks for
    "rejected_images": "a picture of its own for the rejected answer",
    "rejected_image": "a picture of its own for the rejected answer",
    "image_2": "a second picture",
    "image2": "a second picture",
    "tools": "tool calls",
    "videos": "a video",
    "video": "a video",
    "audios": "a sound",
    "audio": "a sound",
    "objects": "boxes of objects in its text",
    "history": "earlier turns in a form of its own",
    "margin": "a margin between its answers",
    "chat_template_kwargs": "settings of the chat template",
}
WEIGHTS = ("weight", "weights", "sample_weight", "loss_weight", "loss_scale")
LEARNED = ("loss",)
USAGE_COLUMNS = (*UNSUPPORTED, *WEIGHTS, *LEARNED)
EMPTY_TEXTS = ("", "[]", "{}", "null", "None")


def unusable(code: str, reason: str) -> DataError:
    """Return the error of one unusable row."""
    return DataError(one_line(f"{code}: {reason}"))


def one_line(text: str) -> str:
    """Return a text as one printable line of bounded length, which Arrow can store."""
    line = " ".join(text.split()).replace("\0", "\\0")
    line = line.encode(errors="backslashreplace").decode()
    if len(line) <= REASON_LENGTH:
        return line
    return f"{line[:REASON_LENGTH]} ... ({len(line)} characters)"


def attempt(
    work: Callable[[], T], position: str = "", *, raised: tuple[type[Exception], ...] = ()
) -> T | DataError:
    """Return what the work on one row gives, or the error that sets the row aside.

    Any error is the row's, because untrusted values reach any function. Errors of settings, of
    storage and of memory are not.

    Args:
        work: on the row.
        position: of the row: file and line.
        raised: further errors that are no row's.
    """
    try:
        return work()
    except DataError as error:
        return row_error(error, position)
    except (RlhfvError, MemoryError, *raised):
        raise
    except Exception as error:  # noqa: BLE001 (of any type, and listed with the row)
        return row_error(error, position)


def row_error(error: Exception, position: str) -> DataError:
    """Return the error of a row with its position: file and line.

    An error that nobody foresaw becomes one of the row, too.
    """
    text = str(error) if isinstance(error, DataError) else f"unexpected: {described(error)}"
    suffix = f" ({position})" if position else ""
    line = one_line(text)
    return DataError(line if line.endswith(suffix) else line + suffix)


def described(error: Exception) -> str:
    """Return the class and the message of an error."""
    return f"{type(error).__name__}: {error}"


def check_usage(row: Row) -> None:
    """Refuse a row with a field that asks for what is not done here.

    Raises:
        DataError: `unsupported_field`, then the column and the request.
    """
    for name, meaning in UNSUPPORTED.items():
        if not _is_empty(row.get(name)):
            raise unusable("unsupported_field", f"column {name} asks for {meaning}")
    for name in WEIGHTS:
        value = row.get(name)
        if not _is_empty(value) and not (isinstance(value, int | float) and value == 1):
            reason = f"column {name} gives the row a weight of its own, which is not supported"
            raise unusable("unsupported_field", reason)
    for name in LEARNED:
        if row.get(name) is not None and row[name] is not True:
            reason = f"column {name} is {row[name]!r}: the row is not to be learnt"
            raise unusable("not_learnt", reason)


def _is_empty(value: object) -> bool:
    """Return True if a column holds nothing; 0 and False are values."""
    if isinstance(value, str):
        return value.strip() in EMPTY_TEXTS
    if isinstance(value, list | tuple):
        return all(_is_empty(item) for item in value)
    if isinstance(value, Mapping):
        return all(_is_empty(item) for item in value.values())
    return value is None


def parse_json(text: str | bytes | None) -> Any:
    """Parse JSON from untrusted data.

    Raises:
        DataError: `bad_json`, then the reason.
    """
    try:
        return json.loads(text or "")
    except (ValueError, TypeError, RecursionError) as error:
        raise unusable("bad_json", str(error)) from error


def turns_in(fields: Row, name: str) -> list[tuple[str, str]]:
    """Return the question and answer of each earlier turn that a field holds.

    Raises:
        DataError: `bad_row`, then the reason.
    """
    stored = fields.get(name) or []
    turns: list[tuple[str, str]] = []
    for turn in stored if isinstance(stored, list | tuple) else [stored]:
        texts = turn if isinstance(turn, list | tuple) else ()
        if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
            raise unusable("bad_row", f"{name} must be a list of [question, answer]")
        turns.append((texts[0], texts[1]))
    return turns


def spans_in(fields: Row, name: str) -> tuple[Span, ...] | None:
    """Return the marked spans that a field holds; None: nobody marked them.

    Raises:
        DataError: `bad_spans`, then the reason.
    """
    spans = fields.get(name)
    if spans is None:
        return None
    try:
        return tuple((index(start), index(stop)) for start, stop in spans)
    except (TypeError, ValueError) as error:
        raise unusable("bad_spans", f"{name} must be a list of [start, stop): {error}") from error


def column_map(columns: Iterable[str]) -> dict[str, str]:
    """Return the stored name of each renamed column, by the name that formats use.

    Example:
        >>> column_map(["question=prompt", "chosen=answer_good"])
        {'question': 'prompt', 'chosen': 'answer_good'}
    """
    pairs = (entry.partition("=") for entry in columns)
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """Return a row under the names that formats use."""
    if not columns:
        return row
    stored = dict(row)
    moved = {ours: stored.pop(theirs) for ours, theirs in columns.items() if theirs in stored}
    return {**stored, **moved}


@functools.lru_cache(maxsize=256)
def say_once(message: str) -> None:
    """Log a warning about the data, once per process."""
    logger.warning("%s", message)
