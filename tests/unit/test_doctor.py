"""What a node's facts mean: a healthy cluster is left in peace, every planted problem is found, with its fix."""

import copy
from pathlib import Path
from typing import Any

import pytest

from rlhfv_ray.doctor import PACKAGES, Checkup, examine, facts

NOW = 1_000.0
NODE: dict[str, Any] = {
    "host": "head",
    "time": NOW + 0.3,
    "python": "3.11.7",
    "versions": {name: "1.0" for name in PACKAGES},
    "cuda": {"gpus": 8, "nccl": True, "cuda": "13.0"},
    "deepspeed": "",
    "flash_attn": True,
    "shared_memory_gib": 64.0,
    "mark": ".doctor-1",
    "free_gib": 500.0,
    "key": "",
    "token_mode": 0o600,
    "tracking": "",
}
CHECKUP = Checkup(gpu=True, judge_key_env="KEY", tracking_uri="http://127.0.0.1:5000")


def found(
    *nodes: dict[str, Any], checkup: Checkup = CHECKUP, seen: tuple[str, ...] = (".doctor-1",)
) -> list[tuple[str, str]]:
    """Node and name of all that is not good."""
    return [
        (f.node, f.what)
        for f in examine(checkup, nodes, seen, between=(NOW - 9, NOW + 1))
        if f.status != "good"
    ]


def spoiled(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(NODE), "host": "worker", **changes}


def test_a_healthy_cluster_is_left_in_peace():
    """Catches: an alarm that people learn to ignore."""
    assert found(NODE, spoiled()) == []
    assert (
        found({**NODE, "cuda": {"gpus": 0, "cuda": None, "driver": False}}, checkup=Checkup()) == []
    )


PLANTED = {
    "Python": {"python": "3.9.1"},
    "packages": {"versions": {**NODE["versions"], "deepspeed": "missing"}},
    "same versions": {"versions": {**NODE["versions"], "ray": "2.59.0"}},
    "clock": {"time": NOW - 42},
    "storage": {"mark": ".doctor-2"},
    "free space": {"free_gib": 1.0},
    "shared memory": {"shared_memory_gib": 0.06},
    "GPUs": {"cuda": {"gpus": 0, "cuda": "13.0", "driver": True}},
    "DeepSpeed": {"deepspeed": "MissingCUDAException: CUDA_HOME does not exist"},
    "NCCL": {"cuda": {"gpus": 8, "nccl": False, "cuda": None}},
    "flash-attn": {"flash_attn": False},
    "judge's key": {"key": "not set"},
    "MLflow": {"tracking": "Connection refused"},
    "Ray's token": {"token_mode": 0o644},
}


@pytest.mark.parametrize("what", PLANTED)
def test_every_planted_problem_is_found(what):
    """Catches: a check that cannot fail, or that blames another node."""
    assert ("worker", what) in found(NODE, spoiled(**PLANTED[what]))
    (finding,) = [
        f
        for f in examine(
            CHECKUP, [NODE, spoiled(**PLANTED[what])], [".doctor-1"], between=(NOW - 9, NOW + 1)
        )
        if (f.node, f.what) == ("worker", what)
    ]
    assert finding.fix


def test_a_folder_that_cannot_be_written_is_found():
    """Catches: a job that dies at its first checkpoint."""
    node = spoiled(storage_error="PermissionError: Permission denied")
    del node["mark"], node["free_gib"]
    assert found(NODE, node) == [("worker", "storage")]


def test_a_driver_without_its_torch_has_another_fix():
    """Catches: people sent to ask for GPU nodes who are on one."""
    nodes = [
        spoiled(cuda={"gpus": 0, "cuda": "13.0", "driver": driver}) for driver in (False, True)
    ]
    fixes = [
        f.fix
        for f in examine(CHECKUP, nodes, [".doctor-1"], between=(NOW - 9, NOW + 1))
        if f.what == "GPUs"
    ]
    assert "Ask for GPU nodes" in fixes[0] and "newer driver" in fixes[1]


def test_facts_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Catches: facts that are made up; a key in what is told."""
    monkeypatch.setenv("KEY", "sk-canary")
    checkup = Checkup(judge_key_env="KEY", tracking_uri="http://127.0.0.1:9")
    told = facts(checkup, str(tmp_path / "runs"), "abc")
    assert (tmp_path / "runs" / told["mark"]).read_text() == "abc"
    assert "sk-canary" not in repr(told)
    assert told["key"] == "" and told["tracking"]
    assert told["deepspeed"] == "" and not list((tmp_path / "runs").glob("*.tmp"))
    assert told["versions"]["torch"].startswith("2.") and told["free_gib"] > 0
    monkeypatch.delenv("KEY")
    key = tmp_path / "key"
    key.write_text("sk-canary")
    key.chmod(0o644)
    (tmp_path / "file").write_text("")
    told = facts(
        Checkup(judge_key_env="KEY", judge_key_file=str(key)), str(tmp_path / "file"), "abc"
    )
    assert told["key"] == "others can read its file"
    assert told["storage_error"].startswith(("FileExistsError", "NotADirectoryError"))
    key.chmod(0o600)
    assert facts(Checkup(judge_key_file=str(key)), str(tmp_path / "runs"), "abc")["key"] == ""
    assert facts(Checkup(judge_key_env="KEY"), str(tmp_path / "runs"), "abc")["key"] == "not set"
