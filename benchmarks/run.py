"""Measure speed on one CPU thread: `python benchmarks/run.py --json FILE [--quick] [--page FILE]`.

Ratios are medians of process time, with both sides timed by turns. A cell whose two sides disagree
fails before it is timed.
"""

import argparse
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.cells import (
    Head,
    generation_cell,
    head_cells,
    reference_cell,
    step_cells,
    trl_cells,
)
from benchmarks.measure import FEWEST_ROUNDS, Row, page, shown
from benchmarks.settings import LLAVA, MUFFIN, make_pairs, make_setting
from benchmarks.stage import PAIRS, stage_cells
from benchmarks.workers import worker_cells


def main() -> None:
    """Run all cells and write their rows."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--json",
        type=Path,
        required=True,
        help="JSON file to write; each row has cell, ours, peer, ratio, goal and passed",
    )
    parser.add_argument("--quick", action="store_true", help="run smaller sizes only")
    parser.add_argument(
        "--page", type=Path, help="Markdown page to write too, e.g. docs/benchmarks/cpu.md"
    )
    settings = parser.parse_args()
    torch.set_num_threads(1)
    rows = cells(quick=settings.quick)
    void = [row.cell for row in rows if row.is_void]
    if void:
        print(f"{len(void)} rows are void, because other processes were busy: {', '.join(void)}")
    settings.json.parent.mkdir(parents=True, exist_ok=True)
    settings.json.write_text(json.dumps([row.as_dict() for row in rows], indent=1))
    if settings.page:
        settings.page.parent.mkdir(parents=True, exist_ok=True)
        settings.page.write_text(page(rows))


def cells(*, quick: bool) -> list[Row]:
    """Run all cells, and print each when it is done."""
    cpu = torch.device("cpu")
    rounds = FEWEST_ROUNDS
    shapes = [(2, 229, 2.5)] if quick else [(2, 229, 2.5), (8, 229, 2.8), (4, 723, 7.0)]
    rows = shown(head_cells(shapes, rounds=rounds, device=cpu, head=Head()))
    for name, size, goal in (("Muffin lengths", MUFFIN, 2.0), ("LLaVA-1.5 lengths", LLAVA, 2.4)):
        setting = make_setting(size, pairs=2, device=cpu, dtype=torch.float32)
        rows += shown(step_cells(setting, name, rounds=rounds, goal=goal))
        several = replace(setting, pairs=make_pairs(size, 8))
        rows += shown([reference_cell(several, name, rounds=rounds)])
        if quick:
            break
    setting = make_setting(MUFFIN, pairs=2, device=cpu, dtype=torch.float32)
    rows += shown(
        [
            generation_cell(
                setting, "Muffin lengths", rounds=rounds, batch=16, new_tokens=64, goal=4.0
            )
        ]
    )
    if importlib.util.find_spec("trl"):
        rows += shown(trl_cells(setting, "Muffin lengths", rounds=rounds))
        if not quick:
            long = make_setting(LLAVA, pairs=2, device=cpu, dtype=torch.float32)
            rows += shown(trl_cells(long, "LLaVA-1.5 lengths", rounds=rounds))
    else:
        print("TRL is not installed, so its cells are skipped; pip install -e '.[bench]'")
    rows += shown(worker_cells(quick=quick))
    return rows + shown(stage_cells(pairs=PAIRS // 10 if quick else PAIRS))


if __name__ == "__main__":
    main()
