"""The first loss is ln 2 in every engine: where nothing but the engine differs, nothing differs."""

import inspect
import math
from dataclasses import replace

import pytest
import torch

from rlhfv_ray.config import DDPOConfig, LossConfig, ModelConfig, OptimConfig, ScaleConfig
from rlhfv_ray.inference.reference import score_pairs
from rlhfv_ray.logps import policy_token_logps
from rlhfv_ray.loss import batch_loss
from rlhfv_ray.models import AnswerPolicy, layout_of, load_policy, prepare_training
from rlhfv_ray.models.batch import collate_pairs, to_device
from rlhfv_ray.models.self_check import rounding_distance
from rlhfv_ray.training.step_checks import starts_at_reference
from rlhfv_ray.training.worker import start_engine
from tests.unit.training.conftest import RANK_0_OF_1

LOSS = LossConfig(beta=0.5, gamma=5.0, normalize=False)
PAIRS = 4
VARIANTS: dict[str, dict] = {
    "alone": {},
    "offloaded optimizer": {"offload": "optimizer"},
    "recomputed": {"recompute": 1},
    "several pairs a row": {"row_tokens": 1024},
    "LoRA": {"lora_rank": 2},
}
CASES = [
    (stage, dtype, variant)
    for stage in (0, 1, 2, 3)
    for dtype in ("fp32", "bf16")
    for variant in VARIANTS
    if not (stage == 0 and variant == "offloaded optimizer")
]
CASES += [(3, dtype, "all offloaded") for dtype in ("fp32", "bf16")]
VARIANTS["all offloaded"] = {"offload": "all"}


@pytest.mark.slow
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(("stage", "dtype", "variant"), CASES)
def test_engine_is_the_reference(stage, dtype, variant, biased_model, encoded, monkeypatch):
    """Catches: a switch of DeepSpeed, peft or transformers that changes the forward pass."""
    for name, value in RANK_0_OF_1.items():
        monkeypatch.setenv(name, value)
    settings = dict(VARIANTS[variant])
    model_config = ModelConfig(
        path=str(biased_model), dtype=dtype, lora_rank=settings.pop("lora_rank", 0)
    )
    scale = ScaleConfig(zero_stage=stage, micro_batch=PAIRS, **settings)
    config = DDPOConfig(model=model_config, loss=LOSS, optim=OptimConfig(batch=PAIRS), scale=scale)

    def fresh() -> tuple[AnswerPolicy, object]:
        model, processor = load_policy(biased_model, dtype=dtype, device="cpu")
        prepare_training(model, replace(model_config, lora_rank=0))
        return AnswerPolicy(model, layout_of(model, row_tokens=scale.row_tokens)), processor

    reference, processor = fresh()
    pairs = score_pairs(reference, processor, encoded[:PAIRS])
    policy, _ = fresh()
    prepare_training(policy.model, model_config)
    trained = [weight for weight in policy.parameters() if weight.requires_grad]
    engine = start_engine(policy, torch.optim.AdamW(trained, lr=1e-3, fused=True), config)
    batch = collate_pairs(pairs, processor, rule="muffin", layout=policy.layout)
    batch = to_device(batch, engine.device, policy.model.dtype)
    scored = policy_token_logps(engine, batch)
    step = batch_loss(scored, batch, LOSS)
    engine.backward(step.total)
    # ZeRO 3 would replace it for the whole process, and for the reference too.
    assert inspect.isbuiltin(torch.nn.functional.linear)
    assert (scored.float() - batch.reference_token_logps).abs().max() == 0
    assert step.preference is not None
    assert step.preference.losses.mean().item() == pytest.approx(math.log(2), abs=1e-6)
    engine.destroy()


def test_the_gate_in_bf16_sees_another_model_and_no_other_batch(biased_model, encoded):
    """Catches: another model that passes because its mean loss is within 1e-2 of ln 2; rows of the
    same model refused because training lays them out in other batches than the reference.
    """
    model, processor = load_policy(biased_model, dtype="bf16", device="cpu")
    policy = AnswerPolicy(model, layout_of(model))
    pairs = score_pairs(policy, processor, encoded[:PAIRS])
    rounding = rounding_distance(model, processor, encoded[:2], policy.layout)

    @torch.no_grad()
    def passes(rows, rounding: float | None) -> bool:
        batch = collate_pairs(rows, processor, rule="muffin", layout=policy.layout)
        batch = to_device(batch, model.device, model.dtype)
        scored = policy_token_logps(policy, batch)
        loss = batch_loss(scored, batch, LossConfig(beta=0.1, gamma=1.0, normalize=True))
        assert loss.preference is not None and batch.reference_token_logps is not None
        answers = batch.answers >= 0
        logps = scored[answers], batch.reference_token_logps[answers]
        losses = loss.preference.losses
        return bool(starts_at_reference(losses, *logps, dtype="bf16", rounding=rounding))

    assert passes(pairs, rounding)
    assert all(passes([pair], rounding) for pair in pairs)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.05)
    assert passes(pairs, None)
    assert not passes(pairs, rounding)


@pytest.fixture(scope="module")
def biased_model(tmp_path_factory, processor):
    """A LLaVA whose linear layers have biases that count, as Qwen's and CLIP's do."""
    from rlhfv_ray.shapes.model import build_model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("biased")
    model = build_model(processor, width=32, layers=2)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
