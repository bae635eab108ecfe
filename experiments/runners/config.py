"""Settings of sweeps and studies; field docstrings are the command line's help."""

from dataclasses import dataclass, field

from eval.config import (
    AMBERConfig,
    BenchmarkName,
    JudgeConfig,
    LLaVABenchConfig,
    MMHalBenchConfig,
    ObjectHalBenchConfig,
    POPEConfig,
    _check,
)
from rlhfv_ray.config import DDPOConfig
from rlhfv_ray.sweep.search_space import SearchConfig, SpaceConfig


@dataclass(frozen=True)
class ScoredConfig:
    """Trainings of one configuration, and what they are scored on."""

    name: str = "scored"
    """Shown in MLflow and in the folder's name."""
    ddpo: DDPOConfig = field(default_factory=DDPOConfig)
    benchmark: BenchmarkName = "shapes"
    """What trained models are scored on."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    object_halbench: ObjectHalBenchConfig = field(default_factory=ObjectHalBenchConfig)
    mmhal_bench: MMHalBenchConfig = field(default_factory=MMHalBenchConfig)
    llava_bench: LLaVABenchConfig = field(default_factory=LLaVABenchConfig)
    pope: POPEConfig = field(default_factory=POPEConfig)
    amber: AMBERConfig = field(default_factory=AMBERConfig)


@dataclass(frozen=True)
class SweepConfig(ScoredConfig):
    """Many trainings of one configuration with other values, and what decides between them."""

    name: str = "sweep"
    """Shown in MLflow and in the sweep folder's name."""
    space: SpaceConfig = field(default_factory=SpaceConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    rung_scenes: int = 200
    """Pictures of the shapes benchmark at looks before a trial's end; any other benchmark is asked whole."""


@dataclass(frozen=True)
class StudyConfig(ScoredConfig):
    """Trainings that differ in one thing, each under several seeds."""

    name: str = "study"
    """Shown in MLflow and in the study folder's name."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the order of the pairs and, in the shapes world, of its scenes; intervals come from how the seeds differ."""
    concurrent: int = 0
    """Trainings at a time; 0: as many as fit into the cluster."""
    keep_models: bool = True
    """Keep what was trained, so that other studies need not train the same again; else it is deleted once it is scored."""

    def __post_init__(self) -> None:
        _check(
            len(set(self.seeds)) == len(self.seeds) >= 2,
            "seeds",
            self.seeds,
            "two different ones at least",
        )
        _check(self.concurrent >= 0, "concurrent", self.concurrent, ">= 0 (0: as many as fit)")
