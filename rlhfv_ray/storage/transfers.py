"""Records of the files of a mirror: what each was, and its object's version, when last transferred.

A file's state is its time of change, inode and size. All processes of a node share the records.
They are in `.transfers` of the mirrors' root, one small file each, at the file's own relative path.
"""

import json
import uuid
from pathlib import Path

from rlhfv_ray.storage.mirror import mirror_root

State = list[int]  # time of change in ns, inode, size in bytes


def state_of(file: Path) -> State:
    """Return the state of a file; any rewriting changes it.

    Its time of change is the system's (ctime): unlike that of modification, no program can set it.
    """
    status = file.stat()
    return [status.st_ctime_ns, status.st_ino, status.st_size]


def version_here(file: Path) -> str:
    """Return the version of the object that the file is equal to.

    Empty if the file is gone, or was changed since its last transfer.
    """
    state, version = _read(file)
    try:
        return version if state_of(file) == state else ""
    except FileNotFoundError:
        return ""


def record_transfer(file: Path, state: State, version: str) -> None:
    """Record that the file, in this state, equals this version of its object."""
    record = _record_of(file)
    record.parent.mkdir(parents=True, exist_ok=True)
    draft = record.with_name(uuid.uuid4().hex)
    draft.write_text(json.dumps([state, version]))
    draft.replace(record)


def _read(file: Path) -> tuple[State, str]:
    try:
        state, version = json.loads(_record_of(file).read_text())
    except (FileNotFoundError, ValueError):  # none, or one that a full disk cut off
        return [], ""
    return state, version


def _record_of(file: Path) -> Path:
    root = mirror_root(file)
    assert root is not None, file
    # Hidden, so that no transferred folder has the same name.
    return root / ".transfers" / file.relative_to(root).with_name(f".{file.name}.json")
