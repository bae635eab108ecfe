"""Check that a training step fits into memory, before the reference pass is paid for.

Training checks its longest pairs again. Here only the first rows are known, so what is refused here
would be refused there.
"""

import itertools
from collections.abc import Sequence

import psutil
import ray
import torch

from rlhfv_ray.config import DataConfig, DDPOConfig, ScaleConfig
from rlhfv_ray.data import Slice
from rlhfv_ray.errors import RlhfvError
from rlhfv_ray.inference.model_check import usable_samples
from rlhfv_ray.models import fit_step, processor_of
from rlhfv_ray.models.loading import BROKEN

LOOKED_AT = 32  # first usable rows, of which the longest make a step


def check_step_fits(config: DDPOConfig, data: DataConfig, shards: Sequence[Slice]) -> None:
    """Check that a step of the longest of the first rows fits into a worker's memory.

    Args:
        config: the experiment.
        data: its data, as it is by now.
        shards: of the data.

    Raises:
        ConfigError: it does not fit; the message says what would.
    """
    processor = processor_of(config.model)
    rows = itertools.islice(usable_samples(processor, data, shards), LOOKED_AT)
    pairs = sorted(
        (sample.pair for sample in rows),
        key=lambda pair: len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids),
    )
    if not pairs:  # no row is usable, which ends the stage with its own error
        return
    try:
        fit_step(config, pairs, processor, largest_memory(config.scale))
    except RlhfvError:  # it does not fit
        raise
    except BROKEN:  # the meta device cannot run every model; training says so when it starts
        return


def largest_memory(scale: ScaleConfig) -> int:
    """Return the most bytes that one worker may have: as configured, its GPU's, or its share."""
    if scale.memory_gib:
        return int(scale.memory_gib * 2**30)
    if scale.gpu:
        total = ray.remote(num_gpus=1, num_cpus=0)(_gpu_memory)
        return ray.get(total.remote())
    nodes = sum(node["Alive"] for node in ray.nodes())
    workers_on_node = -(-scale.least_workers // nodes)  # rounded up: some node has as many
    return psutil.virtual_memory().total // workers_on_node


def _gpu_memory() -> int:
    return torch.cuda.mem_get_info()[1]
