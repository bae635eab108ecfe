"""The table of benchmarks."""

import pkgutil
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks import BENCHMARKS, make_benchmark
from eval.config import EvalConfig, ObjectHalBenchConfig, ShapesBenchConfig
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.shapes.world import write_benchmark
from tests.unit.eval.test_coco import write_annotations

CONFIG = EvalConfig(model=("a", "b"))
DECODING = {"beams": 3}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_of_the_command_line_has_a_maker(name: str) -> None:
    """Catches: a name that the command line accepts, and that cannot be made."""
    make = pkgutil.resolve_name(BENCHMARKS[name])
    assert make.__name__ == f"make_{name}"


@pytest.mark.parametrize("name", ["pope", "amber"])
def test_a_benchmark_is_made_with_its_own_settings(name: str, tmp_path: Path) -> None:
    """Catches: two rows of the table changing places."""
    benchmark = make_benchmark(name, CONFIG, decoding=DECODING, storage=tmp_path)
    assert benchmark.name == name
    assert vars(benchmark) == {"config": getattr(CONFIG, name), "decoding": DECODING}


@pytest.mark.parametrize("mode", ["rule", "judge"])
def test_shapes_has_a_judge_in_judge_mode_only(mode: Any, tmp_path: Path) -> None:
    """Catches: a judge that is paid in rule mode, or is left out in judge mode."""
    write_benchmark(tmp_path, count=1, seed=0)
    config = EvalConfig(model=("a",), shapes=ShapesBenchConfig(mode=mode))
    benchmark = make_benchmark(
        "shapes",
        config,
        decoding=DECODING,
        storage=tmp_path,
        shapes_folder=tmp_path,
    )
    assert benchmark.judged is (mode == "judge")
    assert len(benchmark.prompts) == 1
    with pytest.raises(ConfigError, match="shapes_folder must be set"):
        make_benchmark("shapes", config, decoding=DECODING, storage=tmp_path)


def test_object_halbench_keeps_its_truth_in_the_storage(tmp_path: Path) -> None:
    """Catches: COCO's reduced annotations written anywhere but in the storage folder."""
    annotations = write_annotations(tmp_path / "annotations", [(1, "dog")], [(1, "A dog.")])
    settings = ObjectHalBenchConfig("questions.jsonl", str(annotations), mode="rule")
    config = EvalConfig(model=("a",), object_halbench=settings)
    benchmark = make_benchmark(
        "object_halbench", config, decoding=DECODING, storage=tmp_path / "storage"
    )
    assert vars(benchmark)["cache"] == tmp_path / "storage" / "coco"


def test_an_unknown_name_lists_the_benchmarks(tmp_path: Path) -> None:
    """Catches: a KeyError that does not say which benchmarks exist."""
    with pytest.raises(ConfigError, match="unknown benchmark 'popes'; known: shapes, .*amber"):
        make_benchmark("popes", CONFIG, decoding=DECODING, storage=tmp_path)


def test_a_function_that_makes_no_benchmark_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Catches: a traceback about a missing name, for a forgotten `return`."""
    monkeypatch.setitem(BENCHMARKS, "mine", "operator:is_")
    with pytest.raises(ConfigError, match="operator:is_ returns bool, not a Benchmark"):
        make_benchmark("mine", CONFIG, decoding=DECODING, storage=tmp_path)
