"""DeepSpeed's configuration as built, and the precision in which passes add up their gradients."""

from dataclasses import replace

import pytest
import torch

from rlhfv_ray.config import DDPOConfig, ModelConfig, OptimConfig, ScaleConfig
from rlhfv_ray.inference.reference import score_pairs
from rlhfv_ray.logps import policy_token_logps
from rlhfv_ray.models import AnswerPolicy, layout_of, load_policy
from rlhfv_ray.models.batch import collate_pairs
from rlhfv_ray.models.memory import BUCKET
from rlhfv_ray.training.engine_settings import engine_settings
from rlhfv_ray.training.train import ALLOCATOR_SETTINGS, worker_environment
from rlhfv_ray.training.worker import start_engine
from tests.unit.training.conftest import RANK_0_OF_1

BF16 = DDPOConfig(model=ModelConfig(dtype="bf16"), optim=OptimConfig(batch=2, clip=0.0))
LARGE, SMALL = 1.0, 2**-9  # gradients of two passes


@pytest.fixture
def start(group, small_model):
    """A function that starts an engine with plain SGD of rate 1 on a small model in bf16."""

    def engine_of(zero_stage):
        model, _ = load_policy(small_model, dtype="bf16", device="cpu")
        policy = AnswerPolicy(model, layout_of(model))
        config = replace(BF16, scale=ScaleConfig(zero_stage=zero_stage))
        return start_engine(policy, torch.optim.SGD(policy.parameters(), lr=1.0), config)

    with pytest.MonkeyPatch.context() as environment:
        for name, value in RANK_0_OF_1.items():
            environment.setenv(name, value)
        yield engine_of


@pytest.fixture(scope="module")
def batch(small_model, encoded, processor):
    """A batch of one pair."""
    model, _ = load_policy(small_model, dtype="bf16", device="cpu")
    policy = AnswerPolicy(model, layout_of(model))
    with torch.no_grad():
        pairs = score_pairs(policy, processor, encoded[:1])
    return collate_pairs(pairs, processor, rule="muffin", layout=policy.layout)


def summed_gradient(engine, batch) -> set[float]:
    """How far one update of two passes with known gradients moves a weight, by SGD of rate 1."""
    from deepspeed.utils import safe_get_full_fp32_param

    weight = engine.module.model.get_decoder().layers[0].self_attn.v_proj.weight
    before = safe_get_full_fp32_param(weight).clone()
    for slope in (LARGE, SMALL):
        # Backward takes this value for the gradient of the weight.
        hook = weight.register_hook(lambda own, slope=slope: torch.full_like(own, slope))
        engine.backward(policy_token_logps(engine, batch).sum())
        engine.step()
        hook.remove()
    moved = (before - safe_get_full_fp32_param(weight)).flatten().tolist()
    return {round(value, 5) for value in moved}  # fp32 weights round what they are moved by


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_small_gradient_is_added_to_a_large_one(start, batch, zero_stage):
    """Catches: gradients of several passes summed in bf16, where the second one is lost.

    bf16 has 8 bits: 1 + 2**-9 = 1.00195 rounds to 1.
    """
    assert summed_gradient(start(zero_stage), batch) == {1.00195}


@pytest.mark.slow
def test_the_case_is_one_that_bf16_loses(start, batch):
    """Catches: a case that passes in any precision. ZeRO 1 adds up in bf16."""
    assert summed_gradient(start(1), batch) == {1.0}


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_deepspeed_takes_the_settings(start, zero_stage):
    """Catches: a setting under a name that DeepSpeed does not read."""
    engine = start(zero_stage)
    assert engine.get_data_types() == (torch.bfloat16, torch.float32)
    assert engine.zero_overlap_comm() is True
    model = engine.module.model
    sizes = [getattr(weight, "ds_numel", weight.numel()) for weight in model.parameters()]
    assert engine.zero_reduce_bucket_size() == sum(sizes)


def test_settings_by_precision_and_stage():
    """Catches: fp32 runs that change, memory for the sum of one pass, an offload that is lost,
    buckets beyond their bound.
    """
    assert engine_settings(BF16, trained=10)["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "data_types" not in engine_settings(
        replace(BF16, scale=ScaleConfig(micro_batch=2)), trained=10
    )
    fp32 = replace(BF16, model=ModelConfig(dtype="fp32"))
    assert "data_types" not in engine_settings(fp32, trained=10)
    zero = engine_settings(replace(fp32, scale=ScaleConfig(zero_stage=0)), trained=10)
    assert zero["zero_optimization"]["stage"] == 1
    assert "data_types" not in engine_settings(
        replace(BF16, scale=ScaleConfig(zero_stage=1)), trained=10
    )
    offloaded = ScaleConfig(zero_stage=3, offload="all")
    zero = engine_settings(replace(BF16, scale=offloaded), trained=10**12)["zero_optimization"]
    assert zero["offload_optimizer"] == zero["offload_param"] == {"device": "cpu"}
    assert zero["reduce_bucket_size"] == BUCKET


def test_workers_on_gpus_get_growing_segments(monkeypatch):
    """Catches: a setting that reaches workers on CPUs, or that replaces the user's own."""
    gpus = ScaleConfig(gpu=True)
    for name in ALLOCATOR_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    variables = worker_environment(gpus)["env_vars"]
    assert list(variables.values()) == ["expandable_segments:True"]
    assert set(variables) < set(ALLOCATOR_SETTINGS)
    assert worker_environment(ScaleConfig()) == {}
    monkeypatch.setenv(ALLOCATOR_SETTINGS[1], "max_split_size_mb:64")
    assert worker_environment(gpus) == {}
