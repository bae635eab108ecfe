"""Memory of a step, by hand. Predicted against measured memory is in tests/invariants."""

import pytest
import torch
from torch import nn

from rlhfv_ray.config import DDPOConfig, ModelConfig, ScaleConfig
from rlhfv_ray.models.adapters import planned_counts
from rlhfv_ray.models.memory import Memory, StepSize, predict_memory, saved_bytes

GIB = 2**30


def test_total_and_message():
    """Catches: a part that the total forgets, or GiB taken for GB."""
    memory = Memory(GIB, 2 * GIB, 3 * GIB, 4 * GIB, GIB // 2)
    assert memory.total == 10.5 * GIB
    assert str(memory).startswith("10.50 GiB a worker (weights 1.00, gradients 2.00, ")


def test_saved_bytes_counts_each_storage_once_and_no_weights():
    """Catches: weights counted as activations, or a tensor that two operations save counted twice.

    x is 3 x 4 fp32, 48 bytes. The layer saves x, and the two products save x and its output.
    """
    layer = nn.Linear(4, 4, bias=False)
    x = torch.randn(3, 4, requires_grad=True)
    assert saved_bytes(lambda: layer(x)) == 48
    assert saved_bytes(lambda: layer(x) * x) == 96


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_shards_by_stage(small_model, stage):
    """Catches: a ZeRO stage that shards too much or too little.

    fp32: 4 bytes per weight and gradient, 12 per optimizer state; two workers. Below 5e8 weights
    the reduction bucket holds all gradients.
    """
    config = DDPOConfig(
        model=ModelConfig(path=str(small_model), dtype="fp32"),
        scale=ScaleConfig(workers=2, zero_stage=stage, recompute=0),
    )
    memory = predict_memory(
        config, StepSize(2, 100, {"pixel_values": torch.zeros(2, 3, 64, 64)}, 9)
    )
    weights = sum(total for total, _ in planned_counts(config.model).values())
    assert memory.optimizer == 12 * weights // (2 if stage >= 1 else 1)
    assert memory.gradients == (4 * weights // 2 + 4 * weights if stage >= 2 else 4 * weights)
    assert memory.weights == 4 * weights // (2 if stage >= 3 else 1)
