"""A study: the ways to train that it compares, and its claim."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from eval.benchmarks.contract import Scores
from experiments.runners.contrasts import Claim
from experiments.runners.study_report import arms_figure
from experiments.runners.study_results import StudyResults
from rlhfv_ray.config import DDPOConfig
from rlhfv_ray.pipeline import Pipeline

# Takes the study's configuration and its pipeline, whose pairs exist; returns the arm's.
Change = Callable[[DDPOConfig, Pipeline], DDPOConfig]


@dataclass(frozen=True)
class Arm:
    """One way to train; the base model itself if there is no change."""

    name: str
    change: Change | None = None


@dataclass(frozen=True)
class Study:
    """The arms of a study, its claim, and its figure."""

    title: str
    arms: tuple[Arm, ...]
    claim: Claim
    read: Callable[[Scores], Mapping[str, float | None]] = Scores.rates  # an arm's numbers
    draw: Callable[[StudyResults, Path], None] = arms_figure


def plain_dpo(config: DDPOConfig, pipeline: Pipeline, *, beta: float = 0.0) -> DDPOConfig:
    """Give every token the same weight; a beta of 0 leaves the recipe's."""
    return replace(config, loss=replace(config.loss, gamma=1.0, beta=beta or config.loss.beta))
