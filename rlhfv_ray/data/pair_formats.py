"""Read preference pairs stored in six formats into one record.

A row is first converted to common fields (question, chosen, rejected, image, id, origin, spans),
then checked once. The reason of an unusable row is a `DataError` whose message opens with a stable
code: `empty_answer: ...`.

| format         | origin and file                   | needed columns                            |
|----------------|-----------------------------------|-------------------------------------------|
| `rlhfv`        | RLHF-V-Dataset, Muffin's cache of | `image`, `text` (JSON of the three texts) |
|                | log-probs; Parquet                |                                           |
| `rlaifv`       | RLAIF-V-Dataset; Parquet          | `image`, `question`, `chosen`, `rejected` |
| `muffin_tsv`   | Muffin; TSV without header        | seven; image and text in base64           |
| `trl`          | TRL preference; JSON, JSON Lines, | `prompt`, `chosen`, `rejected`, `images`  |
|                | Parquet                           |                                           |
| `llamafactory` | LLaMA-Factory ShareGPT with       | `conversations` in place of `prompt`      |
|                | `ranking: true`                   |                                           |
| `swift`        | ms-swift                          | `messages`, `rejected_response`, `images` |
"""

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from operator import index
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from rlhfv_ray.data.images import MAX_BYTES
from rlhfv_ray.errors import DataError, StorageError
from rlhfv_ray.records import PreferencePair, Span
from rlhfv_ray.storage.folder import open_folder

Row = Mapping[str, Any]

TSV_COLUMNS = ("ds_name", "image", "text", "origin_dataset", "origin_split", "idx", "image_path")
ORIGIN_COLUMNS = ("ds_name", "origin_dataset", "origin_split", "image_path")
OPTIONAL_COLUMNS = (*ORIGIN_COLUMNS, "idx", "id", "system", "chosen_spans", "rejected_spans")
PLACEHOLDER = "<image>"
UNUSABLE = re.compile("[\0\ud800-\udfff]")  # NUL and unpaired surrogates: Arrow refuses them
ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names


def unusable(code: str, reason: str) -> DataError:
    """Return the error of one unusable row."""
    return DataError(f"{code}: {reason}")


def parse_json(text: str | bytes | None) -> Any:
    """Parse JSON from untrusted data.

    Raises:
        DataError: `bad_json`, then the reason.
    """
    try:
        return json.loads(text or "")
    except (ValueError, TypeError, RecursionError) as error:
        raise unusable("bad_json", str(error)) from error


def read_row(
    row: Row, *, format: str, root: Path, fallback_id: str
) -> tuple[str, PreferencePair | DataError]:
    """Return the row's id with its pair, or with the error that makes the row unusable.

    Args:
        row: columns as stored.
        format: a key of `FORMATS`.
        root: resolved folder that image paths are relative to and may not leave.
        fallback_id: id for a row without its own.
    """
    row_id = own_id(row) or fallback_id  # known even if the row's fields cannot be read
    try:
        fields = FORMATS[format].fields(row)
        row_id = own_id(fields) or row_id
        pair = PreferencePair(
            id=row_id,
            image=image_bytes(fields, root),
            question=_text(fields, "question"),
            chosen=_text(fields, "chosen"),
            rejected=_text(fields, "rejected"),
            chosen_spans=_spans(fields, "chosen_spans"),
            rejected_spans=_spans(fields, "rejected_spans"),
            origin=origin_of(fields),
        )
        check_pair(pair)
    except DataError as error:
        return row_id, error
    return row_id, pair


