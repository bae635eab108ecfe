"""Writes over a version that was seen: on S3, and on a store without conditional writes."""

import threading

import fsspec
import pytest

from rlhfv_ray.storage import bucket, conditional
from rlhfv_ray.storage.conditional import read_version, version_of, write_over
from rlhfv_ray.storage.folder import display_path

WRITERS = 4


@pytest.fixture(params=["s3", "file"])
def store(request, node, tmp_path, monkeypatch):
    """Return a file system and the key of an object in it that does not exist yet."""
    monkeypatch.setattr(conditional, "SETTLE_S", 0.5)
    if request.param == "file":
        return fsspec.filesystem("file"), str(tmp_path / "object")
    system, key = bucket.file_system(display_path(node("a")))
    return system, f"{key}/object"


def test_a_write_over_another_version_fails(store):
    """Catches: a lease overwritten by who read an earlier one, or created twice."""
    assert read_version(*store) is None
    assert write_over(*store, "one", None) and not write_over(*store, "other", None)
    one = read_version(*store)
    assert one is not None and one.text == "one"
    assert write_over(*store, "two", one) and not write_over(*store, "three", one)
    two = read_version(*store)
    assert two is not None and two.text == "two" and two.mark != one.mark
    system, key = store
    system.rm_file(key)
    assert not write_over(*store, "three", two) and read_version(*store) is None


def test_of_many_writers_over_one_version_one_succeeds(store):
    """Catches: two successors of one dead driver."""
    assert write_over(*store, "dead", None)
    dead, outcomes = read_version(*store), []
    barrier = threading.Barrier(WRITERS)

    def write(text: str) -> None:
        barrier.wait()
        if write_over(*store, text, dead):
            outcomes.append(text)

    writers = [threading.Thread(target=write, args=(str(number),)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    written = read_version(*store)
    assert written is not None and outcomes == [written.text]


def test_the_mark_of_a_version_is_its_etag():
    """Catches: two versions of equal size, written within one second, taken for one."""
    assert version_of({"ETag": '"a"', "LastModified": "now", "size": 1}) == '"a"'
    assert version_of({"mtime": 1.5, "size": 1}) == "1.5"
    assert version_of({"size": 1}) == ""
