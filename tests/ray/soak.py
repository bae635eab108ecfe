"""Long trials of patience, `make soak`: a training job whose workers are killed twenty times, a reference stage whose actors keep dying.

Minutes each, so they are not among the tests of every commit.
"""

import random
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhfv_ray.data import load_pairs, write_pairs
from rlhfv_ray.data.reference_rows import load_reference
from rlhfv_ray.progress import read_records
from rlhfv_ray.reference import compute_reference_logps
from tests.ray.conftest import losses, ray_processes, train, wait_for, weights, with_scale

pytestmark = pytest.mark.ray
KILLS, STEPS, ROWS = 20, 60, 10_000


def test_twenty_kills_change_nothing(config, reference, tmp_path: Path):
    """Catches: an update lost or done twice at any of many places. Where workers die is drawn once, by a seed."""
    config = with_scale(replace(config, optim=replace(config.optim, steps=STEPS)), max_failures=2 * KILLS)
    undisturbed = train(config, reference, tmp_path / "undisturbed")
    folder, killed, draw = tmp_path / "disturbed", [], random.Random(0)

    def kill() -> None:
        for step in sorted(draw.sample(range(1, STEPS), KILLS)):
            wait_for(lambda step=step: len(read_records(folder)) >= step, 300)
            wait_for(lambda: bool(ray_processes("RayTrainWorker")), 300)
            victim = draw.choice(ray_processes("RayTrainWorker"))
            victim.kill()
            killed.append(step)

    train(config, reference, folder, alongside=kill)
    print(f"killed after updates {killed}")
    assert len(killed) >= KILLS - 2  # the last ones may come after the end
    assert losses(folder) == losses(undisturbed)
    for name, tensor in weights(undisturbed).items():
        assert torch.equal(weights(folder)[name], tensor), name


def test_ten_thousand_rows_outlive_their_actors(config, cluster, pairs_file, tmp_path: Path):
    """Catches: rows lost or doubled when actors die again and again."""
    some = list(load_pairs(pairs_file))
    many = (replace(some[number % len(some)], id=f"row:{number}") for number in range(ROWS))
    write_pairs(many, tmp_path / "many.parquet")
    data, folder = replace(config.data, path=str(tmp_path / "many.parquet")), tmp_path / "reference"
    folder.mkdir()
    scale = replace(config.scale, rows=100, inference_batch=32, actors=2)
    killed, over, draw = [], threading.Event(), random.Random(0)

    def kill() -> None:
        while not over.wait(draw.uniform(4, 10)):
            actors = ray_processes("MapWorker")
            if actors:
                draw.choice(actors).kill()
                killed.append(time.monotonic())

    helper = threading.Thread(target=kill, daemon=True)
    helper.start()
    try:
        compute_reference_logps(config.model, data, scale, folder)
    finally:
        over.set()
        helper.join()
    print(f"{len(killed)} actors killed")
    assert len(killed) >= 3
    assert list(load_reference(folder)["id"]) == [f"row:{number}" for number in range(ROWS)]
