"""The format of a file: by its columns, and where several formats fit those, by its first rows."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rlhfv_ray.data.files.image_sources import IMAGE_COLUMNS
from rlhfv_ray.data.pair_formats import ORIGIN_COLUMNS, Format
from rlhfv_ray.data.row_fields import USAGE_COLUMNS, Row, attempt, say_once
from rlhfv_ray.errors import DataError

TSV_FORMAT = "muffin_tsv"
# Columns that every format reads, beside the ones that it needs.
OPTIONAL_COLUMNS = (
    *ORIGIN_COLUMNS,
    *IMAGE_COLUMNS,
    *("idx", "id", "system", "system_prompt", "chosen_spans", "rejected_spans", "origin"),
    *("multiple_choice_answer", "answers"),
    *USAGE_COLUMNS,
)
STORED_LOGPS = "logps"


class Candidate(NamedTuple):
    """A format whose columns a file has, with the number of its first rows that it can read."""

    name: str
    columns: int  # that it needs
    rows: int


def columns_to_read(format: Format) -> set[str]:
    """Return the names of all columns that a format reads."""
    columns = {*OPTIONAL_COLUMNS, *format.optional}
    for need in format.columns:
        columns.update(need.split("|"))
    return columns


def detect_format(
    columns: Sequence[str], rows: Iterable[Row], formats: Mapping[str, Format], *, is_tsv: bool
) -> str:
    """Return the format of a file, by its type, its columns and its first rows.

    Raises:
        DataError: no format fits; the message names the closest one and its missing columns. Or
            several fit alike; it names them.
    """

    def missing_share(name: str) -> float:
        return len(_missing(formats[name], columns)) / len(formats[name].columns)

    names = [name for name in formats if (name == TSV_FORMAT) == is_tsv]
    fitting = [name for name in names if fits(formats[name], columns)]
    if len(fitting) == 1 and not formats[fitting[0]].without:
        return fitting[0]
    rows = list(rows)
    candidates = [
        Candidate(name, len(formats[name].columns), _readable(formats[name], rows))
        for name in fitting
    ]
    candidates = [
        candidate
        for candidate in candidates
        if candidate.rows or not formats[candidate.name].without
    ]
    if not candidates:
        lacking = [name for name in names if _missing(formats[name], columns)]
        check_columns(min(lacking, key=missing_share), columns, formats)
    if len(candidates) == 1:
        return candidates[0].name
    best = max((candidate.rows, candidate.columns) for candidate in candidates)
    chosen = [candidate for candidate in candidates if (candidate.rows, candidate.columns) == best]
    shown = ", ".join(f"{name} ({count} of {len(rows)})" for name, _, count in candidates)
    if len(chosen) > 1:
        raise DataError(
            f"bad_columns: the first rows fit several formats: {shown}; choose one of them by "
            "--data.format"
        )
    say_once(f"The data is read as format {chosen[0].name}; its first rows fit {shown}.")
    return chosen[0].name


def fits(format: Format, columns: Sequence[str]) -> bool:
    """Return True if a file's columns are those of a format."""
    return not _missing(format, columns) and not set(format.without) & set(columns)


def _readable(format: Format, rows: Sequence[Row]) -> int:
    """Return the number of rows whose fields a format can read."""
    results = [attempt(functools.partial(format.read, row)) for row in rows]
    return sum(not isinstance(result, DataError) for result in results)


def check_columns(format: str, columns: Sequence[str], formats: Mapping[str, Format]) -> None:
    """Refuse an unknown format, or a file without a column that its format needs.

    Raises:
        DataError: `bad_format` or `bad_columns`, then the allowed formats.
    """
    if format not in formats:
        raise DataError(f"bad_format: {format!r} is not one of {', '.join(formats)}")
    if missing := _missing(formats[format], columns):
        raise DataError(
            f"bad_columns: read as format {format!r}, but column {', '.join(missing)} is missing; "
            f"columns of the file: {', '.join(columns) or 'none'}; formats: {', '.join(formats)}. "
            f"Columns of other names are mapped by --data.columns {missing[0].split('|')[0]}=NAME"
        )


def _missing(format: Format, columns: Sequence[str]) -> list[str]:
    return [need for need in format.columns if not set(need.split("|")) & set(columns)]


def unused_columns(format: Format, columns: Sequence[str]) -> list[str]:
    """Return the columns of a file that its format does not read."""
    known = columns_to_read(format) | {STORED_LOGPS}
    return [name for name in columns if name not in known]
