"""Digests of a finished stage: `SUCCESS` holds them, and whoever uses the stage checks them.

A file is read once on each machine. Afterwards its time of change, inode and size vouch for it.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.storage.files import file_digest
from rlhfv_ray.storage.folder import LARGE_DIRS, display_path, is_there
from rlhfv_ray.storage.transfers import State, state_of

Digests = Mapping[str, str | None]  # sha256 by relative name; None for a folder that is elsewhere

CHECKED = ".checked.json"  # hidden: every machine has its own
# Neither payload nor constant: the lease, Ray's own files, checkpoints that a user may delete.
LEFT_OUT = ("SUCCESS", "lease.json", "ray", "checkpoints")
CARD = "model/README.md"  # not payload: it is written anew after every evaluation of the model


def payload_digests(folder: Path) -> dict[str, str | None]:
    """Return the digests of a folder's payload, and the names of large folders that are elsewhere.

    Args:
        folder: of a stage whose work has just ended.
    """
    digests: dict[str, str | None] = {}
    states: dict[str, State] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_hidden = any(part.startswith(".") for part in name.split("/"))
        is_payload = name != CARD and name.split("/")[0] not in LEFT_OUT
        if path.is_file() and not is_hidden and is_payload:
            states[name] = state_of(path)
            digests[name] = file_digest(path)
    for name in LARGE_DIRS:
        is_elsewhere = name not in LEFT_OUT and not (folder / name).exists()
        if is_elsewhere and is_there(folder / name):
            digests[name] = None
    _write_states(folder, states)
    return digests


def check_payload(folder: Path, digests: Digests) -> None:
    """Check that a finished stage's files are those that its `SUCCESS` names.

    A file that this machine has not fetched yet only has to exist.

    Raises:
        StageFailedError: a file is missing or has another content.
    """
    states = _read_states(folder)
    checked: dict[str, State] = {}
    for name, digest in digests.items():
        path = folder / name
        if not path.exists():
            if not is_there(path):
                raise _damaged(folder, name, "is missing")
        elif digest is not None:
            state = state_of(path)
            if states.get(name) != state and file_digest(path) != digest:
                raise _damaged(folder, name, "is not what the stage wrote")
            checked[name] = state
    if checked != states:
        _write_states(folder, checked)


def _damaged(folder: Path, name: str, problem: str) -> StageFailedError:
    success = display_path(folder / "SUCCESS")
    return StageFailedError(
        f"{display_path(folder / name)} {problem}, although its stage is finished. Delete it and "
        f"{success}, then run the command that made them: it makes again what is missing."
    )


def _read_states(folder: Path) -> dict[str, State]:
    with contextlib.suppress(FileNotFoundError, ValueError):  # also of bytes that are no text
        return dict(json.loads((folder / CHECKED).read_text()))
    return {}


def _write_states(folder: Path, states: Mapping[str, State]) -> None:
    """Remember which files were read; a folder that may not be written is read again."""
    with contextlib.suppress(OSError):
        (folder / CHECKED).write_text(json.dumps(states))
