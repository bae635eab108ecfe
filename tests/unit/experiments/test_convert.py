"""The command `rlhfv-ray convert`: pairs in another format, and a word on what it cannot hold."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import command
from rlhfv_ray.data import load_pairs, write_pairs
from tests.unit.data.rows import RED, jsonl, plain_row
from tests.unit.data.test_writing import example_pairs


@pytest.fixture
def convert(monkeypatch, capsys):
    """Run the command; returns its exit code and what it prints."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["rlhfv-ray", "convert", *map(str, arguments)])
        code = command.main()
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_pairs_arrive_and_losses_are_said(convert, tmp_path: Path) -> None:
    """Catches: a pair that vanishes without a line; a loss that nobody is told of."""
    pairs = [replace(pair, image=RED) for pair in example_pairs()]  # one has no picture
    write_pairs(pairs, tmp_path / "in.parquet")
    out = tmp_path / "out" / "rows.parquet"
    code, printed = convert(tmp_path / "in.parquet", out, "--to", "rlaifv")
    assert code == 0, printed
    assert [pair.id for pair in load_pairs(out)] == ["RLHF-V:7", "rows.jsonl:3", "scene"]
    for line in (
        f"3 pairs written to {out}",
        "2 pairs have marked spans, which only rlhfv-ray reads in this file",
        "1 pairs lost further origin: format rlaifv has no place for it",
        f"1 rows left out (not_held 1); see {out.parent / '_rows.parquet.left_out.jsonl'}",
    ):
        assert line in printed
    (row,) = map(json.loads, (out.parent / "_rows.parquet.left_out.jsonl").open())
    assert row["id"] == "talk" and row["reason"].endswith("(in.parquet row 4)")
    assert len(list(load_pairs(out.parent))) == 3  # the list is no data


def test_bad_rows_cost_themselves(convert, tmp_path: Path) -> None:
    """Catches: a conversion that one row ends; a file of no pairs; a list that outlives its run."""
    path = jsonl(tmp_path / "in.jsonl", [plain_row(), plain_row(chosen=""), plain_row(image="no")])
    out = tmp_path / "rows.jsonl"
    code, printed = convert(path, out, "--to", "swift")
    assert code == 0 and "2 rows left out (empty_answer 1, image_missing 1)" in printed
    assert len(list(load_pairs(out))) == 1
    code, printed = convert(out, tmp_path / "back.parquet", "--to", "trl")
    assert code == 0 and "left out" not in printed
    jsonl(path, [plain_row(chosen="")])
    code, printed = convert(path, out, "--to", "swift")
    assert code == 2 and "no pair can be written as swift: empty_answer" in printed
    assert len(list(load_pairs(out))) == 1  # the earlier file is still whole


def test_a_file_that_is_no_picture_is_left_out(convert, tmp_path: Path) -> None:
    """Catches: any file of the disk that is copied into a data set as a picture."""
    (tmp_path / "script.py").write_text("secret = 1")
    path = jsonl(tmp_path / "in.jsonl", [plain_row(), plain_row(image="script.py")])
    code, printed = convert(path, tmp_path / "rows.jsonl", "--to", "swift")
    assert code == 0 and "1 rows left out (image_unreadable 1)" in printed
    assert not any(b"secret" in file.read_bytes() for file in tmp_path.glob("rows*/*"))


def test_a_wrong_suffix_is_told_first(convert, tmp_path: Path) -> None:
    """Catches: hours of reading before the error."""
    code, printed = convert(tmp_path / "absent", tmp_path / "out.csv", "--to", "trl")
    assert code == 2 and "ends with .parquet" in " ".join(printed.split())


def words(panel: str) -> str:
    """Return the text of an error without its frame."""
    return " ".join(panel.replace("│", " ").split())


def test_the_data_that_is_read_is_not_replaced(convert, tmp_path: Path) -> None:
    """Catches: rows lost with the file that had them; a traceback where OUT is a folder."""
    path = jsonl(tmp_path / "in.jsonl", [plain_row(), plain_row(chosen="")])
    before = path.read_bytes()
    code, printed = convert(path, tmp_path / "." / "in.jsonl", "--to", "swift")
    assert code == 2 and "is a file of the data that is read" in words(printed)
    (tmp_path / "out.jsonl").mkdir()
    code, printed = convert(path, tmp_path / "out.jsonl", "--to", "swift")
    assert code == 2 and "is a folder. Name a file in it." in words(printed)
    assert path.read_bytes() == before
    code, printed = convert(path, tmp_path / "in.jsonl" / "x.jsonl", "--to", "swift")
    assert code == 4 and "Traceback" not in printed
