"""Settings of experiments, sweeps and studies."""

from dataclasses import fields

import pytest

from eval.config import JudgeConfig, POPEConfig
from experiments.recipes import paper, shapes
from experiments.runners.config import ExperimentConfig, StudyConfig
from rlhfv_ray.config import DDPOConfig, ModelConfig
from rlhfv_ray.errors import ConfigError


def test_an_experiment_is_its_recipe_and_benchmarks():
    """Catches: a field of the recipe that is lost on the way to training."""
    config = ExperimentConfig.of(paper())
    assert config.ddpo == paper()
    assert type(config.ddpo) is DDPOConfig  # workers need no module of experiments for it
    assert {field.name for field in fields(DDPOConfig)} < {field.name for field in fields(config)}


@pytest.mark.parametrize(
    ("recipe", "benchmarks", "scored_on"),
    [
        (shapes, (), ("shapes",)),
        (paper, (), ()),
        (paper, ("pope", "amber"), ("pope", "amber")),
        (shapes, ("pope",), ("pope",)),
    ],
)
def test_benchmarks_that_are_run(recipe, benchmarks, scored_on):
    """Catches: the shapes world without scores, or real data scored on it unasked."""
    asked = ExperimentConfig(
        **{field.name: getattr(recipe(), field.name) for field in fields(DDPOConfig)},
        benchmarks=benchmarks,
    )
    assert asked.scored_on == scored_on


def test_settings_of_benchmarks_reach_the_evaluation():
    """Catches: a judge or a file that is set, and not used; other images than the experiment's."""
    config = ExperimentConfig(
        judge=JudgeConfig(model="m"), pope=POPEConfig(questions="q"), model=ModelConfig("shapes")
    )
    assert config.settings.judge.model == "m" and config.settings.pope.questions == "q"
    assert config.settings.shapes.scenes == config.shapes.evaluation_scenes


def test_a_study_needs_two_seeds():
    """Catches: an interval over one seed."""
    with pytest.raises(ConfigError, match="two different ones"):
        StudyConfig(seeds=(1, 1))
