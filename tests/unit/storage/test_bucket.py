"""A bucket's folder, on a real server of S3's protocol: transfers, and what is refused."""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from eval.reporting.mlflow_log import experiment_of
from rlhfv_ray.data import list_slices, read_slice
from rlhfv_ray.data.files.image_sources import ImageRoots, image_bytes
from rlhfv_ray.errors import ConfigError, StorageError
from rlhfv_ray.storage import bucket
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import (
    discard,
    display_path,
    fetch,
    fetch_local,
    is_there,
    local_path,
    names_in,
    open_folder,
    publish,
    resolve_storage,
)
from tests.s3_server import BUCKET

LARGE = 2**20 + 1  # bytes


def test_what_one_node_publishes_another_fetches(node):
    """Catches: lost files, half a folder, hidden or left-out files sent, a stale small file."""
    first_storage = node("a")
    (first_storage / "stage" / "model").mkdir(parents=True)
    contents = {"one.txt": "1", "sub/two.txt": "22", ".hidden": "x", "model/big": "heavy"}
    for name, text in contents.items():
        (first_storage / "stage" / name).parent.mkdir(exist_ok=True)
        (first_storage / "stage" / name).write_text(text)
    publish(first_storage / "stage", without=("model",))
    second = node("b") / "stage"
    assert second != first_storage / "stage" and not second.exists()
    fetch(second)
    files = [path for path in second.rglob("*") if path.is_file()]
    assert {str(file.relative_to(second)) for file in files} == {"one.txt", "sub/two.txt"}
    assert names_in(second) == ["one.txt", "sub"]
    (second / "one.txt").write_text("2")  # as many bytes as before
    publish(second)
    first = node("a") / "stage"
    fetch(first)
    assert (first / "one.txt").read_text() == "2"
    discard(first)
    assert not is_there(first) and not first.exists() and names_in(first) == []


def test_only_what_changed_is_sent_again(node, monkeypatch):
    """Catches: a heartbeat that sends every file; a rewritten one of equal size kept back."""
    stage = node("a") / "stage"
    stage.mkdir()
    uploads = []
    send = bucket._send

    def recording_send(system, key, names):
        uploads.append([path.name for path in names])
        send(system, key, names)

    monkeypatch.setattr(bucket, "_send", recording_send)
    (stage / "large").write_bytes(bytes(LARGE))
    (stage / "small").write_text("a")
    publish(stage)
    publish(stage)
    (stage / "small").write_text("ab")
    publish(stage)
    (stage / "large").write_bytes(b"x" * LARGE)
    publish(stage)
    publish(stage)
    assert uploads == [["large", "small"], [], ["small"], ["large"], []]


def test_a_file_of_equal_size_and_other_content_is_transferred(node):
    """Catches: old weights used, and mixed across nodes, after a model is exported again."""
    first = node("a") / "model"
    first.mkdir()
    (first / "weights").write_bytes(b"1" * LARGE)
    publish(first)
    second = node("b") / "model"
    fetch(second)
    (second / "weights").write_bytes(b"2" * LARGE)
    publish(second)
    node("a")
    fetch(first)
    assert (first / "weights").read_bytes() == b"2" * LARGE


@pytest.mark.slow
def test_another_process_of_a_node_knows_what_was_transferred(node):
    """Catches: every file fetched once a process; a file that another process rewrote kept back."""
    folder = node("a") / "data"
    folder.mkdir()
    (folder / "file").write_text("1")
    publish(folder)
    before = (folder / "file").stat().st_ino
    environment = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    code = f"""
from pathlib import Path
from rlhfv_ray.storage.folder import fetch
fetch(Path({str(folder)!r}))
"""
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert (folder / "file").stat().st_ino == before
    system, key = bucket.file_system(display_path(folder))
    system.pipe_file(f"{key}/file", b"2")
    publish(folder)  # nothing changed here: the object stays
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert (folder / "file").read_text() == "2"


def test_only_one_missing_file_of_a_folder_is_fetched(node):
    """Catches: a picture fetched at every read, or a path that names another bucket's folder."""
    folder = node("a") / "data"
    folder.mkdir()
    (folder / "red.png").write_text("red")
    (folder / "blue.png").write_text("blue")
    publish(folder)
    folder = node("b") / "data"
    opened = open_folder(folder)
    opened.fetch_missing(folder / "red.png")
    assert (folder / "red.png").read_text() == "red" and not (folder / "blue.png").exists()
    (folder / "red.png").write_text("changed here")
    opened.fetch_missing(folder / "red.png")
    assert (folder / "red.png").read_text() == "changed here"
    nested = folder / "rlhfv-ray-mirror-0" / "s3" / "other"
    assert display_path(nested) == f"{display_path(folder)}/rlhfv-ray-mirror-0/s3/other"


