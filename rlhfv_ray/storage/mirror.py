"""Storage behind an address: each node works in a folder of its own, its mirror, and sends there what others need.

`s3://bucket/runs` has the mirror `<temporary folder>/rlhfv-ray-mirror-<user>/s3/bucket/runs` on every node. The address follows from the path
alone, so stages and workers hand paths to each other as they do on a disk that all share: who writes for others publishes, who reads what
others wrote fetches, and on a path that is no mirror both do nothing. The address has the truth; objects appear there whole or not at all,
and what vouches for others (`SUCCESS`, a checkpoint's manifest) is sent last. Any object store that fsspec knows will do.
"""

import contextlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from rlhfv_ray.errors import ConfigError, StorageError

LARGE_DIRS = (
    "checkpoints",
    "model",
)  # of a stage: sent by who writes them, fetched by who needs them
SMALL = (
    2**20
)  # bytes; a larger file is never rewritten in its place, so its size tells whether it is there
_MIRROR = re.compile(r"rlhfv-ray-mirror-\d+")
_sent: dict[
    Path, tuple[int, int]
] = {}  # small files that are there as they were here: time of change, size


def mirror_path(address: str) -> Path:
    """This node's folder for an address such as s3://bucket/runs.

    Example:
        >>> mirror_path("s3://bucket/runs/").parts[-3:]
        ('s3', 'bucket', 'runs')
        >>> address_of(mirror_path("s3://bucket/runs/"))
        's3://bucket/runs'

    Raises:
        ConfigError: it names no bucket, or leads out of one.
    """
    protocol, _, key = address.partition("://")
    parts = [part for part in key.split("/") if part]
    if not protocol or not parts or {".", ".."} & set(parts):
        raise ConfigError(
            f"{address!r} is no address of a folder: give one such as s3://bucket/runs."
        )
    return Path(tempfile.gettempdir(), f"rlhfv-ray-mirror-{os.getuid()}", protocol, *parts)


def address_of(path: Path) -> str | None:
    """The address whose mirror a path is in; None for any other path."""
    at = next((place for place, part in enumerate(path.parts) if _MIRROR.fullmatch(part)), None)
    if at is None or len(path.parts) < at + 3:
        return None
    protocol, *key = path.parts[at + 1 :]
    return f"{protocol}://{'/'.join(key)}"


def display_path(path: Path) -> str:
    """What people are told of a path: its address, if it has one."""
    return address_of(path) or str(path)


def fetch_local(path: str | Path, *, only: str = "") -> Path:
    """A path that can be opened here: of an address, its mirror, with all that is there, or `only` files of one name."""
    if "://" not in str(path):
        return Path(path).expanduser()
    mirror = mirror_path(str(path))
    fetch(mirror, only=only)
    return mirror


def open_mirror(address: str) -> Path:
    """The mirror of an address that answers, for this user alone.

    Raises:
        ConfigError: nothing can be written there; or the mirror belongs to another user.
    """
    mirror = mirror_path(address)
    make(mirror)
    try:
        system, key = file_system(mirror)
        system.pipe_file(f"{key}/.probe", b"")
        system.rm_file(f"{key}/.probe")
    except ConfigError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise ConfigError(
            f"storage = {address!r} cannot be written: {_said(error)}. Does the bucket exist, are its credentials in the environment of "
            "every node (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the node's role; AWS_ENDPOINT_URL where it is not Amazon's)?"
        ) from error
    return mirror


def make(folder: Path) -> None:
    """Make a folder on this node; a mirror is for its user alone.

    Raises:
        ConfigError: others can write the mirror.
    """
    root = next((parent for parent in folder.parents if _MIRROR.fullmatch(parent.name)), None)
    if root is not None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if root.stat().st_uid != os.getuid() or root.stat().st_mode & 0o077:
            raise ConfigError(
                f"{root} is open to other users: delete it, or set TMPDIR to a folder of your own."
            )
    folder.mkdir(parents=True, exist_ok=True)


def mirror_id(path: Path) -> str:
    """Which mirror a path is in, the same for all processes that see the same files; empty where it is in none."""
    root = next((parent for parent in path.parents if _MIRROR.fullmatch(parent.name)), None)
    if root is None:
        return ""
    make(root / ".id")
    name = root / ".id" / "name"
    if not name.exists():
        draft = name.with_name(uuid.uuid4().hex)
        draft.write_text(draft.name)
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(draft, name)
    return name.read_text()


def publish(path: Path, *, without: Sequence[str] = ()) -> None:
    """Send a file, or those files of a folder that are not there as they are here; hidden ones stay.

    Args:
        path: in a mirror; else nothing is done.
        without: names of folders directly below it that are left out.

    Raises:
        StorageError: the storage does not answer.
    """
    if address_of(path) is None or not path.exists():
        return
    with storage_errors(path):
        system, key = file_system(path)
        if path.is_file():
            _send(system, [path], [key])
            return
        there = {name: info["size"] for name, info in _listed(system, key).items()}
        files = [file for file in _files(path) if file.relative_to(path).parts[0] not in without]
        new = [
            file
            for file in files
            if not _is_there(file, there.get(file.relative_to(path).as_posix()))
        ]
        _send(system, new, [f"{key}/{file.relative_to(path).as_posix()}" for file in new])


