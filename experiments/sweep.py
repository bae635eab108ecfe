r"""Sweep beta, gamma and other settings; find those that hallucinate least without saying less.

    # the shapes world: minutes on two CPU cores
    python experiments/sweep.py shapes-small
    ray job submit --working-dir . -- python experiments/sweep.py paper \
        --ddpo.model.path MODEL --ddpo.data.path rows.parquet ...

The first argument is a preset; every field of it can be changed. Pairs, reference log-probs and the
base model's answers are made once for all trials. After an interruption, run the same command
again: it keeps the trials that ended and continues the others.
"""

import sys

import tyro

from experiments.recipes import RECIPES, SWEEPS, first_line
from experiments.runners.flags import current_flags
from rlhfv_ray.config import DDPOConfig
from rlhfv_ray.console import leave, new_console, run_command
from rlhfv_ray.storage.folder import resolve_storage


def main() -> None:
    """Run the command line."""
    configs = {name: (first_line(preset), preset()) for name, preset in SWEEPS.items()}
    arguments = current_flags(sys.argv[1:])
    config = tyro.extras.overridable_config_cli(configs, description=__doc__, args=arguments)
    from experiments.runners.sweep import sweep

    recipe = (
        RECIPES[config.ddpo.name]()
        if config.ddpo.name in RECIPES
        else DDPOConfig(name=config.ddpo.name)
    )
    sweep(config, resolve_storage(config.ddpo.storage), recipe=recipe, console=new_console())


if __name__ == "__main__":
    leave(run_command(main))
