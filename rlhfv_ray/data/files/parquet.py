"""Parquet files of rows: read in small batches, cut by rows and by bytes.

A row group is decoded page by page, so its size does not matter to memory; it does to time, because
every slice of a group decodes what stands before it.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rlhfv_ray.data.files.image_sources import IMAGE_COLUMNS
from rlhfv_ray.data.row_fields import Row, unusable
from rlhfv_ray.errors import DataError

BATCH = 32  # rows that are decoded at once
MAX_CUTS = 16  # most slices of one row group of usual size
SLICE_BYTES = 64 * 2**20  # a slice of a larger row group holds about as much
# A slice of a longer row group holds about as many rows, whose encoded form is in memory at once.
SLICE_ROWS = 2048
LONG_CUTS = 64  # most slices of a row group because of its rows


def parquet_rows(
    file: Path, start: int, stop: int, columns: Collection[str]
) -> Iterator[tuple[int, Row | DataError]]:
    """Yield number and content of the rows [start, stop), from the row groups that hold them.

    Args:
        file: a Parquet file.
        start: first row.
        stop: row after the last one.
        columns: names of the columns to read, where the file has them.
    """
    # pre_buffer would hold whole row groups in memory.
    with pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False) as table:
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        ends = list(accumulate(sizes))  # row after the last of each group
        groups = [
            group for group, end in enumerate(ends) if end - sizes[group] < stop and end > start
        ]
        names = [name for name in table.schema_arrow.names if name in columns]
        row = ends[groups[0]] - sizes[groups[0]] if groups else stop  # first row of the batch
        for batch in table.iter_batches(batch_size=BATCH, row_groups=groups, columns=names):
            first = max(start - row, 0)
            last = min(stop - row, batch.num_rows)
            for position in range(first, last):
                yield row + position, _arrow_row(batch.slice(position, 1))
            row += batch.num_rows
            if row >= stop:
                return


def _arrow_row(batch: pa.RecordBatch) -> Row | DataError:
    """Convert a batch of one row; row by row, so that a bad one does not spoil its neighbours."""
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return unusable("bad_encoding", str(error))
    except (ValueError, OverflowError, pa.ArrowException) as error:  # dates that Python lacks, ...
        return unusable("bad_row", str(error))


def parquet_cuts(file: Path, rows: int) -> Iterator[tuple[int, int]]:
    """Yield start and stop of each slice of about `rows` rows; small row groups share one."""
    metadata = pq.read_metadata(file)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    start = 0
    stop = 0
    size = 0  # bytes of the rows from `start` on
    for position, group in enumerate(groups, start=1):
        stop += group.num_rows
        size += group.total_byte_size
        if stop - start < rows and position < len(groups):
            continue
        by_rows = min(LONG_CUTS, -(-(stop - start) // SLICE_ROWS))  # rounded up
        cuts = max(MAX_CUTS, -(-size // SLICE_BYTES), by_rows)
        step = max(min(rows, stop - start), -(-(stop - start) // cuts), 1)
        for first in range(start, stop, step):
            yield first, min(first + step, stop)
        start, size = stop, 0


def embeds_images(file: Path, columns: Sequence[str] = IMAGE_COLUMNS) -> bool:
    """Return True if a file's images are certainly in the file; reading its rows would be slow."""
    metadata = pq.read_metadata(file)
    schema = metadata.schema.to_arrow_schema()
    present = set(columns) & set(schema.names)
    return bool(present) and all(
        _is_bytes(schema.field(name).type) or _has_all_bytes(metadata, name) for name in present
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
