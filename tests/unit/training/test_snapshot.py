"""Files that are written later hold what `torch.save` would have written before."""

import hashlib
import io
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from rlhfv_ray.training.snapshot import CHUNK, HashedStream, Snapshot


def state() -> dict:
    """Tensors that share their numbers, are views, or are empty, in containers of several types."""
    flat = torch.arange(12.0)
    return {
        "module": OrderedDict(first=flat[:4].view(2, 2), second=flat[4:]),
        "moments": [flat, torch.empty(0), torch.ones(3, dtype=torch.bfloat16)],
        "step": 7,
        "groups": [{"lr": 0.1}],
    }


def test_a_file_is_byte_for_byte_torch_s(tmp_path: Path) -> None:
    """Catches: tensors that no longer share their numbers, lost records, another digest."""
    expected = io.BytesIO()
    torch.save(state(), expected)
    digest = Snapshot(state(), tmp_path / "file", buffers={}).write()
    assert (tmp_path / "file").read_bytes() == expected.getvalue()
    assert digest == hashlib.sha256(expected.getvalue()).hexdigest()
    loaded = torch.load(tmp_path / "file", weights_only=True)
    assert loaded["module"]["first"].data_ptr() == loaded["moments"][0].data_ptr()


@pytest.mark.parametrize("copies", [True, False])
def test_changes_after_the_copy_are_not_written(tmp_path: Path, copies: bool) -> None:
    """Catches: weights of a later update in a checkpoint; without copies, that they are not copied.

    What is no tensor is pickled at once either way.
    """
    changing = state()
    snapshot = Snapshot(changing, tmp_path / "file", buffers={} if copies else None)
    changing["moments"][0].fill_(-1)
    changing["step"] = 8
    snapshot.write()
    loaded = torch.load(tmp_path / "file", weights_only=True)
    expected = state()["moments"][0] if copies else torch.full((12,), -1.0)
    assert torch.equal(loaded["moments"][0], expected)
    assert loaded["step"] == 7


def test_buffers_serve_states_of_other_sizes_too(tmp_path: Path) -> None:
    """Catches: numbers of the state before in a file, or a buffer of its size for a larger one."""
    buffers: dict[str, torch.UntypedStorage] = {}
    for count in (5, 5, 9, 2):
        changing = torch.full((count,), float(count))
        snapshot = Snapshot([changing, torch.ones(3)], tmp_path / "file", buffers=buffers)
        changing.zero_()
        snapshot.write()
        loaded = torch.load(tmp_path / "file", weights_only=True)
        assert torch.equal(loaded[0], torch.full((count,), float(count)))
        assert torch.equal(loaded[1], torch.ones(3))
    assert sum(buffer.nbytes() for buffer in buffers.values()) == 4 * (2 + 3)


def test_a_disk_without_room_is_an_error_of_the_disk() -> None:
    """Catches: a failed write that ends the process in torch's C++, or passes for a whole file."""
    snapshot = Snapshot(state(), Path("/dev/full"), buffers={})
    with pytest.raises(OSError, match="No space left"):
        snapshot.write()


class SlowDisk(io.BytesIO):
    """Takes a hundred bytes at a time, as a disk or a pipe may."""

    def write(self, data) -> int:
        return super().write(bytes(data[:100]))


def test_a_write_that_takes_a_part_is_continued() -> None:
    """Catches: bytes lost where a file takes fewer than it is given, or at a chunk's edge."""
    content = bytes(range(256)) * 4
    stream = HashedStream(SlowDisk())
    assert stream.write(content) == len(content) < CHUNK
    assert stream.stream.getvalue() == content
    assert stream.digest.hexdigest() == hashlib.sha256(content).hexdigest()
