"""The results of a sweep: its trials, its settings with their values, and a table of them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from eval.reporting.wording import humanize
from rlhfv_ray.sweep.record import ENDED
from rlhfv_ray.sweep.search_space import TrialParams, name_of, setting_of, title_of
from rlhfv_ray.sweep.setting_value import (
    Measure,
    Objective,
    Rates,
    SettingValue,
    ranked,
    setting_value,
)

PER_CENT = 100.0  # scale of a measure that is shown in per cent


@dataclass(frozen=True)
class TrialResult:
    """One trial, as its folder records it."""

    name: str
    trial_params: TrialParams
    rungs: Mapping[int, Mapping[str, Any]]  # by update
    status: str  # finished, stopped or failed; empty while it runs
    error: str
    seconds: float
    train: str  # name of its training's folder
    made: bool  # True if this sweep created that folder

    @property
    def title(self) -> str:
        """The params as text."""
        return title_of(self.trial_params)

    @property
    def last(self) -> Mapping[str, Any]:
        """The result at the last rung."""
        if not self.rungs:
            return {"rates": {}, "intervals": {}}
        return self.rungs[max(self.rungs)]

    @property
    def rates(self) -> Mapping[str, float | None]:
        """The rates at the last rung."""
        return self.last["rates"]

    @property
    def setting(self) -> str:
        """The name of the params without the seed."""
        return name_of(setting_of(self.trial_params))

    def row(self) -> dict[str, Any]:
        """Return the trial ready for JSON."""
        row = {name: value for name, value in asdict(self).items() if name not in ("rungs", "made")}
        return {**row, "step": max(self.rungs, default=0), **self.last}

    def flat_row(self) -> dict[str, Any]:
        """Return the trial as a row of MLflow's table."""
        return {
            "trial": self.name,
            **self.trial_params,
            "status": self.status,
            "step": max(self.rungs, default=0),
            **self.rates,
            "error": self.error,
        }


def read_trials(folder: Path) -> list[TrialResult]:
    """Read all trials of a sweep's folder, ordered by their params."""
    trials = []
    for trial_folder in sorted(folder.glob("trials/*")):
        if not (trial_folder / "params.json").exists():
            continue
        outcome = _read(trial_folder / ENDED)
        train = _read(trial_folder / "train.json")
        rungs = map(_read, sorted(trial_folder.glob("rung-*.json")))
        trial = TrialResult(
            trial_folder.name,
            trial_params=_read(trial_folder / "params.json"),
            rungs={rung["step"]: rung for rung in rungs},
            status=outcome.get("status", ""),
            error=outcome.get("error", ""),
            seconds=outcome.get("seconds", 0.0),
            train=train.get("folder", ""),
            made=train.get("made", False),
        )
        trials.append(trial)
    return sorted(trials, key=lambda trial: json.dumps(trial.trial_params))


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


@dataclass(frozen=True)
class SettingResult:
    """One setting of a sweep: its trials, one per seed, and its value at their last rung."""

    trials: tuple[TrialResult, ...]
    rung: int  # the last one that a trial reached, counted from 0; -1: none
    value: SettingValue | None  # None: no trial has a value

    @property
    def title(self) -> str:
        """The params without the seed, as text."""
        return title_of(setting_of(self.trials[0].trial_params))

    @property
    def seeds(self) -> int:
        """Number of seeds with a value."""
        return self.value.seeds if self.value else 0

    @property
    def outcome(self) -> str:
        """Its end: finished, stopped or failed; empty while it runs."""
        statuses = [trial.status for trial in self.trials]
        for status in ("finished", "stopped", "failed"):
            if status in statuses:
                return status
        return ""

    def row(self) -> dict[str, Any]:
        """Return the setting ready for JSON."""
        value = self.value._asdict() if self.value else None
        trials = [trial.name for trial in self.trials]
        return {"setting": self.title, "outcome": self.outcome, "value": value, "trials": trials}


