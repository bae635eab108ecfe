"""The list of runs, and what can be deleted."""

import os
import shutil

import pytest

from experiments.runs import list_or_prune, prunable, read_runs, size_of
from rlhfv_ray.config import TrackingConfig
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.tracking.run_folder import HEADLINE, LATEST, RUN_NAME, open_run_folder


@pytest.fixture
def storage(tmp_path, empty_database):
    """A storage folder with two runs: one finished, one that failed."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    for name, inputs in (
        ("pairs-1", {}),
        ("train-1", {"rows": "pairs-1"}),
        ("train-2", {}),
        ("answers-9", {}),
    ):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "config.json", inputs)
        (tmp_path / name / "payload").write_bytes(b"x" * 1000)
    (tmp_path / "train-1" / "checkpoints").mkdir()
    (tmp_path / "train-1" / "checkpoints" / "weights").write_bytes(b"x" * 5000)
    (tmp_path / "train-1" / "SUCCESS").write_text("{}")
    (tmp_path / "train-2" / "checkpoints").mkdir()
    for name, stage, error in (("good-1", "train-1", None), ("bad-2", "train-2", ValueError("x"))):
        try:
            with open_run_folder(
                tmp_path / name,
                TrackingConfig(),
                store=tmp_path,
                params={},
                tags={HEADLINE: f"{name} 31 to 1 %", RUN_NAME: f"{stage} beta 0.5"},
                config={"config": {}, "stages": [stage]},
            ):
                if error:
                    raise error
        except ValueError:
            pass
    return tmp_path


def test_runs_have_state_result_and_stages(storage, capsys, monkeypatch):
    """Catches: a run that is not listed, or twice, with another state or result, or without what
    tells it from the next one.
    """
    bad, good = read_runs(storage)
    assert (good.folder.name, good.state, good.stages) == ("good-1", "finished", {"train-1"})
    assert (bad.folder.name, bad.state, bad.headline) == ("bad-2", "failed", "bad-2 31 to 1 %")
    assert (storage / LATEST).resolve() == bad.folder
    monkeypatch.setenv("COLUMNS", "100")
    for given in ({"path": str(storage)}, {"storage": str(storage)}):
        list_or_prune(**given)
        printed = capsys.readouterr().out
        assert "good-1" in printed and "train-1 beta 0.5" in printed
    with hold_lease(good.folder):
        assert {run.state for run in read_runs(storage)} == {"running", "failed"}


def test_only_what_no_run_needs_is_deleted(storage, capsys):
    """Catches: a stage deleted that a run or another stage names, or before --yes."""
    runs = read_runs(storage)
    expected = [storage / "answers-9", storage / "train-1" / "checkpoints"]
    assert list(prunable(storage, runs)) == expected
    with hold_lease(storage / "answers-9"):
        assert list(prunable(storage, runs)) == expected[1:]
    list_or_prune(str(storage), prune=True)
    assert all(folder.exists() for folder in expected)
    before = size_of(storage)
    list_or_prune(str(storage), prune=True, yes=True)
    assert not any(folder.exists() for folder in expected)
    assert before - size_of(storage) >= 6000
    kept = ("pairs-1/payload", "train-1/payload", "train-2/checkpoints", "good-1", "bad-2")
    assert all((storage / name).exists() for name in kept)
    assert "deleted" in capsys.readouterr().out


def test_what_an_unfinished_run_has_made_stays(storage):
    """Catches: hours of a study that was stopped, deleted since it names its stages at its end."""
    bad, good = read_runs(storage)
    assert good.started < bad.started
    for moment, kept in ((good.started, False), (bad.started, True)):
        os.utime(storage / "answers-9" / "config.json", (moment + 1e-3, moment + 1e-3))
        assert (storage / "answers-9" not in prunable(storage, [bad, good])) == kept


def test_a_storage_folder_that_is_not_there(tmp_path):
    """Catches: a traceback, or a folder that is made by looking."""
    with pytest.raises(ConfigError, match="is no folder"):
        list_or_prune(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="on a disk only"):
        list_or_prune("s3://lab/runs", prune=True)


def test_what_tells_runs_of_one_recipe_apart(storage, capsys, monkeypatch):
    """Catches: two runs with one name, and no word of the learning rate that differs."""
    monkeypatch.setenv("COLUMNS", "80")
    for name, recipe, changed in (
        ("good-1", "paper", {"storage": "a", "optim": {"steps": 100}, "gpu": False}),
        ("bad-2", "paper", {"storage": "b", "optim": {"steps": 200}, "gpu": True}),
    ):
        config = {"name": recipe, "loss": {"beta": 0.5}, **changed}
        write_json(storage / name / "config.json", {"config": config, "stages": []})
    list_or_prune(str(storage))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "--optim.steps 100 --no-gpu" in lines and "--optim.steps 200 --gpu" in lines
    for damaged in ("[]", '{"config": 3}', "{"):
        (storage / "bad-2" / "config.json").write_text(damaged)
        list_or_prune(str(storage))
        assert "--" not in capsys.readouterr().out
    other = {"name": "dpo", "optim": {"steps": 300}}
    write_json(storage / "bad-2" / "config.json", {"config": other, "stages": []})
    list_or_prune(str(storage))
    assert "--" not in capsys.readouterr().out


def test_a_folder_without_runs_says_so(tmp_path, capsys):
    """Catches: the head of a table, and nothing below it."""
    list_or_prune(str(tmp_path))
    assert capsys.readouterr().out == f"{tmp_path} has no runs.\n"


def test_folders_are_never_cut_short(storage, capsys, monkeypatch):
    """Catches: a run's folder with an ellipsis, which nobody can type; a result cut at the edge."""
    long = "over-generalization-0123456789ab"
    (storage / "good-1").rename(storage / long)
    monkeypatch.setenv("COLUMNS", "80")
    list_or_prune(str(storage))
    printed = capsys.readouterr().out
    assert long in printed and "good-1 31 to 1 %" in printed
