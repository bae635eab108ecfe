"""Storage behind an address, on a real server of S3's protocol: what is published, fetched, claimed, and refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from eval.reporting.mlflow_log import experiment_of
from rlhfv_ray.data import list_slices, read_slice
from rlhfv_ray.data.pair_formats import image_bytes
from rlhfv_ray.errors import ConfigError, StageFailedError, StorageError
from rlhfv_ray.storage import lease as leases
from rlhfv_ray.storage import mirror as remote
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.lease import hold_lease, holds_lease
from rlhfv_ray.storage.mirror import (
    address_of,
    discard,
    display_path,
    fetch,
    fetch_local,
    is_there,
    mirror_path,
    names_in,
    publish,
    resolve_storage,
)
from rlhfv_ray.storage.stages import Stage, is_done, run_stages
from tests.conftest import wait_for
from tests.s3_server import BUCKET, s3_server


@pytest.fixture(scope="module")
def server():
    with s3_server() as s3:
        yield s3.environment


@pytest.fixture
def node(server, tmp_path, monkeypatch):
    """Make this process the node of a name: its mirrors are its own."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)

    def become(name: str) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setattr(remote.tempfile, "tempdir", str(tmp_path / name))
        remote._sent.clear()
        return resolve_storage(f"s3://{BUCKET}/{tmp_path.name}")

    return become


def test_what_one_node_publishes_another_fetches(node):
    """Catches: files lost, half of a folder, hidden or left-out ones sent; a file rewritten at the same size kept as it was."""
    here = node("a")
    (here / "stage" / "model").mkdir(parents=True)
    for name, text in {
        "one.txt": "1",
        "sub/two.txt": "22",
        ".hidden": "x",
        "model/big": "heavy",
    }.items():
        (here / "stage" / name).parent.mkdir(exist_ok=True)
        (here / "stage" / name).write_text(text)
    publish(here / "stage", without=("model",))
    there = node("b")
    assert there != here and not (there / "stage").exists()
    fetch(there / "stage")
    found = {
        str(path.relative_to(there / "stage"))
        for path in (there / "stage").rglob("*")
        if path.is_file()
    }
    assert found == {"one.txt", "sub/two.txt"}
    assert names_in(there / "stage") == ["one.txt", "sub"]
    (there / "stage" / "one.txt").write_text("2")
    publish(there / "stage")
    back = node("a")
    fetch(back / "stage")
    assert (back / "stage" / "one.txt").read_text() == "2"
    discard(back / "stage")
    assert (
        not is_there(back / "stage")
        and not (back / "stage").exists()
        and names_in(back / "stage") == []
    )


def test_only_what_changed_is_sent_again(node, monkeypatch):
    """Catches: a heartbeat that sends every part and every file of a folder again."""
    here, sent, send = node("a"), [], remote._send
    monkeypatch.setattr(
        remote,
        "_send",
        lambda system, files, keys: (
            sent.append([path.name for path in files]),
            send(system, files, keys),
        ),
    )
    (here / "stage").mkdir()
    (here / "stage" / "large").write_bytes(bytes(remote.SMALL + 1))
    (here / "stage" / "small").write_text("a")
    publish(here / "stage")
    publish(here / "stage")
    (here / "stage" / "small").write_text("ab")
    publish(here / "stage")
    remote._sent.clear()  # another process of the same node
    publish(here / "stage")
    assert sent == [["large", "small"], [], ["small"], ["small"]]


def test_a_plain_folder_is_left_alone(tmp_path, monkeypatch):
    """Catches: a storage on a disk that asks the network for anything."""
    monkeypatch.setattr(remote, "file_system", lambda path: pytest.fail("asked"))
    write_json(tmp_path / "file.json", 1)
    publish(tmp_path)
    fetch(tmp_path)
    assert is_there(tmp_path / "file.json") and names_in(tmp_path) == ["file.json"]
    assert (
        address_of(tmp_path) is None
        and display_path(tmp_path) == str(tmp_path)
        and fetch_local(tmp_path) == tmp_path
    )


