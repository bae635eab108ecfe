"""The order of pairs, the learning rate and the prefetching of the training loop."""

import functools
import math
import threading
import time

import pytest
import torch.distributed as dist

from rlhfv_ray.config import DDPOConfig, OptimConfig, ScaleConfig
from rlhfv_ray.data.reference_table import to_row
from rlhfv_ray.models.batch import collate_pairs
from rlhfv_ray.records import ReferencePair
from rlhfv_ray.training.sampler import global_batch_indices, micro_batches, prefetched
from rlhfv_ray.training.train import learning_rate


@pytest.mark.parametrize(("pairs", "batch"), [(10, 4), (7, 7), (3, 8), (1, 5), (64, 1)])
def test_every_pair_once_per_epoch(pairs, batch):
    """Catches: a last short batch dropped or repeated, where batches do not divide the epoch, or hold several epochs."""
    steps = 6 * pairs
    stream = [
        row
        for step in range(steps)
        for row in global_batch_indices(pairs, batch, seed=1, step=step)
    ]
    assert len(stream) == steps * batch
    epochs = [stream[start : start + pairs] for start in range(0, len(stream), pairs)]
    assert all(sorted(epoch) == list(range(pairs)) for epoch in epochs)
    if pairs > 5:
        assert len({tuple(epoch) for epoch in epochs}) > 1  # each epoch has its own order


def test_order_is_a_function_of_seed_and_step():
    """Catches: an order that hangs on what was asked before, so that a resumed run sees other pairs."""
    asked_in_order = [global_batch_indices(50, 8, seed=3, step=step) for step in range(20)]
    assert [
        global_batch_indices(50, 8, seed=3, step=step) for step in reversed(range(20))
    ] == asked_in_order[::-1]
    assert global_batch_indices(50, 8, seed=4, step=0) != asked_in_order[0]


def test_passes_of_one_process_cover_the_global_batch(encoded, processor, tmp_path):
    """Catches: pairs of a global batch skipped or repeated where it is cut into passes; a resume that starts at another pair.

    tests/invariants/test_deepspeed.py has two workers share a batch.
    """
    rows = [
        to_row(ReferencePair(**vars(pair), chosen_logps=[], rejected_logps=[])) for pair in encoded
    ]
    for row in rows:
        row |= {f"{side}_logps": [0.0] * len(row[f"{side}_ids"]) for side in ("chosen", "rejected")}
    lengths = [
        len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows
    ]
    collate = functools.partial(collate_pairs, processor=processor, rule="muffin")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        made = {}
        for size in (2, 6):
            config = DDPOConfig(optim=OptimConfig(batch=6), scale=ScaleConfig(micro_batch=size))
            batches = list(micro_batches(rows, lengths, collate, config, start=0, stop=5))
            assert {len(batch.ids) for batch in batches} == {size}
            made[size] = [number for batch in batches for number in batch.ids]
        assert made[2] == made[6]
        order = []
        for step in range(
            5
        ):  # a global batch's pairs, shortest first, so that those of a pass are of like length
            numbers = global_batch_indices(len(rows), 6, seed=0, step=step)
            order += [
                rows[number]["id"]
                for number in sorted(numbers, key=lambda number: (lengths[number], number))
            ]
        assert made[6] == order
        late = micro_batches(rows, lengths, collate, config, start=3, stop=5)
        assert [number for batch in late for number in batch.ids] == order[3 * 6 :]
    finally:
        dist.destroy_process_group()


def test_learning_rate_by_hand():
    """Catches: warm-up off by one (a first update at rate 0), or a cosine that does not start at the peak.

    10 steps, 2 of warm-up, then cos(pi k / 8), k = 0..7: 1, .924, .707, .383, 0, -.383, ...
    """
    optim = OptimConfig(learning_rate=2.0, warmup=0.2)
    rates = [learning_rate(optim, step, 10) for step in range(10)]
    cosine = [1 + math.cos(math.pi * k / 8) for k in range(8)]
    assert rates == pytest.approx([1.0, 2.0, *cosine], abs=1e-12)
    assert rates[6] == pytest.approx(1.0)
    assert 0 < rates[-1] < 0.1


def test_learning_rate_without_warmup_and_constant():
    """Catches: a division by zero warm-up steps; a constant schedule that decays; warm-up over the whole run."""
    assert learning_rate(OptimConfig(learning_rate=2.0, warmup=0.0), 0, 1) == 2.0
    constant = OptimConfig(learning_rate=2.0, warmup=0.5, schedule="constant")
    assert [learning_rate(constant, step, 4) for step in range(4)] == [1.0, 2.0, 2.0, 2.0]
    assert learning_rate(OptimConfig(learning_rate=2.0, warmup=1.0), 3, 4) == 2.0


def test_prefetched_passes_everything_in_order():
    """Catches: the first or last batch lost, or batches out of order."""
    assert list(prefetched(iter(range(1, 50)))) == list(range(1, 50))
    assert list(prefetched(iter([]))) == []


def test_next_batch_is_made_while_one_is_used():
    """Catches: no overlap, so that every update waits for images to be decoded."""
    made = threading.Event()

    def source():
        yield "first"
        made.set()
        yield "second"

    batches = prefetched(source())
    assert next(batches) == "first"
    assert made.wait(timeout=10)  # before anybody asks for the second
    assert next(batches) == "second"


def test_producers_exception_reaches_the_loop():
    """Catches: a broken row that ends training early as if all were done, or hangs it."""

    def source():
        yield 1
        yield 2
        raise OSError("row 3 cannot be read")

    batches = prefetched(source())
    assert [next(batches), next(batches)] == [1, 2]
    with pytest.raises(OSError, match="row 3"):
        next(batches)


def test_loop_that_stops_early_lets_go_of_its_thread():
    """Catches: a thread that goes on decoding for a run that is over."""

    def endless():
        while True:
            time.sleep(0.001)
            yield 1

    before = threading.active_count()
    batches = prefetched(endless())
    next(batches)
    batches.close()
    assert threading.active_count() == before
