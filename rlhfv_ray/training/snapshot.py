"""A state as `torch.save` would write it, kept in CPU memory until it is written.

Pickling and copying stop training; writing and hashing, which take longer, need not.
"""

import hashlib
import pickle
from pathlib import Path
from typing import IO, Any

import torch
from torch.serialization import DEFAULT_PROTOCOL, _open_zipfile_writer, _save

CHUNK = 2**24  # bytes hashed and written at a time


class Snapshot:
    """The records of a file of `torch.save`: the pickled state, and the numbers of its tensors.

    Args:
        state: what `torch.save` accepts; it may change once this returns, if there are buffers.
        path: of the file to write.
        buffers: by record, memory for copies, which grows as needed. It serves one snapshot of the
            file after another, because new memory takes five times as long to fill. None: tensors
            in CPU memory are not copied.
    """

    def __init__(
        self, state: Any, path: Path, *, buffers: dict[str, torch.UntypedStorage] | None
    ) -> None:
        self.path, self.buffers = path, buffers
        self.records: list[tuple[str, Any, int]] = []
        _save(state, self, pickle, DEFAULT_PROTOCOL, False)
        self.records.reverse()  # `write` takes them from the end

    def write_record(self, name: str, data: Any, size: int) -> None:
        """Keep one record; called by `torch.save`'s own code, as the method of its file."""
        if self.buffers is not None and isinstance(data, torch.UntypedStorage):
            if name not in self.buffers or self.buffers[name].nbytes() != size:
                self.buffers[name] = torch.UntypedStorage(size)
            data = self.buffers[name].copy_(data)
        self.records.append((name, data, size))

    def write(self) -> str:
        """Write the file, and return its sha256.

        Raises:
            OSError: the file cannot be written.
        """
        with self.path.open("wb", buffering=0) as stream:
            hashed: Any = HashedStream(stream)
            archive: Any
            with _open_zipfile_writer(hashed) as archive:
                while self.records:
                    archive.write_record(*self.records.pop())
        if hashed.error is not None:
            raise hashed.error
        return hashed.digest.hexdigest()


class HashedStream:
    """Hashes what is written to a file.

    Args:
        stream: of the file, without a buffer.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.digest = hashlib.sha256()
        # Kept, because torch's writer in C++ writes on while it cleans up.
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write and hash bytes, unless a write before has failed."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK):
            chunk = view[start : start + CHUNK]
            self.digest.update(chunk)
            self._write_all(chunk)
        return len(view)

    def flush(self) -> None:
        """Do nothing: the stream has no buffer."""

    def _write_all(self, chunk: memoryview) -> None:
        while len(chunk) and self.error is None:
            try:
                chunk = chunk[self.stream.write(chunk) :]
            except OSError as error:
                self.error = error