def check_pair(pair: PreferencePair) -> None:
    """Refuse a pair that cannot be trained on.

    Raises:
        DataError: `image_missing`, `empty_question`, `empty_answer`, `equal_answers`, `bad_text` or
            `bad_spans`, then the reason.
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
    check_texts(pair.id, pair.question, pair.chosen, pair.rejected)
    check_texts(*pair.origin, *pair.origin.values())


def check_texts(*texts: str) -> None:
    """Raise an error if a text holds characters that Arrow or a tokenizer cannot represent.

    Raises:
        DataError: there is such a text. The message is `bad_text` and the start of the text.
    """
    for text in texts:
        if UNUSABLE.search(text):
            raise unusable("bad_text", f"NUL or half a surrogate pair in {text[:80]!r}")


def _check_answer(name: str, answer: str, spans: Sequence[Span] | None) -> None:
    if not answer.strip():
        raise unusable("empty_answer", f"the {name} answer is missing or blank")
    for start, stop in spans or ():
        if not 0 <= start < stop <= len(answer):
            reason = f"{name} span [{start}, {stop}) in an answer of {len(answer)} characters"
            raise unusable("bad_spans", reason)


def detect_format(columns: Sequence[str], formats: Mapping[str, "Format"], *, is_tsv: bool) -> str:
    """Return the format of a file, by its type and columns.

    Raises:
        DataError: no format fits; the message names the closest one and its missing columns.
    """

    def missing_share(name: str) -> float:
        return len(_missing(formats[name], columns)) / len(formats[name].columns)

    candidates = [name for name in formats if (name == "muffin_tsv") == is_tsv]
    closest = min(candidates, key=missing_share)
    check_columns(closest, columns, formats)
    return closest


def check_columns(format: str, columns: Sequence[str], formats: Mapping[str, "Format"]) -> None:
    """Refuse an unknown format, or a file without a column that its format needs.

    Raises:
        DataError: `bad_format` or `bad_columns`, then the allowed formats.
    """
    if format not in formats:
        raise DataError(f"bad_format: {format!r} is not one of {', '.join(formats)}")
    if missing := _missing(formats[format], columns):
        raise DataError(
            f"bad_columns: read as format {format!r}, but column {', '.join(missing)} is missing; "
            f"columns of the file: {', '.join(columns) or 'none'}; formats: {', '.join(formats)}"
        )


def _missing(format: "Format", columns: Sequence[str]) -> list[str]:
    return [need for need in format.columns if not set(need.split("|")) & set(columns)]


def _rlhfv(row: Row) -> Row:
    content = parse_json(row.get("text"))
    if isinstance(content, list):  # Muffin's TSV; a fourth element holds log-probs
        content = dict(zip(("question", "chosen", "rejected"), content, strict=False))
    if not isinstance(content, dict):
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


def _llamafactory(row: Row) -> Row:
    return _fields(row, row.get("conversations"), row.get("chosen"), row.get("rejected"))


def _swift(row: Row) -> Row:
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise unusable("bad_row", "messages must be a list")
    return _fields(row, messages[:-1], messages[-1:], row.get("rejected_response"))


def _fields(row: Row, prompt: object, chosen: object, rejected: object) -> Row:
    if row.get("system"):
        raise unusable("multi_turn", "a system prompt is not supported")
    question = _message_text(prompt, "user")
    if question.count(PLACEHOLDER) > 1:
        raise unusable("multi_image", "the question shows more than one image")
    return {
        **row,
        "question": question.replace(PLACEHOLDER, "").strip(),
        "chosen": _message_text(chosen, "assistant"),
        "rejected": _message_text(rejected, "assistant"),
    }


def _message_text(messages: object, role: str) -> str:
    """Return the text of the only message, which must have this role; text is returned as it is."""
    if isinstance(messages, str) or messages is None:
        return messages or ""
    turns = [messages] if isinstance(messages, dict) else messages
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise unusable("bad_row", f"expected text or messages, found {type(messages).__name__}")
    roles = [str(turn.get("role") or turn.get("from")) for turn in turns]
    if [ROLES.get(name, name) for name in roles] != [role]:
        reason = f"expected one {role} message, found {', '.join(roles) or 'none'}"
        raise unusable("multi_turn", reason)
    content = turns[0].get("content") or turns[0].get("value") or ""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    return "".join(part_text(part) for part in parts)


def part_text(part: object) -> str:
    """Return the text of one part of a message; an image becomes its placeholder.

    Raises:
        DataError: `bad_row` for a part of another type.
    """
    if isinstance(part, dict) and part.get("type") == "image":
        return PLACEHOLDER
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise unusable("bad_row", "a message's content must be text or parts of type text and image")


class Format(NamedTuple):
    """A format's needed columns, and the function from its row to common fields."""

    columns: tuple[str, ...]  # "a|b" needs one of the two
    fields: Callable[[Row], Row]


FORMATS: Mapping[str, Format] = {
    "rlhfv": Format(("image", "text"), _rlhfv),
    "rlaifv": Format(("image", "question", "chosen", "rejected"), dict),
    "muffin_tsv": Format(TSV_COLUMNS, _muffin_tsv),
    "trl": Format(("prompt", "chosen", "rejected", "image|images"), _trl),
    "llamafactory": Format(("conversations", "chosen", "rejected", "image|images"), _llamafactory),
    "swift": Format(("messages", "rejected_response", "image|images"), _swift),
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


def _spans(fields: Row, name: str) -> tuple[Span, ...] | None:
    spans = fields.get(name)
    if spans is None:
        return None
    try:
        return tuple((index(start), index(stop)) for start, stop in spans)
    except (TypeError, ValueError) as error:
        raise unusable("bad_spans", f"{name} must be a list of [start, stop): {error}") from error


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


def image_bytes(fields: Row, root: Path) -> bytes:
    """Return the bytes of a row's only image, from the row itself or from a path below `root`.

    Raises:
        DataError: `multi_image`, `image_missing`, `image_path` or `image_too_large`, then the
            reason.
    """
    value = image_value(fields)
    if isinstance(value, str) and value:
        value = _image_file(value, root)
    if not isinstance(value, bytes):
        raise unusable("image_missing", "the row holds neither the bytes nor the path of an image")
    return value


def image_value(fields: Row) -> Any:
    """Return what a row holds as its only image: bytes, a path, or something unusable.

    Raises:
        DataError: `multi_image`, then the reason.
    """
    value = fields.get("images") if fields.get("image") is None else fields.get("image")
    if isinstance(value, list):
        if len(value) > 1:
            raise unusable("multi_image", f"{len(value)} images in one row, one is supported")
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return value


def _image_file(path: str, root: Path) -> bytes:
    """Read an image named by the data: the name is untrusted and may not leave `root`."""
    name = repr(path[:200])
    if "://" in path or PurePosixPath(path).is_absolute() or PureWindowsPath(path).anchor:
        raise unusable("image_path", f"{name} is not a path relative to the data file's folder")
    try:
        file = (root / path).resolve()
        inside = file.is_relative_to(root)
        if inside:
            open_folder(root).fetch_missing(file)
        size = file.stat().st_size if file.is_file() else None
        if inside and size is not None and size <= MAX_BYTES:
            return file.read_bytes()
    except StorageError:  # not the row's fault: the job must stop
        raise
    # Unreadable file, NUL in the name, loop of symbolic links.
    except (OSError, ValueError, RuntimeError) as error:
        raise unusable("image_missing", f"{name} cannot be read: {error}") from error
    if not inside:
        raise unusable("image_path", f"{name} leads out of the data file's folder")
    if size is None:
        raise unusable("image_missing", f"the data file's folder has no file {name}")
    reason = f"{name} has {size} bytes, at most {MAX_BYTES} are allowed"
    raise unusable("image_too_large", reason)
