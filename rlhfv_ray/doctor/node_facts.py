"""The facts that each node of the cluster reports about itself, in a Ray task of its own."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import stat
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from rlhfv_ray.errors import RlhfvError
from rlhfv_ray.storage.folder import make, publish

PACKAGES = ("ray", "torch", "transformers", "deepspeed", "datasets", "mlflow", "pyarrow", "pillow")
GIB = 2**30


@dataclass(frozen=True)
class Checkup:
    """The settings of a check."""

    storage: str = "runs"
    """Folder, or address, that every node has to reach and write."""
    free_gib: float = 20.0
    """Free space that the storage needs, in GiB."""
    gpu: bool = False
    """Require GPUs on every node."""
    judge_key_env: str = ""
    """Environment variable that should hold a judge's key on every node; never shown."""
    judge_key_file: str = ""
    """File that should hold a judge's key on every node; never shown."""
    tracking_uri: str = ""
    """Address of the MLflow server to reach; leave it empty for a store in the storage folder."""
    model: str = ""
    """Model to check instead of the nodes, in this process: its self-check, parts and memory."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of the model."""
    template_arguments: tuple[str, ...] = ()
    """Arguments of that model's chat template, as model.template_arguments of a training."""
    start_nodes: bool = False
    """Start a node of each type that the cluster's autoscaler knows and that has none up, and check
    it too. Such nodes are paid for until they have been idle for the cluster's time-out."""
    start_timeout: float = 1200.0
    """Seconds to wait for these nodes."""
    json: bool = False
    """Print JSON for machines instead of a table."""


def facts(checkup: Checkup, storage: str, token: str) -> dict[str, Any]:
    """Return one node's facts; runs on that node.

    Args:
        checkup: the settings.
        storage: the storage folder's path.
        token: part of the name of the file that the node writes there.
    """
    token_file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    shared_memory = Path("/dev/shm")
    server = checkup.tracking_uri
    return {
        "host": socket.gethostname(),
        "time": time.time(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "cuda": _cuda(),
        "deepspeed": _import_error("deepspeed"),
        "flash_attn": importlib.util.find_spec("flash_attn") is not None,
        "shared_memory_gib": (
            shutil.disk_usage(shared_memory).total / GIB if shared_memory.is_dir() else None
        ),
        **_storage(Path(storage), token),
        "key": _key_problem(checkup),
        "token_mode": _mode(token_file),
        "tracking": _server_error(server) if server.startswith("http") else "",
    }


def _storage(folder: Path, token: str) -> dict[str, Any]:
    """Write a mark into the storage folder; return its name and the free space, or the error."""
    try:
        make(folder)
        mark = folder / f".doctor-{token}-{uuid.uuid4().hex}"
        draft = mark.with_suffix(".tmp")
        draft.write_text(token)
        draft.replace(mark)  # results are published by a rename, which not every mount knows
        publish(mark)
        lock = mark.with_suffix(".lock")
        with FileLock(lock):  # leases are changed under locks, which not every mount knows
            lock.unlink()
        return {"mark": mark.name, "free_gib": shutil.disk_usage(folder).free / GIB}
    except (OSError, RlhfvError) as error:
        reason = getattr(error, "strerror", None) or error
        return {"storage_error": f"{type(error).__name__}: {reason}"}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
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


def _import_error(package: str) -> str:
    """Return why a package cannot be imported; empty if it can.

    DeepSpeed's import looks for CUDA's compiler on some GPU nodes.
    """
    try:
        importlib.import_module(package)
    except Exception as error:  # noqa: BLE001  whatever it is, it would end the node's training
        text = str(error).strip()
        return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
    return ""


def _mode(path: Path) -> int | None:
    """Return a file's permission bits; None if there is no such file."""
    return stat.S_IMODE(path.stat().st_mode) if path.is_file() else None


def _key_problem(checkup: Checkup) -> str:
    """Return what is wrong with the judge's key, never the key itself; empty if it is fine."""
    if checkup.judge_key_file:
        mode = _mode(Path(checkup.judge_key_file).expanduser())
        if mode is None:
            return "no such file"
        return "others can read its file" if mode & 0o077 else ""
    if checkup.judge_key_env and not os.environ.get(checkup.judge_key_env, "").strip():
        return "not set"
    return ""


def _server_error(uri: str) -> str:
    """Return why an MLflow server does not answer; empty if it does."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5):
            return ""
    except (urllib.error.URLError, OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
