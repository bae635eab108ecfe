"""Files of rows in both formats, whole and damaged."""

from pathlib import Path

import pytest

from eval.inputs.json_rows import index_by, read_json_rows
from rlhfv_ray.errors import DataError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": 2}]', '\n{"a": 1}\n\n{"a": 2}\n'])
def test_lists_and_lines_are_the_same_rows(text: str, tmp_path: Path) -> None:
    """Catches: a blank line taken for a row; a list that is not recognised as one."""
    rows = read_json_rows(write(tmp_path / "rows", text), ("a",), what="questions")
    assert rows == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_windows_programs_are_read(encoding: str, tmp_path: Path) -> None:
    """Catches: a file refused for the mark that Windows' programs write at its start."""
    (tmp_path / "rows").write_text('{"a": "é"}\n', encoding=encoding)
    assert read_json_rows(tmp_path / "rows", ("a",), what="questions") == [{"a": "é"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows"),
        ("[]", "holds no rows"),
        ('[{"a": 1}, {', "no whole JSON list.*cut off"),
        ('{"a": 1}\n{"a"', "line 2 is no JSON.*cut off"),
        ("a,b\n1,2\n", "line 1 is no JSON.*a JSON object in each line"),
        ('{"a": 1}\n{"b": 1}', r"row 2: no a\. Expected a"),
        ('["a"]', r"row 1: no a\. Expected a"),
    ],
)
def test_damaged_files_are_named_with_the_place(text: str, message: str, tmp_path: Path) -> None:
    """Catches: rows before a cut taken for all; a KeyError without file and row."""
    with pytest.raises(DataError, match=f"questions = .*rows.*{message}"):
        read_json_rows(write(tmp_path / "rows", text), ("a",), what="questions")


def test_a_file_must_be_given_and_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not set: give --mmhal-bench.questions FILE"):
        read_json_rows("", (), what="mmhal_bench.questions")
    with pytest.raises(DataError, match="cannot be read"):
        read_json_rows(tmp_path / "none", (), what="questions")


def test_equal_ids_are_refused() -> None:
    """Catches: the first of two rows lost; 1 and "1" taken for different ids."""
    assert index_by([{"id": 1}, {"id": 2}], "id", what="x") == {"1": {"id": 1}, "2": {"id": 2}}
    with pytest.raises(DataError, match="x: two rows have id '1'"):
        index_by([{"id": 1}, {"id": "1"}], "id", what="x")
