"""The record of a sweep on disk: what its trials found, and how they ended.

trials/<name>/params.json    the trial's values
trials/<name>/rung-<n>.json  its rates at a rung, counted from 0
trials/<name>/outcome.json   its end: finished, stopped or failed
drawn.json                   the trials that a searcher drew, in their order
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhfv_ray.storage.files import write_json
from rlhfv_ray.sweep.search_space import TrialParams, name_of
from rlhfv_ray.sweep.setting_value import Rates

ENDED, DRAWN = "outcome.json", "drawn.json"


def trial_folder(folder: Path, trial_params: TrialParams) -> Path:
    """Return the folder of a trial of the sweep in `folder`."""
    return folder / "trials" / name_of(trial_params)


def write_rung(folder: Path, rung: int, rates: Rates, **details: Any) -> None:
    """Record a trial's rates at a rung, and details for the report."""
    write_json(folder / f"rung-{rung}.json", {"rung": rung, "rates": dict(rates), **details})


def read_rung(folder: Path, rung: int) -> Rates | None:
    """Return a trial's rates at a rung; None if it has none there."""
    path = folder / f"rung-{rung}.json"
    return json.loads(path.read_text())["rates"] if path.exists() else None


def end_trial(folder: Path, status: str, *, error: str = "", seconds: float = 0.0) -> None:
    """Record how a trial ended, unless that is recorded already.

    A finished trial replaces any other end: its results are there.
    """
    path = folder / ENDED
    is_better = status == "finished" and _status(path) != status
    if path.exists() and not is_better:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"status": status, "error": error, "seconds": round(seconds, 1)})


def forget_unfinished(folder: Path) -> None:
    """Forget the end of all trials that did not finish.

    Failed ones run again, and which ones a rung stops is decided again.
    """
    for path in folder.glob(f"trials/*/{ENDED}"):
        if _status(path) != "finished":
            path.unlink()


def _status(path: Path) -> str:
    return json.loads(path.read_text())["status"] if path.exists() else ""


def drawn_trials(folder: Path) -> list[TrialParams]:
    """Return the trials that a searcher drew, in the order of the drawing."""
    return _drawn(folder)["trials"]


def drawn_samples(folder: Path) -> list[dict[str, Any]]:
    """Return what the searcher's own method drew for each setting."""
    return _drawn(folder)["samples"]


def add_drawn(folder: Path, sample: dict[str, Any], trials: Sequence[TrialParams]) -> None:
    """Record a setting that a searcher drew, with its trials."""
    drawn = _drawn(folder)
    samples = [*drawn["samples"], sample]
    write_json(folder / DRAWN, {"samples": samples, "trials": [*drawn["trials"], *trials]})


def _drawn(folder: Path) -> dict[str, list[Any]]:
    path = folder / DRAWN
    return json.loads(path.read_text()) if path.exists() else {"samples": [], "trials": []}
