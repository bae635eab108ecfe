"""Text files of rows: every form that people save them in, in bounded memory."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from rlhfv_ray.data import list_slices, load_pairs, read_slice
from rlhfv_ray.data.files.text import by_lines, rows_with_offsets
from rlhfv_ray.errors import DataError
from tests.unit.data.rows import CHOSEN, RED, jsonl, plain_row

ROWS = [plain_row(id=f"é{number}") for number in range(70)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
ARRAY = json.dumps(ROWS, ensure_ascii=False)
FORMS = {
    "x.JSONL": LINES.encode(),
    "x.jsonl.gz": gzip.compress(LINES.encode()),
    "x.jsonl": gzip.compress(LINES.encode()),  # whatever its name says
    "x.json": LINES.encode("utf-16"),
    "x.json.gz": gzip.compress(ARRAY.encode("utf-16")),
    "y.jsonl": ARRAY.encode(),
    "y.json": b"\xef\xbb\xbf\n " + json.dumps(ROWS, indent=2).encode(),
    "z.json": json.dumps({"info": {"images": [1, "]"]}, "rows": ROWS}, indent=1).encode(),
    "w.json": json.dumps({"data": ROWS}).encode(),
    "v.json": "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("rows", [3, 1000])
def test_every_form_gives_the_same_rows_in_any_slice(name: str, rows: int, tmp_path: Path) -> None:
    """Catches: rows lost at a slice's border, where offsets are of decoded text; forms refused."""
    (tmp_path / "a.png").write_bytes(RED)
    (tmp_path / name).write_bytes(FORMS[name])
    parts = list_slices(tmp_path / name, rows=rows)
    assert parts[-1].stop == 70 and len(parts) == 1 if rows == 1000 else len(parts) > 5
    ids = {part.index: [row_id for row_id, _ in read_slice(part)] for part in reversed(parts)}
    in_order = [row_id for part in parts for row_id in ids[part.index]]
    assert in_order == [row["id"] for row in ROWS]
    assert {pair.chosen for pair in load_pairs(tmp_path / name)} == {CHOSEN}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", ARRAY.encode()[:-40], "bad_json: .* at byte"),
        ("x.json", ARRAY.replace('"é3"', '"é3'.ljust(4)).encode(), "bad_json: .* at byte"),
        ("x.json", b'[{"image": "a.png", "question": }]', "bad_json: Expecting value"),
        ("x.jsonl", b"nonsense\n", "bad_json: Expecting value"),
        ("x.jsonl.gz", gzip.compress(LINES.encode())[:200], "file_unreadable"),
    ],
)
def test_a_broken_file_says_where(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    """Catches: "columns there: none"; a torn file that is read up to its tear."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list_slices(tmp_path / name)


def test_a_broken_first_line_costs_itself(tmp_path: Path) -> None:
    """Catches: a file of lines taken for one object, because its first line is torn."""
    path = jsonl(tmp_path / "x.jsonl", ROWS[:3])
    for first in ('{"prompt": "q', "[1, 2", '[{"a": 1', "nonsense"):
        path.write_text(first + "\n" + LINES)
        assert by_lines(path), first
        (part,) = list_slices(path, rows=100)
        errors = [row for _, row in read_slice(part) if isinstance(row, DataError)]
        assert len(errors) == 1 and str(errors[0]).endswith("(x.jsonl:1)")


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.json.gz"])
def test_a_large_file_is_read_in_little_memory(name: str, tmp_path: Path) -> None:
    """Catches: a whole array in memory, once as bytes, once as text and once as objects."""
    rows = [plain_row(id=str(number), extra="x" * 2000) for number in range(10_000)]  # 20 MB
    text = json.dumps(rows) if name != "x.jsonl" else "\n".join(map(json.dumps, rows))
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name[-1] == "z" else content)
    del text, content, rows
    tracemalloc.start()
    count = sum(1 for _ in rows_with_offsets(tmp_path / name))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 10_000
    assert peak < 4 * 2**20
