"""The record of where a result comes from, in a checkout and in a submitted job."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlhfv_ray.tracking import origin as module
from rlhfv_ray.tracking.origin import JOB_CONFIG, origin, source_digest, uncommitted_changes

ROOT = Path(__file__).parents[3]


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source without its repository, as a Ray job gets it."""
    folder = tmp_path / "uploaded"
    for name in module.SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    here = source_digest()
    monkeypatch.setattr(module, "__file__", str(folder / "rlhfv_ray/tracking/origin.py"))
    assert source_digest() == here
    return folder


@pytest.mark.slow
def test_commit_and_changes_of_a_checkout(copy: Path) -> None:
    """Catches: changes that no commit has, taken for the commit, or written down nowhere."""
    assert (origin()["git_commit"], uncommitted_changes()) == ("none", "")
    before = origin()["source"]
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(copy)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    commit = origin()["git_commit"]
    assert len(commit) == 40 and uncommitted_changes() == ""
    with (copy / "eval" / "run.py").open("a") as stream:
        stream.write("# changed\n")
    assert origin()["git_commit"] == f"{commit}+changes"
    assert origin()["source"] != before
    assert "+# changed" in uncommitted_changes().splitlines()


def test_the_commit_of_a_submitted_job(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a job on a cluster, which has no .git, whose commit nobody can name afterwards; the
    commit of a submission that sent another source.
    """
    submitted = {"git_commit": "c" * 40, "source": source_digest(), "job_name": "x"}
    monkeypatch.setenv(JOB_CONFIG, json.dumps({"runtime_env": {}, "metadata": submitted}))
    assert origin()["git_commit"] == "c" * 40
    (copy / "eval" / "more.py").write_text("")
    assert origin()["git_commit"] == f"{'c' * 40}+changes"
    monkeypatch.setenv(JOB_CONFIG, json.dumps({"runtime_env": {}}))
    assert origin()["git_commit"] == "none"


@pytest.mark.slow
def test_the_metadata_of_a_submission_is_printed_as_ray_reads_it() -> None:
    """Catches: metadata that `ray job submit` refuses: its values must be texts."""
    command = [sys.executable, "-m", "rlhfv_ray.tracking.origin"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    metadata = json.loads(printed)
    assert metadata["source"] == source_digest()
    assert all(isinstance(value, str) for value in metadata.values())
