"""Predicted against measured memory of a step; errors for steps that do not fit."""

from dataclasses import replace

import pytest
import torch

from benchmarks.cells import our_step
from benchmarks.measure import peak_bytes
from benchmarks.settings import LLAVA, MUFFIN, make_setting
from rlhfv_ray.config import DataConfig, DDPOConfig, ModelConfig, OptimConfig, ScaleConfig
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.models import (
    AnswerPolicy,
    StepSize,
    fit_memory,
    layout_of,
    load_policy,
    predict_memory,
    recompute_activations,
    step_size,
)
from rlhfv_ray.models.loading import DTYPES
from rlhfv_ray.models.memory import GIB
from tests.families import FAMILIES, save

CPU = torch.device("cpu")
TOLERANCE = 0.15
SIZES = {
    "3 layers": replace(MUFFIN, layers=3),
    "6 layers": MUFFIN,
    "6 layers, 576 image tokens": LLAVA,
}


def config_of(path, **scale) -> DDPOConfig:
    settings = {"micro_batch": 2, "zero_stage": 0, "recompute": 0, **scale}
    return DDPOConfig(
        model=ModelConfig(path=str(path), dtype="fp32"),
        data=DataConfig(rule="both_sides"),
        optim=OptimConfig(batch=2),
        scale=ScaleConfig(**settings),
    )


@pytest.fixture(scope="module", params=SIZES)
def sized(request, tmp_path_factory):
    """A model of one size with two pairs, saved."""
    setting = make_setting(SIZES[request.param], pairs=2, device=CPU, dtype=torch.float32)
    folder = tmp_path_factory.mktemp("sized")
    setting.model.save_pretrained(folder)
    return setting, folder


@pytest.mark.parametrize("every", [0, 2, 1])
def test_activations_are_within_15_percent_of_the_measured_peak(sized, every):
    """Catches: activations forgotten or counted twice, recomputation that the prediction ignores.

    Gradients exist before the measured step.
    """
    setting, folder = sized
    size = step_size(setting.pairs, setting.processor, config_of(folder))
    memory = predict_memory(config_of(folder, recompute=every), size)
    recompute_activations(setting.model, every)
    step = our_step(setting, keep_gradients=True)
    step()
    measured = peak_bytes(step, CPU)
    recompute_activations(setting.model, 0)
    assert (memory.activations + memory.working) / measured == pytest.approx(1, abs=TOLERANCE)
    weights = sum(weight.numel() for weight in setting.model.parameters())
    assert (memory.weights, memory.gradients, memory.optimizer) == (
        4 * weights,
        4 * weights,
        12 * weights,
    )


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_large_head_is_within_15_percent_in_both_precisions(tmp_path, dtype):
    """Catches: the gradient of the output head left out, which is added up in fp32."""
    size = replace(LLAVA, layers=2, words=32_000)
    setting = make_setting(size, pairs=2, device=CPU, dtype=DTYPES[dtype])
    setting.model.save_pretrained(tmp_path)
    step = our_step(setting, keep_gradients=True)
    step()
    for every in (0, 1):
        config = config_of(tmp_path, recompute=every)
        config = replace(config, model=replace(config.model, dtype=dtype))
        memory = predict_memory(config, step_size(setting.pairs, setting.processor, config))
        recompute_activations(setting.model, every)
        predicted = memory.activations + memory.working
        assert predicted / peak_bytes(step, CPU) == pytest.approx(1, abs=TOLERANCE)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_logits_of_all_tokens_are_within_15_percent_where_the_head_cannot_run_alone(
    tmp_path, dtype
):
    """Catches: the logits of the prompt's 576 image tokens left out, several times the rest."""
    size = replace(LLAVA, layers=2, words=32_000)
    setting = make_setting(size, pairs=2, device=CPU, dtype=DTYPES[dtype])
    setting.model.save_pretrained(tmp_path)
    policy = AnswerPolicy(setting.model, layout_of(setting.model, split_head=False))
    step = our_step(setting, policy, keep_gradients=True)
    step()
    config = config_of(tmp_path)
    config = replace(config, model=replace(config.model, dtype=dtype))
    pass_size = step_size(setting.pairs, setting.processor, config, split_head=False)
    memory = predict_memory(config, pass_size)
    predicted = memory.activations + memory.working
    assert predicted / peak_bytes(step, CPU) == pytest.approx(1, abs=TOLERANCE)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda make: make.__name__)
