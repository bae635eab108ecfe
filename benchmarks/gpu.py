"""Measure speed on one large GPU: `python benchmarks/gpu.py --json FILE [--page FILE]`.

The models have random weights and the size of LLaVA-1.5-7B and 13B. The script needs torch,
transformers, Pillow, jaxtyping and psutil, and no download. The LoRA cells also need peft.
`--tiny` runs the same cells at toy size on the CPU. Times are medians of forward and backward by
CUDA events, with both sides timed by turns. MFU (model FLOPs utilisation) counts operations of
de-duplicated tokens against the GPU's peak in dense bf16, as its maker states it. The cell of
generation also needs Ray.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the project may not be installed

import torch
from torch import Tensor

from benchmarks.cells import (
    LOSS,
    TOLERANCE,
    Head,
    concatenated_step,
    generation_cell,
    gradients_of,
    head_cells,
    our_step,
    reference_cell,
    step_cells,
)
from benchmarks.measure import (
    Row,
    Timing,
    assert_close,
    assert_gradients_close,
    compare,
    page,
    peak_bytes,
    seconds,
    shown,
)
from benchmarks.settings import LLAVA, LLAVA_7B, LLAVA_13B, Setting, make_pairs, make_setting
from rlhfv_ray.config import ModelConfig
from rlhfv_ray.logps import HEAD_BYTES, policy_token_logps
from rlhfv_ray.loss import batch_loss
from rlhfv_ray.models import AnswerPolicy, layout_of, prepare_training, recompute_activations
from rlhfv_ray.models.attention import PLAIN, Paths, attention_paths
from rlhfv_ray.models.batch import collate_pairs, pinned, to_device

# TFLOP/s in dense bf16 with fp32 sums, by a part of the name that CUDA reports; from NVIDIA's data
# sheets. The first that matches counts.
PEAKS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A10G": 70.0,
    "RTX 4090": 165.0,
}
LARGE_HEAD_BYTES = 1024**3  # larger than the logits of any cell's batch
TINY = replace(
    LLAVA,
    width=64,
    layers=2,
    feedforward=172,
    heads=4,
    words=500,
    vision_width=64,
    vision_layers=2,
    image_side=56,
)


def main() -> None:
    """Run all cells and write their rows."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--page", type=Path, help="Markdown page to write too")
    parser.add_argument("--tiny", action="store_true", help="run at toy size on the CPU")
    parser.add_argument("--peak", type=float, help="TFLOP/s of a GPU that PEAKS does not name")
    settings = parser.parse_args()
    if not settings.tiny and not torch.cuda.is_available():
        parser.error(
            "No GPU is available. Use --tiny to run the same cells at toy size on the CPU."
        )
    rows = (
        tiny() if settings.tiny else full(peak_flops(torch.cuda.get_device_name(), settings.peak))
    )
    settings.json.write_text(json.dumps([row.as_dict() for row in rows], indent=1))
    if settings.page:
        settings.page.parent.mkdir(parents=True, exist_ok=True)
        settings.page.write_text(page(rows))


def peak_flops(name: str, given: float | None) -> float:
    """Return the peak of a GPU in FLOP/s: as given in TFLOP/s, or by its name.

    Example:
        >>> peak_flops("NVIDIA H100 PCIe", None) / 1e12, peak_flops("another", 100.0) / 1e12
        (756.0, 100.0)

    Raises:
        SystemExit: the GPU is unknown, and nothing is given.
    """
    peak = given or next((peak for part, peak in PEAKS.items() if part in name), None)
    if peak is None:
        raise SystemExit(f"{name}: its peak is not known. Give it in TFLOP/s by --peak.")
    return peak * 1e12


def measured_peak(device: torch.device) -> float:
    """Return the FLOP/s of a matrix product in fp32, which stands for the peak of a CPU."""
    side = 512
    matrix = torch.rand(side, side, device=device)
    torch.mm(matrix, matrix)
    return 2 * side**3 / median(seconds(lambda: torch.mm(matrix, matrix), device) for _ in range(5))


