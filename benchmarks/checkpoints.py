"""Measure for how long a checkpoint stops training: `python benchmarks/checkpoints.py`.

One worker trains a shapes model of random weights. By turns, its state is written and hashed while
training waits, and saved beside training. Updates go on while the second kind is written. Seconds
are process time of the thread that trains; other work on the machine does not count.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from rlhfv_ray.config import DDPOConfig, ModelConfig, OptimConfig, ScaleConfig
from rlhfv_ray.models import AnswerPolicy, layout_of, load_processor
from rlhfv_ray.shapes.model import build_model
from rlhfv_ray.storage.files import file_digest
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.training.checkpoint import TAG, Writer
from rlhfv_ray.training.saver import CheckpointSaver
from rlhfv_ray.training.worker import start_engine

WIDTH = 1024
LAYER = 23 * WIDTH**2  # weights of a layer of the language model and one of the vision tower
RANK_0_OF_1 = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}


def main() -> None:
    """Save by turns, and print the medians."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=400, help="of the fp32 weights")
    parser.add_argument("--rounds", type=int, default=5)
    sizes = parser.parse_args()
    os.environ.update(RANK_0_OF_1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/group"
        dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        engine = start(layers=round(sizes.megabytes * 1e6 / (4 * LAYER)))
        compare(engine, Path(folder), rounds=sizes.rounds)
        dist.destroy_process_group()


def start(*, layers: int) -> Any:
    """Return a DeepSpeed engine after one update, so that AdamW's moments exist."""
    torch.manual_seed(0)
    model = build_model(load_processor("shapes"), width=WIDTH, layers=layers)
    policy = AnswerPolicy(model, layout_of(model))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
    config = DDPOConfig(
        model=ModelConfig(dtype="fp32"),
        optim=OptimConfig(batch=1),
        scale=ScaleConfig(zero_stage=1, recompute=0),
    )
    engine = start_engine(policy, optimizer, config)
    update(engine)
    return engine


def update(engine: Any) -> None:
    """Do one update of four tokens."""
    tokens = {"input_ids": torch.tensor([[1, 5, 6, 7]])}
    engine.backward(engine(tokens, torch.arange(4), torch.full((4,), 9)).mean())
    engine.step()


def compare(engine: Any, folder: Path, *, rounds: int) -> None:
    """Print the seconds for which each kind of checkpoint stops training, and their ratio."""
    waiting: list[float] = []
    beside: list[float] = []
    with hold_lease(folder / "run") as token:
        saver = CheckpointSaver(engine, Writer(folder / "run", token, keep=1))
        for step in range(1, rounds + 2):
            began = time.thread_time()
            engine.save_checkpoint(str(folder / "whole"), tag=TAG, save_latest=False)
            for path in sorted((folder / "whole").rglob("*.pt")):
                file_digest(path)
            waited = time.thread_time()
            saver.save(step, [])
            saved, beside_since = time.thread_time(), time.perf_counter()
            updates = 0
            while saver.is_busy:
                update(engine)
                updates += 1
            wall = time.perf_counter() - beside_since
            saver.wait()
            waiting.append(waited - began)
            beside.append(saved - waited)
            print(
                f"waits {waiting[-1]:.2f} s, stopped {beside[-1]:.2f} s, then {updates} updates in "
                f"{wall:.1f} s by the clock",
                flush=True,
            )
        saver.close()
    shares = [stop / whole for stop, whole in zip(beside[1:], waiting[1:], strict=True)]
    print(
        f"medians after the first: waits {median(waiting[1:]):.2f} s, stopped "
        f"{median(beside[1:]):.2f} s, {100 * median(shares):.1f} %"
    )


if __name__ == "__main__":
    main()
