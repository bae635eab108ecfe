"""Files of preference pairs, cut into slices and read slice by slice.

A slice is a row range of one file and reads on its own, so a Python loop and a Ray Data stage go through the same
door. A bad row is a value, with file and place; only a file that cannot be read raises.
"""

import codecs
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rlhfv_ray.data.pair_formats import (
    FORMATS,
    OPTIONAL_COLUMNS,
    TSV_COLUMNS,
    Format,
    Row,
    check_columns,
    detect_format,
    parse_json,
    read_row,
    unusable,
)
from rlhfv_ray.data.sft_formats import EXAMPLE_FORMATS, read_example
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import Example, PreferencePair
from rlhfv_ray.storage.folder import fetch, fetch_local

SUFFIXES = (".parquet", ".json", ".jsonl", ".tsv")
_MAX_CUTS = 16  # slices of one row group or JSON array: neither can be entered in the middle
_PEEK = 16  # rows of a text file whose keys stand for its columns


@dataclass(frozen=True)
class Slice:
    """Rows [start, stop) of one file."""

    index: int  # place among the slices of the data
    file: str  # absolute
    format: str
    start: int
    stop: int
    offset: int = 0  # byte where row `start` begins; line-based files only
    examples: bool = False  # rows are read as examples, to be imitated

    @property
    def formats(self) -> Mapping[str, Format]:
        """What it may be read as."""
        return EXAMPLE_FORMATS if self.examples else FORMATS


def list_slices(
    path: str | Path, *, format: str = "auto", rows: int = 64, examples: bool = False
) -> list[Slice]:
    """Cut a file, or a folder of shards, into slices of about `rows` rows.

    Args:
        path: a file or a folder of files of one format.
        format: a key of `FORMATS` (of `EXAMPLE_FORMATS`, for examples), or "auto".
        rows: wanted per slice; more where the file's layout makes small slices dear.
        examples: read them as examples, to be imitated, and not as pairs.

    Raises:
        ConfigError: no such format.
        DataError: no data, an unreadable file, missing columns, or shards of different formats.
    """
    known = EXAMPLE_FORMATS if examples else FORMATS
    if format not in ("auto", *known):
        hint = (
            " (one of examples without a rejected answer: experiments/sft.py reads it)"
            if format in EXAMPLE_FORMATS
            else ""
        )
        raise ConfigError(
            f"format {format!r} is unknown here{hint}; formats: auto, {', '.join(known)}"
        )
    slices: list[Slice] = []
    for file in data_files(path):
        with _naming(file):
            name = _format(file, format, examples=examples)
            for start, stop, offset in _cuts(file, rows):
                slices.append(Slice(len(slices), str(file), name, start, stop, offset, examples))
    if len(names := sorted({part.format for part in slices})) > 1:
        raise DataError(
            f"mixed_formats: {path} holds files of formats {', '.join(names)}; keep one per folder"
        )
    return slices


def read_slice(part: Slice) -> Iterator[tuple[str, PreferencePair | Example | DataError]]:
    """Yield each row's id with its pair (or example), or with the error that makes the row unusable.

    Raises:
        DataError: the file cannot be read.
    """
    file = Path(part.file)
    fetch(file)  # of a mirror, on whichever node this is
    root = file.parent.resolve()
    with _naming(file):
        by_line = file.suffix != ".parquet" and not _is_array(file)
        for row, stored in _stored_rows(part):
            row_id = f"{file.name}:{row}"
            if isinstance(stored, DataError):
                pair = stored
            else:
                read = read_example if part.examples else read_row
                row_id, pair = read(stored, format=part.format, root=root, fallback_id=row_id)
            if isinstance(pair, DataError):
                place = (
                    f"{file.name}:{row + 1}" if by_line else f"{file.name} row {row}"
                )  # editors count lines from 1
                pair = DataError(f"{pair} ({place})")
            yield row_id, pair


def load_pairs(path: str | Path, *, format: str = "auto") -> Iterator[PreferencePair]:
    """Read preference pairs, one by one, from a file or a folder of shards.

    Args:
        path: Parquet, JSON, JSON Lines or TSV.
        format: "auto" tells it from file type and columns; else a key of `rlhfv_ray.data.FORMATS`.

    Raises:
        DataError: the data cannot be read, or a row is unusable; names file, row and reason.
    """
    for part in list_slices(path, format=format, rows=sys.maxsize):
        for _, pair in read_slice(part):
            if isinstance(pair, DataError):
                raise pair
            assert isinstance(pair, PreferencePair)
            yield pair


def data_files(path: str | Path) -> list[Path]:
    """List the data files of a folder in name order, or the one file; hidden and `_` names are not data."""
    place = Path(
        os.path.abspath(fetch_local(path))
    )  # not resolve(): a shard may be a link into a download cache
    found = (
        sorted(file for file in place.iterdir() if not file.is_dir()) if place.is_dir() else [place]
    )
    files = [file for file in found if file.suffix in SUFFIXES and file.name[0] not in "._"]
    if not files:
        raise DataError(
            f"no_data: {place} is neither a {', '.join(SUFFIXES)} file nor a folder that holds one"
        )
    return files


