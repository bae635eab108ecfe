"""JSON files: whole or absent; seals."""

import contextlib
import hashlib
import json
import os
import time

import pytest

from rlhfv_ray.storage.files import (
    SETTLED_NS,
    apply_umask,
    file_digest,
    known_digest,
    sealed,
    unsealed,
    write_json,
)


def test_a_file_that_cannot_be_written_keeps_its_former_content(tmp_path):
    """Catches: half a JSON file where a reader expects a whole one."""
    write_json(tmp_path / "a.json", {"step": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"step": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"step": 1}
    write_json(tmp_path / "a.json", {"step": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"step": 2}


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    """Catches: gigabytes read again for every trial; the digest of a file's former content, also
    where the change keeps its size, its inode and its time of modification.
    """
    reads, read, now = [], hashlib.file_digest, time.time_ns
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: reads.append(1) or read(*given))
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"aaaa")
    modified = path.stat().st_mtime_ns
    first = known_digest(path)
    assert known_digest(path) == first and len(reads) == 2  # it has just been written
    monkeypatch.setattr(time, "time_ns", lambda: now() + 2 * SETTLED_NS)
    assert [known_digest(path) for _ in range(3)] == 3 * [first] and len(reads) == 3
    path.write_bytes(b"bbbb")
    os.utime(path, ns=(modified, modified))
    assert known_digest(path) == file_digest(path) != first


VALUE = {"step": 12, "loss": 0.1 + 0.2, "files": {"b": None, "a": "é"}, "pairs": ["x", "y"]}


def test_a_sealed_object_is_read_back():
    """Catches: a seal that depends on the order of keys or on how numbers are written."""
    assert unsealed(json.dumps(sealed(VALUE))) == VALUE
    assert unsealed(json.dumps(sealed(VALUE), indent=1, sort_keys=True), required=True) == VALUE
    assert unsealed(json.dumps(VALUE)) == VALUE  # of an earlier version
    with pytest.raises(ValueError, match="not what was sealed"):
        unsealed(json.dumps(VALUE), required=True)


def test_no_changed_bit_is_read_as_another_object():
    """Catches: any one bit of a sealed file that changes its content unseen."""
    text = json.dumps(sealed(VALUE)).encode()
    for place in range(len(text)):
        for bit in range(8):
            changed = bytearray(text)
            changed[place] ^= 1 << bit
            with contextlib.suppress(ValueError):
                assert unsealed(changed.decode(), required=True) == VALUE


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "null"])
def test_what_is_no_object_is_refused(text):
    """Catches: an emptied or torn file that ends in another exception."""
    with pytest.raises(ValueError):
        unsealed(text)


def test_files_get_the_mode_of_new_files(tmp_path):
    """Catches: weights that safetensors writes for their owner alone, so that no colleague's job
    can load the model; a mode wider than the user's umask.
    """
    weights = tmp_path / "model" / "adapter" / "a.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch(mode=0o600)
    before = os.umask(0o027)
    try:
        apply_umask(tmp_path / "model")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert weights.stat().st_mode & 0o777 == 0o640
