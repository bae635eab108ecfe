"""The formats that pairs are written in, and what each of them can hold.

A system prompt and earlier turns are part of a prompt, so a format without a place for them cannot
hold their pair. Marked spans and further origin describe a pair: where a format has no place for
them, the pair is written without.

Texts of messages stand beside `<image>`, whose blanks are no part of a text.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, Literal, NamedTuple

import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from rlhfv_ray.data.messages import PLACEHOLDER
from rlhfv_ray.data.pair_formats import HISTORY, ORIGIN_COLUMNS, SYSTEM
from rlhfv_ray.data.row_fields import unusable
from rlhfv_ray.records import PreferencePair

# A place where the format's own tools look; or a column of ours, which they ignore; or none.
Place = Literal["yes", "own", "no"]
SYSTEM_PROMPT, TURNS, SPANS = "a system prompt", "earlier turns", "marked spans"
ORIGIN, BLANKS = "further origin", "blanks around a question"
CONTEXT = (SYSTEM_PROMPT, TURNS)
# Stores an image as a file, and returns its path relative to the file of rows.
StoreImage = Callable[[bytes], str]


class Target(NamedTuple):
    """A format to write: its files, its row, and where it holds what not every pair has."""

    suffixes: tuple[str, ...]
    row: Callable[[PreferencePair, int, StoreImage], dict[str, Any]]
    places: Mapping[str, Place]
    schema: pa.Schema | None = None  # of a Parquet file; None: JSON


def traits(pair: PreferencePair) -> list[str]:
    """Return what a pair has that not every format can hold.

    Example:
        >>> traits(PreferencePair("1", b"", "q", "a", "b", system="Be brief.", origin={"x": "y"}))
        ['a system prompt', 'further origin']
    """
    questions = [pair.question, *(question for question, _ in pair.history)]
    has = {
        SYSTEM_PROMPT: bool(pair.system),
        TURNS: bool(pair.history),
        SPANS: pair.chosen_spans is not None or pair.rejected_spans is not None,
        ORIGIN: bool(_further_origin(pair)),
        BLANKS: any(question != question.strip() for question in questions),
    }
    return [trait for trait, present in has.items() if present]


def check_held(pair: PreferencePair, format: str) -> None:
    """Refuse a pair whose prompt a format cannot hold.

    Raises:
        DataError: `not_held`, then the part of the prompt.
    """
    for trait in traits(pair):
        if trait in CONTEXT and TARGETS[format].places[trait] == "no":
            raise unusable("not_held", f"format {format} has no place for {trait}")


def image_type(image: bytes) -> str:
    """Return the type of an encoded image in lower case, as `png`; `img` if it is not known."""
    try:
        with Image.open(BytesIO(image)) as header:
            return (header.format or "img").lower()
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return "img"


def image_name(image: bytes) -> str:
    """Return a file name for an image that equal images share."""
    return f"{hashlib.sha256(image).hexdigest()[:32]}.{image_type(image)}"


def _further_origin(pair: PreferencePair) -> dict[str, str]:
    return {name: value for name, value in pair.origin.items() if name not in ORIGIN_COLUMNS}


def _idx(pair: PreferencePair, number: int) -> int:
    """Return the number at the end of a pair's id, or else the number of its row."""
    digits = pair.id.rpartition(":")[2]
    is_int64 = digits.isdecimal() and len(digits) < 19  # 18 digits always fit
    return int(digits) if is_int64 else number


def _own_columns(pair: PreferencePair) -> dict[str, Any]:
    """Return the columns that only rlhfv-ray reads, of those that the pair needs."""
    known = {name: pair.origin[name] for name in ORIGIN_COLUMNS if name in pair.origin}
    columns: dict[str, Any] = {"id": pair.id, **known}
    for name in ("chosen_spans", "rejected_spans"):
        if (spans := getattr(pair, name)) is not None:
            columns[name] = [list(span) for span in spans]
    if origin := _further_origin(pair):
        columns["origin"] = origin
    return columns


def _rlhfv_row(pair: PreferencePair, number: int, _: StoreImage) -> dict[str, Any]:
    names = ("id", "question", "chosen", "rejected", "chosen_spans", "rejected_spans")
    text = {name: value for name in names if (value := getattr(pair, name)) is not None}
    text |= {SYSTEM: pair.system} if pair.system else {}
    text |= {HISTORY: pair.history} if pair.history else {}
    if origin := _further_origin(pair):
        text["origin"] = origin
    return {
        **{name: pair.origin.get(name) for name in ORIGIN_COLUMNS},
        "image": {"bytes": pair.image, "path": None},
        "text": json.dumps(text, ensure_ascii=False),
        "idx": _idx(pair, number),
    }


def _rlaifv_row(pair: PreferencePair, number: int, _: StoreImage) -> dict[str, Any]:
    texts = {"question": pair.question, "chosen": pair.chosen, "rejected": pair.rejected}
    image = {"bytes": pair.image, "path": None}
    return {**_own_columns(pair), **texts, "image": image, "idx": _idx(pair, number)}


def _conversation(pair: PreferencePair) -> list[tuple[str, str]]:
    """Return role and text of each message of the prompt; the first question has the image."""
    messages: list[tuple[str, str]] = []
    for question, answer in pair.history:
        messages += [("user", question), ("assistant", answer)]
    messages.append(("user", pair.question))
    return [("user", f"{PLACEHOLDER}{messages[0][1].strip()}"), *messages[1:]]


