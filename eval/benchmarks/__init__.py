"""The benchmarks: their table, their contract (`contract.py`), and one file for each."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from eval.benchmarks.amber import AMBER
from eval.benchmarks.chair_coco import ChairCoco
from eval.benchmarks.contract import Benchmark
from eval.benchmarks.hallusion_bench import HallusionBench
from eval.benchmarks.llava_bench import LLaVABench
from eval.benchmarks.llava_wild import LLaVAWild
from eval.benchmarks.mme import MME
from eval.benchmarks.mmhal_bench import MMHalBench
from eval.benchmarks.object_halbench import ObjectHalBench
from eval.benchmarks.pope import POPE
from eval.benchmarks.refomb import RefoMB
from eval.benchmarks.shapes import ShapesBenchmark
from eval.config import BenchmarkSettings
from rlhfv_ray.errors import ConfigError


class Setup(NamedTuple):
    """The arguments of a benchmark besides its settings."""

    decoding: dict[str, Any]  # recorded in the manifest
    storage: Path  # folder for reduced annotations
    shapes_folder: Path | None  # pictures of the shapes benchmark


def _make_shapes(config: BenchmarkSettings, setup: Setup) -> Benchmark:
    if setup.shapes_folder is None:
        raise ConfigError(
            "benchmark 'shapes': shapes_folder must be set, the folder of its pictures."
        )
    judge = config.judge if config.shapes.mode == "judge" else None
    return ShapesBenchmark(setup.shapes_folder, decoding=setup.decoding, judge=judge)


def _make_object_halbench(config: BenchmarkSettings, setup: Setup) -> Benchmark:
    cache = setup.storage / "coco"
    return ObjectHalBench(
        config.object_halbench, config.judge, cache=cache, decoding=setup.decoding
    )


# By the name on the command line, which is the benchmark's own.
BENCHMARKS: Mapping[str, Callable[[BenchmarkSettings, Setup], Benchmark]] = {
    ShapesBenchmark.name: _make_shapes,
    ObjectHalBench.name: _make_object_halbench,
    MMHalBench.name: lambda config, setup: MMHalBench(
        config.mmhal_bench, config.judge, decoding=setup.decoding
    ),
    LLaVABench.name: lambda config, setup: LLaVABench(
        config.llava_bench, config.judge, decoding=setup.decoding
    ),
    POPE.name: lambda config, setup: POPE(config.pope, decoding=setup.decoding),
    ChairCoco.name: lambda config, setup: ChairCoco(
        config.chair, cache=setup.storage / "coco", decoding=setup.decoding
    ),
    AMBER.name: lambda config, setup: AMBER(config.amber, decoding=setup.decoding),
    MME.name: lambda config, setup: MME(config.mme, decoding=setup.decoding),
    HallusionBench.name: lambda config, setup: HallusionBench(
        config.hallusion_bench, decoding=setup.decoding
    ),
    LLaVAWild.name: lambda config, setup: LLaVAWild(
        config.llava_wild, config.judge, decoding=setup.decoding
    ),
    RefoMB.name: lambda config, setup: RefoMB(config.refomb, config.judge, decoding=setup.decoding),
}


def make_benchmark(
    name: str,
    config: BenchmarkSettings,
    *,
    decoding: dict[str, Any],
    storage: Path,
    shapes_folder: Path | None = None,
) -> Benchmark:
    """Make the benchmark of this name.

    Args:
        name: a key of `BENCHMARKS`.
        config: the evaluation's settings.
        decoding: how answers are decoded, for the manifest.
        storage: folder in which Object HalBench keeps COCO's reduced annotations.
        shapes_folder: pictures of the shapes benchmark, from `write_benchmark`; only it needs them.

    Raises:
        ConfigError: the name is unknown, or a setting is missing.
        DataError: a file of the benchmark cannot be used.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name](config, Setup(decoding, storage, shapes_folder))
