"""The benchmarks: their makers, their contract (`contract.py`), and one file for each."""

from pathlib import Path
from typing import Any

from eval.benchmarks.amber import AMBER
from eval.benchmarks.chair_coco import ChairCoco
from eval.benchmarks.contract import Benchmark, Setup
from eval.benchmarks.hallusion_bench import HallusionBench
from eval.benchmarks.llava_bench import LLaVABench
from eval.benchmarks.llava_wild import LLaVAWild
from eval.benchmarks.mme import MME
from eval.benchmarks.mmhal_bench import MMHalBench
from eval.benchmarks.object_halbench import ObjectHalBench
from eval.benchmarks.pope import POPE
from eval.benchmarks.refomb import RefoMB
from eval.benchmarks.shapes import ShapesBenchmark
from eval.config import BENCHMARKS, BenchmarkSettings
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.registry import registered


def make_shapes(config: BenchmarkSettings, setup: Setup) -> Benchmark:
    """Make the benchmark of the shapes world."""
    if setup.shapes_folder is None:
        raise ConfigError(
            "benchmark 'shapes': shapes_folder must be set, the folder of its pictures."
        )
    judge = config.judge if config.shapes.mode == "judge" else None
    return ShapesBenchmark(setup.shapes_folder, decoding=setup.decoding, judge=judge)


def make_object_halbench(config: BenchmarkSettings, setup: Setup) -> Benchmark:
    """Make Object HalBench."""
    cache = setup.storage / "coco"
    return ObjectHalBench(
        config.object_halbench, config.judge, cache=cache, decoding=setup.decoding
    )


def make_chair(config: BenchmarkSettings, setup: Setup) -> Benchmark:
    """Make CHAIR on COCO."""
    return ChairCoco(config.chair, cache=setup.storage / "coco", decoding=setup.decoding)


def make_mmhal_bench(config: BenchmarkSettings, setup: Setup) -> Benchmark:
    """Make MMHal-Bench."""
    return MMHalBench(config.mmhal_bench, config.judge, decoding=setup.decoding)


def make_llava_bench(config: BenchmarkSettings, setup: Setup) -> Benchmark:
    """Make LLaVA Bench (COCO)."""
    return LLaVABench(config.llava_bench, config.judge, decoding=setup.decoding)


def make_llava_wild(config: BenchmarkSettings, setup: Setup) -> Benchmark:
    """Make LLaVA Bench (in the wild)."""
    return LLaVAWild(config.llava_wild, config.judge, decoding=setup.decoding)


def make_refomb(config: BenchmarkSettings, setup: Setup) -> Benchmark:
    """Make RefoMB."""
    return RefoMB(config.refomb, config.judge, decoding=setup.decoding)


def make_pope(config: BenchmarkSettings, setup: Setup) -> Benchmark:
    """Make POPE."""
    return POPE(config.pope, decoding=setup.decoding)


def make_amber(config: BenchmarkSettings, setup: Setup) -> Benchmark:
    """Make AMBER."""
    return AMBER(config.amber, decoding=setup.decoding)


def make_mme(config: BenchmarkSettings, setup: Setup) -> Benchmark:
    """Make MME's hallucination subset."""
    return MME(config.mme, decoding=setup.decoding)


def make_hallusion_bench(config: BenchmarkSettings, setup: Setup) -> Benchmark:
    """Make HallusionBench."""
    return HallusionBench(config.hallusion_bench, decoding=setup.decoding)


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
        name: a key of `eval.config.BENCHMARKS`.
        config: the evaluation's settings.
        decoding: how answers are decoded, for the manifest.
        storage: folder in which Object HalBench keeps COCO's reduced annotations.
        shapes_folder: pictures of the shapes benchmark, from `write_benchmark`; only it needs them.

    Raises:
        ConfigError: the name is unknown, its function makes no benchmark, or a setting is missing.
        DataError: a file of the benchmark cannot be used.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}.")
    make = registered(BENCHMARKS, name, setting="benchmark")
    benchmark = make(config, Setup(decoding, storage, shapes_folder))
    if not isinstance(benchmark, Benchmark):
        kind = type(benchmark).__name__
        raise ConfigError(f"{BENCHMARKS[name]} returns {kind}, not a Benchmark. Correct it.")
    return benchmark
