"""The record of where an experiment came from, without Ray (tests/ray runs whole experiments)."""

import contextlib
import io
import shlex
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tyro
from rich.console import Console

from eval.config import EvalConfig
from experiments.recipes import RECIPES
from experiments.runners.config import ExperimentConfig
from experiments.runners.experiment import (
    audit_text,
    run_all,
    run_experiment,
    score_command,
    title_of,
)
from rlhfv_ray.config import ScaleConfig
from rlhfv_ray.crew.crew import keeps_crew
from rlhfv_ray.errors import DataError
from rlhfv_ray.storage.stages import Stage


def test_a_run_is_named_by_what_experiments_differ_in():
    """Catches: rows of hashes in MLflow."""
    config = ExperimentConfig.of(RECIPES["paper"]())
    assert title_of(replace(config, seed=3)) == "paper beta 0.5 gamma 5 seed 3"
    imitation = replace(config.loss, preference_weight=0.0, sft_weight=1.0)
    assert title_of(replace(config, name="mine", loss=imitation)) == "mine sft seed 0"
    ipo = replace(config, loss=replace(config.loss, kind="ipo"))
    assert (title_of(ipo), ipo.loss.method) == ("paper ipo beta 0.5 gamma 5 seed 0", "IPO")


def test_a_dry_run_says_what_is_to_do_and_writes_nothing(tmp_path):
    """Catches: hours of a cluster to learn that a setting was wrong; a folder left by a look."""
    storage = tmp_path / "runs"
    recipe = RECIPES["shapes"]()
    optim = replace(recipe.optim, steps=0, epochs=2.5)
    config = replace(ExperimentConfig.of(replace(recipe, optim=optim)), dry_run=True)
    console = Console(file=io.StringIO(), width=80)
    assert run_experiment(config, storage, console=console) == {}
    printed = console.file.getvalue()
    assert "stage 4 of 7: training (to run)  train-" in printed
    assert "597,248 parameters" in printed and "a training: 2.5 epochs, 16 pairs" in printed
    assert not storage.exists()
    wrong = replace(config, data=replace(config.data, path=str(tmp_path / "none.parquet")))
    with pytest.raises(DataError, match=r"none\.parquet"):
        run_experiment(wrong, storage, console=console)


def test_the_report_says_what_texts_alone_tell():
    """Catches: a trial run of too few pairs whose report cannot be written; a share as per cent."""
    figures = {"pairs": 900, "told": 0.5174, "told_interval": [0.483, 0.5501]}
    assert audit_text(figures) == "51.7 % of pairs (48.3 to 55.0)"
    assert audit_text({"pairs": 40}) == "not measured, as 40 pairs are too few"


def test_the_command_that_scores_a_run_works_as_the_run_did():
    """Catches: a 7B model of eight GPUs that the printed command answers with on one CPU, a Muffin
    checkpoint that it cannot load, and a command that lacks the benchmark's files."""
    recipe = RECIPES["paper"]()
    model = replace(recipe.model, path="muffin", allow_pickle=True, template_arguments=("a=1",))
    scale = replace(recipe.scale, actors=8, gpu=True, cpus=4)
    config = ExperimentConfig.of(replace(recipe, model=model, scale=scale, storage="kept"))

    words = shlex.split(score_command(config, "train/model"))
    assert words[1] == "eval"
    settings = tyro.cli(EvalConfig, args=words[2:])
    assert (settings.model, settings.storage) == (("muffin", "train/model"), "kept")
    assert (settings.scale.actors, settings.scale.gpu, settings.scale.cpus) == (8, True, 4)
    checkpoint = settings.checkpoint("muffin")
    assert checkpoint.allow_pickle and checkpoint.template_arguments == ("a=1",)
    assert settings.generation == config.generation
    assert settings.object_halbench.questions and settings.object_halbench.annotations


@pytest.mark.parametrize("has_controls", [True, False])
def test_stages_after_the_experiments_own_share_a_crew_if_it_has_controls(tmp_path, has_controls):
    """Catches: one training in a crew, and control trainings that each start their processes."""
    with_crew: dict[str, bool] = {}

    def stage(name: str) -> Stage:
        def run(folder: Any, token: str) -> None:
            with_crew[name] = keeps_crew(ScaleConfig())

        return Stage(name, {}, run, title=name)

    own, others = [stage("reference"), stage("train")], [stage("control"), stage("answers")]
    pipeline: Any = SimpleNamespace(stages=own)
    monitor: Any = SimpleNamespace(
        pipelines=[pipeline, *([pipeline] if has_controls else [])],
        stage=lambda stage, skipped: contextlib.nullcontext(),
    )
    results = run_all([*own, *others], tmp_path, pipeline, monitor)

    assert [result.stage.name for result in results] == list(with_crew)
    assert list(with_crew.values()) == [False, False, has_controls, has_controls]
    assert not keeps_crew(ScaleConfig())
