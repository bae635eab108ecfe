"""Read preference pairs stored in the field's formats into one record.

A row is first converted to common fields (question, chosen, rejected, image, id, origin, spans),
then checked once. The reason of an unusable row is a `DataError` whose message opens with a stable
code: `empty_answer: ...`.

| format         | origin and file                   | needed columns                            |
|----------------|-----------------------------------|-------------------------------------------|
| `rlhfv`        | RLHF-V-Dataset, Muffin's cache of | `image`, `text` (JSON of the three texts) |
|                | log-probs; Parquet                |                                           |
| `rlaifv`       | RLAIF-V-Dataset; Parquet          | `image`, `question`, `chosen`, `rejected` |
| `muffin_tsv`   | Muffin; TSV without header        | seven; image and text in base64           |
| `trl`          | TRL preference, mDPO, Silkie;     | `prompt`, `chosen`, `rejected`, `images`  |
|                | JSON, JSON Lines, Parquet         |                                           |
| `trl_implicit` | TRL preference; the conversations | `chosen`, `rejected`, `images`            |
|                | begin with the prompt             |                                           |
| `llamafactory` | LLaMA-Factory ShareGPT with       | `conversations` or `messages` in place of |
|                | `ranking: true`                   | `prompt`                                  |
| `povid`        | POVID                             | `conversations`, `rejected_conversations` |
| `swift`        | ms-swift                          | `messages`, `rejected_response`, `images` |
| `label_studio` | tasks of Label Studio             | `data` with the columns of `rlaifv`       |
"""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rlhfv_ray.config import PAIR_FORMATS
from rlhfv_ray.data.files.image_sources import ImageRoots, image_bytes, image_path_of
from rlhfv_ray.data.messages import (
    Message,
    check_image_tokens,
    messages_of,
    only_text,
    question_text,
    split_system,
    system_text,
    turns_of,
)
from rlhfv_ray.data.row_fields import (
    UNUSABLE_TEXT,
    USAGE_COLUMNS,
    Row,
    attempt,
    check_usage,
    parse_json,
    spans_in,
    turns_in,
    unusable,
)
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import PreferencePair, Span
from rlhfv_ray.registry import registered

TSV_COLUMNS = ("ds_name", "image", "text", "origin_dataset", "origin_split", "idx", "image_path")
ORIGIN_COLUMNS = ("ds_name", "origin_dataset", "origin_split", "image_path")
IMAGE = "image|images|img_path"
# Common fields that a format makes of a row's messages.
SYSTEM, HISTORY = "system_message", "earlier_turns"


def read_row(
    row: Row, *, format: str, roots: ImageRoots, fallback_id: str, position: str = ""
) -> tuple[str, PreferencePair | DataError]:
    """Return the row's id with its pair, or with the error that makes the row unusable.

    Args:
        row: columns as stored.
        format: a key of `FORMATS`.
        roots: see `image_bytes`.
        fallback_id: id for a row without its own.
        position: file and line, for messages.
    """
    row_id = own_id(row) or fallback_id  # known even if the row's fields cannot be read
    usage = {name: row[name] for name in USAGE_COLUMNS if name in row}  # no format may drop them
    fields = attempt(lambda: {**usage, **FORMATS[format].read(row)}, position)
    if isinstance(fields, DataError):
        return row_id, fields
    row_id = own_id(fields) or row_id
    pair = attempt(
        lambda: read_pair(fields, row_id, image_bytes(fields, roots), position), position
    )
    return row_id, pair


def read_pair(fields: Row, row_id: str, image: bytes, position: str = "") -> PreferencePair:
    """Return the checked pair of a row's common fields.

    Raises:
        DataError: the row is unusable.
    """
    check_usage(fields)
    history = turns_in(fields, HISTORY)
    *earlier, question = question_text(
        *(question for question, _ in history), _text(fields, "question")
    )
    answers = [answer for _, answer in history]
    pair = PreferencePair(
        id=row_id,
        image=image,
        question=question,
        chosen=_text(fields, "chosen"),
        rejected=_text(fields, "rejected"),
        chosen_spans=spans_in(fields, "chosen_spans"),
        rejected_spans=spans_in(fields, "rejected_spans"),
        origin=origin_of(fields),
        system=system_text(fields, _text(fields, SYSTEM)),
        history=tuple(zip(earlier, answers, strict=True)),
        position=position,
        image_path=image_path_of(fields),
    )
    check_pair(pair)
    return pair


