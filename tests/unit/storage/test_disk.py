"""A disk's folder: plain file operations, and nothing transferred."""

import shutil

from rlhfv_ray.storage.disk import DiskFolder


def test_a_folder_is_made_listed_and_discarded(tmp_path):
    """Catches: a folder that stays, an error for a missing one, a file that is taken for one."""
    folder = DiskFolder(tmp_path / "a" / "b")
    assert not folder.exists() and folder.names() == []
    folder.make()
    folder.make()
    (folder.path / "file").write_text("x")
    assert folder.exists() and folder.names() == ["file"]
    assert DiskFolder(folder.path / "file").names() == []
    DiskFolder(folder.path / "file").discard()
    assert folder.names() == []
    folder.discard()
    folder.discard()
    assert not folder.exists()


def test_the_original_is_never_dropped(tmp_path):
    """Catches: a shared disk's checkpoint deleted as if it were a node's copy."""
    folder = DiskFolder(tmp_path / "checkpoint")
    folder.make()
    folder.drop_copy()
    assert folder.exists() and folder.copy_id() == ""


def test_a_disk_tells_ray_where_its_files_are(tmp_path):
    """Catches: Ray's files in its own default folder; a trial bound to the driver's node."""
    folder = DiskFolder(tmp_path)
    assert folder.ray_storage() == {"storage_path": str(tmp_path)}
    assert folder.ray_resources(cpus=0.5, node="10.0.0.7") == {"CPU": 0.5}
    assert 0 < folder.free_bytes() <= shutil.disk_usage(tmp_path).total
    assert folder.database_limit() == ""
