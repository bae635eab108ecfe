"""Folders: a path becomes a disk's or a bucket's folder in one place; a disk asks no network."""

from pathlib import Path

import pytest

from rlhfv_ray.errors import ConfigError
from rlhfv_ray.storage import bucket
from rlhfv_ray.storage.bucket import BucketFolder
from rlhfv_ray.storage.disk import DiskFolder
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import (
    display_path,
    fetch,
    fetch_local,
    is_there,
    local_path,
    names_in,
    open_folder,
    publish,
    resolve_storage,
)


def methods(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_a_plain_folder_is_left_alone(tmp_path, monkeypatch):
    """Catches: a storage on a disk that asks the network for anything."""
    monkeypatch.setattr(bucket, "file_system", lambda address: pytest.fail("asked"))
    write_json(tmp_path / "file.json", 1)
    publish(tmp_path)
    fetch(tmp_path)
    assert is_there(tmp_path / "file.json") and names_in(tmp_path) == ["file.json"]
    assert display_path(tmp_path) == str(tmp_path) and fetch_local(tmp_path) == tmp_path


def test_the_path_decides_between_disk_and_bucket(tmp_path):
    """Catches: a bucket's copy taken for a shared disk, whose files then stay on one node."""
    assert open_folder(tmp_path) == DiskFolder(tmp_path)
    copy = local_path("s3://lab/runs")
    assert open_folder(copy / "x") == BucketFolder(copy / "x", "s3://lab/runs/x")
    assert open_folder(copy.parents[1]) == DiskFolder(copy.parents[1])  # above every bucket


def test_both_kinds_have_the_same_methods():
    """Catches: a method that a caller finds on a disk and misses in a bucket."""
    assert methods(BucketFolder) - {"store", "address"} == methods(DiskFolder) - {"path"}


def test_relative_storage_survives_a_ray_job(tmp_path, monkeypatch):
    """Catches: results below the working directory of a Ray job, which is thrown away."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert resolve_storage("runs") == tmp_path / "runs"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert resolve_storage("runs") == Path.home() / "rlhfv-ray" / "runs"
    assert resolve_storage("~/runs") == Path.home() / "runs"
    assert resolve_storage(str(tmp_path / "shared" / "runs")) == tmp_path / "shared" / "runs"


def test_a_storage_that_takes_no_file_is_an_error_that_says_the_fix(tmp_path):
    """Catches: a traceback, or hours of work before it, where nothing can be written."""
    (tmp_path / "file").write_text("")
    for refused in (tmp_path / "file", tmp_path / "file" / "runs", Path("/proc/runs")):
        with pytest.raises(ConfigError, match=f"storage = '{refused}' cannot be written: .*Give"):
            resolve_storage(str(refused))
