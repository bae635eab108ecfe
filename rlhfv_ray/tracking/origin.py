"""Where a result comes from: versions, commit, uncommitted changes, and a digest of the source.

A Ray job gets its working folder without `.git`. The commit then travels as the job's metadata:

    ray job submit --metadata-json "$(python -m rlhfv_ray.tracking.origin)" --working-dir . -- ...
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from pathlib import Path

from rlhfv_ray.config import fingerprint
from rlhfv_ray.storage.files import file_digest

SOURCES = ("rlhfv_ray", "eval", "experiments")
PACKAGES = ("ray", "torch", "transformers", "deepspeed", "datasets", "mlflow", "pillow")
UNKNOWN = "none"
CHANGED = "+changes"  # after a commit: the source has changes that the commit lacks
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in the driver of a submitted job
PATCH_FILE = "changes.patch"
LARGEST_PATCH = 2**20  # bytes; a larger one holds data


def origin() -> dict[str, str]:
    """Return the versions of what a result depends on, the commit, and the source's digest."""
    versions = {f"version.{name}": importlib.metadata.version(name) for name in PACKAGES}
    versions["version.python"] = platform.python_version()
    return {**versions, **source_origin()}


def source_origin() -> dict[str, str]:
    """Return `git_commit` and `source`. The commit ends with `+changes` if the source has others.

    In a job it is the commit that was submitted. `source` is `source_digest()`.
    """
    source = source_digest()
    commit = _git("describe", "--always", "--abbrev=40", "--exclude=*", f"--dirty={CHANGED}")
    return {"git_commit": commit.strip() or _submitted_commit(source), "source": source}


def page_origin() -> dict[str, str]:
    """Return code, date and machine of this run, as the head of a report shows them."""
    source = source_origin()
    machine = f"{platform.node()}, {os.cpu_count()} CPU cores, {platform.system()}"
    return {
        "code": f"commit {source['git_commit']}, source {source['source']}",
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{machine}, Python {platform.python_version()}",
    }


def source_digest() -> str:
    """Return twelve digits of the SHA-256 of this project's Python files, names and content."""
    root = _root()
    files = [file for name in SOURCES for file in (root / name).rglob("*.py")]
    digests = {file.relative_to(root).as_posix(): file_digest(file) for file in files}
    return fingerprint(digests)


def uncommitted_changes() -> str:
    """Return the uncommitted changes of the source as a patch; empty without a repository, or if
    the patch is larger than `LARGEST_PATCH`.
    """
    patch = _git("diff", "HEAD", "--", *SOURCES)
    return patch if len(patch.encode()) <= LARGEST_PATCH else ""


def _root() -> Path:
    return Path(__file__).parents[2]


def _git(*words: str) -> str:
    """Return what git prints; empty if it fails, or if another repository holds the source."""
    if not (_root() / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", *words], cwd=_root(), capture_output=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine, or a slow disk
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def _submitted_commit(source: str) -> str:
    """Return the commit in the metadata of this job, if there is one."""
    metadata = json.loads(os.environ.get(JOB_CONFIG, "{}")).get("metadata") or {}
    commit = str(metadata.get("git_commit", UNKNOWN))
    if commit == UNKNOWN or metadata.get("source") == source:
        return commit
    return commit.removesuffix(CHANGED) + CHANGED


if __name__ == "__main__":
    print(json.dumps(source_origin()))