def settings_of(
    trials: Iterable[TrialResult], bases: Sequence[Rates], objective: Objective
) -> dict[str, SettingResult]:
    """Return the settings of trials by their names.

    Args:
        trials: of the sweep.
        bases: the base model's rates on the pictures of each rung.
        objective: by which the settings are valued.
    """
    groups: dict[str, list[TrialResult]] = {}
    for trial in trials:
        groups.setdefault(trial.setting, []).append(trial)
    settings: dict[str, SettingResult] = {}
    for name, group in groups.items():
        rungs = [{row["rung"]: row["rates"] for row in trial.rungs.values()} for trial in group]
        last = max((rung for reached in rungs for rung in reached), default=-1)
        seeds = [reached.get(last) for reached in rungs]
        value = setting_value(seeds, bases[last], objective) if last >= 0 else None
        settings[name] = SettingResult(tuple(group), last, value)
    return settings


def ordered(settings: Mapping[str, SettingResult], objective: Objective) -> list[SettingResult]:
    """Return the settings that have a value, the best first; those of later rungs come first."""
    by_rung: dict[int, dict[str, SettingValue | None]] = {}
    for name, setting in settings.items():
        by_rung.setdefault(setting.rung, {})[name] = setting.value
    order: list[SettingResult] = []
    for rung in sorted(by_rung, reverse=True):
        order += [settings[name] for name in ranked(by_rung[rung], objective)]
    return order


def sweep_table(settings: Mapping[str, SettingResult], objective: Objective) -> Table:
    """Return a terminal table with one row per setting, the best first."""
    order = ordered(settings, objective)
    order += [setting for setting in settings.values() if setting.value is None]
    table = Table(title=Text("Settings"))
    table.add_column(Text("setting"))
    table.add_column(Text("outcome"))
    measures = [measure for measure in (objective.metric, objective.guard) if measure]
    for column in ("updates", "seeds", *(label(measure) for measure in measures)):
        table.add_column(Text(column), justify="right")
    for setting in order:
        errors = [trial.error for trial in setting.trials if trial.error]
        updates = max(max(trial.rungs, default=0) for trial in setting.trials)
        cells = ["0", "", ""] if setting.value is None else cells_of(setting.value, objective)
        texts = [setting.title, "; ".join(errors) or setting.outcome, str(updates), *cells]
        table.add_row(*map(Text, texts[: len(table.columns)]))
    return table


def cells_of(value: SettingValue, objective: Objective) -> list[str]:
    """Return the cells of a value: seeds, the metric with its interval, the guard."""
    metric = shown(objective.metric, value.mean, value.interval)
    seeds = f"{value.seeds} of {value.seeds + value.missing}"
    if objective.guard is None or value.guard is None:
        return [seeds, metric]
    note = f", {value.violation:.1f} too far" if value.violation else ""
    return [seeds, metric, shown(objective.guard, value.guard) + note]


def label(measure: Measure) -> str:
    """Return a measure's name with its unit and direction.

    Example:
        >>> label(Measure("object_recall", "higher"))
        'object recall / %, higher is better'
    """
    unit = " / %" if measure.scale == PER_CENT else ""
    return f"{humanize(measure.name)}{unit}, {measure.better} is better"


def shown(measure: Measure, value: float, interval: Sequence[float] | None = None) -> str:
    """Return a number in the measure's unit, with its interval.

    Example:
        >>> shown(Measure("rate", "lower"), 12.34, (10.0, 15.04))
        '12.3 % (10.0 to 15.0)'
        >>> shown(Measure("rating", "higher", 1.0), 2.5)
        '2.50'
    """
    digits = 1 if measure.scale == PER_CENT else 2
    unit = " %" if measure.scale == PER_CENT else ""
    bounds = f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})" if interval else ""
    return f"{value:.{digits}f}{unit}{bounds}"
