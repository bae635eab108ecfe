"""Settings are checked when they are made."""

import pytest

from experiments.recipes import RECIPES
from rlhfv_ray.config import DDPOConfig, LossConfig, OptimConfig, ScaleConfig, fingerprint, plain
from rlhfv_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LossConfig(beta=0), "loss.beta = 0: must be > 0"),
        (lambda: LossConfig(gamma=0.5), "loss.gamma = 0.5: must be >= 1"),
        (lambda: LossConfig(beta=float("nan")), "loss.beta"),
        (lambda: OptimConfig(learning_rate=-1), "optim.learning_rate"),
        (lambda: OptimConfig(warmup=1.5), "optim.warmup"),
        (lambda: ScaleConfig(zero_stage=0, offload="optimizer"), "scale.offload"),
        (
            lambda: DDPOConfig(optim=OptimConfig(batch=10), scale=ScaleConfig(workers=4)),
            "optim.batch = 10: must be a multiple",
        ),
    ],
)
def test_out_of_range_says_what_is_allowed(make, said):
    """Catches: a value that fails hours later, or is silently accepted."""
    with pytest.raises(ConfigError, match=said):
        make()


def test_recipes_have_the_sources_numbers():
    """Catches: a typo in a recipe people reproduce the paper with. Values from the design's table of recipes."""
    rows = {
        name: (
            c.loss.beta,
            c.loss.gamma,
            c.loss.normalize,
            c.optim.batch,
            c.optim.warmup,
            c.optim.learning_rate,
            c.data.rule,
        )
        for name, c in ((name, recipe()) for name, recipe in RECIPES.items())
    }
    assert rows["paper"] == (0.5, 5.0, True, 32, 0.1, 5e-7, "muffin")
    assert rows["released"] == (0.1, 1.1, False, 8, 0.03, 5e-7, "muffin")
    assert rows["released_2023"] == (0.5, 5.0, True, 32, 0.03, 5e-7, "muffin")
    assert rows["dpo"][:6] == (0.5, 1.0, False, 32, 0.1, 5e-7)
    assert (RECIPES["released"]().optim.steps, RECIPES["released_2023"]().optim.steps) == (
        2160,
        320,
    )
    assert (
        RECIPES["paper"]().optim.total_steps(1400) == 306
    )  # 7 * 1400 / 32, as facts of the paper say


def test_fingerprint_sees_every_field():
    """Catches: two different runs that share a folder."""
    seen = {
        fingerprint(plain(LossConfig(**{name: value})))
        for name, value in (("beta", 0.1), ("gamma", 2.0), ("normalize", False))
    }
    assert len(seen | {fingerprint(plain(LossConfig()))}) == 4
