"""Cells of the reference stage as Ray runs it, against plain loops on as many cores (i).

Both sides read, encode and score the same pairs with the same actor. The plain loops are processes
that share nothing: each takes every other shard and forgets what it made. The stage also publishes
parts, from which a killed job goes on.
"""

import functools
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import ray
import torch

from benchmarks.measure import FEWEST_ROUNDS, Row, idle_load, judged, quartiles
from rlhfv_ray.config import DataConfig, ModelConfig, ScaleConfig
from rlhfv_ray.data import Slice, list_slices, write_pairs
from rlhfv_ray.inference.model_check import check_model
from rlhfv_ray.inference.reference import (
    ReferenceActor,
    compute_reference_logps,
    encode_slice,
    reading_settings,
)
from rlhfv_ray.models import load_processor
from rlhfv_ray.records import PreferencePair
from rlhfv_ray.shapes import make_scenes
from rlhfv_ray.shapes.captions import QUESTIONS, caption
from rlhfv_ray.shapes.model import build_model
from rlhfv_ray.shapes.scenes import render

CORES = 2
PAIRS = 20_000
GOAL = 0.85
FIRST_PARTS = 2 * CORES  # those in which the stage's processes start


@dataclass(frozen=True)
class Work:
    """The work of both sides: pairs in a file, and a small model in a folder."""

    model: ModelConfig
    data: DataConfig
    scale: ScaleConfig

    @property
    def shards(self) -> list[Slice]:
        """Return the shards, each of which becomes one part."""
        return list_slices(self.data.path, rows=self.scale.rows, **reading_settings(self.data))


def stage_cells(*, pairs: int = PAIRS, rounds: int = FEWEST_ROUNDS) -> list[Row]:
    """Time plain loops and the stage by turns, each in new processes.

    Returns:
        Pairs a second and core: with all starts, and without.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = prepare(folder, pairs)
        others = idle_load()
        plain, stage = [], []
        for number in range(rounds):
            plain.append(plain_seconds(work))
            stage.append(stage_seconds(work, folder / f"reference-{number}"))
        others = max(others, idle_load())
    note = f"{pairs:,} pairs, a second and core; {CORES} cores"
    rows = []
    for index, title in enumerate(("with all starts", "steady")):
        stage_rates = [pairs / CORES / seconds[index] for seconds in stage]
        plain_rates = [pairs / CORES / seconds[index] for seconds in plain]
        rows.append(rates_row(f"i reference stage, {title}", stage_rates, plain_rates, note))
    return [judged(replace(row, others=others)) for row in rows]


def rates_row(cell: str, ours: Sequence[float], peer: Sequence[float], note: str) -> Row:
    """Compare the rates of several rounds, of which higher ones are better."""
    ratios = [our / their for our, their in zip(ours, peer, strict=True)]
    low, high = quartiles(ratios)
    row = Row(cell, median(ours), median(peer), median(ratios), GOAL, passed=False, unit="/s")
    return replace(row, note=note, low=low, high=high)


def prepare(folder: Path, pairs: int, **sizes: int) -> Work:
    """Write the pairs, and a model of random weights with sizes of the shapes world's or others."""
    write_pairs(drawn_pairs(pairs), folder / "pairs.parquet")
    processor = load_processor("shapes")
    torch.manual_seed(0)
    build_model(processor, **sizes).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    model = ModelConfig(path=str(folder / "model"), dtype="fp32")
    data = DataConfig(path=str(folder / "pairs.parquet"), rule="both_sides")
    return Work(model, data, ScaleConfig(actors=CORES))


def drawn_pairs(count: int) -> Iterator[PreferencePair]:
    """Yield pictures, each with its caption and that of the next picture."""
    scenes = make_scenes(count + 1, seed=0)
    texts = [caption(scene.setting, scene.groups) for scene in scenes]
    for number, scene in enumerate(scenes[:count]):
        chosen, rejected = texts[number], f"{texts[number + 1]} {number}"  # no two are equal
        yield PreferencePair(f"drawn:{number}", render(scene), QUESTIONS[0], chosen, rejected)


def plain_seconds(work: Work) -> tuple[float, float]:
    """Return the seconds of the loops from the first start, and of the slowest loop alone."""
    context = multiprocessing.get_context("spawn")
    seconds = context.Queue()
    start = time.perf_counter()
    loops = [context.Process(target=plain_loop, args=(work, n, seconds)) for n in range(CORES)]
    for loop in loops:
        loop.start()
    steady = max(seconds.get(timeout=3600) for _ in loops)
    for loop in loops:
        loop.join()
    return time.perf_counter() - start, steady


def plain_loop(work: Work, number: int, seconds: "multiprocessing.Queue[float]") -> None:
    """Score every other shard, and report the loop's seconds."""
    torch.set_num_threads(1)
    shards = work.shards
    check = functools.partial(
        check_model,
        config=work.model,
        data=work.data,
        shards=shards,
        folder=Path(tempfile.mkdtemp()),
    )
    score = ReferenceActor(work.model, work.scale.inference_batch, check, data=work.data)
    start = time.perf_counter()
    for shard in shards[number::CORES]:
        score(encode_slice(shard, model=work.model, data=work.data))
    seconds.put(time.perf_counter() - start)


@contextmanager
def own_ray() -> Iterator[None]:
    """Start a Ray with two CPUs, until the body ends."""
    ray.init(
        "local",
        num_cpus=CORES,
        object_store_memory=200 * 1024**2,
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


def stage_seconds(work: Work, folder: Path) -> tuple[float, float]:
    """Return the seconds of the stage in a new Ray, and of all parts at the pace of the last."""
    folder.mkdir()
    start = time.perf_counter()
    with own_ray():
        compute_reference_logps(work.model, work.data, work.scale, folder)
    whole = time.perf_counter() - start
    published = sorted(path.stat().st_mtime for path in folder.glob("part-*.parquet"))
    assert len(published) == len(work.shards), "parts are missing"
    timed = len(published) - FIRST_PARTS
    steady = (published[-1] - published[FIRST_PARTS - 1]) * len(published) / timed
    return whole, steady
