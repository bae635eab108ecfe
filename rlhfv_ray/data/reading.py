"""Cut files of preference pairs into slices, and read them slice by slice.

A slice is a row range of one file and can be read on its own, so a Python loop and a Ray Data stage
use the same code. A bad row is returned as an error with its file and position. Only a file that
cannot be read raises.
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
    image_bytes,
    image_value,
    parse_json,
    read_row,
    unusable,
)
from rlhfv_ray.data.sft_formats import EXAMPLE_FORMATS, read_example
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import Example, PreferencePair
from rlhfv_ray.storage.files import file_digest
from rlhfv_ray.storage.folder import fetch, fetch_local

SUFFIXES = (".parquet", ".json", ".jsonl", ".tsv")
_MAX_CUTS = 16  # most slices of one row group or JSON array, each of which decodes all of it
_PEEK = 16  # first rows of a text file, whose keys are taken as its columns


@dataclass(frozen=True)
class Slice:
    """Rows [start, stop) of one file."""

    index: int  # position among the slices of the data
    file: str  # absolute
    format: str
    start: int
    stop: int
    offset: int = 0  # byte where row `start` begins; line-based files only
    examples: bool = False  # read the rows as examples to imitate, not as pairs

    @property
    def formats(self) -> Mapping[str, Format]:
        """The formats that its rows may have."""
        return EXAMPLE_FORMATS if self.examples else FORMATS


def list_slices(
    path: str | Path, *, format: str = "auto", rows: int = 64, examples: bool = False
) -> list[Slice]:
    """Cut a file, or a folder of shards, into slices of about `rows` rows.

    Args:
        path: a file or a folder of files of one format.
        format: a key of `FORMATS` (of `EXAMPLE_FORMATS`, for examples), or "auto".
        rows: target size of a slice. Slices are larger where the file's layout makes small ones
            slow.
        examples: read the rows as examples to imitate, not as pairs.

    Raises:
        ConfigError: the format is unknown.
        DataError: no data, an unreadable file, missing columns, or shards of different formats.
    """
    known = EXAMPLE_FORMATS if examples else FORMATS
    if format not in ("auto", *known):
        is_for_sft = format in EXAMPLE_FORMATS
        hint = " (it has no rejected answers; experiments/sft.py reads it)" if is_for_sft else ""
        raise ConfigError(
            f"format {format!r} cannot be read here{hint}; formats: auto, {', '.join(known)}"
        )
    slices: list[Slice] = []
    for file in data_files(path):
        with _naming(file):
            name = _format(file, format, examples=examples)
            for start, stop, offset in _cuts(file, rows):
                slices.append(Slice(len(slices), str(file), name, start, stop, offset, examples))
    names = sorted({part.format for part in slices})
    if len(names) > 1:
        raise DataError(
            f"mixed_formats: {path} holds files of formats {', '.join(names)}; keep one per folder"
        )
    return slices


def read_slice(part: Slice) -> Iterator[tuple[str, PreferencePair | Example | DataError]]:
    """Yield each row's id with its pair (or example), or with the error that makes it unusable.

    Raises:
        DataError: the file cannot be read.
    """
    file = Path(part.file)
    fetch(file)  # if it is in a mirror, this node may not hold it yet
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
                # Editors count lines from 1.
                position = f"{file.name}:{row + 1}" if by_line else f"{file.name} row {row}"
                pair = DataError(f"{pair} ({position})")
            yield row_id, pair


def load_pairs(path: str | Path, *, format: str = "auto") -> Iterator[PreferencePair]:
    """Read preference pairs, one by one, from a file or a folder of shards.

    Args:
        path: Parquet, JSON, JSON Lines or TSV.
        format: a key of `rlhfv_ray.data.FORMATS`, or "auto" to detect it from file type and
            columns.

    Raises:
        DataError: the data cannot be read, or a row is unusable. The message names file, row and
            reason.
    """
    for part in list_slices(path, format=format, rows=sys.maxsize):
        for _, pair in read_slice(part):
            if isinstance(pair, DataError):
                raise pair
            assert isinstance(pair, PreferencePair)
            yield pair


def data_files(path: str | Path) -> list[Path]:
    """List the data files of a folder in name order. If `path` is a file, list that file alone.

    Names that begin with a dot or an underscore are not data.

    Raises:
        DataError: there is no data file. Its message is `no_data` with the path.
    """
    # Not resolve(): a shard may be a link into a download cache, whose names say nothing.
    source = Path(os.path.abspath(fetch_local(path)))
    candidates = [source]
    if source.is_dir():
        candidates = sorted(file for file in source.iterdir() if not file.is_dir())
    files = [file for file in candidates if file.suffix in SUFFIXES and file.name[0] not in "._"]
    if not files:
        raise DataError(
            f"no_data: {source} is neither a {', '.join(SUFFIXES)} file nor a folder with one"
        )
    return files


def data_digest(path: str | Path, *, format: str = "auto", examples: bool = False) -> str:
    """Return the sha256 over names and bytes of the data files, and of the images they point to.

    Args:
        path: as for `list_slices`.
        format: as for `list_slices`.
        examples: as for `list_slices`.

    Raises:
        DataError: the data cannot be read.
    """
    digest = hashlib.sha256()
    for file in data_files(path):
        digest.update(f"{file.name}\0{file_digest(file)}\n".encode())
    for part in list_slices(path, format=format, rows=sys.maxsize, examples=examples):
        with _naming(Path(part.file)):
            for name, image_digest in _named_images(part).items():
                digest.update(f"{part.index}\0{name}\0{image_digest}\n".encode())
    return digest.hexdigest()


def _named_images(part: Slice) -> dict[str, str]:
    """Return the sha256 of every image that a slice's rows name by a path, by that path.

    An image that cannot be used has its reason in place of the digest.
    """
    digests: dict[str, str] = {}
    if _embeds_images(Path(part.file)):
        return digests
    root = Path(part.file).parent.resolve()
    for _, stored in _stored_rows(part):
        if isinstance(stored, DataError):
            continue
        try:
            name = image_value(part.formats[part.format].fields(stored))
        except DataError:
            continue  # the file's own digest stands for the row
        if isinstance(name, str) and name not in digests:
            try:
                digests[name] = hashlib.sha256(image_bytes({"image": name}, root)).hexdigest()
            except DataError as error:
                digests[name] = str(error)
    return digests


def _embeds_images(file: Path) -> bool:
    """Return True if a file's images are certainly in the file; reading its rows would be slow."""
    if file.suffix != ".parquet":
        return file.suffix == ".tsv"
    metadata = pq.read_metadata(file)
    schema = metadata.schema.to_arrow_schema()
    columns = {"image", "images"} & set(schema.names)
    return bool(columns) and all(
        _is_bytes(schema.field(name).type) or _has_all_bytes(metadata, name) for name in columns
    )


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _has_all_bytes(metadata: pq.FileMetaData, name: str) -> bool:
    """Return True if the statistics of a column, or list, of images show bytes in each of them."""
    paths = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)]
    leaves = [
        leaf
        for leaf, path in enumerate(paths)
        if path.split(".")[0] == name and path.endswith(".bytes")
    ]
    if len(leaves) != 1:
        return False
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    statistics = [group.column(leaves[0]).statistics for group in groups]
    return all(known is not None and known.null_count == 0 for known in statistics)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Add the file's name to every error about its content."""
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
    """Return the format of a file; "auto" detects it, any other is checked against the columns."""
    formats = EXAMPLE_FORMATS if examples else FORMATS
    columns: list[str] = []
    if file.suffix == ".parquet":
        columns = pq.read_schema(file).names
    else:
        head = Slice(0, str(file), format, 0, _PEEK, examples=examples)
        for _, row in _stored_rows(head):
            if not isinstance(row, DataError):
                columns.extend(name for name in row if name not in columns)
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
        groups = range(metadata.num_row_groups)
        return _unit_cuts([metadata.row_group(group).num_rows for group in groups], rows)
    if _is_array(file):
        return _unit_cuts([len(_array(file))], rows)
    return _line_cuts(file, rows)


