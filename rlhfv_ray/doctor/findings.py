"""The judgement of the nodes' facts, apart from their collection, so that any report can be judged.

Each check has a name, a result, what was found, and a fix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from rlhfv_ray.doctor.node_facts import Checkup

PYTHONS = ((3, 11), (3, 12))
SKEW_S = 5.0  # between a node's clock and the driver's: leases and logs depend on both
SHARED_MEMORY_GIB = 1.0  # NCCL and Ray's object store live there

Status = Literal["good", "note", "bad"]
Facts = Mapping[str, Any]  # of one node, from `node_facts.facts`


@dataclass(frozen=True)
class Finding:
    """The result of one check on one node."""

    what: str
    node: str
    status: Status
    found: str
    fix: str = ""


class Check(NamedTuple):
    """The result of one check."""

    what: str
    good: bool
    found: str
    fix: str
    otherwise: Status = "bad"  # the status if it is not good


def examine(
    checkup: Checkup,
    nodes: Sequence[Facts],
    marks: Sequence[str],
    *,
    between: tuple[float, float],
) -> list[Finding]:
    """Judge the facts of all nodes.

    Args:
        checkup: what is needed.
        nodes: the facts of each node; all others should equal the first.
        marks: names of the marks that the driver sees in the storage folder.
        between: the driver's times before and after the nodes reported.
    """
    findings = []
    for node in nodes:
        checks = [
            *_software(node, nodes[0]),
            _clock(node, between),
            *_storage(checkup, node, marks),
            *_shared_memory(node),
            _deepspeed(node),
            *_gpus(checkup, node),
            *_access(checkup, node),
        ]
        for check in checks:
            status: Status = "good" if check.good else check.otherwise
            fix = "" if check.good else check.fix
            findings.append(Finding(check.what, str(node["host"]), status, check.found, fix))
    return findings


def _software(node: Facts, first: Facts) -> list[Check]:
    python = tuple(map(int, node["python"].split(".")[:2]))
    missing = [name for name, version in node["versions"].items() if version == "missing"]
    different = [
        f"{name} {version}, not {first['versions'][name]}"
        for name, version in node["versions"].items()
        if version != first["versions"][name]
    ]
    return [
        Check("Python", python in PYTHONS, node["python"], "Install Python 3.11 or 3.12."),
        Check(
            "packages",
            not missing,
            f"missing: {', '.join(missing)}" if missing else "all there",
            "pip install rlhfv-ray there.",
        ),
        Check(
            "same versions",
            not different and node["python"] == first["python"],
            ", ".join(different) or f"as on {first['host']}",
            f"Install what {first['host']} has: all nodes need the same image or constraints.txt.",
        ),
    ]


def _clock(node: Facts, between: tuple[float, float]) -> Check:
    before, after = between
    skew = min(0.0, node["time"] - before) + max(0.0, node["time"] - after)
    return Check("clock", abs(skew) <= SKEW_S, f"{skew:+.1f} s", "Run chrony or ntpd on the node.")


def _storage(checkup: Checkup, node: Facts, marks: Sequence[str]) -> list[Check]:
    if "storage_error" in node:
        fix = (
            "Give --storage a folder in which this node can write and rename files, or an address "
            "that it has credentials for."
        )
        return [Check("storage", False, node["storage_error"], fix)]
    shared = node["mark"] in marks
    return [
        Check(
            "storage",
            shared,
            "written here, read by the driver"
            if shared
            else "what this node writes is not seen by the driver",
            "Give --storage a folder on a file system that all nodes mount at the same place.",
        ),
        Check(
            "free space",
            node["free_gib"] >= checkup.free_gib,
            f"{node['free_gib']:.1f} GiB",
            f"Free some space: {checkup.free_gib:g} GiB are wanted (--free-gib).",
        ),
    ]


def _shared_memory(node: Facts) -> list[Check]:
    size = node["shared_memory_gib"]
    if size is None:
        return []
    fix = (
        "Give the container more: docker run --shm-size, or an emptyDir of medium Memory at "
        "/dev/shm."
    )
    return [Check("shared memory", size >= SHARED_MEMORY_GIB, f"{size:.1f} GiB", fix)]


def _deepspeed(node: Facts) -> Check:
    error = node["deepspeed"]
    return Check(
        "DeepSpeed",
        not error,
        error or "imports; none of its compiled ops is needed",
        "Install DeepSpeed after torch, from constraints.txt; where it asks for CUDA's compiler, "
        "install the CUDA toolkit.",
    )


def _gpus(checkup: Checkup, node: Facts) -> list[Check]:
    cuda = node["cuda"]
    checks = []
    if checkup.gpu or cuda["gpus"]:
        build = f"is built for CUDA {cuda['cuda']}" if cuda["cuda"] else "is built without CUDA"
        fix = "Ask for GPU nodes, and check nvidia-smi there; without GPUs leave --gpu out."
        if cuda.get("driver"):
            fix = (
                "The driver is there: install a torch that is built for its CUDA version "
                "(nvidia-smi names it), or a newer driver."
            )
        checks.append(Check("GPUs", cuda["gpus"] > 0, f"{cuda['gpus']}; torch {build}", fix))
    if cuda["gpus"]:
        checks.append(
            Check("NCCL", cuda["nccl"], str(cuda["nccl"]), "Install a torch built with NCCL.")
        )
        checks.append(
            Check(
                "flash-attn",
                node["flash_attn"],
                "there" if node["flash_attn"] else "not installed",
                "Optional: pip install 'rlhfv-ray[gpu]'.",
                otherwise="note",
            )
        )
    return checks


def _access(checkup: Checkup, node: Facts) -> list[Check]:
    """Check the judge's key, the MLflow server and Ray's token."""
    checks = []
    if checkup.judge_key_env or checkup.judge_key_file:
        fix = (
            "Set it in the environment of that node before Ray starts there, or give "
            "--judge-key-file a file with mode 600."
        )
        checks.append(Check("judge's key", not node["key"], node["key"] or "there", fix))
    if checkup.tracking_uri.startswith("http"):
        fix = (
            f"Start the server, or check address and firewall of {checkup.tracking_uri}; runs go "
            "on without, and are sent later."
        )
        checks.append(Check("MLflow", not node["tracking"], node["tracking"] or "reached", fix))
    mode = node["token_mode"]
    if mode is not None:
        fix = "chmod 600 ~/.ray/auth_token"
        private = not mode & 0o077
        checks.append(Check("Ray's token", private, f"mode {mode:o}", fix, otherwise="note"))
    return checks
