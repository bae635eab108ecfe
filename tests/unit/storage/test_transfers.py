"""Records of transfers: which file is still what was transferred."""

import os

import pytest

from rlhfv_ray.storage.transfers import (
    record_transfer,
    state_of,
    version_here,
)


@pytest.fixture
def file(tmp_path):
    """Return a file of a mirror."""
    folder = tmp_path / "rlhfv-ray-mirror-7" / "s3" / "lab"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("old")
    return folder / "weights"


def test_a_rewritten_file_is_changed_whatever_its_size_and_time(file):
    """Catches: a file of equal size, or with its time set back, taken for the one transferred."""
    assert version_here(file) == ""
    record_transfer(file, state_of(file), "1")
    assert version_here(file) == "1"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    draft = file.with_name("draft")
    draft.write_text("new")
    os.utime(draft, ns=times)
    draft.replace(file)
    assert version_here(file) == ""
    record_transfer(file, state_of(file), "2")
    file.write_text("odd")  # in place: the same inode and size
    os.utime(file, ns=times)
    assert version_here(file) == ""
    file.unlink()
    assert version_here(file) == ""


def test_a_record_that_was_cut_off_is_none(file):
    """Catches: a storage that is unusable after a disk was full."""
    record_transfer(file, state_of(file), "1")
    (record,) = (file.parents[2] / ".transfers").rglob("*.json")
    record.write_text(record.read_text()[:5])
    assert version_here(file) == ""
