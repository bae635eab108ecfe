"""Text files of rows: JSON Lines, a JSON array or an object around one, TSV; also gzip, UTF-16.

A file is read as a stream of UTF-8 bytes, from the byte where a slice begins. Its memory is that of
a few rows. A row in a line of its own costs only itself when it is broken. Values that span lines
(an array, a pretty-printed object) must be correct up to their end.
"""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from rlhfv_ray.data.files.image_sources import IMAGE_COLUMNS
from rlhfv_ray.data.row_fields import Row, parse_json, unusable
from rlhfv_ray.errors import DataError

TSV = ".tsv"
SUFFIXES = (".json", ".jsonl", TSV)
GZIP = b"\x1f\x8b"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
CHUNK = 2**16  # characters of one read
TORN = 16  # characters before the end of a buffer where an error may be only the buffer's end


class _AsUtf8(io.RawIOBase):
    """A text stream as UTF-8 bytes."""

    def __init__(self, text: io.TextIOBase) -> None:
        self.text, self.rest = text, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.rest:
            self.rest = self.text.read(CHUNK).encode()
        size = min(len(buffer), len(self.rest))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size

    def close(self) -> None:
        self.text.close()
        super().close()


def open_text(file: Path, offset: int = 0) -> BinaryIO:
    """Open a text file as a stream of UTF-8 bytes that begins at an offset of this stream."""
    opened = gzip.open if is_gzip(file) else open
    stream = cast(BinaryIO, opened(file, "rb"))
    if stream.read(2) in UTF_16:
        stream.seek(0)
        # A broken character becomes an escape that JSON does not know: it costs its row.
        text = io.TextIOWrapper(stream, "utf-16", "backslashreplace", newline="\n")
        stream = cast(BinaryIO, io.BufferedReader(_AsUtf8(text)))
    else:
        stream.seek(0)
    if stream.seekable():
        stream.seek(offset)
    while not stream.seekable() and offset > 0:
        offset -= len(stream.read(min(offset, CHUNK))) or offset
    return stream


def read_text(file: Path) -> str:
    """Return all text of a file in UTF-8 or UTF-16, with or without a mark of its order of bytes.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is of another encoding, or compressed and cut off.
    """
    try:
        with open_text(file) as content:
            return content.read().decode("utf-8-sig")
    except (EOFError, zlib.error) as error:
        raise ValueError(f"its compressed content is damaged: {error}") from error


def is_gzip(file: Path) -> bool:
    """Return True if a file is compressed, whatever its name says."""
    with file.open("rb") as content:
        return content.read(2) == GZIP


def is_seekable(file: Path) -> bool:
    """Return True if a slice of a file is read without what stands before it."""
    with file.open("rb") as content:
        head = content.read(2)
    return head != GZIP and head not in UTF_16


def suffix_of(file: Path) -> str:
    """Return a file's suffix in lower case, without that of its compression."""
    name = file.name.lower().removesuffix(".gz")
    return Path(name).suffix


def by_lines(file: Path) -> bool:
    """Return True if a file holds a row per line, and False for values that span lines."""
    if suffix_of(file) == TSV:
        return True
    try:
        return not _spans_lines(file)
    except DataError:  # a broken first line is no array: the lines after it may be good
        return True


def _spans_lines(file: Path) -> bool:
    stream = _JsonStream(file, 0)
    with stream.text:
        match stream.peek():
            case "[":
                return isinstance(next(_values(file), (0, {}))[1], dict)
            case "{" if _enter_envelope(stream):
                return True
            case "{":
                first = _JsonStream(file, 0)
                with first.text:
                    first.value()
                    return "\n" in first.taken.strip()
    return False


def rows_with_offsets(file: Path) -> Iterator[int]:
    """Yield the byte where each row of a file begins.

    Raises:
        DataError: a value that spans lines is broken.
    """
    if not by_lines(file):
        for offset, _ in _values(file):
            yield offset
        return
    offset = 0
    with open_text(file) as lines:
        for line in lines:
            yield offset
            offset += len(line)


def text_rows(
    file: Path, start: int, stop: int, offset: int, columns: tuple[str, ...]
) -> Iterator[tuple[int, Row | DataError]]:
    """Yield number and content of the rows [start, stop) of a file.

    Args:
        file: see above.
        start: first row.
        stop: row after the last one.
        offset: byte where the first row begins.
        columns: of a TSV file.
    """
    if not by_lines(file):
        values = _values(file, offset if start else 0)
        for row, (_, value) in enumerate(islice(values, stop - start), start):
            yield row, _object(value)
        return
    is_tsv = suffix_of(file) == TSV
    with open_text(file, offset) as lines:
        for row, line in enumerate(islice(lines, stop - start), start):
            if row == 0:  # editors on Windows begin a file with a byte order mark
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield row, _tsv_row(line, columns) if is_tsv else _json_row(line)


