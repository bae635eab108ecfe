"""What would go wrong, before it does: `rlhfv-ray doctor` looks at every node of the cluster and says what to mend.

Every node tells the same facts in a task of its own; what they mean is judged here, so that any report can be judged again.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import stat
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import tyro
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhfv_ray.cluster import connect
from rlhfv_ray.console import run_command
from rlhfv_ray.errors import ConfigError, RlhfvError
from rlhfv_ray.storage.folder import discard, make, names_in, publish, resolve_storage

PACKAGES = ("ray", "torch", "transformers", "deepspeed", "datasets", "mlflow", "pyarrow", "pillow")
PYTHONS = ((3, 11), (3, 12))
SKEW_S = 5.0  # between a node's clock and the driver's: leases and logs go by them
SHARED_MEMORY_GIB = 1.0  # NCCL and Ray's object store live there
TIMEOUT_S = 60.0  # for a node's answer
GIB = 2**30

Status = Literal["good", "note", "bad"]


@dataclass(frozen=True)
class Checkup:
    """What to look at."""

    storage: str = "runs"
    """Folder, or address, that every node has to reach and write."""
    free_gib: float = 20.0
    """Space that should be free there."""
    gpu: bool = False
    """Whether GPUs are needed on the nodes."""
    judge_key_env: str = ""
    """Environment variable that should hold a judge's key on every node; its value is never shown."""
    judge_key_file: str = ""
    """File that should hold it."""
    tracking_uri: str = ""
    """MLflow server to reach; empty: a store in the storage folder."""
    json: bool = False
    """Print JSON for machines."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at on one node."""

    what: str
    node: str
    status: Status
    found: str
    fix: str = ""


def facts(checkup: Checkup, storage: str, token: str) -> dict[str, Any]:
    """What one node tells; runs there."""
    found: dict[str, Any] = {
        "host": socket.gethostname(),
        "time": time.time(),
        "python": platform.python_version(),
    }
    found["versions"] = {name: _version(name) for name in PACKAGES}
    found["cuda"] = _cuda()
    found["deepspeed"] = _importing("deepspeed")
    found["flash_attn"] = importlib.util.find_spec("flash_attn") is not None
    found["shared_memory_gib"] = (
        shutil.disk_usage("/dev/shm").total / GIB if Path("/dev/shm").is_dir() else None
    )
    place = Path(storage)
    try:
        make(place)
        mark = place / f".doctor-{token}-{uuid.uuid4().hex}"
        draft = mark.with_suffix(
            ".tmp"
        )  # results are published by a rename, which not every mount knows
        draft.write_text(token)
        draft.replace(mark)
        publish(mark)
        found["mark"], found["free_gib"] = mark.name, shutil.disk_usage(place).free / GIB
    except (OSError, RlhfvError) as error:
        found["storage_error"] = (
            f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
        )
    found["key"] = _key(checkup)
    found["token_mode"] = _mode(
        Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    )
    found["tracking"] = (
        _reached(checkup.tracking_uri) if checkup.tracking_uri.startswith("http") else ""
    )
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _cuda() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {"gpus": 0, "cuda": torch.version.cuda, "driver": Path("/dev/nvidiactl").exists()}
    return {
        "gpus": torch.cuda.device_count(),
        "nccl": torch.distributed.is_nccl_available(),
        "cuda": torch.version.cuda,
    }


def _importing(name: str) -> str:
    """Why a package cannot be imported; empty where it can. DeepSpeed's import looks for CUDA's compiler on some GPU nodes."""
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001  whatever it is, the node's training would end by it
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return ""


def _mode(path: Path) -> int | None:
    return stat.S_IMODE(path.stat().st_mode) if path.is_file() else None


def _key(checkup: Checkup) -> str:
    """What is wrong with the judge's key, never the key."""
    if checkup.judge_key_file:
        mode = _mode(Path(checkup.judge_key_file).expanduser())
        if mode is None:
            return "no such file"
        return "others can read its file" if mode & 0o077 else ""
    if checkup.judge_key_env and not os.environ.get(checkup.judge_key_env, "").strip():
        return "not set"
    return ""