def _trl_message(role: str, text: str) -> dict[str, Any]:
    parts: list[dict[str, str | None]] = [
        {"type": "text", "text": text.removeprefix(PLACEHOLDER)},
    ]
    if text.startswith(PLACEHOLDER):
        parts.insert(0, {"type": "image", "text": None})
    return {"role": role, "content": parts}


def _trl_row(pair: PreferencePair, _: int, __: StoreImage) -> dict[str, Any]:
    system = [("system", pair.system)] if pair.system else []
    return {
        **_own_columns(pair),
        "prompt": [_trl_message(*message) for message in [*system, *_conversation(pair)]],
        "chosen": [_trl_message("assistant", pair.chosen)],
        "rejected": [_trl_message("assistant", pair.rejected)],
        "images": [{"bytes": pair.image, "path": None}],
    }


def _llamafactory_row(pair: PreferencePair, _: int, store: StoreImage) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt"}
    turns = [{"from": names[role], "value": text} for role, text in _conversation(pair)]
    return {
        **_own_columns(pair),
        "conversations": turns,
        "chosen": {"from": "gpt", "value": pair.chosen},
        "rejected": {"from": "gpt", "value": pair.rejected},
        "images": [store(pair.image)],
        "system": pair.system,
    }


def _swift_row(pair: PreferencePair, _: int, store: StoreImage) -> dict[str, Any]:
    system = [("system", pair.system)] if pair.system else []
    messages = [*system, *_conversation(pair), ("assistant", pair.chosen)]
    return {
        **_own_columns(pair),
        "messages": [{"role": role, "content": text} for role, text in messages],
        "rejected_response": pair.rejected,
        "images": [store(pair.image)],
    }


def _label_studio_row(pair: PreferencePair, _: int, __: StoreImage) -> dict[str, Any]:
    code = base64.b64encode(pair.image).decode()
    data = {
        **_own_columns(pair),
        "image": f"data:image/{image_type(pair.image)};base64,{code}",
        "question": pair.question,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
    }
    data |= {"system": pair.system} if pair.system else {}
    data |= {HISTORY: pair.history} if pair.history else {}
    return {"data": data}


_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
_PARTS = pa.list_(pa.struct({"type": pa.string(), "text": pa.string()}))
_MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": _PARTS}))
_SPANS = pa.list_(pa.list_(pa.int64()))
_SCHEMAS: dict[str, dict[str, pa.DataType]] = {
    "rlhfv": {  # RLHF-V-Dataset
        "ds_name": pa.string(),
        "image": _IMAGE,
        "text": pa.string(),
        "origin_dataset": pa.string(),
        "origin_split": pa.string(),
        "idx": pa.int64(),
        "image_path": pa.string(),
    },
    "rlaifv": {  # RLAIF-V-Dataset, then our own columns
        "ds_name": pa.string(),
        "image": _IMAGE,
        "question": pa.string(),
        "chosen": pa.string(),
        "rejected": pa.string(),
        "origin_dataset": pa.string(),
        "origin_split": pa.string(),
        "idx": pa.int64(),
        "image_path": pa.string(),
        **{"id": pa.string(), "chosen_spans": _SPANS, "rejected_spans": _SPANS},
    },
    "trl": {  # TRL's data sets with images, then our own columns
        "images": pa.list_(_IMAGE),
        "prompt": _MESSAGES,
        "chosen": _MESSAGES,
        "rejected": _MESSAGES,
        **{"id": pa.string(), "chosen_spans": _SPANS, "rejected_spans": _SPANS},
        **dict.fromkeys(ORIGIN_COLUMNS, pa.string()),
    },
}
_ALL_OWN: dict[str, Place] = {SYSTEM_PROMPT: "own", TURNS: "own", SPANS: "own", ORIGIN: "own"}
_IN_MESSAGES: dict[str, Place] = {SYSTEM_PROMPT: "yes", TURNS: "yes", SPANS: "own", BLANKS: "no"}
_PLAIN: dict[str, Place] = {SYSTEM_PROMPT: "no", TURNS: "no", SPANS: "own", BLANKS: "yes"}
_JSON = (".json", ".jsonl")


def _schema(format: str) -> pa.Schema:
    """Return a file's columns, with the metadata by which `datasets` shows images as images."""
    columns = pa.schema(_SCHEMAS[format])
    features = {field.name: _feature(field.type) for field in columns}
    return columns.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _feature(kind: pa.DataType) -> dict[str, Any]:
    """Return a type in the form of `datasets`."""
    if kind == _IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    return {"dtype": str(kind), "_type": "Value"}


TARGETS: Mapping[str, Target] = {
    "rlhfv": Target((".parquet",), _rlhfv_row, {**_ALL_OWN, BLANKS: "yes"}, _schema("rlhfv")),
    "rlaifv": Target((".parquet",), _rlaifv_row, {**_PLAIN, ORIGIN: "no"}, _schema("rlaifv")),
    "trl": Target((".parquet",), _trl_row, {**_IN_MESSAGES, ORIGIN: "no"}, _schema("trl")),
    "llamafactory": Target(_JSON, _llamafactory_row, {**_IN_MESSAGES, ORIGIN: "own"}),
    "swift": Target(_JSON, _swift_row, {**_IN_MESSAGES, ORIGIN: "own"}),
    "label_studio": Target((".json",), _label_studio_row, {**_ALL_OWN, BLANKS: "yes"}),
}
