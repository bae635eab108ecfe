"""Measures every figure that the README and docs/studies.md quote, and writes docs/results/.

    python benchmarks/results.py                        # the demo: three seeds, gamma 5 and 1
    python benchmarks/results.py demo ablation ...      # and a study

Takes about 20 minutes for the demo on two cores, and another hour and a half for the four studies.
After an interruption, the same command goes on. `tests/test_results.py` compares the documents with
the files.
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
    for name in measured:
        result = demo(storage.resolve()) if name == "demo" else study(name, storage.resolve())
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def demo(storage: Path) -> dict[str, Any]:
    """Return the scores of the demo's base and aligned model, by gamma and seed."""
    scores: dict[str, Any] = {}
    for seed in (0, 1, 2):
        for gamma in (5, 1):
            name = f"gamma-{gamma}-seed-{seed}"
            run(
                *("experiments/ddpo.py", "shapes", "--name", name, "--storage", str(storage)),
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


def study(name: str, storage: Path) -> dict[str, Any]:
    """Return what a study writes to its `study.json`."""
    run(f"experiments/{name}.py", "shapes", "--ddpo.storage", str(storage))
    (result,) = storage.glob(f"{name}-*/study.json")
    return json.loads(result.read_text())


def run(*command: str) -> None:
    """Run one of our scripts; its output goes to the terminal."""
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
