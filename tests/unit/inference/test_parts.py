"""Part files: their names, their order, and the parts that are not computed again."""

import pyarrow as pa
import pytest

from rlhfv_ray.config import ScaleConfig
from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.inference.parts import (
    SIZES,
    begun_scale,
    digest_path,
    has_part,
    map_parts,
    part_path,
    read_parts,
    write_part,
)
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
    assert part_path(folder, 3) == folder / "part-00003.parquet"
    assert set(folder.iterdir()) == {part_path(folder, 3), digest_path(folder, 3)}
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
    assert [has_part(tmp_path, number) for number in range(3)] == [True, True, False]
    part_path(tmp_path, 2).touch()  # as a node leaves it that lost power
    assert not has_part(tmp_path, 2)
    part_path(tmp_path, 2).unlink()
    assert read_parts(tmp_path)["id"].to_pylist() == ["row 0", "row 1"]


@pytest.mark.parametrize("position", [0, 0.3, 0.7, 0.999])
def test_a_part_with_another_byte_is_no_part(tmp_path, position, caplog):
    """Catches: a damaged part of an unfinished folder that is kept, and read as a result."""
    write_part(table(0), tmp_path, 0)
    for path in (part_path(tmp_path, 0), digest_path(tmp_path, 0)):
        whole = path.read_bytes()
        changed = bytearray(whole)
        # Of the file with the digest, only the 64 digits count; the name is for people.
        size = 64 if path == digest_path(tmp_path, 0) else len(whole)
        changed[int(position * size)] ^= 1
        path.write_bytes(changed)
        assert not has_part(tmp_path, 0)
        assert str(part_path(tmp_path, 0)) in caplog.text
        path.write_bytes(whole)
        assert has_part(tmp_path, 0)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"rows": 9, "inference_batch": 2}'])
def test_damaged_sizes_make_all_parts_again(tmp_path, damage):
    """Catches: a traceback, or parts of two cuts in one folder: rows lost or doubled."""
    scale = ScaleConfig(rows=5, inference_batch=2)
    assert begun_scale(tmp_path, scale) == scale
    write_part(table(0), tmp_path, 0)
    assert begun_scale(tmp_path, ScaleConfig(rows=7, inference_batch=3)) == scale
    assert has_part(tmp_path, 0)
    (tmp_path / SIZES).write_text(damage)
    assert begun_scale(tmp_path, scale) == scale
    assert not has_part(tmp_path, 0)
    assert begun_scale(tmp_path, ScaleConfig(rows=7)) == scale


def test_another_row_count_in_the_sizes_is_seen(tmp_path):
    """Catches: one digit of `parts.json` changed, so that the missing parts get another cut."""
    scale = ScaleConfig(rows=5, inference_batch=2)
    begun_scale(tmp_path, scale)
    sizes = tmp_path / SIZES
    sizes.write_text(sizes.read_text().replace('"rows": 5', '"rows": 7'))
    assert begun_scale(tmp_path, scale) == scale
