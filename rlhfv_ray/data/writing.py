"""Write preference pairs in any of the formats of `targets.TARGETS`."""

import functools
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from rlhfv_ray.data.pair_formats import check_pair
from rlhfv_ray.data.targets import TARGETS, check_held, image_name
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import PreferencePair

_ROW_GROUP = 256  # pairs; a slice reads whole row groups


def write_pairs(
    pairs: Iterable[PreferencePair], path: str | Path, *, format: str = "rlhfv"
) -> None:
    """Write pairs as a file; `load_pairs` gives back the same pairs, as far as the format can.

    In the default, RLHF-V-Dataset's, they are identical: fields without a column in that layout
    (id, marked spans, further origin) are stored in `text`. docs/data.md has a table of the others.
    Images that stand beside the file are in a folder with its name and `_images`. The file gets its
    name only when it is complete.

    Args:
        pairs: to write.
        path: of the file.
        format: a key of `TARGETS`.

    Raises:
        ConfigError: the format is unknown, its files have another suffix, or the path is a folder.
        DataError: a pair is unusable, or the format cannot hold its prompt.
    """
    path = Path(path)
    check_target(path, format)
    target = TARGETS[format]
    path.parent.mkdir(parents=True, exist_ok=True)
    store = functools.partial(_store, path.with_name(f"{path.stem}_images"))
    rows = (target.row(_checked(pair, format), number, store) for number, pair in enumerate(pairs))
    part = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        if target.schema is not None:
            _write_parquet(rows, part, target.schema)
        else:
            _write_json(rows, part, as_lines=path.suffix == ".jsonl")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_target(path: Path, format: str) -> None:
    """Refuse an unknown format, a name that its files do not have, and a folder.

    Raises:
        ConfigError: the message names what is allowed.
    """
    if format not in TARGETS:
        raise ConfigError(f"format {format!r} cannot be written; formats: {', '.join(TARGETS)}")
    suffixes = TARGETS[format].suffixes
    if path.suffix not in suffixes:
        raise ConfigError(f"{path}: a file of format {format} ends with {' or '.join(suffixes)}")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. Name a file in it.")


def _checked(pair: PreferencePair, format: str) -> PreferencePair:
    try:
        check_pair(pair)
        check_held(pair, format)
    except DataError as error:
        raise DataError(f"{error} (pair {pair.id!r})") from error
    return pair


def _store(folder: Path, image: bytes) -> str:
    """Store an image as a file that equal images share, and return its path beside the rows."""
    folder.mkdir(exist_ok=True)
    file = folder / image_name(image)
    if not file.exists():
        draft = folder / f".{file.name}.{os.getpid()}"
        draft.write_bytes(image)
        draft.replace(file)
    return f"{folder.name}/{file.name}"


def _write_parquet(rows: Iterator[dict[str, Any]], path: Path, schema: pa.Schema) -> None:
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def _write_json(rows: Iterator[dict[str, Any]], path: Path, *, as_lines: bool) -> None:
    """Write a row per line; an array is the same lines between brackets."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write("" if as_lines else "[")
        for number, row in enumerate(rows):
            separator = "\n" if number and as_lines else ",\n" if number else ""
            stream.write(separator + json.dumps(row, ensure_ascii=False))
        stream.write("\n" if as_lines else "]\n")
