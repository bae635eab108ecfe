"""Trials and settings of a sweep: read from folders, valued, ordered and tabled, by hand."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.runners.sweep_report import (
    TrialResult,
    ordered,
    read_trials,
    settings_of,
    sweep_table,
)
from rlhfv_ray.sweep.setting_value import Measure, Objective

OBJECTIVE = Objective(Measure("response_rate", "lower"), Measure("object_recall", "higher"))
BASE = {"response_rate": 0.4, "object_recall": 0.8}
BASES = [BASE, BASE]


def trial(beta: float, seed: int, rate: float | None, **changes: Any) -> TrialResult:
    """A trial that reached the last of two rungs, or only the first if it was stopped."""
    fields: dict[str, Any] = {"status": "finished", "error": "", "seconds": 1.0, "recall": 0.8}
    fields |= changes
    rung = {
        "step": 8,
        "rung": 0 if fields["status"] == "stopped" else 1,
        "rates": {"response_rate": rate, "object_recall": fields.pop("recall")},
        "intervals": {"response_rate": [0.1, 0.2]} if rate is not None else {},
    }
    return TrialResult(
        f"{beta}-{seed}",
        trial_params={"loss.beta": beta, "loss.gamma": 5.0, "seed": seed},
        rungs={} if fields["status"] == "failed" else {8: rung},
        train="",
        made=False,
        **fields,
    )


def order_of(trials: list[TrialResult]) -> list[float]:
    settings = settings_of(trials, BASES, OBJECTIVE)
    return [item.trials[0].trial_params["loss.beta"] for item in ordered(settings, OBJECTIVE)]


def test_settings_are_ordered_by_their_mean_over_seeds() -> None:
    """Catches: a setting chosen for one lucky seed. Means: beta 0.1 25 %, beta 0.5 20 %."""
    lucky = [trial(0.1, 0, 0.05), trial(0.1, 1, 0.45)]
    steady = [trial(0.5, 0, 0.22), trial(0.5, 1, 0.18)]
    stopped = [trial(0.9, seed, 0.01, status="stopped") for seed in (0, 1)]
    assert order_of([*stopped, *lucky, *steady]) == [0.5, 0.1, 0.9]


def test_a_setting_with_a_failed_seed_is_not_the_best() -> None:
    """Catches: the one seed that finished compared with the mean of two."""
    steady = [trial(0.5, 0, 0.22), trial(0.5, 1, 0.18)]
    half = [trial(0.1, 0, 0.05), trial(0.1, 1, None, status="failed")]
    assert order_of([*half, *steady]) == [0.5, 0.1]


def test_a_table_has_every_setting_with_its_mean_and_its_errors() -> None:
    """Catches: a setting left out; the unit or the mean of another."""
    trials = [
        *(trial(0.5, seed, rate) for seed, rate in ((0, 0.1), (1, 0.3))),
        trial(0.1, 0, None, status="failed", error="loss is not finite"),
        *(trial(0.9, seed, 0.2, recall=0.7, status="stopped") for seed in (0, 1)),
    ]
    console = Console(width=200, record=True, file=StringIO())
    console.print(sweep_table(settings_of(trials, BASES, OBJECTIVE), OBJECTIVE))
    rows = [line.split("│") for line in console.export_text().splitlines() if "gamma 5" in line]
    cells = [[cell.strip() for cell in row[1:-1]] for row in rows]
    assert cells[0][1:] == ["finished", "8", "2 of 2", "20.0 % (-107.1 to 147.1)", "80.0 %"]
    assert cells[1][1:4] == ["stopped", "8", "2 of 2"]
    assert cells[1][-1] == "70.0 %, 8.0 too far"
    assert cells[2][1:] == ["loss is not finite", "0", "0", "", ""]


def test_trials_are_read_with_their_rungs_and_outcome(tmp_path: Path) -> None:
    """Catches: a rung read in the wrong order; a running or empty folder that stops the report."""
    finished = tmp_path / "trials" / "b"
    running = tmp_path / "trials" / "a"
    for folder, beta in ((finished, 0.1), (running, 0.5)):
        folder.mkdir(parents=True)
        (folder / "params.json").write_text(json.dumps({"loss.beta": beta}))
    for number, step in enumerate((4, 16)):
        rung = {"step": step, "rung": number, "rates": {"response_rate": 1 / step}}
        (finished / f"rung-{number}.json").write_text(json.dumps(rung))
    outcome = {"status": "finished", "seconds": 2.5}
    (finished / "outcome.json").write_text(json.dumps(outcome))
    (finished / "train.json").write_text(json.dumps({"folder": "train-1", "made": True}))
    (tmp_path / "trials" / "empty").mkdir()
    first, second = read_trials(tmp_path)
    assert (first.name, first.status, first.seconds) == ("b", "finished", 2.5)
    assert (first.train, first.made, first.error) == ("train-1", True, "")
    assert list(first.rungs) == [4, 16] and first.rates == {"response_rate": 1 / 16}
    assert (second.name, second.status, second.rates) == ("a", "", {})
    settings = settings_of([second], BASES, OBJECTIVE)
    assert [item.value for item in settings.values()] == [None]
    assert ordered(settings, OBJECTIVE) == []
