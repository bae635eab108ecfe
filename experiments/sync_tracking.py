"""Replay tracked experiments into MLflow: what it missed while it was down is added, nothing is doubled.

Example: python experiments/sync_tracking.py runs
"""

import logging
import sys
from typing import Annotated

import tyro

from rlhfv_ray.storage.folder import LARGE_DIRS, display_path, fetch, fetch_local
from rlhfv_ray.tracking.replay import SPOOL
from rlhfv_ray.tracking.run import sync_tracking


def main(storage: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STORAGE")]) -> int:
    """Replay every experiment of a storage folder.

    Args:
        storage: Folder or address of experiments, as in the `storage` setting of the runs; a single experiment's folder will do.

    Returns:
        The exit code: 0 when MLflow has everything, else 1.
    """
    place = fetch_local(storage, only=SPOOL)
    folders = sorted(spool.parent for spool in place.rglob(SPOOL))
    if not folders:
        print(f"{storage}: no tracked experiment here (no {SPOOL} at any depth)")
        return 1
    synced = []
    for folder in folders:
        fetch(folder, without=LARGE_DIRS)
        synced.append(sync_tracking(folder))
        print(
            f"{display_path(folder)}: {'MLflow has everything' if synced[-1] else 'MLflow lacks something, see the warning'}"
        )
    return 0 if all(synced) else 1


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    sys.exit(tyro.cli(main, description=__doc__))
