"""A folder on a disk that every node sees: nothing has to be transferred."""

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DiskFolder:
    """A folder, or a file, on a disk that every node sees."""

    path: Path

    def display(self) -> str:
        """Return the path as text."""
        return str(self.path)

    def make(self) -> None:
        """Create the folder and its parents."""
        self.path.mkdir(parents=True, exist_ok=True)

    def publish(self, *, without: Sequence[str] = ()) -> None:
        """Do nothing: other nodes see the file already."""

    def fetch(self, *, without: Sequence[str] = (), only: str = "") -> None:
        """Do nothing: what other nodes wrote is visible already."""

    def fetch_missing(self, file: Path) -> None:
        """Do nothing: every file of the folder is visible already."""

    def exists(self) -> bool:
        """Return True if the file or folder exists."""
        return self.path.exists()

    def names(self) -> list[str]:
        """List the names directly in the folder; none if it does not exist."""
        return [path.name for path in self.path.iterdir()] if self.path.is_dir() else []

    def discard(self) -> None:
        """Delete the file or folder; files of a folder that cannot be deleted stay."""
        if self.path.is_dir():
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            self.path.unlink(missing_ok=True)

    def link(self, name: str) -> None:
        """Point a link beside the folder to it, unless the name is taken or links are missing."""
        link = self.path.with_name(name)
        if link.exists() and not link.is_symlink():
            return
        with contextlib.suppress(OSError):
            new = self.path.with_name(f".{name}-{os.getpid()}")
            new.symlink_to(self.path.name)
            new.replace(link)

    def drop_copy(self) -> None:
        """Do nothing: the folder is the original."""

    def copy_id(self) -> str:
        """Return the empty name: all processes share these files."""
        return ""

    def free_bytes(self) -> float:
        """Return the disk's free space in bytes."""
        return shutil.disk_usage(self.path).free

    def database_limit(self) -> str:
        """Return no reason: a database works on a disk."""
        return ""

    def ray_storage(self) -> dict[str, Any]:
        """Return the arguments of Ray's RunConfig that make it keep its files here."""
        return {"storage_path": str(self.path)}

    def ray_resources(self, *, cpus: float, node: str) -> dict[str, float]:
        """Return what to reserve for a process that writes here: `cpus`, on any node."""
        return {"CPU": cpus}
