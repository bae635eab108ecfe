"""Align a vision-language model with segment-weighted preference optimisation (DDPO), from pairs to scores.

    python experiments/ddpo.py shapes                                   the embedded world, two CPU cores, minutes
    python experiments/ddpo.py paper --model.path MODEL --data.path rows.parquet
    ray job submit --working-dir . -- python experiments/ddpo.py shapes

The first argument is a recipe; every field of it can be changed. Run again after an interruption, the same command goes on where it was.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import tyro
from rich.console import Console
from rich.panel import Panel

from experiments.recipes import RECIPES
from rlhfv_ray.config import DDPOConfig
from rlhfv_ray.errors import RlhfvError, StageFailedError

console = Console()
EXIT_STOPPED, EXIT_FAILED, EXIT_INPUT = 130, 4, 2


def main() -> int:
    """Run the command line; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        configs = {name: (_first_line(recipe), recipe()) for name, recipe in RECIPES.items()}
        config = tyro.extras.overridable_config_cli(configs, description=__doc__)
        from eval.experiment import run_experiment  # heavy; --help and a mistyped field need none of it

        run_experiment(config, resolve_storage(config.storage), console=console)
    except KeyboardInterrupt:
        console.print("\nStopped. The same command goes on where this one was.")
        return EXIT_STOPPED
    except RlhfvError as error:
        Console(stderr=True).print(Panel(str(error), title=type(error).__name__, border_style="red"))
        return EXIT_FAILED if isinstance(error, StageFailedError) else EXIT_INPUT
    return 0


def resolve_storage(storage: str) -> Path:
    """The storage folder; a relative one is below ~/rlhfv-ray inside a Ray job, whose working directory is thrown away."""
    base = Path.home() / "rlhfv-ray" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else Path.cwd()
    return base / Path(storage).expanduser()


def _first_line(recipe: Callable[[], DDPOConfig]) -> str:
    return (recipe.__doc__ or "").strip().splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
