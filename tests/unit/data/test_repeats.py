"""Rows that repeat: ids are checked before anything is computed, equal pairs are reported."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from rlhfv_ray.config import DataConfig
from rlhfv_ray.data import list_slices, write_pairs
from rlhfv_ray.data.reference_table import SCHEMA
from rlhfv_ray.data.repeats import check_ids, repeated_pairs
from rlhfv_ray.errors import DataError
from rlhfv_ray.inference.parts import write_part
from rlhfv_ray.inference.reference import collect_unusable, part_table
from tests.unit.data.rows import jsonl, parquet, plain_row, rlhfv_row


def test_the_error_names_two_lines_and_the_way_out(tmp_path: Path) -> None:
    """Catches: an id that repeats in another file, or inside of a column; a line off by one."""
    jsonl(tmp_path / "x.jsonl", [plain_row(id="a"), plain_row(id="b"), plain_row()])
    jsonl(tmp_path / "y.jsonl", [plain_row(id="c"), plain_row(id="b", chosen="")])
    with pytest.raises(DataError) as caught:
        check_ids(list_slices(tmp_path))
    for word in ("1 ids", "'b' in x.jsonl:2 and in y.jsonl:2", "--data.ids position"):
        assert word in str(caught.value)
    path = parquet(tmp_path / "z.parquet", [rlhfv_row(1, id="q"), rlhfv_row(2, id="q")])
    with pytest.raises(DataError, match="'q' in z.parquet row 1 and in z.parquet row 2"):
        check_ids(list_slices(path))
    check_ids(list_slices(parquet(tmp_path / "w.parquet", [rlhfv_row(1), rlhfv_row(2)])))


def test_ids_as_written_are_unique(pairs, tmp_path: Path) -> None:
    """Catches: false alarm on our own files, which hold ids inside of `text`."""
    write_pairs(pairs, tmp_path / "pairs.parquet")
    check_ids(list_slices(tmp_path / "pairs.parquet"))


def test_equal_pairs_are_found_and_reported(encoded, tmp_path: Path, caplog) -> None:
    """Catches: a pair that counts several times without a word; a different one that is named."""
    again = replace(encoded[0], id="again")
    other_image = replace(encoded[1], id="other", image=encoded[2].image)
    rows = [*encoded[:3], again, other_image]
    write_part(part_table(rows, SCHEMA), tmp_path, 0)
    assert repeated_pairs(tmp_path) == [(encoded[0].id, "again")]
    with caplog.at_level(logging.WARNING):
        collect_unusable(tmp_path, DataConfig(path="pairs.parquet"))
    assert f"again repeats {encoded[0].id}" in caplog.text
