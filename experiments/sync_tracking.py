"""Replay tracked experiments into MLflow: add the records that it missed, each exactly once.

Example: rlhfv-ray sync runs
"""

import sys
from typing import Annotated

import tyro

from rlhfv_ray.command_line.help_text import parse
from rlhfv_ray.console import leave, run_command
from rlhfv_ray.storage.folder import LARGE_DIRS, display_path, fetch, fetch_local
from rlhfv_ray.tracking.replay import SPOOL
from rlhfv_ray.tracking.run import sync_tracking


def sync(storage: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STORAGE")]) -> int:
    """Replay every experiment of a storage folder.

    Args:
        storage: Folder or address with experiments: the `storage` setting of the runs, or the
            folder of a single experiment.

    Returns:
        The exit code: 0 if MLflow has everything, else 1.
    """
    local_storage = fetch_local(storage, only=SPOOL)
    folders = sorted(spool.parent for spool in local_storage.rglob(SPOOL))
    if not folders:
        print(f"{storage} has no tracked experiment: no {SPOOL} at any depth. Check the path.")
        return 1
    complete = True
    for folder in folders:
        fetch(folder, without=LARGE_DIRS)
        if sync_tracking(folder):
            print(f"{display_path(folder)}: MLflow has everything")
        else:
            complete = False
            print(f"{display_path(folder)}: MLflow lacks some records, see the warning")
    return 0 if complete else 1


def main() -> int:
    """Run the command line; return its exit code."""
    return parse(sync, description=__doc__, arguments=sys.argv[1:])


if __name__ == "__main__":
    leave(run_command(main))
