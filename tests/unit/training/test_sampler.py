"""The sampler: which pairs make which batch, and the prefetching of batches."""

import functools
import itertools

import pytest

from rlhfv_ray.config import DDPOConfig, OptimConfig, ScaleConfig
from rlhfv_ray.data.reference_table import PairSizes, to_row
from rlhfv_ray.models.batch import collate_pairs
from rlhfv_ray.records import ReferencePair
from rlhfv_ray.training.sampler import (
    global_batch_indices,
    micro_batches,
    nested_subset,
)


@pytest.mark.parametrize(("pairs", "batch"), [(10, 4), (7, 7), (3, 8), (1, 5), (64, 1)])
def test_every_pair_once_per_epoch(pairs, batch):
    """Catches: a short last batch dropped or repeated; batches longer than an epoch."""
    steps = 6 * pairs
    stream = []
    for step in range(steps):
        stream += global_batch_indices(pairs, batch, seed=1, step=step)
    assert len(stream) == steps * batch
    epochs = [stream[start : start + pairs] for start in range(0, len(stream), pairs)]
    assert all(sorted(epoch) == list(range(pairs)) for epoch in epochs)
    if pairs > 5:
        assert len({tuple(epoch) for epoch in epochs}) > 1  # each epoch has its own order


def test_order_is_a_function_of_seed_and_step():
    """Catches: an order that depends on earlier calls, so that a resumed run sees other pairs."""
    forwards = [global_batch_indices(50, 8, seed=3, step=step) for step in range(20)]
    backwards = [global_batch_indices(50, 8, seed=3, step=step) for step in reversed(range(20))]
    assert backwards == forwards[::-1]
    assert global_batch_indices(50, 8, seed=4, step=0) != forwards[0]


def test_a_subset_is_part_of_a_larger_one_and_keeps_the_order():
    """Catches: learning curves over data sizes whose smaller sets hold other pairs."""
    small, large = nested_subset(40, 8, seed=0), nested_subset(40, 20, seed=0)
    assert len(set(small)) == 8 and set(small) < set(large)
    assert small == sorted(small)
    assert nested_subset(40, 8, seed=1) != small
    assert nested_subset(40, 40, seed=0) == list(range(40))


def ids_of(batches) -> list[str]:
    return list(itertools.chain.from_iterable(batch.ids for batch in batches))


def test_passes_of_one_process_cover_the_global_batch(encoded, processor, group):
    """Catches: pairs skipped or repeated by a cut into passes, or by a resume.

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
    ids = {}
    for size in (2, 6):
        config = DDPOConfig(optim=OptimConfig(batch=6), scale=ScaleConfig(micro_batch=size))
        batches = list(
            micro_batches(rows, PairSizes(lengths, lengths), collate, config, start=0, stop=5)
        )
        assert {len(batch.ids) for batch in batches} == {size}
        ids[size] = ids_of(batches)
    assert ids[2] == ids[6]
    order = []
    for step in range(5):
        numbers = global_batch_indices(len(rows), 6, seed=0, step=step)
        # shortest first, so that the pairs of a pass are of like length
        numbers.sort(key=lambda number: (lengths[number], number))
        order += [rows[number]["id"] for number in numbers]
    assert ids[6] == order
    late = micro_batches(rows, PairSizes(lengths, lengths), collate, config, start=3, stop=5)
    assert ids_of(late) == order[3 * 6 :]
