"""List the runs of a storage folder, and free the disk space that no run needs any more.

    rlhfv-ray runs                 # of ./runs
    rlhfv-ray runs /shared/runs --prune

Each run has its name, its state, its size with that of its stages, the settings in which runs of
one recipe differ, and its main result. Without --yes, --prune only says what it would delete:
checkpoints of finished trainings, and stages that no run names. A stage that a command is writing
stays, and so do those of a run that has not finished: delete its folder first if it will not go on.
Commands make again what they need.
"""

import json
import os
import shlex
import sys
import time
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.padding import Padding
from rich.text import Text

from rlhfv_ray.command_line import flag_words, leaves
from rlhfv_ray.command_line.help_text import parse
from rlhfv_ray.console import leave, new_console, run_command
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.storage.folder import discard, fetch_local
from rlhfv_ray.storage.holder import is_alive
from rlhfv_ray.storage.lease_file import holder_of, open_lease
from rlhfv_ray.storage.stages import is_done
from rlhfv_ray.tracking.replay import SPOOL, read_events
from rlhfv_ray.tracking.run_folder import CONFIG_FILE, HEADLINE, RUN_NAME

STATES = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped", "RUNNING": "interrupted"}
CHECKPOINTS = "checkpoints"
STATE_WIDTH, INDENT = max(map(len, (*STATES.values(), "running"))), 4  # characters
IN_NAMES = ("name", "seed", "loss.kind", "loss.beta", "loss.gamma")  # settings in a run's name
PLACES = ("storage", "tracking.", "ddpo.storage", "ddpo.tracking.")


@dataclass(frozen=True)
class Run:
    """One experiment, sweep, study or evaluation of a storage folder."""

    folder: Path
    name: str  # as in MLflow: what it is, and the settings that differ
    state: str
    headline: str
    settings: Mapping[str, Any]  # by dotted name
    stages: frozenset[str]  # names of folders in the storage folder
    started: float  # seconds since 1970

    @property
    def changed(self) -> float:
        """Time of the last event, in seconds since 1970."""
        return (self.folder / SPOOL).stat().st_mtime


def read_runs(storage: Path) -> list[Run]:
    """Return the runs of a storage folder, the newest first."""
    spools = [spool for spool in storage.glob(f"*/{SPOOL}") if not spool.parent.is_symlink()]
    return sorted(map(_read_run, spools), key=lambda run: run.changed, reverse=True)


def _read_run(spool: Path) -> Run:
    folder = spool.parent
    events = read_events(folder)
    states = [e["content"] for e in events if e["kind"] == "status" and "/" not in e["run"]]
    tags = {}
    for event in events:
        if event["kind"] == "tags" and "/" not in event["run"]:
            tags |= event["content"]
    state = "running" if _is_live(folder) else STATES[states[-1] if states else "RUNNING"]
    name, headline = (tags.get(tag, "") for tag in (RUN_NAME, HEADLINE))
    started = min((event["time"] for event in events), default=0) / 1000
    settings = _settings_of(folder)
    return Run(folder, name, state, headline, settings, frozenset(_stages_of(folder)), started)