def full(peak: float) -> list[Row]:
    """Run the cells at full size, in bf16 on a GPU of so many FLOP/s."""
    cuda = torch.device("cuda")
    half = torch.bfloat16
    heads = [(2, 723, 2.5), (8, 723, 2.8)]
    rows = shown(head_cells(heads, rounds=5, device=cuda, head=Head(4096, 32_064, dtype=half)))
    setting = make_setting(LLAVA_7B, pairs=1, device=cuda, dtype=half)
    rows += shown(step_cells(setting, "7B, 1 pair", rounds=5, goal=2.2))
    rows += ladder(setting, pairs=4, rounds=5)
    rows += switches(with_pairs(setting, 4), "7B, 4 pairs", rounds=5)
    rows += shown(
        [
            throughput(with_pairs(setting, count), f"7B, {count} pairs", rounds=5, peak=peak)
            for count in (1, 4, 8)
        ]
    )
    several = with_pairs(setting, 16)
    rows += shown([reference_cell(several, "7B", rounds=5)])
    rows += generation(several, "7B", rounds=5, batch=64, new_tokens=32, goal=15.0)
    del setting, several  # frees memory for the next model
    torch.cuda.empty_cache()
    return rows + adapter_cells(
        make_setting(LLAVA_13B, pairs=1, device=cuda, dtype=half), "13B LoRA", rounds=5, goal=2.0
    )


def tiny() -> list[Row]:
    """Run the same cells at toy size, in fp32 on the CPU."""
    cpu = torch.device("cpu")
    rows = shown(head_cells([(2, 120, 0.0)], rounds=1, device=cpu, head=Head(32, 200)))
    setting = make_setting(TINY, pairs=1, device=cpu, dtype=torch.float32)
    rows += shown(step_cells(setting, "toy, 1 pair", rounds=1, goal=0.0))
    rows += ladder(setting, pairs=2, rounds=1)
    rows += switches(with_pairs(setting, 2), "toy, 2 pairs", rounds=1)
    peak = measured_peak(cpu)
    rows += shown([throughput(with_pairs(setting, 2), "toy, 2 pairs", rounds=1, peak=peak)])
    rows += shown([reference_cell(with_pairs(setting, 2), "toy", rounds=1)])
    rows += generation(setting, "toy", rounds=1, batch=4, new_tokens=4, goal=0.0)
    return rows + adapter_cells(
        make_setting(TINY, pairs=1, device=cpu, dtype=torch.float32), "toy LoRA", rounds=1, goal=0.0
    )


def generation(setting: Setting, name: str, **sizes: Any) -> list[Row]:
    """Run (f) where Ray is installed, which the module of our generation needs."""
    if not importlib.util.find_spec("ray"):
        print(f"Ray is not installed, so the cell of generation of {name} is skipped")
        return []
    return shown([generation_cell(setting, name, **sizes)])


def switches(setting: Setting, name: str, *, rounds: int) -> list[Row]:
    """Compare our step with each path for GPUs on (ours) and off (peer).

    Both sides must have the same loss and gradients. A gain below 1 says that the path should be
    off. The attention's paths run on a model whose keys serve four query heads.
    """
    device, dtype = setting.device, setting.model.dtype
    setting.model.zero_grad(set_to_none=True)  # memory for the second model
    size = replace(setting.size, group=4)
    grouped = make_setting(size, pairs=len(setting.pairs), device=device, dtype=dtype)
    rows = []
    for switch in ("grouped", "stacked", "lower_right"):
        step = our_step(grouped)
        on = with_paths(step, replace(PLAIN, **{switch: True}))
        off = with_paths(step, PLAIN)
        rows.append(switch_row(f"{switch} attention, {name}", grouped.model, on, off, rounds))
    del grouped
    chunked = AnswerPolicy(setting.model, layout_of(setting.model), head_bytes=HEAD_BYTES)
    whole = AnswerPolicy(setting.model, layout_of(setting.model), head_bytes=LARGE_HEAD_BYTES)
    sides = our_step(setting, whole), our_step(setting, chunked)
    rows.append(switch_row(f"large head chunks, {name}", setting.model, *sides, rounds))
    sides = copying_step(setting, is_pinned=device.type == "cuda"), copying_step(setting)
    rows.append(switch_row(f"pinned batches, {name}", setting.model, *sides, rounds))
    return shown(rows)


def with_paths(step: Callable[[], Tensor], paths: Paths) -> Callable[[], Tensor]:
    """Return a step whose attention takes these paths."""

    def run() -> Tensor:
        with attention_paths(paths):
            return step()

    return run


