"""Folders that every node reaches, on a disk or in a bucket; callers do not ask which.

A path is all that processes hand each other. A process that writes for others publishes, and one
that reads what others wrote fetches; on a disk both do nothing. `open_folder` alone decides
between the two kinds of folder. The functions here are short forms of their daily methods.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rlhfv_ray.errors import ConfigError
from rlhfv_ray.storage.bucket import BucketFolder, open_bucket
from rlhfv_ray.storage.disk import DiskFolder
from rlhfv_ray.storage.mirror import address_of, mirror_path

Folder = DiskFolder | BucketFolder  # the same methods, on a disk and in a bucket

# Folders of a stage that their writer publishes and their reader fetches, not the stage itself.
LARGE_DIRS = ("checkpoints", "model")
PROBE_BYTES = 2**16  # written and deleted again to see whether a disk takes anything


def open_folder(path: Path) -> Folder:
    """Return the folder, or file, that a path stands for."""
    address = address_of(path)
    return DiskFolder(path) if address is None else BucketFolder(path, address)


def local_path(path: str | Path) -> Path:
    """Return this node's path for a path or an address that a user gave; fetch nothing."""
    return mirror_path(str(path)) if "://" in str(path) else Path(path).expanduser()


def fetch_local(path: str | Path, *, only: str = "") -> Path:
    """Return this node's path for a path or an address that a user gave; fetch an address.

    Args:
        path: a path is returned as it is, with `~` expanded.
        only: name of the files to fetch; all if empty.
    """
    local = local_path(path)
    if "://" in str(path):
        fetch(local, only=only)
    return local


def storage_path(storage: str) -> Path:
    """Return the storage folder that a user gave, as a path or an address; nothing is written.

    A relative path is below ~/rlhfv-ray inside a Ray job, whose working directory is thrown away.
    """
    if "://" in storage:
        return mirror_path(storage)
    base = Path.home() / "rlhfv-ray" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else Path.cwd()
    return base / Path(storage).expanduser()


def resolve_storage(storage: str) -> Path:
    """Return the storage folder that a user gave, as `storage_path`, after a trial write.

    Raises:
        ConfigError: nothing can be written there.
    """
    if "://" in storage:
        return open_bucket(storage).path
    folder = storage_path(storage)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(PROBE_BYTES))
    except OSError as error:
        raise ConfigError(
            f"storage = {str(folder)!r} cannot be written: {error.strerror}. Give --storage a "
            "folder on a disk that has room and may be written, or make it so."
        ) from error
    return folder


def display_path(path: Path) -> str:
    """Return a path as users know it: its address if it has one."""
    return open_folder(path).display()


def make(path: Path) -> None:
    """Create a folder on this node.

    Raises:
        ConfigError: other users can write this node's copy of a bucket.
    """
    open_folder(path).make()


def publish(path: Path, *, without: Sequence[str] = ()) -> None:
    """Make a file, or a folder's changed files, visible to every node; hidden files stay here.

    Args:
        path: nothing happens if it does not exist.
        without: names of folders directly below it that are left out.

    Raises:
        StorageError: the storage does not answer.
    """
    open_folder(path).publish(without=without)


def fetch(path: Path, *, without: Sequence[str] = (), only: str = "") -> None:
    """Bring a file, or a folder's changed files, to this node; files that are only here stay.

    Args:
        path: nothing happens if no node published it.
        without: names of folders directly below it that are left out.
        only: name of the files to fetch; all if empty.

    Raises:
        StorageError: the storage does not answer.
    """
    open_folder(path).fetch(without=without, only=only)


def is_there(path: Path) -> bool:
    """Return True if a file or folder exists where every node can reach it."""
    return open_folder(path).exists()


def names_in(path: Path) -> list[str]:
    """List the names directly in a folder as every node sees it; none if it does not exist."""
    return open_folder(path).names()


def discard(path: Path) -> None:
    """Delete a file or folder for every node; files in use that cannot be deleted here stay."""
    open_folder(path).discard()