def check_pair(pair: PreferencePair) -> None:
    """Refuse a pair that cannot be trained on.

    Raises:
        DataError: `image_missing`, `empty_question`, `empty_answer`, `equal_answers`, `bad_text`,
            `image_token` or `bad_spans`, then the reason.
    """
    if not pair.image:
        raise unusable("image_missing", "the image has no bytes")
    if not pair.question.strip():
        raise unusable("empty_question", "the question is missing or blank")
    _check_answer("chosen", pair.chosen, pair.chosen_spans)
    _check_answer("rejected", pair.rejected, pair.rejected_spans)
    if pair.chosen.strip() == pair.rejected.strip():
        reason = "chosen and rejected are the same text, so neither can be preferred"
        raise unusable("equal_answers", reason)
    for question, answer in pair.history:
        if not question.strip() or not answer.strip():
            raise unusable("empty_answer", "an earlier turn has no question or no answer")
        check_image_tokens("an earlier answer", answer)
        check_texts(question, answer)
    check_texts(pair.id, pair.question, pair.chosen, pair.rejected, pair.system)
    check_texts(*pair.origin, *pair.origin.values())


def check_texts(*texts: str) -> None:
    """Raise an error if a text holds characters that Arrow or a tokenizer cannot represent.

    Raises:
        DataError: there is such a text. The message is `bad_text` and the start of the text.
    """
    for text in texts:
        if UNUSABLE_TEXT.search(text):
            raise unusable("bad_text", f"NUL or half a surrogate pair in {text[:80]!r}")


def _check_answer(name: str, answer: str, spans: Sequence[Span] | None) -> None:
    if not answer.strip():
        raise unusable("empty_answer", f"the {name} answer is missing or blank")
    check_image_tokens(f"the {name} answer", answer)
    for start, stop in spans or ():
        if not 0 <= start < stop <= len(answer):
            reason = f"{name} span [{start}, {stop}) in an answer of {len(answer)} characters"
            raise unusable("bad_spans", reason)


def _rlhfv(row: Row) -> Row:
    content = parse_json(row.get("text"))
    if isinstance(content, list):  # Muffin's TSV; a fourth element holds log-probs
        content = dict(zip(("question", "chosen", "rejected"), content, strict=False))
    if not isinstance(content, dict) or "chosen" not in content:
        raise unusable("bad_json", "text must hold question, chosen and rejected")
    return {**row, **content, "image": row.get("image")}


def _muffin_tsv(row: Row) -> Row:
    decoded = from_base64(row, "image", "text", "origin_split")
    try:
        return _rlhfv({**row, **decoded, "origin_split": decoded["origin_split"].decode()})
    except UnicodeDecodeError as error:
        raise unusable("bad_base64", str(error)) from error


def from_base64(row: Row, *names: str) -> dict[str, bytes]:
    """Return the decoded bytes of columns that are stored in base64.

    Raises:
        DataError: `bad_base64`, then the reason.
    """
    try:
        return {name: base64.b64decode(row[name], validate=True) for name in names}
    except ValueError as error:
        raise unusable("bad_base64", str(error)) from error


def _trl(row: Row) -> Row:
    return _fields(row, row.get("prompt"), row.get("chosen"), row.get("rejected"))


def _trl_implicit(row: Row) -> Row:
    conversations = row.get("chosen"), row.get("rejected")
    if any(isinstance(value, str) for value in conversations):
        raise unusable(
            "bad_row",
            "chosen or rejected is a text and there is no prompt: without one, both are "
            "conversations that begin with it",
        )
    return _two_conversations(row, *conversations)


def _llamafactory(row: Row) -> Row:
    turns = row.get("conversations") or row.get("messages")
    return _fields(row, turns, row.get("chosen"), row.get("rejected"))


def _povid(row: Row) -> Row:
    return _two_conversations(row, row.get("conversations"), row.get("rejected_conversations"))


def _swift(row: Row) -> Row:
    if row.get("rejected_messages"):
        return _two_conversations(row, row.get("messages"), row["rejected_messages"])
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise unusable("bad_row", "messages must be a list")
    return _fields(row, messages[:-1], messages[-1:], row.get("rejected_response"))


