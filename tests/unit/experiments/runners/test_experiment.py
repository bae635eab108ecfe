"""The record of where an experiment came from, without Ray (tests/ray runs whole experiments)."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from experiments.recipes import RECIPES
from experiments.runners import experiment
from experiments.runners.config import ExperimentConfig
from experiments.runners.experiment import audit_text, origin, source_digest, title_of

ROOT = Path(__file__).parents[4]


def test_the_source_is_known_without_a_repository(tmp_path, monkeypatch):
    """Catches: a job on a cluster, which has no .git, whose code nobody can name afterwards;
    changes that no commit has, taken for the commit.
    """
    copy = tmp_path / "uploaded"
    for name in experiment.SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    here = source_digest()
    monkeypatch.setattr(experiment, "__file__", str(copy / "experiments/runners/experiment.py"))
    assert (origin()["git_commit"], origin()["source"]) == ("none", here)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(copy)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    commit = origin()["git_commit"]
    assert len(commit) == 40
    with (copy / "eval" / "run.py").open("a") as stream:
        stream.write("# changed\n")
    assert origin()["git_commit"] == f"{commit}+changes"
    assert origin()["source"] != here


def test_a_run_is_named_by_what_experiments_differ_in():
    """Catches: rows of hashes in MLflow."""
    config = ExperimentConfig.of(RECIPES["paper"]())
    assert title_of(replace(config, seed=3)) == "paper beta 0.5 gamma 5 seed 3"
    imitation = replace(config.loss, preference_weight=0.0, sft_weight=1.0)
    assert title_of(replace(config, name="mine", loss=imitation)) == "mine sft seed 0"


def test_the_report_says_what_texts_alone_tell():
    """Catches: a trial run of too few pairs whose report cannot be written; a share as per cent."""
    figures = {"pairs": 900, "told": 0.5174, "told_interval": [0.483, 0.5501]}
    assert audit_text(figures) == "51.7 % of pairs (48.3 to 55.0)"
    assert audit_text({"pairs": 40}) == "not measured, as 40 pairs are too few"
