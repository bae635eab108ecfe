"""Updates of a small engine, and a checkpoint that is saved before a test goes on."""

from collections.abc import Sequence
from typing import Any

import torch

from rlhfv_ray.training.checkpoint import Writer
from rlhfv_ray.training.saver import CheckpointSaver


def save_checkpoint(
    engine: Any, writer: Writer, *, step: int, records: Sequence[dict[str, Any]]
) -> None:
    """Save an engine's state, and wait until the checkpoint is complete."""
    saver = CheckpointSaver(engine, writer)
    saver.save(step, records)
    saver.close()


def update(engine, token: int = 9) -> None:
    engine.backward(logps(engine, token).mean())
    engine.step()


def logps(engine, token: int = 9):
    """Log-probability of a token after each of four."""
    return engine(
        {"input_ids": torch.tensor([[1, 5, 6, 7]])}, torch.arange(4), torch.full((4,), token)
    )


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
