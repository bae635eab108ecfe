"""Cut files of preference pairs into slices, and read them slice by slice.

A slice is a row range of one file and can be read on its own, so a Python loop and a Ray Data stage
use the same code. A bad row is returned as an error with its file and position. Only a file that
cannot be read raises.
"""

import hashlib
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from rlhfv_ray.config import DataConfig
from rlhfv_ray.data.detection import (
    STORED_LOGPS,
    TSV_FORMAT,
    check_columns,
    columns_to_read,
    detect_format,
    fits,
    unused_columns,
)
from rlhfv_ray.data.files.image_sources import (
    IMAGE_COLUMNS,
    ImageRoots,
    image_bytes,
    image_value,
    resolved_root,
)
from rlhfv_ray.data.files.parquet import embeds_images, parquet_cuts, parquet_rows
from rlhfv_ray.data.files.sources import DataFile, data_files
from rlhfv_ray.data.files.text import (
    TSV,
    by_lines,
    is_seekable,
    rows_with_offsets,
    suffix_of,
    text_rows,
)
from rlhfv_ray.data.pair_formats import FORMATS, TSV_COLUMNS, Format, read_row
from rlhfv_ray.data.row_fields import Row, attempt, column_map, renamed, row_error, say_once
from rlhfv_ray.data.sft_formats import EXAMPLE_FORMATS, read_example
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import Example, PreferencePair
from rlhfv_ray.storage.files import known_digest
from rlhfv_ray.storage.folder import fetch

PARQUET = ".parquet"
_MAX_CUTS = 16  # most slices of a file that is read from its beginning each time
_PEEK = 16  # first rows of a file, which show its columns and its format


@dataclass(frozen=True)
class ReadOptions:
    """Settings of reading that hold for all files of the data."""

    image_root: str = ""
    ids: Literal["own", "position"] = "own"
    columns: tuple[str, ...] = ()
    short_answers: bool = False

    @classmethod
    def of(cls, data: DataConfig) -> "ReadOptions":
        """Return the options of a job's data."""
        return cls(data.image_root, data.ids, data.columns, data.short_answers)

    def columns_read(self, format: Format) -> set[str]:
        """Return the columns that a file may store of those that a format reads."""
        return columns_to_read(format) | set(column_map(self.columns).values())


@dataclass(frozen=True)
class Slice:
    """Rows [start, stop) of one file."""

    index: int  # position among the slices of the data
    file: str  # absolute
    format: str
    start: int
    stop: int
    offset: int = 0  # byte where row `start` begins; text files only
    examples: bool = False  # read the rows as examples to imitate, not as pairs
    name: str = ""  # of the file in the data; empty: its last part
    options: ReadOptions = ReadOptions()
    source: int = 0  # of mixed data, counted from 0

    @property
    def formats(self) -> Mapping[str, Format]:
        """The formats that its rows may have."""
        return EXAMPLE_FORMATS if self.examples else FORMATS

    @cached_property
    def title(self) -> str:
        """The file's name in the data, for ids and messages."""
        return self.name or Path(self.file).name

    def unique_id(self, row_id: str) -> str:
        """Return a row's id, which another source of mixed data may have too."""
        return f"{self.source + 1}/{row_id}" if self.source else row_id

    @property
    def roots(self) -> ImageRoots:
        """The folders that its images may stand in."""
        file = Path(self.file)
        base = file.parents[self.title.count("/")]
        folders = dict.fromkeys((file.parent.resolve(), base.resolve()))
        extra = self.options.image_root
        return ImageRoots(tuple(folders), resolved_root(extra) if extra else None)


def list_slices(
    path: str | Path,
    *,
    format: str = "auto",
    rows: int = 64,
    examples: bool = False,
    options: ReadOptions = ReadOptions(),
) -> list[Slice]:
    """Cut a file, or a folder of shards, into slices of about `rows` rows.

    Args:
        path: see `data_files`; all files are of one format.
        format: a key of `FORMATS` (of `EXAMPLE_FORMATS`, for examples), or "auto".
        rows: target size of a slice. Slices are larger where the file's layout makes small ones
            slow.
        examples: read the rows as examples to imitate, not as pairs.
        options: how rows are read.

    Raises:
        ConfigError: the format is unknown.
        DataError: no data, no rows, an unreadable file, missing columns, or shards of different
            formats.
    """
    known = EXAMPLE_FORMATS if examples else FORMATS
    if format not in ("auto", *known):
        is_for_sft = format in EXAMPLE_FORMATS
        hint = " (it has no rejected answers; `rlhfv-ray sft` reads it)" if is_for_sft else ""
        raise ConfigError(
            f"format {format!r} cannot be read here{hint}; formats: auto, {', '.join(known)}"
        )
    slices: list[Slice] = []
    unused: dict[str, None] = {}
    empty: list[str] = []
    for file in data_files(path):
        with _naming(file.path):
            settings = (0, examples, file.name, options)
            head = Slice(0, str(file.path), format, 0, _PEEK, *settings)
            head = replace(head, format=_format(head, unused))
            if not head.format:
                empty.append(str(file.path))
                continue
            for start, stop, offset in _cuts(file, rows):
                bounds = {"start": start, "stop": stop, "offset": offset}
                slices.append(replace(head, index=len(slices), **bounds))
    _check_files(path, slices, empty, unused)
    return slices


