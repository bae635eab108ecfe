"""Predict the minutes of the paper's trainings on 8 to 64 GPUs: `python benchmarks/scale.py`.

No part is measured on such GPUs. An update of B pairs on g GPUs, with at most m pairs a pass, takes

    compute   B / g * operations of a pair / (peak * share of the peak)
    exchange  (2 * passes + 1) * 2 N * (g - 1) / g / bandwidth,  passes = B / (g m)
    update    compute / 3 + max(compute * 2 / 3, reductions) + gathering + 28 N / g / memory speed

N is the number of trained parameters, in bf16: 2 bytes each. ZeRO 2 reduces gradients after every
pass by an all-reduce, which carries its bytes twice, and gathers weights once. The reductions run
beside the backward pass, two thirds of the compute. AdamW reads and writes 28 bytes a parameter.
A checkpoint takes

    (2 N + 12 N / g) * (1 / writing + 1 / hashing)

where the first worker, which has the most to do, hashes and writes the weights and its share of
AdamW's state. Training goes on beside it; only the last checkpoint makes it wait.
The bandwidth is the bus bandwidth of NCCL's tests: within a node up to 8 GPUs, between nodes above.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # the project may not be installed

from benchmarks.settings import LLAVA_7B, LLAVA_13B, Size

NODE = 8  # GPUs of a node
GPUS = (8, 16, 32, 64)
MOST_PAIRS = 4  # of a pass: the first choice of `scale.micro_batch 0`
BYTES = 2  # of a weight or gradient in bf16
GB = 1e9


@dataclass(frozen=True)
class Rates:
    """Speeds of a cluster of A100s. Replace what was assumed by what you measured."""

    peak: float = 312.0
    """TFLOP/s of a GPU in dense bf16 (the maker's figure)."""
    share: float = 0.5
    """Share of the peak that a step reaches, 0 to 1 (assumed; benchmarks/gpu.py measures it)."""
    memory: float = 2000.0
    """GB/s of a GPU's memory (the maker's figure)."""
    within: float = 235.0
    """GB/s between the GPUs of a node (assumed)."""
    between: float = 40.0
    """GB/s between nodes (assumed: 400 Gbit/s a node)."""
    writing: float = 0.39
    """GB/s at which a worker writes a checkpoint (measured on two CPU cores)."""
    hashing: float = 1.93
    """GB/s at which a worker hashes a checkpoint (measured on two CPU cores)."""


class Training(NamedTuple):
    """A training whose updates and checkpoints are counted."""

    name: str
    size: Size
    parameters: float  # trained ones
    batch: int  # pairs of an update
    updates: int


class Prediction(NamedTuple):
    """Seconds of one update and its parts, minutes of all of them, seconds of one checkpoint."""

    gpus: int
    pairs: int  # of a pass
    compute: float
    exchange: float
    update: float
    minutes: float
    checkpoint: float


# The paper (arXiv 2312.00849, sec. 4.1): 1.4k pairs, 7 epochs, batches of 32, so 306 updates.
# Muffin's pictures take 64 tokens.
MUFFIN_13B = replace(LLAVA_13B, image_side=112, prompt=78)
PAPER = Training("paper, 13B, Muffin's lengths", MUFFIN_13B, 13.0e9, 32, 306)
LLAVA_PAPER = Training("paper, LLaVA-1.5-7B", LLAVA_7B, 6.7e9, 32, 306)


def predict(training: Training, gpus: int, rates: Rates) -> Prediction | None:
    """Return the prediction for a number of GPUs; None where the batch has fewer pairs."""
    if training.batch < gpus:
        return None
    share = training.batch // gpus  # pairs of a GPU
    pairs = min(MOST_PAIRS, share)
    passes = math.ceil(share / pairs)
    compute = share * training.size.flops(shared=True) / (rates.peak * 1e12 * rates.share)
    bandwidth = rates.within if gpus <= NODE else rates.between
    once = BYTES * training.parameters * (gpus - 1) / gpus / (bandwidth * GB)
    reductions = 2 * passes * once
    optimizer = 28 * training.parameters / gpus / (rates.memory * GB)
    update = compute / 3 + max(compute * 2 / 3, reductions) + once + optimizer
    return Prediction(
        gpus,
        pairs,
        compute,
        exchange=reductions + once,
        update=update,
        minutes=training.updates * update / 60,
        checkpoint=checkpoint_seconds(training.parameters, gpus, rates),
    )


def checkpoint_seconds(parameters: float, gpus: int, rates: Rates) -> float:
    """Return the seconds that the first worker writes and hashes a checkpoint."""
    written = (BYTES + 12 / gpus) * parameters
    return written * (1 / rates.writing + 1 / rates.hashing) / GB


def table(rates: Rates) -> Iterator[str]:
    """Yield the lines of a Markdown table: one row per training and number of GPUs."""
    columns = ("training", "GPUs", "pairs a pass", "compute s", "exchange s", "update s", "minutes")
    yield f"| {' | '.join(columns)} | a checkpoint, s |"
    yield "|---" + "|---:" * len(columns) + "|"
    for training in (PAPER, LLAVA_PAPER):
        for gpus in GPUS:
            yield f"| {training.name} | {gpus} | {_cells(predict(training, gpus, rates))} |"


def _cells(prediction: Prediction | None) -> str:
    if prediction is None:
        return "more GPUs than pairs | | | | |"
    seconds = (prediction.compute, prediction.exchange, prediction.update)
    cells = [str(prediction.pairs), *(f"{value:.2f}" for value in seconds)]
    return " | ".join([*cells, f"{prediction.minutes:.1f}", f"{prediction.checkpoint:.0f}"])


def main() -> None:
    """Print the table for the rates of the command line."""
    rates = tyro.cli(Rates, description=__doc__)
    print(rates, end="\n\n")
    print("\n".join(table(rates)))


if __name__ == "__main__":
    main()