def _line_cuts(file: Path, rows: int) -> Iterator[tuple[int, int, int]]:
    """Cut a file of lines every `rows` lines."""
    count = 0
    offset = 0
    starts: list[tuple[int, int]] = []  # line number and byte offset of each slice
    with file.open("rb") as lines:
        for line in lines:
            if count % rows == 0:
                starts.append((count, offset))
            count += 1
            offset += len(line)
    return ((start, min(start + rows, count), offset) for start, offset in starts)


def _unit_cuts(sizes: Sequence[int], rows: int) -> Iterator[tuple[int, int, int]]:
    """Cut a file of units, each decoded as a whole, of the given numbers of rows."""
    start = 0
    stop = 0
    for position, size in enumerate(sizes, start=1):
        stop += size
        if stop - start < rows and position < len(sizes):
            continue  # small row groups share a slice
        step = max(rows, -(-(stop - start) // _MAX_CUTS))  # rounded up
        for first in range(start, stop, step):
            yield first, min(first + step, stop), 0
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
    """Read the rows of a slice, from the row groups it touches and the columns its format has."""
    names: set[str] = set(OPTIONAL_COLUMNS)
    for need in part.formats[part.format].columns:
        names.update(need.split("|"))
    with pq.ParquetFile(part.file, buffer_size=2**20) as table:
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        ends = list(accumulate(sizes))  # row after the last of each group
        groups = [
            group
            for group, end in enumerate(ends)
            if end - sizes[group] < part.stop and end > part.start
        ]
        columns = [name for name in table.schema_arrow.names if name in names]
        row = ends[groups[0]] - sizes[groups[0]] if groups else part.stop  # first row of the batch
        for batch in table.iter_batches(batch_size=32, row_groups=groups, columns=columns):
            first = max(part.start - row, 0)
            last = min(part.stop - row, batch.num_rows)
            for position in range(first, last):
                yield row + position, _arrow_row(batch.slice(position, 1))
            row += batch.num_rows
            if row >= part.stop:
                return


def _arrow_row(batch: pa.RecordBatch) -> Row | DataError:
    """Convert a batch of one row; row by row, so that a bad one does not spoil its neighbours."""
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return unusable("bad_encoding", str(error))


def _line_rows(part: Slice) -> Iterator[tuple[int, Row | DataError]]:
    with open(part.file, "rb") as lines:
        lines.seek(part.offset)
        for row, line in enumerate(islice(lines, part.stop - part.start), part.start):
            if row == 0:  # editors on Windows begin a file with a byte order mark
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield row, _line_row(line, part.file)


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
        reason = f"{len(values)} tab-separated values, expected {len(TSV_COLUMNS)}"
        return unusable("bad_row", reason)
    return dict(zip(TSV_COLUMNS, values, strict=True))


def _object(item: object) -> Row | DataError:
    if isinstance(item, dict):
        return item
    return unusable("bad_row", f"expected an object, found {type(item).__name__}")


def _array(file: Path) -> list[object]:
    return parse_json(file.read_bytes())
