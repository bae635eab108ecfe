"""Settings of experiments, sweeps and studies; field docstrings are the command line's help."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, NamedTuple

from eval.config import BenchmarkFiles, BenchmarkName, BenchmarkSettings, ShapesBenchConfig
from rlhfv_ray.config import SHAPES, DDPOConfig, check_setting
from rlhfv_ray.shapes.controls import Control
from rlhfv_ray.sweep.search_space import SearchConfig, SpaceConfig

Part = Literal["", "rungs", "choice", "fresh"]


class Pictures(NamedTuple):
    """The pictures of a benchmark on which a model is scored."""

    scenes: int  # number of pictures of the shapes benchmark; others have their own
    seed: int  # of these pictures
    part: Part = ""  # of the benchmark; no two parts share a picture; empty: all


def check_controls(controls: Sequence[Control], config: DDPOConfig) -> None:
    """Check that a training can be made on control pairs.

    Raises:
        ConfigError: its data are not the pairs of the shapes world.
    """
    has_pairs = config.data.path == SHAPES and not config.loss.is_sft
    check_setting(
        "none" not in controls and (not controls or has_pairs),
        "controls",
        controls,
        "empty with data of your own or without pairs, and without `none`",
    )


@dataclass(frozen=True)
class ExperimentConfig(DDPOConfig, BenchmarkFiles):
    """One training, and the benchmarks that the base and the aligned model are scored on."""

    benchmarks: tuple[BenchmarkName, ...] = ()
    """Benchmarks that score the base and the aligned model after training. If empty, models of the
    shapes world are scored on `shapes`, and other models are not scored."""
    controls: tuple[Control, ...] = ()
    """Control pairs of the shapes world (--shapes.control). The same training is also made on each
    of them, and the scores say how much of the gain it keeps."""
    dry_run: bool = False
    """Check everything and print the stages, parameters, updates and disk; run nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_controls(self.controls, self)

    @classmethod
    def of(cls, ddpo: DDPOConfig) -> "ExperimentConfig":
        """Make an experiment of a recipe."""
        return cls(**{item.name: getattr(ddpo, item.name) for item in fields(DDPOConfig)})

    @property
    def ddpo(self) -> DDPOConfig:
        """Return the training alone."""
        return DDPOConfig(**{item.name: getattr(self, item.name) for item in fields(DDPOConfig)})

    @property
    def scored_on(self) -> tuple[BenchmarkName, ...]:
        """Return the benchmarks to run."""
        if not self.benchmarks and self.data.path == SHAPES:
            return ("shapes",)
        return self.benchmarks

    @property
    def settings(self) -> BenchmarkSettings:
        """Return the settings of the benchmarks; shapes draws the experiment's own images."""
        shapes = self.shapes
        return self.with_shapes(
            ShapesBenchConfig(scenes=shapes.evaluation_scenes, seed=shapes.seed, world=shapes.world)
        )


@dataclass(frozen=True)
class ScoredConfig(BenchmarkFiles):
    """Trainings of one configuration, and the benchmark that scores them."""

    name: str = "scored"
    """Name in MLflow and in the folder's name."""
    ddpo: DDPOConfig = field(default_factory=DDPOConfig)
    benchmark: BenchmarkName = "shapes"
    """Benchmark that scores the trained models."""


@dataclass(frozen=True)
class SweepConfig(ScoredConfig):
    """Trials of one configuration with varied settings, and the metric that ranks them."""

    name: str = "sweep"
    """Name in MLflow and in the sweep folder's name."""
    space: SpaceConfig = field(default_factory=SpaceConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    rung_scenes: int = 200
    """Number of pictures of the shapes benchmark at the evaluations before a trial's end, >= 1.
    Other benchmarks are split by image: a fifth for these evaluations, two fifths for the choice,
    two fifths for the report."""
    dry_run: bool = False
    """Print the trials, hours, cost, disk, and the first and last configuration; run nothing."""

    def __post_init__(self) -> None:
        check_setting(self.rung_scenes >= 1, "rung_scenes", self.rung_scenes, ">= 1")

    def pictures(self, part: Part) -> Pictures:
        """Return the pictures of one part: those that prune, those that choose, fresh ones."""
        shapes = self.ddpo.shapes
        scenes = self.rung_scenes if part == "rungs" else shapes.evaluation_scenes
        return Pictures(scenes, shapes.seed, part)


@dataclass(frozen=True)
class StudyConfig(ScoredConfig):
    """Trainings that differ in one setting, each under several seeds."""

    name: str = "study"
    """Name in MLflow and in the study folder's name."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds for the order of the pairs and the scenes of the shapes world, at least two.
    Intervals come from the differences between seeds."""
    bases: tuple[str, ...] = ()
    """Model folders, one for each seed, so that a seed has a base model of its own. If empty, all
    seeds train ddpo.model.path."""
    controls: tuple[Control, ...] = ()
    """Control pairs that the claimed arm is trained on as well, in the shapes world
    (--ddpo.shapes.control). The report says how much of the gain each of them keeps."""
    concurrent: int = 0
    """Trainings at a time, >= 0; 0 runs as many as fit into the cluster."""
    keep_models: bool = True
    """Keep trained models, so that other studies reuse them. If off, each is deleted once it is
    scored."""
    dry_run: bool = False
    """Print the trainings, and how many of them are finished; run nothing."""

    def __post_init__(self) -> None:
        check_setting(
            len(set(self.seeds)) == len(self.seeds) >= 2,
            "seeds",
            self.seeds,
            "two different ones at least",
        )
        check_setting(
            len(self.bases) in (0, len(self.seeds)),
            "bases",
            self.bases,
            "one for each seed, or none",
        )
        check_controls(self.controls, self.ddpo)
        check_setting(
            self.concurrent >= 0, "concurrent", self.concurrent, ">= 0 (0: as many as fit)"
        )

    def seeded(self, seed: int) -> DDPOConfig:
        """Return the settings of one seed: its order of pairs, scenes of the shapes world, and base
        model.
        """
        config = self.ddpo
        shapes = replace(config.shapes, seed=config.shapes.seed + seed)
        path = self.bases[self.seeds.index(seed)] if self.bases else config.model.path
        model = replace(config.model, path=path)
        return replace(config, seed=seed, shapes=shapes, model=model)


@dataclass(frozen=True)
class WeighingConfig(StudyConfig):
    """A study with an arm of plain DPO, in which every token has the same weight."""

    dpo_beta: float = 0.0
    """Beta of plain DPO, >= 0; 0 uses the recipe's. Weights above 1 act like a larger beta, so each
    method needs its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting(self.dpo_beta >= 0, "dpo_beta", self.dpo_beta, ">= 0 (0: the recipe's)")
