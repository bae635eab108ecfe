"""Measures every figure that the README and docs/studies.md quote, and writes docs/results/.

    python benchmarks/results.py                        # the demo: three seeds, gamma 5 and 1
    python benchmarks/results.py demo ablation ...      # and a study
    python benchmarks/results.py demo ablation ... --recipe shapes_balanced

Takes about 20 minutes for the demo on two cores, and another hour and a half for the four studies.
In the balanced world, studies have control arms, five seeds that no tuning used, and 3,000 pictures
a seed; they take several times as long, and their files end in `-balanced`. After an interruption,
the same command goes on. `tests/test_results.py` compares the documents with the files.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import tyro

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
Name = Literal["demo", "ablation", "over_generalization", "segment_rules", "data_scaling"]
Recipe = Literal["shapes", "shapes_balanced"]
REPORTED: dict[Recipe, tuple[str, ...]] = {  # options of the studies that a recipe reports
    "shapes": (),
    "shapes_balanced": (
        *("--seeds", "10", "11", "12", "13", "14"),  # seeds below 10 are for tuning
        *("--ddpo.shapes.evaluation-scenes", "3000"),
    ),
}


def main(
    measured: tyro.conf.Positional[tuple[Name, ...]] = ("demo",),
    storage: Path = Path("runs/results"),
    recipe: Recipe = "shapes",
) -> None:
    """Measure, and write the results.

    Args:
        measured: the demo, or studies.
        storage: folder of all stages; the balanced world has a folder of its own in it.
        recipe: recipe that the demo and the studies train.
    """
    RESULTS.mkdir(exist_ok=True)
    kind = recipe.removeprefix("shapes").replace("_", "-")  # "" or "-balanced"
    folder = storage.resolve() / kind.strip("-")
    for name in measured:
        result = demo(folder, recipe) if name == "demo" else study(name, folder, recipe)
        (RESULTS / f"{name}{kind}.json").write_text(json.dumps(result, indent=1) + "\n")


def demo(storage: Path, recipe: Recipe) -> dict[str, Any]:
    """Return the scores of the demo's base and aligned model, by gamma and seed."""
    scores: dict[str, Any] = {}
    for seed in (0, 1, 2):
        for gamma in (5, 1):
            name = f"gamma-{gamma}-seed-{seed}"
            run(
                *("experiments/ddpo.py", recipe, "--name", name, "--storage", str(storage)),
                *("--seed", str(seed), "--shapes.seed", str(seed), "--loss.gamma", str(gamma)),
            )
            (summary,) = storage.glob(f"{name}-*/summary.json")
            written = json.loads(summary.read_text())
            scores[name] = {
                "base": numbers(written["base"]),
                "aligned": numbers(written["aligned"]),
                "comparison": written["comparison"],
            }
    return scores


def numbers(scores: dict[str, Any]) -> dict[str, Any]:
    """Return a model's rates with their intervals, without what describes the measurement."""
    left_out = ("groups", "extras", "manifest", "missing_reasons")
    return {name: value for name, value in scores.items() if name not in left_out}


def study(name: str, storage: Path, recipe: Recipe) -> dict[str, Any]:
    """Return what a study writes to its `study.json`."""
    options = ("--ddpo.storage", str(storage), *REPORTED[recipe])
    run(f"experiments/{name}.py", recipe, *options)
    (result,) = storage.glob(f"{name}-*/study.json")
    return json.loads(result.read_text())


def run(*command: str) -> None:
    """Run one of our scripts; its output goes to the terminal."""
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