def _json_row(line: bytes) -> Row | DataError:
    try:
        return _object(parse_json(line.decode()))
    except UnicodeDecodeError as error:
        return unusable("bad_encoding", str(error))
    except DataError as error:
        return error


def _tsv_row(line: bytes, columns: tuple[str, ...]) -> Row | DataError:
    try:
        values = line.decode().rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        return unusable("bad_encoding", str(error))
    if len(values) != len(columns):
        reason = f"{len(values)} tab-separated values, expected {len(columns)}"
        return unusable("bad_row", reason)
    return dict(zip(columns, values, strict=True))


def _object(item: object) -> Row | DataError:
    if isinstance(item, dict):
        return item
    return unusable("bad_row", f"expected an object, found {type(item).__name__}")


def _is_row(value: object) -> bool:
    """Return True for a row, and False for a message, an annotation or anything else."""
    return isinstance(value, dict) and any(name in value for name in IMAGE_COLUMNS)


class _JsonStream:
    """Values of a JSON text, one by one."""

    def __init__(self, file: Path, offset: int) -> None:
        # Broken bytes become half surrogates: they cost their row, and not the file.
        stream = open_text(file, offset)
        self.file = file
        self.text = io.TextIOWrapper(stream, "utf-8", "surrogateescape", newline="\n")
        self.buffer = ""
        self.offset = offset  # byte where the buffer begins
        self.is_at_end = False
        self.taken = ""  # text of the last value
        self.decode = json.JSONDecoder().raw_decode

    def read(self) -> None:
        chunk = self.text.read(max(CHUNK, len(self.buffer)))  # doubles, so long values stay cheap
        self.buffer += chunk
        self.is_at_end = not chunk

    def take(self, width: int) -> None:
        self.offset += len(self.buffer[:width].encode(errors="surrogateescape"))
        self.buffer = self.buffer[width:]

    def peek(self) -> str:
        """Skip blanks, and return the next character; none at the end."""
        while True:
            blanks = len(self.buffer) - len(self.buffer.lstrip(" \t\r\n\ufeff"))
            self.take(blanks)
            if self.buffer or self.is_at_end:
                return self.buffer[:1]
            self.read()

    def value(self) -> Any:
        """Return the next value.

        Raises:
            DataError: it is broken.
        """
        self.peek()
        while True:
            try:
                value, width = self.decode(self.buffer)
            except json.JSONDecodeError as error:
                is_torn = error.msg.startswith("Unterminated string") or (
                    error.pos >= len(self.buffer) - TORN
                )
                if self.is_at_end or not is_torn:
                    byte = self.offset + len(self.buffer[: error.pos].encode(errors="replace"))
                    reason = f"{error.msg} at byte {byte}; give a row per line (.jsonl), or mend"
                    raise unusable("bad_json", f"{reason} the file") from error
            except RecursionError as error:
                raise unusable("bad_json", f"byte {self.offset}: nested too deep") from error
            else:
                if width < len(self.buffer) or self.is_at_end:  # a number may go on
                    self.taken = self.buffer[:width]
                    self.take(width)
                    return value
            self.read()


def _values(file: Path, offset: int = 0) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a file of values that span lines, each with the byte where it begins.

    Args:
        file: an array, an object around one, or objects one after the other.
        offset: byte where a row begins; 0: read from the beginning.
    """
    stream = _JsonStream(file, offset)
    if not offset and stream.peek() == "[":
        stream.take(1)
    elif not offset and stream.peek() == "{" and not _enter_envelope(stream):
        stream.text.close()
        stream = _JsonStream(file, 0)
    with stream.text:
        while (following := stream.peek()) and following != "]":
            if following == ",":
                stream.take(1)
                continue
            start = stream.offset
            yield start, stream.value()


def _enter_envelope(stream: _JsonStream) -> bool:
    """Go to the first row of the list in an object; return False if no member is a list of rows."""
    stream.take(1)
    while stream.peek() not in ("}", ""):
        if stream.peek() == ",":
            stream.take(1)
        stream.value()  # the name of the member
        if stream.peek() == ":":
            stream.take(1)
        if stream.peek() != "[":
            stream.value()
            continue
        following = _JsonStream(stream.file, stream.offset + 1)  # looks ahead
        with following.text:
            is_list_of_rows = following.peek() == "{" and _is_row(following.value())
        if is_list_of_rows:
            stream.take(1)
            return True
        stream.value()
    return False
