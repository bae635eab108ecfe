"""Written pairs are read back unchanged, by us and by the tools of the original release."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlhfv_ray.data import (
    load_pairs,
    write_pairs,
)
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import PreferencePair
from tests.unit.data.rows import (
    CHOSEN,
    ORIGIN,
    QUESTION,
    RED,
    REJECTED,
    TEXTS,
)


def example_pairs() -> list[PreferencePair]:
    return [
        PreferencePair("RLHF-V:7", RED, QUESTION, CHOSEN, REJECTED, origin=ORIGIN),
        PreferencePair(
            "rows.jsonl:3",
            b"not checked here",
            " q ",
            "a\r\n",
            "b\t\u2028",
            ((0, 1),),
            ((0, 1), (1, 2)),
        ),
        PreferencePair("scene", RED, "q", "a", "مرحبا", (), None, {"seed": "3", "image_path": ""}),
        PreferencePair("talk", RED, "q", "a", "b", system="Be brief.", history=(("c", "d"),)),
    ]


def test_round_trip_is_identical(tmp_path: Path) -> None:
    """Bug: id, spans, whitespace, or an origin key lost on the way."""
    write_pairs(example_pairs(), tmp_path / "new" / "pairs.parquet")
    assert list(load_pairs(tmp_path / "new")) == example_pairs()
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["pairs.parquet"]


def test_written_layout_is_the_released_one(tmp_path: Path) -> None:
    """Bug: other tools cannot read what we write."""
    write_pairs(example_pairs(), tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.schema.names == [
        "ds_name",
        "image",
        "text",
        "origin_dataset",
        "origin_split",
        "idx",
        "image_path",
    ]
    assert table["idx"].to_pylist() == [7, 3, 2, 3]  # the last two are row numbers
    text = json.loads(table["text"][0].as_py())
    assert {name: text[name] for name in TEXTS} == TEXTS
    datasets = pytest.importorskip("datasets")
    features = datasets.Features.from_arrow_schema(table.schema)
    assert isinstance(features["image"], datasets.Image)
    assert features["idx"] == datasets.Value("int64")


def test_written_files_have_small_row_groups(tmp_path: Path) -> None:
    """Bug: one row group, of which each slice decodes all."""
    pair = example_pairs()[0]
    write_pairs((pair for _ in range(600)), tmp_path / "x.parquet")
    metadata = pq.read_metadata(tmp_path / "x.parquet")
    assert [metadata.row_group(group).num_rows for group in range(3)] == [256, 256, 88]


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """Bug: half a file under the final name."""
    write_pairs(example_pairs(), tmp_path / "x.parquet")
    bad = PreferencePair("bad", RED, QUESTION, CHOSEN, CHOSEN)
    with pytest.raises(DataError, match=r"equal_answers.*'bad'"):
        write_pairs([example_pairs()[0], bad], tmp_path / "x.parquet")
    assert list(load_pairs(tmp_path / "x.parquet")) == example_pairs()
    assert len(list(tmp_path.iterdir())) == 1


def test_no_pairs_is_a_readable_file(tmp_path: Path) -> None:
    """Bug: an empty result has no schema."""
    write_pairs([], tmp_path / "x.parquet")
    assert list(load_pairs(tmp_path / "x.parquet")) == []
