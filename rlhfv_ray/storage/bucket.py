"""A folder of a bucket: each node works in a copy of its own, and transfers files both ways.

Objects appear in the bucket whole or not at all. A file that vouches for others (`SUCCESS`, a
checkpoint's manifest) is sent last. A file that changed here since its last transfer is sent; an
object whose version (ETag) is not the one last transferred is fetched. Any object store that fsspec
knows will do.
"""

import contextlib
import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from rlhfv_ray.errors import ConfigError, StorageError
from rlhfv_ray.storage.conditional import version_of
from rlhfv_ray.storage.disk import DiskFolder
from rlhfv_ray.storage.mirror import address_of, mirror_path, mirror_root
from rlhfv_ray.storage.transfers import record_transfer, state_of, version_here


@dataclass(frozen=True)
class BucketFolder:
    """A folder, or a file, of a bucket; `path` is this node's copy."""

    path: Path
    address: str

    @contextlib.contextmanager
    def store(self) -> Iterator[tuple[Any, str]]:
        """Give fsspec's file system and the folder's key to the body.

        Raises:
            StorageError: the body met an error of the file system; a missing file stays a
                FileNotFoundError, which the caller interprets.
        """
        try:
            yield file_system(self.address)
        except (FileNotFoundError, ConfigError, StorageError):
            raise
        except Exception as error:  # each file system has errors of its own
            raise StorageError(
                f"{self.address} cannot be reached: {_first_line(error)}. "
                "The same command goes on once it can."
            ) from error

    def display(self) -> str:
        """Return the address."""
        return self.address

    def make(self) -> None:
        """Create this node's copy, for its user alone.

        Raises:
            ConfigError: other users can write the copy.
        """
        _make_private(self.path)

    def publish(self, *, without: Sequence[str] = ()) -> None:
        """Send the file, or the folder's files that differ from the bucket's; hidden ones stay.

        Raises:
            StorageError: the storage does not answer.
        """
        if not self.path.exists():
            return
        with self.store() as (system, key):
            if self.path.is_file():
                _send(system, key, {self.path: ""})
                return
            objects = _objects(system, key)
            changed: dict[Path, str] = {}  # files and their names in the folder
            for file in sorted(self.path.rglob("*")):
                name = file.relative_to(self.path).as_posix()
                excluded = _is_hidden(name) or name.split("/")[0] in without
                is_new = name not in objects or not version_here(file)
                if file.is_file() and not excluded and is_new:
                    changed[file] = name
            _send(system, key, changed)

    def fetch(self, *, without: Sequence[str] = (), only: str = "") -> None:
        """Bring the file, or the folder's files that differ here; files that are only here stay.

        Raises:
            StorageError: the storage does not answer.
        """
        _make_private(self.path.parent)
        with (
            self.store() as (system, key),
            FileLock(self.path.with_name(f".{self.path.name}.lock")),
        ):
            changed: dict[Path, str] = {}
            versions: dict[Path, str] = {}
            for name, version in _objects(system, key).items():
                file = self.path / name if name else self.path
                excluded = name.split("/")[0] in without or (only and file.name != only)
                if not excluded and version != version_here(file):
                    changed[file] = f"{key}/{name}" if name else key
                    versions[file] = version
            if not changed:
                return
            drafts = [file.with_name(f".{file.name}.{os.getpid()}") for file in changed]
            for draft in drafts:
                draft.parent.mkdir(parents=True, exist_ok=True)
            system.get(list(changed.values()), list(map(str, drafts)))  # many at a time
            for draft, file in zip(drafts, changed, strict=True):
                draft.replace(file)
                record_transfer(file, state_of(file), versions[file])

    def fetch_missing(self, file: Path) -> None:
        """Bring one file of the folder, unless this node has it."""
        address = address_of(file)
        if address is not None and not file.exists():
            BucketFolder(file, address).fetch()

    def exists(self) -> bool:
        """Return True if the file or folder exists in the bucket."""
        with self.store() as (system, key):
            return system.exists(key)

    def names(self) -> list[str]:
        """List the names directly in the bucket's folder; none if it does not exist."""
        with self.store() as (system, key), contextlib.suppress(FileNotFoundError):
            keys = system.ls(key, detail=False)
            return sorted(name.rstrip("/").rpartition("/")[2] for name in keys)
        return []

    def discard(self) -> None:
        """Delete the file or folder, here and in the bucket."""
        self.drop_copy()
        with self.store() as (system, key), contextlib.suppress(FileNotFoundError):
            system.rm(key, recursive=True)

    def link(self, name: str) -> None:
        """Do nothing: a bucket has no links."""

    def drop_copy(self) -> None:
        """Delete this node's copy; the bucket keeps the original."""
        DiskFolder(self.path).discard()

    def copy_id(self) -> str:
        """Return a name for this copy, equal in all processes that see the same copy."""
        root = mirror_root(self.path)
        assert root is not None, self.path
        _make_private(root / ".id")
        name = root / ".id" / "name"
        with FileLock(root / ".id" / "lock"):
            if not name.exists():
                draft = name.with_name("draft")
                draft.write_text(uuid.uuid4().hex)
                draft.replace(name)
        return name.read_text()

    def free_bytes(self) -> float:
        """Return infinity: a bucket has no limit."""
        return math.inf

    def database_limit(self) -> str:
        """Return the reason why a database here works on this node alone."""
        return f"{self.address} is an address, and a database needs a disk"

    def ray_storage(self) -> dict[str, Any]:
        """Return the arguments of Ray's RunConfig that make it keep its files in the bucket."""
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        system, key = file_system(self.address)
        return {"storage_path": key, "storage_filesystem": PyFileSystem(FSSpecHandler(system))}

    def ray_resources(self, *, cpus: float, node: str) -> dict[str, float]:
        """Return what to reserve for a process that shares this copy: a place on node `node`."""
        return {"CPU": 0, f"node:{node}": 0.001}


