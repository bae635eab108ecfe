"""Measures every figure that the README and docs/studies.md quote, and writes docs/results/.

    python benchmarks/results.py                        # the demo, and its controls
    python benchmarks/results.py demo ablation ...      # and a study

Takes about an hour for the demo on two cores. The studies take several hours: they have control
arms, five seeds that no tuning used, and 3,000 pictures a seed. After an interruption, the same
command goes on. `tests/test_results.py` compares the documents with the files.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import tyro

from experiments.recipes import SHAPES_DPO_BETA

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
Name = Literal["demo", "ablation", "over_generalization", "segment_rules", "data_scaling"]
STUDIED = (  # options of the studies; the scenes' seed is the recipe's plus one of these
    *("--seeds", "0", "1", "2", "3", "4"),
    *("--ddpo.shapes.evaluation-scenes", "1000"),
)
SEEDS = (20, 21, 22)  # of the demo; earlier ones are for tuning
CONTROLS = ("permuted", "blank", "blind")
# Trainings of the demo: its own with all seeds; with the first seed also on control pairs, plain
# DPO at its own best beta, and a training on true captions.
TRAININGS: dict[str, tuple[str, ...]] = {
    "gamma-5": ("ddpo",),
    "gamma-1": ("ddpo", "--loss.gamma", "1", "--loss.beta", str(SHAPES_DPO_BETA)),
    "true-captions": ("sft",),
}


def main(
    measured: tyro.conf.Positional[tuple[Name, ...]] = ("demo",),
    storage: Path = Path("runs/results"),
) -> None:
    """Measure, and write the results.

    Args:
        measured: the demo, or studies.
        storage: folder of all stages.
    """
    RESULTS.mkdir(exist_ok=True)
    folder = storage.resolve()
    for name in measured:
        result = demo(folder) if name == "demo" else study(name, folder)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def demo(storage: Path) -> dict[str, Any]:
    """Return the scores of the demo's base and trained model, by training and seed."""
    scores: dict[str, Any] = {}
    for training, seed in demo_trainings():
        script, *options = TRAININGS[training]
        name = f"{training}-seed-{seed}"
        if (training, seed) == ("gamma-5", SEEDS[0]):
            options += ["--controls", *CONTROLS]
        run(
            *(f"experiments/{script}.py", "shapes", "--name", name, "--storage", str(storage)),
            *("--seed", str(seed), "--shapes.seed", str(seed), *options),
        )
        (summary,) = storage.glob(f"{name}-*/summary.json")
        written = json.loads(summary.read_text())
        models = [model for model in ("base", "aligned", *CONTROLS) if model in written]
        scores[name] = {model: numbers(written[model]) for model in models}
        scores[name]["comparison"] = written["comparison"]
    return scores


def demo_trainings() -> list[tuple[str, int]]:
    """Return the name and seed of every training of the demo."""
    first, *further = SEEDS
    return [(training, first) for training in TRAININGS] + [("gamma-5", seed) for seed in further]


def numbers(scores: dict[str, Any]) -> dict[str, Any]:
    """Return a model's rates with their intervals, without what describes the measurement."""
    left_out = ("groups", "extras", "manifest", "missing_reasons")
    return {name: value for name, value in scores.items() if name not in left_out}


def study(name: str, storage: Path) -> dict[str, Any]:
    """Return what a study writes to its `study.json`."""
    options = ("--ddpo.storage", str(storage), *STUDIED)
    run(f"experiments/{name}.py", "shapes", *options)
    (result,) = storage.glob(f"{name}-*/study.json")
    return json.loads(result.read_text())


def run(*command: str) -> None:
    """Run one of our scripts; its output goes to the terminal."""
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
