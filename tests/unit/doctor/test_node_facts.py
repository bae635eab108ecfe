"""The facts of this machine: measured, without a key in them."""

from pathlib import Path

import pytest

from rlhfv_ray.doctor.node_facts import Checkup, facts


def test_facts_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Catches: invented facts; a key in the report; a draft left in the storage folder."""
    monkeypatch.setenv("KEY", "sk-canary")
    storage = tmp_path / "runs"
    checkup = Checkup(judge_key_env="KEY", tracking_uri="http://127.0.0.1:9")
    report = facts(checkup, str(storage), "abc")
    assert (storage / report["mark"]).read_text() == "abc"
    assert "sk-canary" not in repr(report)
    assert report["key"] == "" and report["tracking"]
    assert report["deepspeed"] == "" and not list(storage.glob("*.tmp"))
    assert report["versions"]["torch"].startswith("2.") and report["free_gib"] > 0


def test_a_storage_that_cannot_be_written_is_reported(tmp_path: Path):
    """Catches: an error that ends the report of a node instead of being in it."""
    (tmp_path / "file").write_text("")
    report = facts(Checkup(), str(tmp_path / "file"), "abc")
    assert report["storage_error"].startswith(("FileExistsError", "NotADirectoryError"))
    assert "mark" not in report and "free_gib" not in report


def test_the_judges_key_is_private_and_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Catches: a key that every user of the node can read, or none, found by the first call."""
    monkeypatch.delenv("KEY", raising=False)
    key = tmp_path / "key"

    def problem(**settings: str) -> str:
        return facts(Checkup(**settings), str(tmp_path / "runs"), "abc")["key"]

    assert problem(judge_key_env="KEY") == "not set"
    assert problem(judge_key_file=str(key)) == "no such file"
    key.write_text("sk-canary")
    key.chmod(0o644)
    assert problem(judge_key_env="KEY", judge_key_file=str(key)) == "others can read its file"
    key.chmod(0o600)
    assert problem(judge_key_file=str(key)) == ""
