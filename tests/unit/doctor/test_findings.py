"""The judgement of nodes' facts: a healthy cluster is left alone, every problem has a fix."""

import copy
from typing import Any

import pytest

from rlhfv_ray.doctor.findings import Finding, examine
from rlhfv_ray.doctor.node_facts import PACKAGES, Checkup

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


def problems(*nodes: dict[str, Any], checkup: Checkup = CHECKUP) -> list[Finding]:
    """Return all findings that are not good."""
    findings = examine(checkup, nodes, (".doctor-1",), between=(NOW - 9, NOW + 1))
    return [finding for finding in findings if finding.status != "good"]


def names(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.node, finding.what) for finding in findings]


def spoiled(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(NODE), "host": "worker", **changes}


def test_a_healthy_cluster_is_left_in_peace():
    """Catches: an alarm that people learn to ignore."""
    assert problems(NODE, spoiled()) == []
    no_gpus = {"gpus": 0, "cuda": None, "driver": False}
    assert problems({**NODE, "cuda": no_gpus}, checkup=Checkup()) == []


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
    findings = problems(NODE, spoiled(**PLANTED[what]))
    (finding,) = [finding for finding in findings if finding.what == what]
    assert finding.node == "worker" and finding.fix
    assert finding.status == ("note" if what in ("flash-attn", "Ray's token") else "bad")


@pytest.mark.parametrize(
    ("what", "key", "enough", "short"),
    [
        ("free space", "free_gib", 20.0, 19.9),
        ("shared memory", "shared_memory_gib", 1.0, 0.9),
        ("clock", "time", NOW + 6.0, NOW + 6.1),
        ("clock", "time", NOW - 14.0, NOW - 14.1),
    ],
)
def test_limits_are_where_they_are_documented(what, key, enough, short):
    """Catches: a comparison turned round, or moved: 20 GiB free, 1 GiB shared, 5 s of skew."""
    assert problems(NODE, spoiled(**{key: enough})) == []
    assert names(problems(NODE, spoiled(**{key: short}))) == [("worker", what)]


def test_the_wanted_space_is_the_user_s():
    """Catches: --free-gib that is ignored."""
    (finding,) = problems(NODE, checkup=Checkup(free_gib=501))
    assert finding.what == "free space" and "501 GiB" in finding.fix


def test_a_folder_that_cannot_be_written_is_found():
    """Catches: a job that dies at its first checkpoint."""
    node = spoiled(storage_error="PermissionError: Permission denied")
    del node["mark"], node["free_gib"]
    assert names(problems(NODE, node)) == [("worker", "storage")]


def test_a_driver_without_its_torch_has_another_fix():
    """Catches: people sent to ask for GPU nodes who are on one."""
    nodes = [
        spoiled(cuda={"gpus": 0, "cuda": "13.0", "driver": driver}) for driver in (False, True)
    ]
    without_driver, with_driver = problems(*nodes)
    assert "Ask for GPU nodes" in without_driver.fix and "newer driver" in with_driver.fix
