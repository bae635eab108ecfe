"""Rows that repeat: equal ids, which end a job before it computes, and equal pairs, which cost."""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

from rlhfv_ray.data.files.image_sources import IMAGE_COLUMNS
from rlhfv_ray.data.pair_formats import own_id
from rlhfv_ray.data.reading import Slice, positioned_rows
from rlhfv_ray.data.row_fields import attempt
from rlhfv_ray.errors import DataError


def check_ids(slices: Sequence[Slice]) -> None:
    """Refuse data with two rows of one id, before anything is computed.

    Raises:
        DataError: the message names two rows, and the option that makes ids unique.
    """
    if slices and slices[0].options.ids == "position":
        return  # unique by their making
    repeated = _repeated(row_id for row_id, _ in _row_ids(slices))
    if not repeated:
        return
    first = next(iter(repeated))
    places = (position for row_id, position in _row_ids(slices) if row_id == first)
    upper, lower = islice(places, 2)
    raise DataError(
        f"repeated_ids: {len(repeated)} ids stand in several rows; {first!r} in {upper} and in "
        f"{lower}. Give every row its own id, or take file and row in their place: "
        "--data.ids position"
    )


def _repeated(ids: Iterable[str]) -> dict[str, None]:
    """Return the ids that come more than once, in order."""
    digests: set[bytes] = set()
    repeated: dict[str, None] = {}
    for row_id in ids:
        key = hashlib.sha256(row_id.encode()).digest()[:16]
        if key in digests:
            repeated[row_id] = None
        digests.add(key)
    return repeated


def _row_ids(slices: Iterable[Slice]) -> Iterator[tuple[str, str]]:
    """Yield id and position of each row; images are not read where a file stores columns."""
    for part in slices:
        format = part.formats[part.format]
        stored = set(part.options.columns_read(format)) - set(IMAGE_COLUMNS)
        for row, position, content in positioned_rows(part, stored):
            row_id = f"{part.title}:{row}"
            if not isinstance(content, DataError):
                row_id = own_id(content) or row_id
                # An id may stand inside of a column, as `write_pairs` stores it.
                fields = attempt(functools.partial(format.read, content))
                row_id = row_id if isinstance(fields, DataError) else own_id(fields) or row_id
            yield part.unique_id(row_id), position


def repeated_pairs(folder: Path) -> list[tuple[str, str]]:
    """Return the ids of each pair that repeats an earlier one: same image, prompt and answers.

    Args:
        folder: of the encoded parts.

    Returns:
        The earlier pair's id, then the later one's.
    """
    columns = ["id", "reason", "image", "prompt_ids", "chosen_ids", "rejected_ids"]
    first_ids: dict[bytes, str] = {}
    repeats: list[tuple[str, str]] = []
    for path in sorted(folder.glob("part-*.parquet")):
        with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as table:
            for batch in table.iter_batches(batch_size=32, columns=columns):
                for row in batch.to_pylist():
                    if row["reason"] is not None:
                        continue
                    key = pair_key(row["image"], *(row[name] for name in columns[3:]))
                    earlier = first_ids.setdefault(key, row["id"])
                    if earlier != row["id"]:
                        repeats.append((earlier, row["id"]))
    return repeats


def pair_key(image: bytes, *content: object) -> bytes:
    """Return a digest that equal pairs share."""
    digest = hashlib.sha256(image)
    digest.update(repr(content).encode(errors="backslashreplace"))
    return digest.digest()[:16]
