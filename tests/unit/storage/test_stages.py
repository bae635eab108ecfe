"""Stages: made once, by one driver at a time, on a disk and in a bucket."""

import json
from pathlib import Path

import pytest

from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.storage.folder import fetch, open_folder
from rlhfv_ray.storage.lease import LEASE, holds_lease
from rlhfv_ray.storage.stages import Stage, is_done, run_stages


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
    assert open_folder(second.folder).names() == ["SUCCESS", "config.json", "payload"]


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