def fetch(path: Path, *, without: Sequence[str] = (), only: str = "") -> None:
    """Bring a file, or those files of a folder that are not here as they are there; what is only here stays.

    Args:
        path: in a mirror; else nothing is done.
        without: names of folders directly below it that are left out.
        only: name of the files that are wanted; all, if there is none.

    Raises:
        StorageError: the storage does not answer.
    """
    if address_of(path) is None:
        return
    make(path.parent)
    with storage_errors(path), FileLock(path.with_name(f".{path.name}.lock")):
        system, key = file_system(path)
        wanted: dict[Path, str] = {}
        for name, info in _listed(system, key).items():
            file = path / name if name else path
            left = name.split("/")[0] in without or (only and file.name != only)
            if not left and not _is_there(file, info["size"]):
                wanted[file] = f"{key}/{name}" if name else key
        if not wanted:
            return
        drafts = [file.with_name(f".{file.name}.{os.getpid()}") for file in wanted]
        for draft in drafts:
            draft.parent.mkdir(parents=True, exist_ok=True)
        system.get(list(wanted.values()), list(map(str, drafts)))  # many at a time
        for draft, file in zip(drafts, wanted, strict=True):
            draft.replace(file)
            _sent[file] = _state(file)


def is_there(path: Path) -> bool:
    """Whether a file exists where everybody sees it."""
    if address_of(path) is None:
        return path.exists()
    with storage_errors(path):
        system, key = file_system(path)
        return system.exists(key)


def names_in(folder: Path) -> list[str]:
    """Names directly in a folder, where everybody sees it."""
    if address_of(folder) is None:
        return [path.name for path in folder.iterdir()] if folder.is_dir() else []
    with storage_errors(folder), contextlib.suppress(FileNotFoundError):
        system, key = file_system(folder)
        return sorted(name.rstrip("/").rpartition("/")[2] for name in system.ls(key, detail=False))
    return []


def discard(path: Path) -> None:
    """Delete a file or a folder, here and where everybody sees it; what of a folder is in use here stays."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    if address_of(path) is not None:
        with storage_errors(path), contextlib.suppress(FileNotFoundError):
            system, key = file_system(path)
            system.rm(key, recursive=True)


def file_system(path: Path) -> tuple[Any, str]:
    """The file system and the key behind a mirror's path."""
    from fsspec.core import url_to_fs

    address = address_of(path)
    assert address is not None, path
    protocol = address.partition("://")[0]
    try:
        return url_to_fs(address, use_listings_cache=False)  # others write there too
    except (ImportError, ValueError) as error:
        fix = (
            "Run pip install 'rlhfv-ray[s3]'"
            if protocol == "s3"
            else f"Install fsspec's package for {protocol}://"
        )
        raise ConfigError(f"{address}: {_said(error)}. {fix} on every node.") from error


def _listed(system: Any, key: str) -> dict[str, dict[str, Any]]:
    """Files below a key by their name from there, hidden ones left out; a file itself has the empty name."""
    try:
        found = system.find(key, detail=True)
    except FileNotFoundError:
        return {}
    named = {full.removeprefix(key).lstrip("/"): info for full, info in found.items()}
    for name in named:
        if {".", ".."} & set(name.split("/")):
            raise StorageError(
                f"{key} has an object named {name!r}, which leads out of its folder. Delete it."
            )
    return {
        name: info
        for name, info in named.items()
        if not any(part.startswith(".") for part in name.split("/"))
    }


def _files(folder: Path) -> list[Path]:
    """Files of a folder, hidden ones left out."""
    found = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return [
        file
        for file in found
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]


def _send(system: Any, files: Sequence[Path], keys: Sequence[str]) -> None:
    if not files:
        return
    states = [
        _state(file) for file in files
    ]  # before they are read: what is appended meanwhile is sent next time
    system.put(list(map(str, files)), list(keys))  # many at a time
    _sent.update(zip(files, states, strict=True))


def _is_there(file: Path, size: int | None) -> bool:
    """Whether a file is the same on both sides, by its size; a small one only if it was sent or fetched by this process as it is now."""
    try:
        state = _state(file)
    except FileNotFoundError:
        return False
    return state[1] == size and (state[1] > SMALL or _sent.get(file) == state)


def _state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Errors of a file system as one of ours; what a file that is not there means is left to who asked."""
    try:
        yield
    except (FileNotFoundError, ConfigError, StorageError):
        raise
    except Exception as error:  # each file system has errors of its own
        raise StorageError(
            f"{address_of(path)} cannot be reached: {_said(error)}. The same command goes on once it can."
        ) from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def resolve_storage(storage: str) -> Path:
    """The storage folder; of an address, this node's mirror; a relative one is below ~/rlhfv-ray inside a Ray job, whose working directory is
    thrown away.

    Raises:
        ConfigError: nothing can be written at the address.
    """
    if "://" in storage:
        return open_mirror(storage)
    base = Path.home() / "rlhfv-ray" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else Path.cwd()
    return base / Path(storage).expanduser()
