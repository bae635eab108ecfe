"""Memory of a step, by hand. Predicted against measured memory is in tests/invariants."""

import pytest
import torch

from rlhfv_ray.config import DDPOConfig, ModelConfig, ScaleConfig
from rlhfv_ray.models.activations import StepSize
from rlhfv_ray.models.adapters import planned_counts
from rlhfv_ray.models.memory import Memory, head_bytes, predict_memory, whole_head_bytes

GIB = 2**30


def test_total_and_message():
    """Catches: a part that the total forgets, or GiB taken for GB."""
    memory = Memory(GIB, 2 * GIB, 3 * GIB, 4 * GIB, GIB // 2)
    assert memory.total == 10.5 * GIB
    assert str(memory).startswith("10.50 GiB a worker (weights 1.00, gradients 2.00, ")


def test_bytes_of_the_head_by_hand():
    """Catches: the gradient of a large head left out, which is several times its weight in bf16.

    10 answer tokens, 100 words, 8 features: logits of 4,000 bytes in fp32.
    """
    weight = torch.empty(100, 8, dtype=torch.bfloat16, requires_grad=True)  # 1,600 bytes
    assert head_bytes(weight, 10, gpu=True) == 4000 + 2000 + 3200 + 1600
    assert head_bytes(weight, 10, gpu=False) == 4000 + 2000 + 3200 + 1600 + 3200
    assert head_bytes(weight.detach(), 10, gpu=True) == 6000
    assert head_bytes(weight.detach().float().requires_grad_(), 10, gpu=True) == 4000 + 3200


@pytest.mark.parametrize(
    ("tokens", "scored", "capped", "expected"),
    [
        (500, 10, False, 200_000 + 8_000),  # forward: all logits, the answers' and their logarithms
        (500, 10, True, 600_000),  # backward: what is capped, and the gradients on both sides of it
        (10, 10, False, 12_000),  # the answers' logarithms, their gradient and the logits'
        (10, 1, False, 4_000 + 1_600),  # the gradients of the logits and the weight
    ],
)
def test_bytes_of_all_logits_by_hand(tokens, scored, capped, expected):
    """Catches: logits of the prompt left out where the head cannot run alone.

    2 rows, 100 words, 8 features in bf16: logits of 200 bytes a token, in fp32 400 bytes.
    """
    weight = torch.empty(100, 8, dtype=torch.bfloat16, requires_grad=True)  # 1,600 bytes
    size = StepSize(2, tokens, {}, scored, split_head=False)
    assert whole_head_bytes(weight, size, capped=capped) == expected


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
