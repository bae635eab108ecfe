"""Settings are checked when they are made, and fingerprints hold what differs from the defaults."""

from dataclasses import dataclass, field

import pytest

from experiments.recipes import RECIPES, SFT
from rlhfv_ray.config import (
    DataConfig,
    DDPOConfig,
    EndpointConfig,
    GenerationConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    ScaleConfig,
    ShapesConfig,
    changed_settings,
    check_setting,
    fingerprint,
    plain,
)
from rlhfv_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossConfig(beta=0), "loss.beta = 0: must be > 0"),
        (lambda: LossConfig(gamma=0.5), "loss.gamma = 0.5: must be >= 1"),
        (lambda: LossConfig(beta=float("nan")), "loss.beta"),
        (lambda: LossConfig(gamma=float("nan")), "loss.gamma"),
        (lambda: LossConfig(preference_weight=0), "loss.sft_weight = 0.0: must be above 0"),
        (lambda: OptimConfig(learning_rate=-1), "optim.learning_rate"),
        (lambda: OptimConfig(warmup=1.5), "optim.warmup"),
        (lambda: OptimConfig(steps=-1), r"optim.steps = -1: must be >= 0 \(0: from epochs\)"),
        (lambda: ScaleConfig(recompute=-2), r"must be >= -1 \(-1: auto, 0: all kept\)"),
        (lambda: ScaleConfig(zero_stage=0, offload="optimizer"), "scale.offload"),
        (lambda: ScaleConfig(workers=0), "scale.workers = 0"),
        (lambda: ScaleConfig(workers=(4, 2)), "must be >= 1, or the least and a larger most"),
        (
            lambda: DDPOConfig(optim=OptimConfig(batch=32), scale=ScaleConfig(workers=(2, 6))),
            r"optim.batch = 32: .* = 6",
        ),
        (
            lambda: DDPOConfig(scale=ScaleConfig(workers=(2, 8), zero_stage=0)),
            "must be one number at ZeRO stage 0 in bf16",
        ),
        (lambda: GenerationConfig(beams=2, temperature=0.5), "generation.beams = 2: must be 1"),
        (lambda: ModelConfig(trainable=("vision",), lora_rank=8), "model.trainable"),
        (lambda: DataConfig(max_unusable=2), "data.max_unusable = 2: must be between 0 and 1"),
        (lambda: DataConfig(crop_area=0.0, augment="crop"), "data.crop_area = 0.0: must be above"),
        (lambda: DataConfig(crop_area=0.9), "data.crop_area = 0.9.*unless augment"),
        (lambda: DDPOConfig(data=DataConfig(mixed_with=("b",))), "data.mixed_with.*fine-tuning"),
        (lambda: DataConfig(limit=9).used(8), "data.limit = 9: must be at most 8"),
        (lambda: EndpointConfig(max_cost=1), "^max_cost = 1: must be 0, or with price_in"),
        (
            lambda: DDPOConfig(optim=OptimConfig(batch=10), scale=ScaleConfig(workers=4)),
            "optim.batch = 10: must be a multiple",
        ),
    ],
)
def test_out_of_range_says_what_is_allowed(make, message):
    """Catches: a value that fails hours later, or is silently accepted."""
    with pytest.raises(ConfigError, match=message):
        make()


def test_check_setting_names_setting_value_and_allowed_values():
    """Catches: a message without one of the three, or a check that raises on a good value."""
    check_setting(True, "x", 1, "> 0")
    with pytest.raises(ConfigError, match=r"^loss\.rate = 'a': must be > 0\.$"):
        check_setting(False, "loss.rate", "a", "> 0")


def test_recipes_have_the_sources_numbers():
    """Catches: a typo in a recipe that reproduces the paper. Values from the design's table."""
    rows = {}
    for name, recipe in RECIPES.items():
        config = recipe()
        loss = (config.loss.beta, config.loss.gamma, config.loss.normalize)
        optim = (config.optim.batch, config.optim.warmup, config.optim.learning_rate)
        rows[name] = (*loss, *optim, config.data.rule)
    assert rows["paper"] == (0.5, 5.0, True, 32, 0.1, 5e-7, "muffin")
    assert rows["released"] == (0.1, 1.1, False, 8, 0.03, 5e-7, "muffin")
    assert rows["released_2023"] == (0.5, 5.0, True, 32, 0.03, 5e-7, "muffin")
    assert rows["dpo"][:6] == (0.5, 1.0, False, 32, 0.1, 5e-7)
    assert RECIPES["released"]().optim.steps == 2160
    assert RECIPES["released_2023"]().optim.steps == 320
    for name, steps, weights in (("muffin_unimm", 1600, ()), ("muffin_vqa", 2800, (50, 50))):
        stage = SFT[name]()
        optim, data = stage.optim, stage.data
        assert (optim.learning_rate, optim.warmup, optim.batch) == (2e-5, 0.03, 512)
        assert (optim.steps, data.mix_weights, data.augment) == (steps, weights, "none")
        assert (stage.scale.checkpoint_every, data.short_answers) == (400, bool(weights))
    # 7 * 1400 / 32, the number of updates that follows from the paper
    assert RECIPES["paper"]().optim.total_steps(1400) == 306


