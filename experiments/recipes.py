"""Recipes: whole configurations to start from, each with the source of its numbers."""

from dataclasses import replace

from eval.config import RELEASED_DECODING, SweepConfig
from rlhfv_ray.config import (
    SHAPES,
    DataConfig,
    DDPOConfig,
    GenerationConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    ScaleConfig,
    ShapesConfig,
)
from rlhfv_ray.space import SearchConfig, SpaceConfig

EIGHT_A100 = ScaleConfig(workers=8, gpu=True, cpus=4, micro_batch=1, actors=8, checkpoint_every=100)


def shapes() -> DDPOConfig:
    """The embedded world on two CPU cores, minutes in all; numbers chosen by measurement (docs/LOG.md)."""
    return DDPOConfig(
        name="shapes",
        model=ModelConfig(path=SHAPES, dtype="fp32"),
        data=DataConfig(path=SHAPES, rule="both_sides", max_length=256),
        shapes=ShapesConfig(),
        loss=LossConfig(beta=0.1, gamma=5.0, normalize=False),
        optim=OptimConfig(learning_rate=1e-5, batch=16, steps=150),
        scale=ScaleConfig(workers=2, micro_batch=8, cpus=1, inference_batch=64, rows=100, checkpoint_every=50),
        generation=GenerationConfig(max_new_tokens=80),
    )


def paper() -> DDPOConfig:
    """RLHF-V as its paper trains it (arXiv 2312.00849, sec. 4.1 and appendix C): 8 A100, less than an hour."""
    return DDPOConfig(
        name="paper",
        data=DataConfig(rule="muffin"),
        loss=LossConfig(beta=0.5, gamma=5.0, normalize=True),
        optim=OptimConfig(learning_rate=5e-7, batch=32, epochs=7, warmup=0.1),
        scale=EIGHT_A100,
        generation=RELEASED_DECODING,
    )


def released() -> DDPOConfig:
    """The command in the RLHF-V readme: 2160 updates of 8 pairs, beta 0.1, weight 1.1, sums."""
    return DDPOConfig(
        name="released",
        data=DataConfig(rule="muffin"),
        loss=LossConfig(beta=0.1, gamma=1.1, normalize=False),
        optim=OptimConfig(learning_rate=5e-7, batch=8, steps=2160, warmup=0.03),
        scale=EIGHT_A100,
        generation=RELEASED_DECODING,
    )


def released_2023() -> DDPOConfig:
    """The release's first command: 320 updates of 32 pairs, the paper's beta and weight."""
    return DDPOConfig(
        name="released_2023",
        data=DataConfig(rule="muffin"),
        loss=LossConfig(beta=0.5, gamma=5.0, normalize=True),
        optim=OptimConfig(learning_rate=5e-7, batch=32, steps=320, warmup=0.03),
        scale=EIGHT_A100,
        generation=RELEASED_DECODING,
    )


def dpo() -> DDPOConfig:
    """Vanilla DPO, the paper's ablation (Eq. 4): every token weighs the same, log-probs are summed."""
    return DDPOConfig(
        name="dpo",
        data=DataConfig(rule="muffin"),
        loss=LossConfig(beta=0.5, gamma=1.0, normalize=False),
        optim=OptimConfig(learning_rate=5e-7, batch=32, epochs=7, warmup=0.1),
        scale=EIGHT_A100,
        generation=RELEASED_DECODING,
    )


RECIPES = {recipe.__name__: recipe for recipe in (shapes, paper, released, released_2023, dpo)}


def shapes_small() -> SweepConfig:
    """The embedded world on two CPU cores: beta under sums, gamma; eight trials, the worse ones stopped half way."""
    base = shapes()
    scale = replace(base.scale, cpus=0.5)  # so that a trial's own process has its share
    return SweepConfig(
        name="shapes-small",
        ddpo=replace(base, scale=scale),
        space=SpaceConfig(beta=(0.05, 0.1, 0.3, 1.0), gamma=(1.0, 5.0)),
        search=SearchConfig(concurrent=1),
    )


def paper_sweep() -> SweepConfig:
    """A100 nodes: beta and gamma about the paper's 0.5 and 5 (arXiv 2312.00849, appendix C), sums and means, on Object HalBench."""
    return SweepConfig(
        name="paper",
        ddpo=paper(),
        space=SpaceConfig(
            beta=(0.01, 0.1),
            beta_normalized=(0.1, 0.5, 1.0),
            normalize=(True, False),
            gamma=(1.0, 3.0, 5.0, 10.0),
            seed=(0, 1, 2),
        ),
        search=SearchConfig(rungs=3, keep=2),
        benchmark="object_halbench",
    )


SWEEPS = {"shapes-small": shapes_small, "paper": paper_sweep}
