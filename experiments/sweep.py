r"""Sweep beta, gamma and other settings; find those that hallucinate least without saying less.

    # the shapes world: minutes on two CPU cores
    rlhfv-ray sweep shapes-small
    ray job submit --working-dir . -- python experiments/sweep.py paper \
        --ddpo.model.path MODEL --ddpo.data.path rows.parquet ...

The first argument is a preset; every field of it can be changed. Pairs, reference log-probs and the
base model's answers are made once for all trials. After an interruption, run the same command
again: it keeps the trials that ended and continues the others.
"""

from experiments.recipes import RECIPES, SWEEP_FLAGS, SWEEPS
from rlhfv_ray.command_line import choose, recipe_named
from rlhfv_ray.console import leave, new_console, run_command
from rlhfv_ray.storage.folder import resolve_storage


def main() -> None:
    """Run the command line."""
    config = choose(SWEEPS, description=__doc__, main_flags=SWEEP_FLAGS)
    from experiments.runners.sweep import sweep

    # A name of --ddpo.name is no recipe: the command that trains again starts from the preset's.
    recipe = RECIPES[SWEEPS[recipe_named(SWEEPS)]().ddpo.name]()
    sweep(config, resolve_storage(config.ddpo.storage), recipe=recipe, console=new_console())


if __name__ == "__main__":
    leave(run_command(main))