def _reached(uri: str) -> str:
    """Why a server is not reached; empty where it is."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5):
            return ""
    except (urllib.error.URLError, OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def examine(
    checkup: Checkup,
    told: Sequence[Mapping[str, Any]],
    seen: Sequence[str],
    *,
    between: tuple[float, float],
) -> list[Finding]:
    """What the facts of all nodes mean.

    Args:
        checkup: what is needed.
        told: the facts of every node; the first is the one that all others should be equal to.
        seen: names of the marks that the driver finds in the storage folder.
        between: the driver's times before and after they were told.
    """
    found = []
    for fact in told:
        for what, status, said, fix in _judged(checkup, fact, told[0], seen, between):
            found.append(
                Finding(what, str(fact["host"]), status, said, "" if status == "good" else fix)
            )
    return found


Judged = tuple[str, Status, str, str]


def _judged(
    checkup: Checkup,
    fact: Mapping[str, Any],
    first: Mapping[str, Any],
    seen: Sequence[str],
    between: tuple[float, float],
) -> list[Judged]:
    version = tuple(map(int, fact["python"].split(".")[:2]))
    same = {
        name: value for name, value in fact["versions"].items() if value != first["versions"][name]
    }
    missing = [name for name, value in fact["versions"].items() if value == "missing"]
    before, after = between
    skew = min(0.0, fact["time"] - before) + max(0.0, fact["time"] - after)
    memory = fact["shared_memory_gib"]
    judged = [
        _check("Python", version in PYTHONS, fact["python"], "Install Python 3.11 or 3.12."),
        _check(
            "packages",
            not missing,
            f"missing: {', '.join(missing)}" if missing else "all there",
            "pip install rlhfv-ray there.",
        ),
        _check(
            "same versions",
            not same and fact["python"] == first["python"],
            ", ".join(
                f"{name} {value}, not {first['versions'][name]}" for name, value in same.items()
            )
            or f"as on {first['host']}",
            f"Install what {first['host']} has: all nodes need the same image or constraints.txt.",
        ),
        _check("clock", abs(skew) <= SKEW_S, f"{skew:+.1f} s", "Run chrony or ntpd on the node."),
    ]
    judged += _storage(checkup, fact, seen)
    if memory is not None:
        fix = "Give the container more: docker run --shm-size, or an emptyDir of medium Memory at /dev/shm."
        judged.append(
            _check("shared memory", memory >= SHARED_MEMORY_GIB, f"{memory:.1f} GiB", fix)
        )
    fix = "Install DeepSpeed after torch, from constraints.txt; where it asks for CUDA's compiler, install the CUDA toolkit."
    judged.append(
        _check(
            "DeepSpeed",
            not fact["deepspeed"],
            fact["deepspeed"] or "imports; none of its compiled ops is needed",
            fix,
        )
    )
    judged += _gpus(checkup, fact)
    if checkup.judge_key_env or checkup.judge_key_file:
        fix = "Set it in the environment of that node before Ray starts there, or give --judge-key-file a file with mode 600."
        judged.append(_check("judge's key", not fact["key"], fact["key"] or "there", fix))
    if checkup.tracking_uri.startswith("http"):
        fix = f"Start the server, or check address and firewall of {checkup.tracking_uri}; runs go on without, and are sent later."
        judged.append(_check("MLflow", not fact["tracking"], fact["tracking"] or "reached", fix))
    if fact["token_mode"] is not None:
        private = not fact["token_mode"] & 0o077
        judged.append(
            _check(
                "Ray's token",
                private,
                f"mode {fact['token_mode']:o}",
                "chmod 600 ~/.ray/auth_token",
                otherwise="note",
            )
        )
    return judged


def _check(what: str, good: bool, said: str, fix: str, *, otherwise: Status = "bad") -> Judged:
    return what, "good" if good else otherwise, said, fix


def _gpus(checkup: Checkup, fact: Mapping[str, Any]) -> list[Judged]:
    judged: list[Judged] = []
    gpus = fact["cuda"]["gpus"]
    if checkup.gpu or gpus:
        built = (
            f"torch is built for CUDA {fact['cuda']['cuda']}"
            if fact["cuda"]["cuda"]
            else "torch is built without CUDA"
        )
        fix = "Ask for GPU nodes, and check nvidia-smi there; without GPUs leave --gpu out."
        if fact["cuda"].get("driver"):
            fix = "The driver is there: install a torch that is built for its CUDA version (nvidia-smi names it), or a newer driver."
        judged.append(_check("GPUs", gpus > 0, f"{gpus}; {built}", fix))
    if gpus:
        judged.append(
            _check(
                "NCCL",
                fact["cuda"]["nccl"],
                str(fact["cuda"]["nccl"]),
                "Install a torch built with NCCL.",
            )
        )
        said = "there" if fact["flash_attn"] else "not installed"
        judged.append(
            _check(
                "flash-attn",
                fact["flash_attn"],
                said,
                "Optional: pip install 'rlhfv-ray[gpu]'.",
                otherwise="note",
            )
        )
    return judged


def _storage(checkup: Checkup, fact: Mapping[str, Any], seen: Sequence[str]) -> list[Judged]:
    if "storage_error" in fact:
        return [
            (
                "storage",
                "bad",
                fact["storage_error"],
                "Give --storage a folder in which this node can write and rename files, or an address that it has credentials for.",
            )
        ]
    shared: Judged = ("storage", "good", "written here, read by the driver", "")
    if fact["mark"] not in seen:
        fix = "Give --storage a folder on a file system that all nodes mount at the same place."
        shared = ("storage", "bad", "what this node writes is not seen by the driver", fix)
    free: Status = "good" if fact["free_gib"] >= checkup.free_gib else "bad"
    fix = f"Free some space: {checkup.free_gib:g} GiB are wanted (--free-gib)."
    return [shared, ("free space", free, f"{fact['free_gib']:.1f} GiB", fix)]


def ask_nodes(checkup: Checkup, storage: Path) -> list[Finding]:
    """Ask every living node of the cluster, and judge what they say; a node that does not answer is a finding.

    Raises:
        ConfigError: there is no node.
    """
    token = uuid.uuid4().hex[:8]
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not nodes:
        raise ConfigError("The cluster has no living node: start one with ray start --head.")
    ask = ray.remote(num_cpus=0, max_retries=0)(facts)
    asked, told, silent = time.time(), [], []
    pending = [
        ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(checkup, str(storage), token)
        for node in nodes
    ]
    for node, reference in zip(nodes, pending, strict=True):
        try:
            told.append(ray.get(reference, timeout=max(1.0, TIMEOUT_S - (time.time() - asked))))
        except RayError as error:  # a time-out is one
            reason = (
                str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            )
            host = node["NodeManagerHostname"]
            silent.append(
                Finding(
                    "answer",
                    host,
                    "bad",
                    reason,
                    "Is rlhfv-ray installed there, and the node alive?",
                )
            )
    marks = [name for name in names_in(storage) if name.startswith(f".doctor-{token}-")]
    found = examine(checkup, told, marks, between=(asked, time.time())) if told else []
    for mark in marks:
        discard(storage / mark)
    return [*silent, *found]


def doctor(checkup: Checkup) -> int:
    """Look, print, and say by the exit code whether all is well: 0, or 1 where something is bad."""
    connect()
    found = ask_nodes(checkup, resolve_storage(checkup.storage))
    bad = sum(one.status == "bad" for one in found)
    if checkup.json:
        print(json.dumps({"ok": not bad, "findings": [asdict(one) for one in found]}, indent=1))
        return int(bad > 0)
    shown = Table()
    for column in ("", "what", "node", "found", "fix"):
        shown.add_column(column)
    sign = {"good": ("ok", "green"), "note": ("note", "yellow"), "bad": ("BAD", "red")}
    for one in found:
        shown.add_row(Text(*sign[one.status]), *map(Text, (one.what, one.node, one.found, one.fix)))
    console = Console()
    console.print(shown)
    console.print(f"{bad} to mend" if bad else "all is well", highlight=False)
    return int(bad > 0)


def main() -> None:
    """The console script `rlhfv-ray`."""
    if sys.argv[1:2] != ["doctor"]:
        sys.exit(
            "usage: rlhfv-ray doctor [--help]\n\nLooks at every node of the Ray cluster and says what to mend."
        )
    checkup = tyro.cli(Checkup, prog="rlhfv-ray doctor", description=__doc__, args=sys.argv[2:])
    sys.exit(run_command(lambda: sys.exit(doctor(checkup))))


if __name__ == "__main__":
    main()
