"""The sampler: each global batch is a pure function of (seed, step), for any number of workers.

With N pairs, position p of the endless stream of epochs is pair `permutation(p // N)[p % N]`. A
global batch takes the next `optim.batch` positions.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch.distributed as dist

from rlhfv_ray.config import DDPOConfig
from rlhfv_ray.data.reference_table import PairSizes, from_row
from rlhfv_ray.records import EncodedPair, PairBatch


def global_batch_indices(pairs: int, batch: int, *, seed: int, step: int) -> list[int]:
    """Return the rows of one update's global batch; every epoch has its own permutation.

    Example:
        >>> first = global_batch_indices(4, 2, seed=0, step=0)
        >>> second = global_batch_indices(4, 2, seed=0, step=1)
        >>> sorted(first + second)
        [0, 1, 2, 3]
    """
    rows = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, offset = divmod(position, pairs)
        rows.append(int(_permutation(pairs, seed, epoch)[offset]))
    return rows


def micro_batches(
    pairs: Any,
    sizes: PairSizes,
    collate: Callable[[Sequence[EncodedPair]], PairBatch],
    config: DDPOConfig,
    *,
    start: int,
    stop: int,
) -> Iterator[PairBatch]:
    """Yield this rank's batches, one per forward pass.

    A global batch, sorted by length, is cut into groups of `scale.micro_batch` pairs. The groups do
    not depend on the number of workers. Workers take turns in ranks' order and back, so that none
    gets the longer group every time.
    """
    size, world, rank = config.scale.micro_batch, dist.get_world_size(), dist.get_rank()
    for step in range(start, stop):
        rows = global_batch_indices(len(pairs), config.optim.batch, seed=config.seed, step=step)
        rows.sort(key=lambda row: (sizes.tokens[row], row))
        passes = world * config.accumulation
        pass_tokens = sum(sizes.scored[row] for row in rows) / passes
        for turn in range(config.accumulation):
            first = (turn * world + (rank if turn % 2 == 0 else world - 1 - rank)) * size
            group = rows[first : first + size]
            batch = collate([from_row(pairs[row], chosen_only=config.loss.is_sft) for row in group])
            yield batch._replace(pass_tokens=pass_tokens)


def nested_subset(pairs: int, count: int, *, seed: int) -> list[int]:
    """Return `count` random rows, in the data's order; a smaller count gives a subset of a larger.

    Example:
        >>> set(nested_subset(100, 5, seed=0)) < set(nested_subset(100, 20, seed=0))
        True
    """
    return sorted(np.random.default_rng([seed, pairs]).permutation(pairs)[:count].tolist())


@functools.lru_cache(maxsize=2)
def _permutation(pairs: int, seed: int, epoch: int) -> list[int]:
    return np.random.default_rng([seed, epoch]).permutation(pairs).tolist()