def _two_conversations(row: Row, chosen: object, rejected: object) -> Row:
    """Return the fields of two whole conversations that differ in their last answers."""
    preferred = messages_of(chosen, "user")
    messages = messages_of(rejected, "user")
    if [(turn.role, turn.text) for turn in messages[:-1]] != [
        (turn.role, turn.text) for turn in preferred[:-1]
    ]:
        raise unusable("multi_turn", "the two conversations differ before their last answers")
    return _from_messages(row, preferred[:-1], preferred[-1:], messages[-1:])


def _fields(row: Row, prompt: object, chosen: object, rejected: object) -> Row:
    return _from_messages(
        row,
        messages_of(prompt, "user"),
        messages_of(chosen, "assistant"),
        messages_of(rejected, "assistant"),
    )


def _from_messages(
    row: Row,
    prompt: Sequence[Message],
    chosen: Sequence[Message],
    rejected: Sequence[Message],
) -> Row:
    system, turns = split_system(prompt)
    return {
        **row,
        SYSTEM: system,
        HISTORY: turns_of(turns[:-1]) if len(turns) > 1 else [],
        "question": only_text(turns[-1:], "user"),
        "chosen": only_text(chosen, "assistant"),
        "rejected": only_text(rejected, "assistant"),
    }


class Format(NamedTuple):
    """A format's columns, and the function from its row to common fields."""

    columns: tuple[str, ...]  # needed; "a|b" needs one of the two
    fields: Callable[[Row], Row]
    # That the function reads where a file has them, beside `detection.OPTIONAL_COLUMNS`, which all
    # formats read.
    optional: tuple[str, ...] = ()
    # A file that has one of these is taken for another format. Needed columns that other formats
    # have, too, say little: so the first rows must be readable.
    without: tuple[str, ...] = ()

    def read(self, row: Row) -> Row:
        """Return the common fields of a row.

        Raises:
            DataError: the row is unusable.
            ConfigError: the function is wrong, which no row can help.
        """
        fields = self.fields(row)
        if not isinstance(fields, dict):
            place = f"{self.fields.__module__}:{self.fields.__qualname__}"
            kind = type(fields).__name__
            raise ConfigError(f"{place} must return a dict of common fields, not {kind}.")
        return fields


RLHFV = Format(("image", "text"), _rlhfv)
RLAIFV = Format((IMAGE, "question", "chosen", "rejected"), dict)
MUFFIN_TSV = Format(TSV_COLUMNS, _muffin_tsv)
TRL = Format(("prompt", "chosen", "rejected", IMAGE), _trl)
TRL_IMPLICIT = Format(
    ("chosen", "rejected", IMAGE),
    _trl_implicit,
    without=("prompt", "question", "conversations", "messages"),
)
LLAMAFACTORY = Format(("conversations|messages", "chosen", "rejected", IMAGE), _llamafactory)
POVID = Format(("conversations", "rejected_conversations", IMAGE), _povid)
SWIFT = Format(("messages", "rejected_response|rejected_messages", IMAGE), _swift)
FORMATS: Mapping[str, Format] = {
    name: registered(PAIR_FORMATS, name, setting="data.format") for name in PAIR_FORMATS
}


def own_id(fields: Row) -> str | None:
    """Return a row's `id`, or else its `idx` after the name of its data set, or None.

    The name is needed because the `idx` of every data set counts from 0.
    """
    data_set = f"{fields['ds_name']}:" if fields.get("ds_name") else ""
    for name, prefix in (("id", ""), ("idx", data_set)):
        value = fields.get(name)
        if isinstance(value, int | str) and value != "":
            # Unpaired surrogates are escaped: an id must be printable.
            return f"{prefix}{value}".encode(errors="backslashreplace").decode()
    return None


def _text(fields: Row, name: str) -> str:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise unusable("bad_row", f"{name} must be text, found {type(value).__name__}")
    return value or ""


def origin_of(fields: Row) -> dict[str, str]:
    """Return the columns that say where a row comes from, as text."""
    extra = fields.get("origin")  # written by `write_pairs`
    origin = dict(extra) if isinstance(extra, dict) else {}
    origin |= {name: fields.get(name) for name in ORIGIN_COLUMNS}
    return {
        name: value if isinstance(value, str) else json.dumps(value, default=str)
        for name, value in origin.items()
        if value is not None
    }
