"""Stages: made once, by one driver at a time, on a disk and in a bucket."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.storage import lease as leases
from rlhfv_ray.storage import stages
from rlhfv_ray.storage.folder import fetch, is_there, open_folder
from rlhfv_ray.storage.holder import NOBODY
from rlhfv_ray.storage.lease import hold_lease, holds_lease
from rlhfv_ray.storage.lease_file import LEASE, holder_of, open_lease
from rlhfv_ray.storage.stages import Stage, is_done, run_stages
from tests.conftest import wait_for


def recording_stage(calls, inputs=None):
    """Return a stage that records the folders it runs in."""
    return Stage(
        "work", inputs or {"seed": 1}, lambda folder, token: calls.append(folder), title="work"
    )


def test_done_stage_is_skipped_and_other_inputs_are_not(tmp_path):
    """Catches: work done twice, or a result reused for other inputs."""
    calls = []
    first = run_stages([recording_stage(calls)], tmp_path)[0]
    second = run_stages([recording_stage(calls)], tmp_path)[0]
    third = run_stages([recording_stage(calls, {"seed": 2})], tmp_path)[0]
    assert (first.skipped, second.skipped, third.skipped) == (False, True, False)
    assert first.folder == second.folder != third.folder
    assert len(calls) == 2
    assert json.loads((first.folder / "config.json").read_text()) == {"seed": 1}


def test_failed_stage_is_not_done_and_lets_go(tmp_path):
    """Catches: SUCCESS after a failure; a lease that outlives its stage."""

    def fail(folder, token):
        raise StageFailedError("no")

    failing = Stage("work", {"seed": 1}, fail, title="work")
    with pytest.raises(StageFailedError):
        run_stages([failing], tmp_path)
    folder = failing.folder(tmp_path)
    assert not is_done(folder)
    assert not (folder / LEASE).exists()


def test_a_stage_that_was_made_meanwhile_is_not_made_again(tmp_path, monkeypatch):
    """Catches: a driver that looked before another one ended, and works in its finished folder."""
    calls = []
    run_stages([recording_stage(calls)], tmp_path)
    answers = iter([False, True])  # not done before the lease is taken, done after it
    monkeypatch.setattr(stages, "is_done", lambda folder: next(answers))
    folder = recording_stage(calls).folder(tmp_path)
    assert stages._run_stage(recording_stage(calls), folder).skipped and len(calls) == 1


@pytest.mark.slow
def test_a_driver_that_was_stopped_and_replaced_marks_nothing_as_done(tmp_path):
    """Catches: `SUCCESS` by a driver that wakes up in the middle of its successor's work."""
    code = f"""
from pathlib import Path
from rlhfv_ray.storage import holder
from rlhfv_ray.storage.stages import Stage, run_stages
holder.socket.gethostname = lambda: "elsewhere"
def work(folder, token):
    print(folder, flush=True)
    input()
run_stages([Stage("work", {{"seed": 1}}, work, title="work")], Path({str(tmp_path)!r}))
"""
    former = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "RLHFV_HEARTBEAT_S": "0.1", "RLHFV_STALE_S": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert former.stdout is not None
    folder = Path(former.stdout.readline().strip())
    with open_lease(folder, "").locked():  # a heartbeat that is stopped would keep the lock
        former.send_signal(signal.SIGSTOP)
        wait_for(lambda: psutil.Process(former.pid).status() == psutil.STATUS_STOPPED)
    with pytest.MonkeyPatch.context() as settings:
        settings.setattr(leases, "STALE_S", 1.0)
        with hold_lease(folder) as token:
            former.send_signal(signal.SIGCONT)
            _, errors = former.communicate("\n")
            assert former.returncode == 1
            assert "StageFailedError" in errors and "taken over by another driver" in errors
            assert not is_done(folder) and holds_lease(folder, token)


def test_success_says_who_wrote_it_and_a_late_one_is_withdrawn(node):
    """Catches: a `SUCCESS` written in the moment in which a bucket's lease is lost."""
    storage, tokens = node("a"), []
    stage = Stage("work", {"seed": 1}, lambda folder, token: tokens.append(token), title="work")
    folder = run_stages([stage], storage)[0].folder
    assert json.loads((folder / "SUCCESS").read_text())["token"] == tokens[0]
    stages._withdraw(folder / "SUCCESS", "another")
    assert is_done(folder)
    stages._withdraw(folder / "SUCCESS", tokens[0])
    assert not is_done(folder)


@pytest.mark.parametrize("kind", ["disk", "bucket"])
def test_a_stage_whose_lease_was_lost_is_not_done(kind, node, tmp_path):
    """Catches: `SUCCESS` or a payload by who holds no lease, on a disk and in a bucket."""
    storage = node("a") if kind == "bucket" else tmp_path / "runs"

    def lose(folder: Path, token: str) -> None:
        (folder / "late").write_text("from the former holder")
        lease = open_lease(folder, "successor")
        assert lease.claim({"token": "successor"}, lease.read())

    stage = Stage("work", {"seed": 1}, lose, title="work")
    with pytest.raises(StageFailedError, match="taken over by another driver"):
        run_stages([stage], storage)
    folder = stage.folder(storage)
    assert not is_done(folder) and holds_lease(folder, "successor")
    if kind == "bucket":
        assert not is_there(folder / "late")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("config.json", "config.jsol"),
        lambda text: text.replace('"seconds": 0', '"seconds": 9'),
        lambda text: "{}",
        lambda text: "[]",
    ],
    ids=["emptied", "torn", "another name", "another number", "no fields", "no object"],
)
def test_a_damaged_success_is_named_and_made_again(tmp_path, damage):
    """Catches: a traceback of the JSON parser, or a file that is no longer checked."""
    calls = []
    folder = run_stages([recording_stage(calls)], tmp_path)[0].folder
    success = folder / "SUCCESS"
    success.write_text(damage(success.read_text()))
    with pytest.raises(StageFailedError, match=r"SUCCESS is damaged .*Delete it"):
        run_stages([recording_stage(calls)], tmp_path)
    success.unlink()  # what the error asks for
    assert not run_stages([recording_stage(calls)], tmp_path)[0].skipped
    assert run_stages([recording_stage(calls)], tmp_path)[0].skipped and len(calls) == 2


def test_a_stage_is_made_once_whichever_node_asks(node):
    """Catches: SUCCESS seen before its payload; a stage made twice; a lease that stays."""
    folders = []

    def run(folder: Path, token: str) -> None:
        assert holds_lease(folder, token)
        (folder / "payload").write_text("done")
        folders.append(folder)

    stage = Stage("work", {"seed": 1}, run, title="work")
    first = run_stages([stage], node("a"))[0]
    storage = node("b")
    assert is_done(stage.folder(storage))
    second = run_stages([stage], storage)[0]
    assert len(folders) == 1 and second.skipped and not first.skipped
    assert (second.folder / "payload").read_text() == "done" and second.seconds == first.seconds
    names = open_folder(second.folder).names()
    assert names == [f".{LEASE}", "SUCCESS", "config.json", "payload"]
    assert holder_of(open_lease(second.folder, "").read()) == NOBODY


def test_a_failed_stage_leaves_what_it_had_and_no_success(node):
    """Catches: work lost with the node that did it; a failure taken for a result."""

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
