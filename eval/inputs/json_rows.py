"""Rows of the benchmarks' own files: JSON lines or one JSON list; errors name file and row."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhfv_ray.data.files.text import read_text
from rlhfv_ray.errors import DataError

JsonRow = dict[str, Any]
FORM = "Write a JSON object in each line, or one JSON list of them."


def read_json_rows(path: str | Path, fields: Sequence[str], *, what: str) -> list[JsonRow]:
    """Read a file of rows.

    Args:
        path: of the file.
        fields: that every row must have.
        what: the setting that names the file, for errors.

    Raises:
        DataError: the file is missing, empty or cut off, or a row lacks a field.
    """
    if not path:
        flag = "--" + what.replace("_", "-")
        raise DataError(
            f"{what} is not set: give {flag} FILE. docs/evaluation.md names its source."
        )
    path = Path(path).expanduser()
    source = f"{what} = {str(path)!r}"
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{source} cannot be read: {error}") from error
    rows = _parse(text, source)
    for number, row in enumerate(rows, start=1):
        missing = [name for name in fields if not isinstance(row, dict) or name not in row]
        if missing:
            raise DataError(
                f"{source}, row {number}: no {', '.join(missing)}. Expected {', '.join(fields)}."
            )
    if not rows:
        raise DataError(f"{source} holds no rows.")
    return rows


def _parse(text: str, source: str) -> list[JsonRow]:
    """Return the rows of a JSON list, or of JSON lines with blank lines skipped."""
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except ValueError as error:
            raise DataError(
                f"{source} is no whole JSON list: {error}. Was its download cut off?"
            ) from error
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                hint = "Was its download cut off?" if rows else FORM
                raise DataError(f"{source}, line {number} is no JSON: {error}. {hint}") from error
    return rows


def index_by(rows: Sequence[JsonRow], name: str, *, what: str) -> dict[str, JsonRow]:
    """Return rows by one of their fields, converted to text.

    Raises:
        DataError: two rows have the same value.
    """
    indexed: dict[str, JsonRow] = {}
    for row in rows:
        if indexed.setdefault(str(row[name]), row) is not row:
            raise DataError(f"{what}: two rows have {name} {row[name]!r}.")
    return indexed