def _settings_of(folder: Path) -> dict[str, Any]:
    """Return a run's settings by dotted name; none if its file has none."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["config"]
        return dict(leaves(config))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # torn, or not ours
        return {}


def differing(runs: Sequence[Run]) -> dict[Path, list[str]]:
    """Return the settings in which runs of one recipe differ, as flags, by the run's folder.

    Those that a run's name has, and those that say where and not what, are left out.
    """
    flags: dict[Path, list[str]] = {run.folder: [] for run in runs}
    for recipe in {run.settings.get("name") for run in runs}:
        group = [run for run in runs if run.settings and run.settings.get("name") == recipe]
        for name in ChainMap(*[dict(run.settings) for run in group]):
            values = [run.settings.get(name) for run in group]
            is_equal = values.count(values[0]) == len(values)
            if is_equal or name in IN_NAMES or name.startswith(PLACES):
                continue
            for run in group:
                if run.settings.get(name) not in (None, []):
                    flags[run.folder] += flag_words(name, run.settings[name])
    return flags


def _stages_of(folder: Path) -> Iterator[str]:
    """Names of all stages that the files of a run name: its own, and those of its trials."""
    known = {path.name for path in folder.parent.iterdir() if _is_stage(path)}
    for file in (*folder.glob("*.json"), *folder.glob("trials/*/*.json"), folder / SPOOL):
        if file.exists():
            text = file.read_text(encoding="utf-8", errors="replace")
            yield from (name for name in known if name in text)
            known = {name for name in known if name not in text}


def _is_live(folder: Path) -> bool:
    holder = holder_of(open_lease(folder, "").read())
    return bool(holder) and is_alive(holder) is not False


def prunable(storage: Path, runs: Iterable[Run]) -> dict[Path, str]:
    """Return the folders that no run needs any more, each with the reason.

    A stage that a command is writing stays, and so does everything that a stage which stays was
    made from. So do the stages of a run that did not finish: it names them at its end.
    """
    runs = list(runs)
    needed: set[str] = set().union(*(run.stages for run in runs))
    stages = [path for path in storage.iterdir() if _is_stage(path)]
    for _ in stages:  # until nothing is added: a stage names the stages that it was made from
        texts = [(storage / name / CONFIG_FILE) for name in needed]
        inputs = " ".join(text.read_text() for text in texts if text.exists())
        more = {stage.name for stage in stages if stage.name in inputs} - needed
        if not more:
            break
        needed |= more
    folders: dict[Path, str] = {}
    for stage in sorted(stages):
        if _is_live(stage):
            continue
        checkpoints = stage / CHECKPOINTS
        if stage.name not in needed and not _goes_on(stage, runs):
            folders[stage] = "no run names it"
        elif is_done(stage) and checkpoints.is_dir():
            folders[checkpoints] = "its training has finished"
    return folders


def _goes_on(stage: Path, runs: Iterable[Run]) -> bool:
    """Return True if the last run that had started when a stage was begun has not finished."""
    begun = (stage / CONFIG_FILE).stat().st_mtime
    earlier = [run for run in runs if run.started <= begun]
    return bool(earlier) and max(earlier, key=lambda run: run.started).state != "finished"


def _is_stage(path: Path) -> bool:
    is_folder = path.is_dir() and not path.is_symlink()
    return is_folder and (path / CONFIG_FILE).exists() and not (path / SPOOL).exists()


def size_of(folder: Path) -> int:
    """Return the bytes on disk below a folder; a file with several names counts once."""
    sizes = {}
    for root, _, names in os.walk(folder):
        for name in names:
            state = os.lstat(os.path.join(root, name))
            sizes[state.st_ino] = state.st_size
    return sum(sizes.values())


def show(storage: Path, runs: Sequence[Run]) -> None:
    """Print a line of facts of every run, then its name, its differing settings, its result."""
    console = new_console()
    if not runs:
        console.print(f"{storage} has no runs.", highlight=False, soft_wrap=True)
        return
    longest = max(len(run.folder.name) for run in runs)
    form = f"{{:<{longest}}}  {{:<{STATE_WIDTH}}}  {{:<16}}  {{:>6}}"
    console.print(Text(form.format("run", "state", "changed", "MB"), "bold"), soft_wrap=True)
    flags = differing(runs)
    for run in runs:
        size = size_of(run.folder) + sum(size_of(storage / stage) for stage in run.stages)
        changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed))
        facts = form.format(run.folder.name, run.state, changed, f"{size / 1e6:.0f}")
        console.print(Text(facts), soft_wrap=True)
        for text in (run.name, shlex.join(flags[run.folder]), run.headline):
            if text:
                console.print(Padding(Text(text), (0, 0, 0, INDENT)))


def main() -> None:
    """Run the command line."""
    parse(list_or_prune, description=__doc__, arguments=sys.argv[1:])


def list_or_prune(
    path: Annotated[str, tyro.conf.Positional] = "",
    storage: str = "runs",
    prune: bool = False,
    yes: bool = False,
) -> None:
    """List the runs, or free disk space.

    Args:
        path: in place of --storage.
        storage: folder or address of the runs.
        prune: list what no run needs any more.
        yes: delete what --prune lists.
    """
    storage = path or storage
    if prune and "://" in storage:
        raise ConfigError("--prune works on a disk only. Delete folders of a bucket by its tools.")
    folder = Path(storage).expanduser()
    for name in (CONFIG_FILE, SPOOL):
        folder = fetch_local(storage, only=name)
    if not folder.is_dir():
        raise ConfigError(f"{storage} is no folder. Name the storage folder of your runs.")
    runs = read_runs(folder)
    if not prune:
        show(folder, runs)
        return
    free_space(prunable(folder, runs), yes=yes)


def free_space(folders: Mapping[Path, str], *, yes: bool) -> None:
    """Say which folders are not needed, and why; delete them with `yes`."""
    for folder, reason in folders.items():
        megabytes = size_of(folder) / 1e6
        print(f"{'deleted' if yes else 'would delete'} {folder} ({megabytes:.1f} MB): {reason}")
        if yes:
            discard(folder / "SUCCESS")  # first: no command takes half of it for the whole
            discard(folder)
    if not folders:
        print("Nothing to delete: runs name all stages, and none that finished has checkpoints.")
    elif not yes:
        print("Add --yes to delete them.")


if __name__ == "__main__":
    leave(run_command(main))
