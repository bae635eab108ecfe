"""Align a vision-language model with segment-weighted preference optimisation (DDPO), from pairs to scores.

    python experiments/ddpo.py shapes                                   the embedded world, two CPU cores, minutes
    python experiments/ddpo.py paper --model.path MODEL --data.path rows.parquet
    ray job submit --working-dir . -- python experiments/ddpo.py shapes

The first argument is a recipe; every field of it can be changed. Run again after an interruption, the same command goes on where it was.
"""

import sys
from collections.abc import Callable

import tyro
from rich.console import Console

from experiments.recipes import RECIPES
from rlhfv_ray.config import DDPOConfig
from rlhfv_ray.terminal import resolve_storage, run_command


def main() -> None:
    """Run the command line."""
    configs = {name: (_first_line(recipe), recipe()) for name, recipe in RECIPES.items()}
    config = tyro.extras.overridable_config_cli(configs, description=__doc__)
    from eval.experiment import run_experiment  # heavy; --help and a mistyped field need none of it

    run_experiment(config, resolve_storage(config.storage), console=Console())


def _first_line(recipe: Callable[[], DDPOConfig]) -> str:
    return (recipe.__doc__ or "").strip().splitlines()[0]


if __name__ == "__main__":
    sys.exit(run_command(main))
