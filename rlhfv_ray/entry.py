"""The start of `rlhfv-ray`, also as `python -m rlhfv_ray.entry`: our three packages must be ours.

`eval` and `experiments` are names that other projects use too. A folder of that name in front of
ours would be imported in its place, and the error would be about a module that is missing there.
"""

import importlib.util
import pkgutil
import sys
from pathlib import Path
from typing import NoReturn

OURS = Path(__file__).resolve().parents[1]
COMMAND = "experiments.command:start"
PACKAGES = ("eval", "experiments")
SETTINGS_ERROR = 2  # as `console.EXIT_CODES` has it
STOPPED = 130  # as in `console`


def start() -> NoReturn:
    """Run the console command, unless another folder hides one of our packages."""
    for name in PACKAGES:
        location = location_of(name)
        if location != OURS / name:
            print(
                f"`import {name}` finds {location or 'nothing'} in place of rlhfv-ray's own "
                f"{OURS / name}. Start the command in another folder, take that one off "
                "PYTHONPATH, or rename it.",
                file=sys.stderr,
            )
            sys.exit(SETTINGS_ERROR)
    try:
        pkgutil.resolve_name(COMMAND)()
    except KeyboardInterrupt:  # while modules were imported; later the command itself answers it
        print("\nStopped.")
        sys.exit(STOPPED)
    raise AssertionError("the command ends its process")


def location_of(name: str) -> Path | None:
    """Return the folder that Python imports a package from; None if there is none."""
    spec = importlib.util.find_spec(name)
    folders = list(spec.submodule_search_locations or []) if spec else []
    origin = Path(spec.origin) if spec and spec.origin else None
    if folders:
        return Path(folders[0]).resolve()
    return origin.resolve() if origin else None


if __name__ == "__main__":
    start()
