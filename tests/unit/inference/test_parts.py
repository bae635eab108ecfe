"""Part files: their names, their order, and the parts that are not computed again."""

import pyarrow as pa
import pytest

from rlhfv_ray.config import ScaleConfig
from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.inference.parts import _has_part, map_parts, part_path, read_parts, write_part
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.storage.lease_file import open_lease


def table(number: int) -> pa.Table:
    return pa.table({"id": [f"row {number}"]})


def test_parts_are_read_in_the_order_of_their_numbers(tmp_path):
    """Catches: parts in the order of writing, or number 10 before number 2."""
    for number in (10, 2, 0):
        write_part(table(number), tmp_path, number)
    assert read_parts(tmp_path)["id"].to_pylist() == ["row 0", "row 2", "row 10"]


def test_a_part_is_published_by_a_rename(tmp_path):
    """Catches: a temporary file that is left behind, or read as a part."""
    folder = tmp_path / "new"
    write_part(table(3), folder, 3)
    assert list(folder.iterdir()) == [part_path(folder, 3)] == [folder / "part-00003.parquet"]
    (folder / ".part-00004.parquet.17").write_bytes(b"half a table")
    assert read_parts(folder).num_rows == 1


def test_a_driver_that_lost_its_lease_writes_no_part(tmp_path):
    """Catches: parts of two drivers in one folder, after a node seemed lost and returned."""
    with hold_lease(tmp_path) as token:
        write_part(table(0), tmp_path / "answers", 0, lease=open_lease(tmp_path, token))
        former = open_lease(tmp_path, "former")
        with pytest.raises(StageFailedError, match="taken over by another driver"):
            write_part(table(1), tmp_path / "answers", 1, lease=former)
    assert read_parts(tmp_path / "answers").num_rows == 1


def test_existing_parts_need_no_actor(tmp_path):
    """Catches: a finished folder that is computed again; an empty file taken for a part."""
    for number in range(2):
        write_part(table(number), tmp_path, number)

    def actor():
        raise AssertionError("an actor was started")

    map_parts(["a", "b"], tmp_path, actor=actor, scale=ScaleConfig(), title="")
    assert [_has_part(tmp_path, number) for number in range(3)] == [True, True, False]
    part_path(tmp_path, 2).touch()  # as a node leaves it that lost power
    assert not _has_part(tmp_path, 2)
    part_path(tmp_path, 2).unlink()
    assert read_parts(tmp_path)["id"].to_pylist() == ["row 0", "row 1"]
