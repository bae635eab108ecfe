"""Measure speed on one large GPU: `python benchmarks/gpu.py --json FILE [--page FILE]`.

The models have random weights and the size of LLaVA-1.5-7B and 13B. The script needs torch,
transformers, Pillow and jaxtyping, and no download. The LoRA cells also need peft. `--tiny` runs
the same cells at toy size on the CPU. Times are medians of forward and backward by CUDA events,
with both sides timed by turns. MFU (model FLOPs utilisation) counts operations of de-duplicated
tokens against 989 TFLOP/s (H200, dense bf16).
"""

import argparse
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))  # the project may not be installed

import torch

from benchmarks.cells import (
    Head,
    concatenated_step,
    generation_cell,
    head_cells,
    our_step,
    reference_cell,
    step_cells,
)
from benchmarks.measure import Row, page, peak_bytes, seconds, shown
from benchmarks.settings import LLAVA, LLAVA_7B, LLAVA_13B, Setting, make_pairs, make_setting
from rlhfv_ray.config import ModelConfig
from rlhfv_ray.models import AnswerPolicy, layout_of, prepare_training, recompute_activations

PEAK = 989e12  # FLOP/s of an H200, dense bf16
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
    settings = parser.parse_args()
    if not settings.tiny and not torch.cuda.is_available():
        parser.error(
            "No GPU is available. Use --tiny to run the same cells at toy size on the CPU."
        )
    rows = tiny() if settings.tiny else full()
    settings.json.write_text(json.dumps([row.as_dict() for row in rows], indent=1))
    if settings.page:
        settings.page.parent.mkdir(parents=True, exist_ok=True)
        settings.page.write_text(page(rows))


def full() -> list[Row]:
    """Run the cells at full size, in bf16 on the GPU."""
    cuda = torch.device("cuda")
    half = torch.bfloat16
    heads = [(2, 723, 2.5), (8, 723, 2.8)]
    rows = shown(head_cells(heads, rounds=5, device=cuda, head=Head(4096, 32_064, dtype=half)))
    setting = make_setting(LLAVA_7B, pairs=1, device=cuda, dtype=half)
    rows += shown(step_cells(setting, "7B, 1 pair", rounds=5, goal=2.2))
    rows += ladder(setting, pairs=4, rounds=5)
    rows += shown(
        [
            throughput(with_pairs(setting, count), f"7B, {count} pairs", rounds=5)
            for count in (1, 4, 8)
        ]
    )
    several = with_pairs(setting, 16)
    rows += shown([reference_cell(several, "7B", rounds=3)])
    rows += shown([generation_cell(several, "7B", rounds=1, batch=64, new_tokens=32, goal=15.0)])
    del setting, several  # frees memory for the next model
    torch.cuda.empty_cache()
    return rows + adapter_cells(
        make_setting(LLAVA_13B, pairs=1, device=cuda, dtype=half), "13B LoRA", rounds=3, goal=2.0
    )


def tiny() -> list[Row]:
    """Run the same cells at toy size, in fp32 on the CPU."""
    cpu = torch.device("cpu")
    rows = shown(head_cells([(2, 120, 0.0)], rounds=1, device=cpu, head=Head(32, 200)))
    setting = make_setting(TINY, pairs=1, device=cpu, dtype=torch.float32)
    rows += shown(step_cells(setting, "toy, 1 pair", rounds=1, goal=0.0))
    rows += ladder(setting, pairs=2, rounds=1)
    rows += shown([throughput(with_pairs(setting, 2), "toy, 2 pairs", rounds=1)])
    rows += shown([reference_cell(with_pairs(setting, 2), "toy", rounds=1)])
    rows += shown([generation_cell(setting, "toy", rounds=1, batch=4, new_tokens=4, goal=0.0)])
    return rows + adapter_cells(
        make_setting(TINY, pairs=1, device=cpu, dtype=torch.float32), "toy LoRA", rounds=1, goal=0.0
    )


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


def throughput(setting: Setting, name: str, *, rounds: int) -> Row:
    """Measure the share of the GPU's peak that our step reaches on de-duplicated tokens."""
    step = our_step(setting)
    step()
    time = median(seconds(step, setting.device) for _ in range(rounds))
    share = setting.size.flops(shared=True) * len(setting.pairs) / time / PEAK
    goal = 0.45 if len(setting.pairs) >= 4 and setting.device.type == "cuda" else 0.0
    note = f"{len(setting.pairs) / time:.2f} pairs/s"
    return Row(f"MFU, {name}", time, 0.0, share, goal, share >= goal, note=note)


if __name__ == "__main__":
    main()