def _check_files(
    path: str | Path, slices: Sequence[Slice], empty: Sequence[str], unused: Iterable[str]
) -> None:
    """Say once what is not read of the files, and check that the others have one format.

    Raises:
        DataError: `no_data` or `mixed_formats`, then the files.
    """
    if empty and not slices:
        raise DataError(f"no_data: {', '.join(empty)} holds no rows")
    if empty:
        say_once(f"Files without rows are left out: {', '.join(empty)}.")
    if unused:
        say_once(f"Columns of {path} that are not read: {', '.join(unused)}.")
    names = sorted({part.format for part in slices})
    if len(names) > 1:
        raise DataError(
            f"mixed_formats: {path} holds files of formats {', '.join(names)}; keep one per folder"
        )


def read_slice(part: Slice) -> Iterator[tuple[str, PreferencePair | Example | DataError]]:
    """Yield each row's id with its pair (or example), or with the error that makes it unusable.

    Raises:
        DataError: the file cannot be read.
    """
    file = Path(part.file)
    fetch(file)  # if it is in a mirror, this node may not hold it yet
    roots = part.roots
    read = read_row
    if part.examples:
        read = partial(read_example, short_answers=part.options.short_answers)
    with _naming(file):
        for row, position, stored in positioned_rows(part):
            row_id = f"{part.title}:{row}"
            if isinstance(stored, DataError):
                yield part.unique_id(row_id), row_error(stored, position)
                continue
            own_id, record = read(
                stored, format=part.format, roots=roots, fallback_id=row_id, position=position
            )
            row_id = part.unique_id(own_id if part.options.ids == "own" else row_id)
            yield row_id, record if isinstance(record, DataError) else replace(record, id=row_id)


def positioned_rows(
    part: Slice, columns: set[str] | None = None
) -> Iterator[tuple[int, str, Row | DataError]]:
    """Yield number, position for people, and content of each row of a slice.

    Args:
        part: rows of a file.
        columns: to read, where a file stores columns; None: all that the format uses.
    """
    file = Path(part.file)
    # People count from 1, as editors count lines.
    mark = ":" if suffix_of(file) != PARQUET and by_lines(file) else " row "
    for row, stored in _stored_rows(part, columns):
        yield row, f"{part.title}{mark}{row + 1}", stored


def load_pairs(path: str | Path, *, format: str = "auto") -> Iterator[PreferencePair]:
    """Read preference pairs, one by one, from a file or a folder of shards.

    Args:
        path: Parquet, JSON, JSON Lines or TSV; see docs/data.md.
        format: a key of `rlhfv_ray.data.FORMATS`, or "auto" to detect it from file type, columns
            and first rows.

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


def data_digest(
    path: str | Path,
    *,
    format: str = "auto",
    examples: bool = False,
    options: ReadOptions = ReadOptions(),
) -> str:
    """Return the sha256 over names and bytes of the data files, and of the images they point to.

    Args:
        path: as for `list_slices`.
        format: as for `list_slices`.
        examples: as for `list_slices`.
        options: as for `list_slices`.

    Raises:
        DataError: the data cannot be read.
    """
    digest = hashlib.sha256()
    for file in data_files(path):
        digest.update(f"{file.name}\0{known_digest(file.path)}\n".encode())
    slices = list_slices(path, format=format, rows=sys.maxsize, examples=examples, options=options)
    for part in slices:
        with _naming(Path(part.file)):
            for name, image_digest in _named_images(part).items():
                digest.update(f"{part.index}\0{name}\0{image_digest}\n".encode())
    return digest.hexdigest()


def _named_images(part: Slice) -> dict[str, str]:
    """Return the sha256 of every image that a slice's rows name by a path, by that path.

    An image that cannot be used has its reason in place of the digest.
    """
    digests: dict[str, str] = {}
    if _embeds_images(part):
        return digests
    roots = part.roots
    for _, stored in _stored_rows(part):
        if isinstance(stored, DataError):
            continue
        # The file's own digest stands for a row that cannot be read.
        name = attempt(partial(_image_of, part, stored))
        if isinstance(name, str) and name not in digests:
            try:
                digests[name] = hashlib.sha256(image_bytes({"image": name}, roots)).hexdigest()
            except DataError as error:
                digests[name] = str(error)
    return digests


def _image_of(part: Slice, row: Row) -> object:
    return image_value(part.formats[part.format].read(row))


def _embeds_images(part: Slice) -> bool:
    suffix = suffix_of(Path(part.file))
    if suffix != PARQUET:
        return suffix == TSV
    stored_names = column_map(part.options.columns)
    return embeds_images(Path(part.file), [stored_names.get(name, name) for name in IMAGE_COLUMNS])


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Add the file's name to every error about its content."""
    try:
        yield
    # zlib and EOFError: a torn gzip file. UnicodeError: a torn UTF-16 one.
    except (OSError, EOFError, zlib.error, UnicodeError, pa.ArrowException) as error:
        raise DataError(f"file_unreadable: {file}: {error}") from error
    except DataError as error:
        raise DataError(f"{error} ({file})") from error


