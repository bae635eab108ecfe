r"""Align a vision-language model by segment-weighted preference optimisation (DDPO), and score it.

    # the shapes world: minutes on two CPU cores
    rlhfv-ray train shapes
    # your model and pairs; both models are scored on the benchmarks named
    rlhfv-ray train paper --model.path MODEL --data.path rows.parquet \
        --benchmarks object_halbench pope --pope.questions coco/pope ...
    ray job submit --working-dir . -- python experiments/ddpo.py shapes

The first argument is a recipe; every field of it can be changed. After an interruption, run the
same command again to continue.
"""

from experiments.recipes import RECIPES, run_recipe
from rlhfv_ray.console import leave, run_command


def main() -> None:
    """Run the command line."""
    run_recipe(RECIPES, __doc__)


if __name__ == "__main__":
    leave(run_command(main))