def test_fingerprint_sees_every_field():
    """Catches: two different runs that share a folder."""
    changes = ({}, {"beta": 0.1}, {"gamma": 2.0}, {"normalize": False})
    configs = [LossConfig(**change) for change in changes]
    assert len({fingerprint(plain(config)) for config in configs}) == 4
    assert len({fingerprint(changed_settings(config)) for config in configs}) == 4


# changed_settings


@dataclass(frozen=True)
class Inner:
    rate: float = 1.0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    path: str  # no default
    steps: int = 3
    inner: Inner = field(default_factory=Inner)
    tuned: Inner = field(default_factory=lambda: Inner(rate=2.0))


@dataclass(frozen=True)
class GrownInner(Inner):
    penalty: float = 0.0


@dataclass(frozen=True)
class GrownOuter(Outer):
    inner: GrownInner = field(default_factory=GrownInner)
    mode: str = "plain"


def test_changed_settings_leaves_out_defaults_at_every_depth():
    """Catches: a default or an empty nested dict in the result, or a tuple, which JSON lacks."""
    assert changed_settings(Outer("a")) == {"path": "a"}
    changed = Outer("a", steps=4, inner=Inner(names=("x", "y")))
    assert changed_settings(changed) == {"path": "a", "steps": 4, "inner": {"names": ["x", "y"]}}


def test_changed_settings_keeps_different_configs_apart():
    """Catches: a nested config equal to its class's defaults, but not to its field's, left out."""
    configs = [Outer("a"), Outer("a", tuned=Inner()), Outer("a", tuned=Inner(rate=3.0))]
    assert changed_settings(configs[1]) == {"path": "a", "tuned": {}}
    assert len({fingerprint(changed_settings(config)) for config in configs}) == 3


def test_new_field_with_a_default_keeps_the_fingerprint():
    """Catches: an option added later that renames, and so computes again, all that is finished."""
    for steps, rate in ((3, 1.0), (4, 1.0), (3, 9.0)):
        before = Outer("a", steps=steps, inner=Inner(rate))
        after = GrownOuter("a", steps=steps, inner=GrownInner(rate))
        assert plain(before) != plain(after)
        assert fingerprint(changed_settings(before)) == fingerprint(changed_settings(after))
        used = GrownOuter("a", steps=steps, inner=GrownInner(rate, penalty=1.0))
        assert fingerprint(changed_settings(used)) != fingerprint(changed_settings(before))


def test_changed_value_changes_the_fingerprint():
    """Catches: a value lost between a config and its fingerprint, at any depth."""
    configs = [
        DDPOConfig(),
        DDPOConfig(seed=1),
        DDPOConfig(loss=LossConfig(gamma=2.0)),
        DDPOConfig(loss=LossConfig(sft_weight=2.0)),
        DDPOConfig(generation=GenerationConfig(stop=("\n",))),
        DDPOConfig(generation=GenerationConfig(stop=("\n", "USER:"))),
        DDPOConfig(model=ModelConfig(trainable=("language",))),
    ]
    assert len({fingerprint(changed_settings(config)) for config in configs}) == len(configs)


# Today's defaults of all fields that enter fingerprints. A field at its default is not in them.
DEFAULTS = {
    LossConfig: {
        "beta": 0.5,
        "gamma": 5.0,
        "normalize": True,
        "sft_weight": 0.0,
        "preference_weight": 1.0,
        "sft_mean": "answers",
        "kind": "dpo",
    },
    OptimConfig: {
        "learning_rate": 5e-7,
        "batch": 32,
        "epochs": 7.0,
        "steps": 0,
        "warmup": 0.1,
        "schedule": "cosine",
        "weight_decay": 0.0,
        "zero_rate": [],
        "clip": 1.0,
    },
    GenerationConfig: {
        "max_new_tokens": 256,
        "beams": 1,
        "temperature": 0.0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "stop": [],
        "seed": 0,
    },
    ShapesConfig: {
        "scenes": 1600,
        "evaluation_scenes": 600,
        "pairs": "corrections",
        "temperature": 1.0,
        "seed": 0,
        "world": "balanced",
        "left": 0.0,
        "wrong": 0.0,
        "control": "none",
    },
    DataConfig: {
        "path": "",
        "format": "auto",
        "mixed_with": [],
        "mix_weights": [],
        "short_answers": False,
        "augment": "none",
        "crop_area": 0.5,
        "columns": [],
        "image_root": "",
        "ids": "own",
        "max_pixels": 50_000_000,
        "rule": "muffin",
        "min_match": 3,
        "spans": True,
        "release_labels": False,
        "limit": 0,
        "max_length": 2048,
    },
}
NOT_IN_FINGERPRINTS = {"max_skipped", "max_unusable", "reference"}


@pytest.mark.parametrize("config", DEFAULTS, ids=lambda config: config.__name__)
def test_defaults_of_fingerprinted_fields_are_pinned(config):
    """Catches: a changed default, under which old results would pass for new ones."""
    defaults = {
        name: value for name, value in plain(config()).items() if name not in NOT_IN_FINGERPRINTS
    }
    assert defaults == DEFAULTS[config], (
        f"The defaults of {config.__name__} changed. A fingerprint leaves out a field at its "
        "default, so a folder of the old default would now be taken for one of the new default. "
        "Old field, new default: raise the version in the fingerprints of all stages that use it, "
        "then update DEFAULTS. New field: give it the default that keeps today's results, and add "
        "it to DEFAULTS (or to NOT_IN_FINGERPRINTS if it changes no result)."
    )