def test_data_and_its_images_are_read_on_every_node(node):
    """Catches: rows whose pictures only the driver has; pictures taken from outside the data's folder."""
    here = node("a") / "data"
    here.mkdir()
    Image.new("RGB", (8, 8)).save(here / "red.png")
    row = {"prompt": "?", "chosen": "a cat", "rejected": "a dog", "image": "red.png"}
    rows = [{**row, "id": "good"}, {**row, "id": "bad", "image": "../out.png"}]
    (here / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    publish(here)
    (part,) = list_slices(f"{address_of(here)}/pairs.jsonl")
    shutil.rmtree(here)  # as on a node that has nothing yet
    found = dict(read_slice(part))
    assert found["good"].chosen == "a cat" and found["good"].image.startswith(b"\x89PNG")
    assert "leads out of the data file's folder" in str(found["bad"])


def test_a_stage_is_made_once_whichever_node_asks(node):
    """Catches: SUCCESS seen before what it vouches for; a stage made again by another node; a lease that stays."""
    made = []

    def run(folder: Path, token: str) -> None:
        assert holds_lease(folder, token)
        (folder / "payload").write_text("done")
        made.append(folder)

    stage = Stage("work", {"seed": 1}, run, title="work")
    first = run_stages([stage], node("a"))[0]
    storage = node("b")
    assert is_done(stage.folder(storage))
    again = run_stages([stage], storage)[0]
    assert len(made) == 1 and again.skipped and not first.skipped
    assert (again.folder / "payload").read_text() == "done" and again.seconds == first.seconds
    system, key = remote.file_system(again.folder)
    assert {name.rpartition("/")[2] for name in system.find(key)} == {
        "SUCCESS",
        "config.json",
        "payload",
    }


def test_a_failed_stage_leaves_what_it_had_and_no_success(node):
    """Catches: work lost with the node that did it; a failure taken for whole."""

    def fail(folder: Path, token: str) -> None:
        (folder / "part").write_text("half")
        raise StageFailedError("no")

    stage = Stage("work", {"seed": 2}, fail, title="work")
    with pytest.raises(StageFailedError):
        run_stages([stage], node("a"))
    storage = node("b")
    assert not is_done(stage.folder(storage))
    fetch(stage.folder(storage))
    assert (stage.folder(storage) / "part").read_text() == "half"


def test_one_driver_at_a_time_and_the_dead_are_taken_over(node, monkeypatch):
    """Catches: two writers of one folder; a folder locked for ever, or taken from a node that lives."""
    storage = node("a") / "folder"
    code = f"""
import time
from pathlib import Path
from rlhfv_ray.storage import lease as leases
leases.HEARTBEAT_S = 0.2
with leases.hold_lease(Path({str(storage)!r})):
    Path({str(storage)!r}, "spool").write_text("so far")
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(StageFailedError, match=f"s3://.* is being written by process {holder.pid}"),
        hold_lease(storage),
    ):
        pass
    wait_for(lambda: is_there(storage / "spool"), 30)  # published by a beat of the heart
    holder.kill()
    holder.wait()
    other = node("b") / "folder"
    with hold_lease(other) as token:
        assert (other / "spool").read_text() == "so far"
        assert holds_lease(other, token) and not holds_lease(other, "another")
        monkeypatch.setattr(leases.socket, "gethostname", lambda: "elsewhere")
        with pytest.raises(StageFailedError, match="is being written"), hold_lease(other):
            pass
    assert not is_there(other / f".{leases.LEASE}")
    assert leases._claim(
        other / f".{leases.LEASE}",
        json.dumps({"token": "far", "host": "gone", "pid": 1, "started": 1.0}),
    )
    monkeypatch.setattr(leases, "STALE_S", -1.0)
    with hold_lease(other):
        pass


def test_of_many_claims_one_succeeds(node):
    """Catches: a lease that two hold."""
    path = node("a") / "lease"
    code = f"""
from pathlib import Path
from rlhfv_ray.storage.lease import _claim as claim
print(claim(Path({str(path)!r}), "me"))
"""
    several = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert sorted(one.communicate()[0].strip() for one in several) == ["False"] * 3 + ["True"]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("s3://", "is no address of a folder"),
        ("s3://bucket/../other", "is no address of a folder"),
        ("s3://no-such-bucket/runs", "cannot be written"),
        ("nonsense://bucket/runs", "Install fsspec's package for nonsense://"),
    ],
)
def test_a_bad_address_is_an_error_that_says_the_fix(node, address, says):
    """Catches: a traceback of some client, or a storage that fails only hours later."""
    node("a")
    with pytest.raises(ConfigError, match=says):
        resolve_storage(address)


def test_a_server_that_is_gone_is_named(node, monkeypatch):
    """Catches: a client's own error, or none."""
    storage = node("a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(remote, "file_system", lambda path: remote_of(path))
    with pytest.raises(StorageError, match="cannot be reached.*same command goes on"):
        fetch(storage / "stage")
    (storage / "data").mkdir()
    with pytest.raises(StorageError):  # a row is not set aside for it
        image_bytes({"image": "x.png"}, (storage / "data").resolve())


def remote_of(path: Path):
    """A file system that was made with today's environment, and gives up soon."""
    import s3fs

    system = s3fs.S3FileSystem(
        skip_instance_cache=True,
        config_kwargs={"retries": {"max_attempts": 1}, "connect_timeout": 2},
    )
    return system, str(address_of(path)).removeprefix("s3://")


def test_an_object_cannot_leave_the_mirror(node):
    """Catches: a key with .. in it that writes anywhere on the node."""
    storage = node("a")
    system, key = remote.file_system(storage)
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
        fetch(mirror_path(f"s3://{BUCKET}/any"))
    root.chmod(0o700)


def test_the_experiment_of_a_model_in_a_bucket_is_found(node):
    """Catches: an evaluation of a model by its address that its experiment never hears of."""
    here = node("a")
    for name, stages in {"shapes-1": ["train-1"], "shapes-2": ["train-2"]}.items():
        (here / name).mkdir()
        write_json(here / name / "config.json", {"stages": stages})
        (here / name / "tracking.jsonl").write_text("")
        publish(here / name)
    address = f"{address_of(here)}/train-2/model"
    node("b")
    assert experiment_of(mirror_path(address)) == mirror_path(f"{address_of(here)}/shapes-2")
