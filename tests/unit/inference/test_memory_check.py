"""Memory is checked on the job's first rows, before the reference pass."""

import json
from bisect import bisect_left
from dataclasses import replace

import psutil
import pytest

from rlhfv_ray.config import DataConfig, DDPOConfig, LossConfig, ModelConfig, ScaleConfig
from rlhfv_ray.data import list_slices, write_pairs
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.inference import memory_check
from rlhfv_ray.inference.memory_check import check_step_fits, largest_memory
from rlhfv_ray.pipeline import examples_stage, reference_stage
from tests.conftest import careless_pairs


@pytest.fixture
def job(small_model, tmp_path):
    path = tmp_path / "pairs.parquet"
    write_pairs(careless_pairs(6), path)
    data = DataConfig(path=str(path))
    return DDPOConfig(model=ModelConfig(path=str(small_model), dtype="fp32"), data=data)


def with_memory(job, gib):
    return replace(job, scale=ScaleConfig(memory_gib=gib))


def step_fits(config, data, shards):
    try:
        check_step_fits(config, data, shards)
    except ConfigError:
        return False
    return True


@pytest.mark.slow
def test_a_step_that_cannot_fit_ends_the_stage_before_its_pass(job, tmp_path):
    """Catches: a lack of memory that is said after the reference pass was paid for."""
    shards = list_slices(job.data.path)
    check_step_fits(with_memory(job, 4.0), job.data, shards)
    stage = reference_stage(with_memory(job, 0.001), job.data, {})
    with pytest.raises(ConfigError, match=r"needs .* GiB a worker .*would fit"):
        stage.run(tmp_path / "reference", "")
    assert not (tmp_path / "reference").exists()


@pytest.mark.slow
def test_fine_tuning_that_cannot_fit_ends_before_its_examples(job, tmp_path):
    """Catches: a lack of memory that fine-tuning says after its examples were encoded, or that only
    another source of mixed data has.
    """
    rows = []
    for pair in careless_pairs(6):
        (tmp_path / f"{pair.id}.png").write_bytes(pair.image)
        rows.append({"id": pair.id, "image": f"{pair.id}.png", "question": pair.question})
        rows[-1]["answer"] = pair.chosen
    path = tmp_path / "examples.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    data = DataConfig(path=str(path), format="vqa", max_length=512)
    config = replace(job, data=data, loss=LossConfig(preference_weight=0.0, sft_weight=1.0))
    check_step_fits(
        with_memory(config, 4.0), data, list_slices(str(path), format="vqa", examples=True)
    )
    stage = examples_stage(with_memory(config, 0.001), data, {})
    with pytest.raises(ConfigError, match=r"needs .* GiB a worker .*would fit"):
        stage.run(tmp_path / "examples", "")
    assert not (tmp_path / "examples").exists()

    longer = tmp_path / "longer.jsonl"
    longer.write_text("\n".join(json.dumps(row | {"answer": "a star " * 60}) for row in rows))
    mixed = replace(data, mixed_with=(str(longer),))
    shards = list_slices(str(path), format="vqa", examples=True)
    sizes = [0.001 * 1.1**power for power in range(80)]
    fits = sizes[
        bisect_left(sizes, True, key=lambda gib: step_fits(with_memory(config, gib), data, shards))
    ]
    check_step_fits(with_memory(config, fits), data, shards)
    stage = examples_stage(with_memory(replace(config, data=mixed), fits), mixed, {})
    with pytest.raises(ConfigError, match=r"needs .* GiB a worker .*would fit"):
        stage.run(tmp_path / "examples", "")


def test_rows_that_cannot_be_used_are_left_to_the_stage(job, tmp_path):
    """Catches: an index error in place of the rows' own one."""
    path = tmp_path / "unusable.parquet"
    write_pairs([replace(pair, image=b"no picture") for pair in careless_pairs(3)], path)
    data = replace(job.data, path=str(path))
    check_step_fits(with_memory(job, 0.001), data, list_slices(path))


@pytest.mark.parametrize(("workers", "nodes", "share"), [(1, 1, 1), (4, 1, 4), (5, 2, 3)])
def test_a_worker_has_its_share_of_a_node(monkeypatch, workers, nodes, share):
    """Catches: workers on several nodes that share one node's memory; dead nodes that count."""
    states = [{"Alive": True}] * nodes + [{"Alive": False}]
    monkeypatch.setattr(memory_check.ray, "nodes", lambda: states)
    whole = psutil.virtual_memory().total
    assert largest_memory(ScaleConfig(workers=workers)) == whole // share