def _format(head: Slice, unused: dict[str, None]) -> str:
    """Return the format of a file; "auto" detects it, any other is checked against the columns.

    It is empty for a text file without rows.

    Args:
        head: the file's first rows.
        unused: receives the columns that the format does not read.
    """
    file = Path(head.file)
    suffix = suffix_of(file)
    stored_names = column_map(head.options.columns)
    if suffix == PARQUET:
        stored_columns = pq.read_schema(file).names
        no_images = set(stored_columns) - set(IMAGE_COLUMNS)
        columns = list(renamed(dict.fromkeys(stored_columns), stored_names))
        rows = _usable_rows(head, no_images)  # read only if several formats fit
    else:
        whole = replace(head, stop=sys.maxsize)  # blank lines are no rows
        first_rows = [row for _, row in islice(_stored_rows(whole), _PEEK)]
        if not first_rows:
            return ""
        rows = [row for row in first_rows if not isinstance(row, DataError)]
        if not rows and isinstance(first_rows[0], DataError):
            raise first_rows[0]  # no row shows a column: the reason is what helps
        columns = list(dict.fromkeys(name for row in rows for name in row))
    if missing := [name for name in stored_names if name not in columns]:
        absent = ", ".join(stored_names[name] for name in missing)
        raise DataError(
            f"bad_columns: --data.columns names {absent}, which the file does not have; columns: "
            f"{', '.join(columns) or 'none'}"
        )
    if head.format == "auto":
        format = _detected(head, columns, rows, is_tsv=suffix == TSV)
    else:
        format = head.format
        if (format == TSV_FORMAT) != (suffix == TSV):
            raise DataError(f"bad_columns: a {suffix} file cannot be of format {format!r}")
        check_columns(format, columns, head.formats)
    _warn_of_logps(file, columns)
    unused.update(dict.fromkeys(unused_columns(head.formats[format], columns)))
    return format


def _detected(head: Slice, columns: Sequence[str], rows: Iterable[Row], *, is_tsv: bool) -> str:
    try:
        return detect_format(columns, rows, head.formats, is_tsv=is_tsv)
    except DataError as error:
        examples = [name for name in EXAMPLE_FORMATS if name not in FORMATS]
        fitting = [name for name in examples if fits(EXAMPLE_FORMATS[name], columns)]
        if head.examples or not fitting:
            raise
        hint = f"The file fits {fitting[0]}, a format of fine-tuning: `rlhfv-ray sft`"
        raise DataError(f"{error}. {hint}") from error


def _usable_rows(part: Slice, columns: set[str] | None = None) -> Iterator[Row]:
    for _, row in _stored_rows(part, columns):
        if not isinstance(row, DataError):
            yield row


def _warn_of_logps(file: Path, columns: Sequence[str]) -> None:
    if STORED_LOGPS in columns or file.stem.endswith("_with_logp"):
        say_once(
            f"{file.name} holds log-probs of an earlier reference. They are not used, because they "
            "were made on randomly cropped and flipped pixels: they are computed anew."
        )


def _cuts(file: DataFile, rows: int) -> Iterator[tuple[int, int, int]]:
    """Yield start, stop and byte offset of each slice."""
    if suffix_of(file.path) == PARQUET:
        for start, stop in parquet_cuts(file.path, rows):
            yield start, stop, 0
        return
    starts: list[int] = []  # byte where every `step`-th row begins
    step = rows
    count = 0
    bounded = not is_seekable(file.path)
    for count, offset in enumerate(rows_with_offsets(file.path), start=1):
        if (count - 1) % step == 0:
            starts.append(offset)
        if bounded and len(starts) > 2 * _MAX_CUTS:
            starts, step = starts[::2], 2 * step
    for number, offset in enumerate(starts):
        yield number * step, min((number + 1) * step, count), offset


def _stored_rows(
    part: Slice, columns: set[str] | None = None
) -> Iterator[tuple[int, Row | DataError]]:
    """Yield number and content of each row, under the names that formats use."""
    file = Path(part.file)
    stored_names = column_map(part.options.columns)
    if suffix_of(file) == PARQUET:
        if columns is None:
            columns = part.options.columns_read(part.formats[part.format])
        rows = parquet_rows(file, part.start, part.stop, columns)
    else:
        rows = text_rows(file, part.start, part.stop, part.offset, TSV_COLUMNS)
    for row, stored in islice(rows, part.stop - part.start):
        yield row, stored if isinstance(stored, DataError) else renamed(stored, stored_names)