def copying_step(setting: Setting, *, is_pinned: bool = False) -> Callable[[], Tensor]:
    """Build our step on a batch that is copied to the device each time, from pinned memory or not.

    A CPU has no pinned memory: there both sides are the same.
    """
    policy = setting.policy
    batch = collate_pairs(setting.pairs, setting.processor, rule="both_sides", layout=policy.layout)
    source = pinned(batch) if is_pinned else batch

    def step() -> Tensor:
        setting.model.zero_grad(set_to_none=True)
        moved = to_device(source, setting.device, setting.model.dtype)
        total = batch_loss(policy_token_logps(policy, moved), moved, LOSS).total
        total.backward()
        return total.detach()

    return step


def switch_row(
    name: str, model: Any, on: Callable[[], Tensor], off: Callable[[], Tensor], rounds: int
) -> Row:
    """Compare a step with a path on and off, after their losses and gradients agreed."""
    device, dtype = model.device, model.dtype
    loss, gradients = on(), gradients_of(model)
    assert_close(loss, off(), tolerance=TOLERANCE[dtype], what=f"{name}: loss")
    assert_gradients_close(
        gradients, gradients_of(model), tolerance=TOLERANCE[dtype], what=f"{name}: gradient"
    )
    return compare(f"switch: {name}", on, off, goal=0.0, timing=Timing(rounds, device))


def adapter_cells(setting: Setting, name: str, *, rounds: int, goal: float) -> list[Row]:
    """Run (b) and (d) with LoRA adapters of rank 16 on the language model and all else frozen."""
    if not importlib.util.find_spec("peft"):
        print(f"peft is not installed, so the cells of {name} are skipped")
        return []
    prepare_training(setting.model, ModelConfig(lora_rank=16, trainable=("language",)))
    return shown(step_cells(setting, f"{name}, 1 pair", rounds=rounds, goal=goal))


def with_pairs(setting: Setting, count: int) -> Setting:
    """Return the setting with `count` pairs."""
    return replace(setting, pairs=make_pairs(setting.size, count))


def ladder(setting: Setting, *, pairs: int, rounds: int) -> list[Row]:
    """Measure the gain of each change from the release's step to ours.

    The note of a row compares the gain with the one that the number of operations predicts.
    """
    size, model = setting.size, setting.model
    several = with_pairs(setting, pairs)
    plain = AnswerPolicy(model, layout_of(model, "plain"))
    all_flops = size.flops(shared=False, checkpointing=True)
    unscored_tokens = size.tokens[0] - 2 * size.answer
    head_flops = 6 * size.width * size.words * unscored_tokens  # of the head on unscored tokens
    shared_flops = size.flops(shared=True)
    recomputed_flops = size.flops(shared=True, checkpointing=True)
    # Name, step, `recompute_activations`, pairs, and operations per pair.
    rungs = [
        ("the release's shape", concatenated_step(setting, checkpointing=True), 1, 1, all_flops),
        ("+ head on answers only", our_step(setting, plain), 1, 1, all_flops - head_flops),
        ("+ one shared row", our_step(setting), 1, 1, recomputed_flops),
        ("- activation checkpointing", our_step(setting), 0, 1, shared_flops),
        (f"+ {pairs} pairs a step", our_step(several), 0, pairs, shared_flops),
    ]
    rows = []
    before = None  # time and operations per pair of the rung below
    for name, step, every, count, flops in rungs:
        recompute_activations(model, every)
        step()
        time = median(seconds(step, setting.device) for _ in range(rounds)) / count
        memory = peak_bytes(step, setting.device) / count / 2**30
        recompute_activations(model, 0)
        before_time, before_flops = before or (time, flops)
        gain, predicted = before_time / time, before_flops / flops
        note = (
            f"gain {gain:.2f}, operations predict {predicted:.2f}; "
            f"{memory:.2f} GiB a pair on top of the weights"
        )
        rows.append(Row(f"ladder: {name}", time, before_time, gain, 0.0, True, note=note))
        before = (time, flops)
    return shown(rows)


def throughput(setting: Setting, name: str, *, rounds: int, peak: float) -> Row:
    """Measure the share of the peak (FLOP/s) that our step reaches on de-duplicated tokens."""
    step = our_step(setting)
    step()
    time = median(seconds(step, setting.device) for _ in range(rounds))
    share = setting.size.flops(shared=True) * len(setting.pairs) / time / peak
    goal = 0.45 if len(setting.pairs) >= 4 and setting.device.type == "cuda" else 0.0
    note = f"{len(setting.pairs) / time:.2f} pairs/s"
    return Row(f"MFU, {name}", time, 0.0, share, goal, share >= goal, note=note)


if __name__ == "__main__":
    main()