def data_digest(path: str | Path) -> str:
    """Give the sha256 over names and bytes of the data files (not of images they point to)."""
    digest = hashlib.sha256()
    for file in data_files(path):
        with file.open("rb") as content:
            digest.update(
                f"{file.name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode()
            )
    return digest.hexdigest()


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"file_unreadable: {file}: {error}") from error
    except DataError as error:
        raise DataError(f"{error} ({file})") from error


def _is_array(file: Path) -> bool:
    if file.suffix != ".json":
        return False
    with file.open("rb") as content:
        return content.read(1024).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _format(file: Path, format: str, *, examples: bool) -> str:
    formats = EXAMPLE_FORMATS if examples else FORMATS
    if file.suffix == ".parquet":
        columns = pq.read_schema(file).names
    else:
        head = (
            row for _, row in _stored_rows(Slice(0, str(file), format, 0, _PEEK, examples=examples))
        )
        columns = list(
            dict.fromkeys(name for row in head if not isinstance(row, DataError) for name in row)
        )
    if format == "auto":
        return detect_format(columns, formats, is_tsv=file.suffix == ".tsv")
    if (format == "muffin_tsv") != (file.suffix == ".tsv"):
        raise DataError(f"bad_columns: a {file.suffix} file cannot be of format {format!r}")
    check_columns(format, columns, formats)
    return format


def _cuts(file: Path, rows: int) -> Iterator[tuple[int, int, int]]:
    """Yield start, stop and byte offset of each slice."""
    if file.suffix == ".parquet":
        metadata = pq.read_metadata(file)
        return _unit_cuts(
            [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], rows
        )
    if _is_array(file):
        return _unit_cuts([len(_array(file))], rows)
    return _line_cuts(file, rows)


def _line_cuts(file: Path, rows: int) -> Iterator[tuple[int, int, int]]:
    count = offset = 0
    starts: list[tuple[int, int]] = []
    with file.open("rb") as lines:
        for line in lines:
            if count % rows == 0:
                starts.append((count, offset))
            count, offset = count + 1, offset + len(line)
    return ((start, min(start + rows, count), place) for start, place in starts)


def _unit_cuts(sizes: Sequence[int], rows: int) -> Iterator[tuple[int, int, int]]:
    start = stop = 0
    for position, size in enumerate(sizes, start=1):
        stop += size
        if stop - start < rows and position < len(sizes):
            continue  # small row groups share a slice
        step = max(rows, -(-(stop - start) // _MAX_CUTS))
        yield from ((at, min(at + step, stop), 0) for at in range(start, stop, step))
        start = stop


def _stored_rows(part: Slice) -> Iterator[tuple[int, Row | DataError]]:
    file = Path(part.file)
    if file.suffix == ".parquet":
        return _parquet_rows(part)
    if _is_array(file):
        items = _array(file)[part.start : part.stop]
        return ((row, _object(item)) for row, item in enumerate(items, part.start))
    return _line_rows(part)


def _parquet_rows(part: Slice) -> Iterator[tuple[int, Row | DataError]]:
    used = {name for need in part.formats[part.format].columns for name in need.split("|")}.union(
        OPTIONAL_COLUMNS
    )
    with pq.ParquetFile(part.file, buffer_size=2**20) as table:
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        ends = list(accumulate(sizes))
        groups = [
            group
            for group, end in enumerate(ends)
            if end - sizes[group] < part.stop and end > part.start
        ]
        columns = [name for name in table.schema_arrow.names if name in used]
        row = ends[groups[0]] - sizes[groups[0]] if groups else part.stop
        for batch in table.iter_batches(batch_size=32, row_groups=groups, columns=columns):
            for place in range(max(part.start - row, 0), min(part.stop - row, batch.num_rows)):
                yield row + place, _arrow_row(batch.slice(place, 1))
            row += batch.num_rows
            if row >= part.stop:
                return


def _arrow_row(batch: pa.RecordBatch) -> Row | DataError:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return unusable("bad_encoding", str(error))


def _line_rows(part: Slice) -> Iterator[tuple[int, Row | DataError]]:
    with open(part.file, "rb") as lines:
        lines.seek(part.offset)
        for row, line in enumerate(islice(lines, part.stop - part.start), part.start):
            if line.strip():
                yield row, _line_row(line if row else line.removeprefix(codecs.BOM_UTF8), part.file)


def _line_row(line: bytes, file: str) -> Row | DataError:
    try:
        text = line.decode().rstrip("\r\n")
        if not file.endswith(".tsv"):
            return _object(parse_json(text))
        values = text.split("\t")
    except UnicodeDecodeError as error:
        return unusable("bad_encoding", str(error))
    except DataError as error:
        return error
    if len(values) != len(TSV_COLUMNS):
        return unusable(
            "bad_row", f"{len(values)} tab-separated values, expected {len(TSV_COLUMNS)}"
        )
    return dict(zip(TSV_COLUMNS, values, strict=True))


def _object(item: object) -> Row | DataError:
    return (
        item
        if isinstance(item, dict)
        else unusable("bad_row", f"expected an object, found {type(item).__name__}")
    )


def _array(file: Path) -> list[object]:
    return parse_json(file.read_bytes())