def open_bucket(address: str) -> BucketFolder:
    """Return the folder of an address, after a trial write.

    Raises:
        ConfigError: nothing can be written at the address, or other users can write its copy.
    """
    path = mirror_path(address)
    folder = BucketFolder(path, address_of(path) or address)
    folder.make()
    try:
        system, key = file_system(folder.address)
        system.pipe_file(f"{key}/.probe", b"")
        system.rm_file(f"{key}/.probe")
    except ConfigError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise ConfigError(
            f"storage = {address!r} cannot be written: {_first_line(error)}. Does the bucket "
            "exist, are its credentials in the environment of every node (for S3: "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the node's role; AWS_ENDPOINT_URL "
            "where it is not Amazon's)?"
        ) from error
    return folder


def file_system(address: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the address's key in it.

    Raises:
        ConfigError: the protocol's package is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(address, use_listings_cache=False)  # others write there too
    except (ImportError, ValueError) as error:
        protocol = address.partition("://")[0]
        fix = (
            "Run pip install 'rlhfv-ray[s3]'"
            if protocol == "s3"
            else f"Install fsspec's package for {protocol}://"
        )
        raise ConfigError(f"{address}: {_first_line(error)}. {fix} on every node.") from error


def _make_private(folder: Path) -> None:
    """Create a folder among the mirrors, whose root is for its user alone.

    Raises:
        ConfigError: other users can write the root: checkpoints, which are code, come from there.
    """
    root = mirror_root(folder)
    if root is not None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if root.stat().st_uid != os.getuid() or root.stat().st_mode & 0o077:
            raise ConfigError(
                f"{root} is open to other users: delete it, or set TMPDIR to a folder of your own."
            )
    folder.mkdir(parents=True, exist_ok=True)


def _objects(system: Any, key: str) -> dict[str, str]:
    """Return the versions of the visible objects below a key by their relative names.

    An object at the key itself has the empty name.
    """
    try:
        objects = system.find(key, detail=True)
    except FileNotFoundError:
        return {}
    versions: dict[str, str] = {}
    for full_name, info in objects.items():
        name = full_name.removeprefix(key).lstrip("/")
        if {".", ".."} & set(name.split("/")):
            raise StorageError(
                f"{key} has an object named {name!r}, which leads out of its folder. Delete it."
            )
        # A folder that appears while it is listed is described as an object at the key.
        if info["type"] == "file" and not _is_hidden(name):
            versions[name] = f"{version_of(info)} {info['size']}"
    return versions


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _send(system: Any, key: str, names: Mapping[Path, str]) -> None:
    """Upload files to their names below a key; the empty name is the key itself."""
    if not names:
        return
    # Read before the upload, so that an append during it counts as a change.
    states = {file: state_of(file) for file in names}
    keys = [f"{key}/{name}" if name else key for name in names.values()]
    system.put(list(map(str, names)), keys)  # many at a time
    versions = _objects(system, key)
    for file, name in names.items():
        if name in versions:
            record_transfer(file, states[file], versions[name])


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
