"""Memory of a step, by hand. Predicted against measured memory is in tests/invariants."""

from dataclasses import replace

import pytest
import torch

from rlhfv_ray.config import DDPOConfig, ModelConfig, OptimConfig, ScaleConfig
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.models.activations import StepSize
from rlhfv_ray.models.adapters import planned_counts
from rlhfv_ray.models.memory import (
    Memory,
    fit_memory,
    fit_step,
    head_bytes,
    predict_memory,
    step_size,
    whole_head_bytes,
)

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

    fp32: 4 bytes per weight and gradient, 12 per optimizer state; two workers. Below 2e8 weights
    a reduction bucket holds all gradients. ZeRO 2 has two buckets.
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
    gradients = [4 * weights, 4 * weights, (2 + 8) * weights, (2 + 4) * weights]
    assert memory.gradients == gradients[stage]
    assert memory.weights == 4 * weights // (2 if stage >= 3 else 1)


def test_sums_of_bf16_gradients_take_four_bytes(small_model):
    """Catches: the fp32 sum of several passes forgotten, also of a single worker.

    ZeRO 2 and two buckets of 2 bytes: 2 + 4 bytes a weight in one pass, 4 + 4 in two.
    """
    step = StepSize(1, 10, {"pixel_values": torch.zeros(1, 3, 64, 64)}, 4)
    config = DDPOConfig(model=ModelConfig(path=str(small_model)), optim=OptimConfig(batch=2))
    weights = sum(total for total, _ in planned_counts(config.model).values())
    for micro_batch, gradients in ((2, 6), (1, 8)):
        scale = ScaleConfig(micro_batch=micro_batch, recompute=0)
        memory = predict_memory(replace(config, scale=scale), step)
        assert memory.gradients == gradients * weights


def with_scale(small_model, *, batch=8, **scale) -> DDPOConfig:
    return DDPOConfig(
        model=ModelConfig(path=str(small_model), dtype="fp32"),
        optim=OptimConfig(batch=batch),
        scale=ScaleConfig(**scale),
    )


def needed(config, longest, processor, micro_batch) -> int:
    """Bytes of a step with so many pairs, which need not be fitted into memory."""
    scale = replace(config.scale, micro_batch=micro_batch, recompute=0)
    chosen = replace(config, scale=scale)
    return predict_memory(chosen, step_size(longest[-micro_batch:], processor, chosen)).total


def test_the_largest_micro_batch_that_fits_is_taken(small_model, encoded, processor):
    """Catches: one that does not fit or divide the batch, a fixed one that is changed."""
    auto = with_scale(small_model, micro_batch=0)
    longest = list(encoded[:4])
    room = {size: int(needed(auto, longest, processor, size) * 1.1) for size in (1, 2, 4)}
    assert room[1] < room[2] < room[4]
    for size, available in room.items():
        chosen, memory = fit_step(auto, longest, processor, available)
        assert (chosen.scale.micro_batch, chosen.scale.recompute) == (size, 0)
        assert memory.total <= available
    odd = with_scale(small_model, batch=6, micro_batch=0, workers=3)
    assert fit_step(odd, longest, processor, 2**40)[0].scale.micro_batch == 2
    fixed = with_scale(small_model, micro_batch=1)
    assert fit_step(fixed, longest, processor, 2**40)[0].scale.micro_batch == 1


def test_layers_are_recomputed_only_where_one_pair_does_not_fit(small_model, encoded, processor):
    """Catches: recomputation bought for a larger micro batch."""
    auto = with_scale(small_model, micro_batch=0)
    longest = list(encoded[:4])
    available = int(needed(auto, longest, processor, 1) * 1.07)  # less than the spare share
    chosen, _ = fit_step(auto, longest, processor, available)
    assert chosen.scale.micro_batch == 1
    assert chosen.scale.recompute > 0


def test_a_model_that_no_worker_can_load_is_refused(small_model):
    """Catches: a share that fits, of weights that were to be loaded whole; ZeRO 3 as the advice."""
    step = StepSize(1, 10, {"pixel_values": torch.zeros(1, 3, 64, 64)}, 4)
    sharded = with_scale(small_model, batch=64, workers=64, zero_stage=3)
    whole = sum(total for total, _ in planned_counts(sharded.model).values()) * 4
    share = predict_memory(replace(sharded, scale=replace(sharded.scale, recompute=1)), step).total
    assert fit_memory(sharded, step, 4 * max(whole, share))
    offloaded = replace(sharded, scale=replace(sharded.scale, offload="all"))
    for config in (sharded, offloaded):
        with pytest.raises(ConfigError, match=r"every worker loads all of them before ZeRO 3"):
            fit_memory(config, step, whole)
    whole_state = with_scale(small_model, batch=64, workers=64, zero_stage=2)
    with pytest.raises(ConfigError) as refused:
        fit_memory(whole_state, step, whole)
    assert "zero-stage 3" not in str(refused.value)
