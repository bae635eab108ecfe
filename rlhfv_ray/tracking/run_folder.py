"""The folder of one experiment, sweep, study or evaluation: lease, MLflow run, `config.json`.

`config.json` says where the run comes from, too, and uncommitted changes are kept beside it.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rlhfv_ray.config import TrackingConfig
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import discard, display_path, open_folder, publish
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.tracking.origin import PATCH_FILE, origin, uncommitted_changes
from rlhfv_ray.tracking.replay import STATE
from rlhfv_ray.tracking.run import TrackedRun, sync_tracking, tracked_run
from rlhfv_ray.tracking.target import describe_target, find_target, run_page

CONFIG_FILE = "config.json"
HEADLINE = "headline"  # tag of a run: its main result in one line
RUN_NAME = "mlflow.runName"  # tag of a run: the name that people read
LATEST = "latest"  # link in the storage folder to the run that was started last
LABEL_WIDTH = 14  # characters of a location's name on the terminal


@dataclass
class RunFolder:
    """A folder that this process holds, and the MLflow run that records it."""

    path: Path
    run: TrackedRun
    mlflow_location: str = ""  # a command or an address; set when the context has ended
    run_page: str = ""  # address of the run in MLflow; empty if it is not known or not reached

    def print_locations(self, locations: Mapping[str, Path | str], *, console: Console) -> None:
        """Print where the results are, one line each, and the run in MLflow last; call it after
        the context.

        Args:
            locations: paths by the name that people read; of a mirror, its address is printed.
            console: of the terminal.
        """
        tracked = {"MLflow": self.mlflow_location}
        if self.run_page:
            tracked["run in MLflow"] = self.run_page
        for name, location in {**locations, **tracked}.items():
            text = display_path(location) if isinstance(location, Path) else location
            console.print(f"{name:<{LABEL_WIDTH}} {text}", highlight=False, soft_wrap=True)


@contextlib.contextmanager
def open_run_folder(
    folder: Path,
    tracking: TrackingConfig,
    *,
    store: Path,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    config: Mapping[str, Any],
) -> Iterator[RunFolder]:
    """Hold a folder and track the body as an MLflow run; the same call again continues both.

    The run is named as the folder, unless a tag `RUN_NAME` names it. It ends with the body:
    FINISHED, FAILED or KILLED, and what was logged goes to MLflow either way. After a body without
    an error the rest is synchronised once more, so that `mlflow_location` says whether MLflow has
    everything.

    Args:
        folder: of the run; it is made if it does not exist.
        tracking: where MLflow is.
        store: the storage folder, which holds MLflow's files where no server is configured.
        params: of the MLflow run; may be nested.
        tags: of the MLflow run, beside those of `origin`.
        config: content of `config.json` beside `origin`; it is also logged as an artifact.

    Raises:
        StageFailedError: another live driver holds the folder.
    """
    target = find_target(tracking, store)  # refused before anything is held or written
    source = origin()
    tags = {**source, "mlflow.source.git.commit": source["git_commit"], **tags}
    with (
        hold_lease(folder),
        tracked_run(
            folder, tracking, store=store, name=folder.name, params=params, tags=tags
        ) as run,
    ):
        write_json(folder / CONFIG_FILE, {**config, **source})
        run.log_file(folder / CONFIG_FILE)
        patch = folder / PATCH_FILE
        discard(patch)  # an earlier command's
        if changes := uncommitted_changes():
            patch.write_text(changes, encoding="utf-8")
            publish(patch)
            run.log_file(patch)
        open_folder(folder).link(LATEST)
        opened = RunFolder(folder, run)
        yield opened
    # Both leases are free again: `sync_tracking` takes the one on tracking itself.
    if sync_tracking(folder, uri=target.uri):
        opened.mlflow_location = describe_target(target)
        state = json.loads((folder / STATE).read_text())
        run_id = state["runs"][opened.run.path]
        opened.run_page = run_page(target.uri, state["experiment_id"], run_id)
    else:
        opened.mlflow_location = "not reached; see the warning above"
