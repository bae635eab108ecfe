"""Parquet files: slices of bounded size, read in bounded memory, as other files are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhfv_ray.data import list_slices
from rlhfv_ray.data.files import parquet
from tests.unit.data.rows import RED, rlhfv_row

# Reads every row of a file, encodes each n-th one, and prints the growth of the process, MiB.
READER = """
import sys
from rlhfv_ray.data import list_slices, read_slice
from rlhfv_ray.data.encoding import encode_pair
from rlhfv_ray.models import load_processor
from rlhfv_ray.shapes.model import BIASED
import psutil

processor = load_processor(BIASED)
memory = psutil.Process().memory_info
growth, before, count = 0, None, 0
for part in list_slices(sys.argv[1], rows=64):
    for row_id, pair in read_slice(part):
        count += 1
        if count % int(sys.argv[2]) == 0:
            encode_pair(pair, processor, min_match=3, max_length=2048)
    # The first slice has loaded every library.
    before = before or memory().rss
    growth = max(growth, memory().rss - before)
print(count, growth // 2**20)
"""


def memory_growth(path: Path, every: int) -> tuple[int, int]:
    """Rows of a file, and the growth of a process that reads them, MiB."""
    done = subprocess.run(
        [sys.executable, "-c", READER, str(path), str(every)],
        check=True,
        capture_output=True,
        text=True,
    )
    count, growth = done.stdout.split()
    return int(count), int(growth)


def write_rows(path: Path, count: int, image: bytes) -> Path:
    """Rows as one row group, as one array, or as lines."""
    texts = {"question": "what is there ?", "chosen": "a red star .", "rejected": "a blue ring ."}
    if path.suffix == ".parquet":
        images = [{"bytes": image + os.urandom(4000), "path": None} for _ in range(count)]
        table = pa.table(
            {"image": images, **{name: [text] * count for name, text in texts.items()}}
        )
        pq.write_table(table, path, row_group_size=count)
        return path
    (path.parent / "a.png").write_bytes(image)
    with path.open("w") as stream:
        array = path.suffix == ".json"
        stream.write("[" if array else "")
        for number in range(count):
            row = {**texts, "image": "a.png", "id": str(number), "more": "x" * 4000}
            comma = "," if array and number else ""
            stream.write(comma + json.dumps(row) + ("" if array else "\n"))
        stream.write("]" if array else "")
    return path


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["rows.parquet", "rows.json", "rows.jsonl"])
def test_a_hundred_thousand_rows_take_the_memory_of_a_few(name: str, tmp_path: Path, pairs) -> None:
    """Catches: a row group or an array of 400 MB in memory at once; memory that grows with rows."""
    path = write_rows(tmp_path / name, 100_000, pairs[0].image)
    count, growth = memory_growth(path, every=1)
    print(f"{name}: {path.stat().st_size / 2**20:.0f} MiB, growth {growth} MiB")
    assert count == 100_000
    assert growth < 100


def test_a_large_row_group_is_cut_by_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a slice of a sixteenth of a group of many GB, which no actor can hold."""
    path = tmp_path / "x.parquet"
    rows = [rlhfv_row(number) for number in range(256)]
    for row in rows:
        row["image"] = {"bytes": RED + os.urandom(2000), "path": None}
    pq.write_table(pa.Table.from_pylist(rows), path, compression="none")
    assert len(list_slices(path, rows=4)) == 16
    monkeypatch.setattr(parquet, "SLICE_BYTES", 2**14)  # the group has about 0.5 MB
    parts = list_slices(path, rows=4)
    assert 30 < len(parts) <= 64
    monkeypatch.setattr(parquet, "SLICE_BYTES", 2**30)
    monkeypatch.setattr(parquet, "SLICE_ROWS", 8)
    assert len(list_slices(path, rows=4)) == 32  # many short rows
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