def family_step(request, tmp_path_factory):
    """A family's model, saved, and the size of a step of two rows."""
    folder = save(request.param, tmp_path_factory.mktemp(request.param.__name__) / "model")
    processor = load_policy(folder, device="cpu")[1]
    from PIL import Image

    tensors = processor.image_processor([Image.new("RGB", (60, 40))] * 2, return_tensors="pt")
    images = {
        name: tensors[name]
        for name in ("pixel_values", "image_grid_thw", "image_sizes", "pixel_attention_mask")
        if name in tensors
    }
    return folder, StepSize(2, 100, images, 40)


def test_every_family_can_be_predicted(family_step):
    """Catches: a family whose parts fail without weights, or whose layers do not recompute."""
    folder, size = family_step
    full = predict_memory(config_of(folder, recompute=0), size)
    lean = predict_memory(config_of(folder, recompute=1), size)
    assert full.weights == lean.weights > 0
    assert full.activations > lean.activations > 0


def test_more_workers_take_less_each(small_model, processor, encoded):
    """Catches: ZeRO stages that shard the wrong parts."""
    size = StepSize(2, 100, {"pixel_values": torch.zeros(2, 3, 64, 64)}, 40)
    totals = [
        predict_memory(config_of(small_model, workers=2, micro_batch=1, zero_stage=stage), size)
        for stage in (0, 1, 2, 3)
    ]
    assert totals[1].optimizer == totals[0].optimizer // 2
    assert totals[3].weights == totals[0].weights // 2
    assert totals[3].gradients < totals[0].gradients + totals[0].weights


def test_what_fits_is_chosen_and_what_does_not_is_refused_with_what_would(sized):
    """Catches: recomputation chosen without need, or a job started although it cannot run."""
    setting, folder = sized
    auto = config_of(folder, recompute=-1)
    size = step_size(setting.pairs, setting.processor, auto)
    needs = {
        every: predict_memory(config_of(folder, recompute=every), size).total
        for every in (0, 4, 2, 1)
    }
    for available, every in ((2 * needs[0], 0), (1.1 * needs[1], 1)):
        chosen, memory = fit_memory(auto, size, int(available))
        assert chosen.scale.recompute == every
        assert memory.total == needs[every]
    with pytest.raises(
        ConfigError, match=r"needs .* GiB a worker .*would fit: .*--model.lora-rank 16"
    ):
        fit_memory(auto, size, int(0.8 * needs[1]))
    with pytest.raises(ConfigError, match=r"would fit: fewer pairs per forward pass"):
        fit_memory(auto, size, GIB // 1024)


def test_rows_too_short_for_a_pair_are_refused(sized):
    """Catches: a budget that rows exceed, or one that plain rows ignore."""
    setting, folder = sized
    longest = max(layout_of(setting.model).tokens_of(pair) for pair in setting.pairs)
    with pytest.raises(
        ConfigError, match=rf"row_tokens = {longest - 1}: the pair \d takes {longest} tokens"
    ):
        step_size(setting.pairs, setting.processor, config_of(folder, row_tokens=longest - 1))
    doubled = config_of(folder, row_tokens=2 * longest)
    assert step_size(setting.pairs, setting.processor, doubled).rows == 1
    with pytest.raises(ConfigError, match="these rows are plain"):
        layout_of(setting.model, "plain", row_tokens=500)
