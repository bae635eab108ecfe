"""Align a vision-language model with segment-weighted preference optimisation (DDPO), from pairs to scores.

    python experiments/ddpo.py shapes                                   the embedded world, two CPU cores, minutes
    python experiments/ddpo.py paper --model.path MODEL --data.path rows.parquet
    ray job submit --working-dir . -- python experiments/ddpo.py shapes

The first argument is a recipe; every field of it can be changed. Run again after an interruption, the same command goes on where it was.
"""

import sys

from experiments.recipes import RECIPES, run_recipe
from rlhfv_ray.console import run_command


def main() -> None:
    """Run the command line."""
    run_recipe(RECIPES, __doc__)


if __name__ == "__main__":
    sys.exit(run_command(main))