def test_a_dropped_copy_stays_in_the_bucket(node):
    """Catches: a checkpoint deleted for all when a node makes room."""
    folder = node("a") / "checkpoint"
    folder.mkdir()
    (folder / "weights").write_text("w")
    publish(folder)
    open_folder(folder).drop_copy()
    assert not folder.exists() and is_there(folder / "weights")


def test_a_copy_has_one_name_on_a_node_and_another_on_the_next(node):
    """Catches: workers of two nodes of which one alone fetches, or all workers of one node."""
    first = open_folder(node("a") / "stage").copy_id()
    assert first == open_folder(node("a") / "other").copy_id() != ""
    assert open_folder(node("b") / "stage").copy_id() not in ("", first)


def test_a_bucket_tells_ray_where_its_files_are(node):
    """Catches: Ray's files on one node's disk; a trial on a node without the sweep's files."""
    folder = open_folder(node("a") / "ray")
    settings = folder.ray_storage()
    assert f"s3://{settings['storage_path']}" == folder.display()
    with settings["storage_filesystem"].open_output_stream(f"{settings['storage_path']}/x") as out:
        out.write(b"1")
    assert folder.names() == ["x"]
    assert folder.ray_resources(cpus=0.5, node="10.0.0.7") == {"CPU": 0, "node:10.0.0.7": 0.001}
    assert folder.free_bytes() == math.inf
    assert (
        folder.database_limit() == f"{folder.display()} is an address, and a database needs a disk"
    )


def test_data_and_its_images_are_read_on_every_node(node):
    """Catches: rows whose pictures only the driver has; pictures from outside the data's folder."""
    folder = node("a") / "data"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "red.png")
    row = {"prompt": "?", "chosen": "a cat", "rejected": "a dog", "image": "red.png"}
    rows = [{**row, "id": "good"}, {**row, "id": "bad", "image": "../out.png"}]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    publish(folder)
    (part,) = list_slices(f"{display_path(folder)}/pairs.jsonl")
    shutil.rmtree(folder)  # as on a node that has nothing yet
    pairs = dict(read_slice(part))
    assert pairs["good"].chosen == "a cat" and pairs["good"].image.startswith(b"\x89PNG")
    assert "leads out of the data file's folder" in str(pairs["bad"])


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://", "is no address of a folder"),
        ("s3://bucket/../other", "is no address of a folder"),
        ("s3://no-such-bucket/runs", "cannot be written"),
        ("nonsense://bucket/runs", "Install fsspec's package for nonsense://"),
    ],
)
def test_a_bad_address_is_an_error_that_says_the_fix(node, address, message):
    """Catches: a traceback of some client, or a storage that fails only hours later."""
    node("a")
    with pytest.raises(ConfigError, match=message):
        resolve_storage(address)


def test_a_server_that_is_gone_is_named(node, monkeypatch):
    """Catches: a client's own error, or none."""
    storage = node("a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(bucket, "file_system", impatient_file_system)
    with pytest.raises(StorageError, match="cannot be reached.*same command goes on"):
        fetch(storage / "stage")
    (storage / "data").mkdir()
    with pytest.raises(StorageError):  # the row is not set aside for it
        image_bytes({"image": "x.png"}, ImageRoots(((storage / "data").resolve(),)))


def impatient_file_system(address: str):
    """Return a file system with today's environment that gives up soon."""
    import s3fs

    system = s3fs.S3FileSystem(
        skip_instance_cache=True,
        config_kwargs={"retries": {"max_attempts": 1}, "connect_timeout": 2},
    )
    return system, address.removeprefix("s3://")


def test_an_object_cannot_leave_the_mirror(node):
    """Catches: a key with .. in it that writes anywhere on the node."""
    storage = node("a")
    system, key = bucket.file_system(display_path(storage))
    system.pipe_file(f"{key}/evil/../../../out", b"x")
    with pytest.raises(StorageError, match="leads out of its folder"):
        fetch(storage)
    system.rm_file(f"{key}/evil/../../../out")


def test_a_mirror_of_another_user_is_refused(node):
    """Catches: checkpoints, which are code, taken from a folder that others can write."""
    root = node("a").parents[2]
    assert root.name == f"rlhfv-ray-mirror-{os.getuid()}" and root.stat().st_mode & 0o777 == 0o700
    root.chmod(0o777)
    with pytest.raises(ConfigError, match="open to other users"):
        fetch_local(f"s3://{BUCKET}/any")
    root.chmod(0o700)


def test_the_experiment_of_a_model_in_a_bucket_is_found(node):
    """Catches: an evaluation of a model by its address that its experiment never hears of."""
    storage = node("a")
    for name, stages in {"shapes-1": ["train-1"], "shapes-2": ["train-2"]}.items():
        (storage / name).mkdir()
        write_json(storage / name / "config.json", {"stages": stages})
        (storage / name / "tracking.jsonl").write_text("")
        publish(storage / name)
    address = display_path(storage)
    node("b")
    model: Path = local_path(f"{address}/train-2/model")
    assert experiment_of(model) == local_path(f"{address}/shapes-2")
