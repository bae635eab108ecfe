"""A finished stage's files: each is there and as it was written, or the error names it."""

import json
import os

import pytest

from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.storage import digests
from rlhfv_ray.storage.digests import check_payload
from rlhfv_ray.storage.folder import open_folder
from rlhfv_ray.storage.stages import Stage, run_stages

FILES = ("part-00000.parquet", "model/model.safetensors", "metrics.jsonl")


def write_files(folder, token):
    """The work of a stage: parts, a model, a checkpoint, and a hidden draft."""
    for name in (*FILES, "checkpoints/step-1/state.pt", ".draft"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 9)
    open_folder(folder / "model").publish()


STAGE = Stage("work", {"seed": 1}, write_files, title="work")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage",
    [lambda path: path.unlink(), lambda path: path.write_bytes(b""), flip_a_bit],
    ids=["deleted", "emptied", "one bit"],
)
def test_a_damaged_file_is_named_and_made_again(tmp_path, name, damage):
    """Catches: a finished stage used without a part, with a torn one, or with another weight."""
    (result,) = run_stages([STAGE], tmp_path)
    damage(result.folder / name)
    with pytest.raises(StageFailedError, match=f"{name} .* although its stage is finished"):
        run_stages([STAGE], tmp_path)
    (result.folder / "SUCCESS").unlink()  # what the error asks for
    run_stages([STAGE], tmp_path)
    assert run_stages([STAGE], tmp_path)[0].skipped


def test_what_is_no_payload_may_go(tmp_path):
    """Catches: a finished training refused because its checkpoints were deleted to make room."""
    (result,) = run_stages([STAGE], tmp_path)
    (result.folder / "checkpoints" / "step-1" / "state.pt").unlink()
    (result.folder / ".draft").unlink()
    assert run_stages([STAGE], tmp_path)[0].skipped
    named = json.loads((result.folder / "SUCCESS").read_text())["files"]
    assert set(named) == {*FILES, "config.json"}


def test_a_file_is_read_once_as_long_as_it_is_not_touched(tmp_path, monkeypatch):
    """Catches: gigabytes of weights read again by every trial that starts from them."""
    (result,) = run_stages([STAGE], tmp_path)
    files = json.loads((result.folder / "SUCCESS").read_text())["files"]
    read = []
    monkeypatch.setattr(
        digests, "file_digest", lambda path: read.append(path.name) or files[path.name]
    )
    check_payload(result.folder, files)
    assert read == []
    os.utime(result.folder / "metrics.jsonl")
    check_payload(result.folder, files)
    check_payload(result.folder, files)
    assert read == ["metrics.jsonl"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff{}", b"[]", b"{}"])
def test_files_are_read_again_if_nobody_knows_their_states(tmp_path, content):
    """Catches: a traceback for a torn memory of checked files, or damage that it hides."""
    (result,) = run_stages([STAGE], tmp_path)
    (result.folder / digests.CHECKED).write_bytes(content)
    assert run_stages([STAGE], tmp_path)[0].skipped
    (result.folder / digests.CHECKED).write_bytes(content)
    flip_a_bit(result.folder / FILES[0])
    with pytest.raises(StageFailedError, match=FILES[0]):
        run_stages([STAGE], tmp_path)


def test_another_node_checks_what_it_has(node):
    """Catches: a model that no node fetched yet taken for a lost one, and a lost one for that."""
    run_stages([STAGE], node("a"))
    storage = node("b")
    (result,) = run_stages([STAGE], storage)
    assert result.skipped
    open_folder(result.folder / "model").discard()
    with pytest.raises(StageFailedError, match="model.*is missing"):
        run_stages([STAGE], node("c"))
