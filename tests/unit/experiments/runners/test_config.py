"""Settings of experiments, sweeps and studies."""

import inspect
from dataclasses import fields, replace

import pytest

import eval.config
import experiments.runners.config
import rlhfv_ray.config
from eval.config import JudgeConfig, POPEConfig
from experiments.recipes import paper, shapes, signs
from experiments.runners.config import ExperimentConfig, StudyConfig
from rlhfv_ray.config import DDPOConfig, ModelConfig, OptimConfig, ScaleConfig
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


def test_an_experiment_keeps_the_checks_of_its_training():
    """Catches: a check of `DDPOConfig` that an experiment on the command line never meets."""
    with pytest.raises(ConfigError, match="multiple of scale.workers"):
        ExperimentConfig(optim=OptimConfig(batch=30), scale=ScaleConfig(workers=8))


@pytest.mark.parametrize("module", [rlhfv_ray.config, eval.config, experiments.runners.config])
def test_a_check_of_settings_hides_no_other(module):
    """Catches: `__post_init__` in place of that of a class above."""
    for kind in vars(module).values():
        if isinstance(kind, type) and "__post_init__" in vars(kind):
            above = [base for base in kind.__mro__[1:] if "__post_init__" in vars(base)]
            calls = "super().__post_init__()" in inspect.getsource(kind.__post_init__)
            assert calls or not above, kind


def test_a_study_needs_two_seeds():
    """Catches: an interval over one seed."""
    with pytest.raises(ConfigError, match="two different ones"):
        StudyConfig(seeds=(1, 1))


def test_a_seed_has_its_own_scenes_order_and_base_model():
    """Catches: seeds that share what they say differs; a base model of another seed."""
    study = StudyConfig(ddpo=shapes(), seeds=(3, 0), bases=("first", "second"))
    config = study.seeded(0)
    recipe = shapes()
    assert (config.seed, config.shapes.seed) == (0, recipe.shapes.seed)
    assert study.seeded(3).shapes.seed == recipe.shapes.seed + 3
    assert (study.seeded(3).model.path, config.model.path) == ("first", "second")
    assert StudyConfig(ddpo=shapes()).seeded(1).model.path == recipe.model.path
    with pytest.raises(ConfigError, match="one for each seed, or none"):
        StudyConfig(seeds=(0, 1), bases=("first",))


def test_the_data_path_signs_is_the_world_of_signs():
    """Catches: a file "signs" that is not there; signs for a model that knows shapes alone."""
    recipe = shapes()
    asked = replace(recipe, data=replace(recipe.data, path="signs"))
    assert replace(asked, name="signs") == signs()
    assert (asked.data, asked.model.path) == (recipe.data, "shapes-signs")
    assert asked.shapes == replace(recipe.shapes, world="signs")
    own = replace(asked, model=ModelConfig(path="mine"), data=replace(recipe.data, path="signs"))
    assert (own.model.path, own.shapes.world) == ("mine", "signs")
    experiment = replace(ExperimentConfig.of(recipe), data=replace(recipe.data, path="signs"))
    assert experiment.ddpo == asked and experiment.scored_on == ("shapes",)
    assert experiment.settings.shapes.world == "signs"
