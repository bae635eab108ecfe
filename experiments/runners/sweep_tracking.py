"""The outcome of a sweep in MLflow: the choice and its estimate, and every setting's verdict."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.reporting.wording import humanize
from experiments.runners.sweep_estimate import Fresh
from experiments.runners.sweep_report import SettingResult, TrialResult, cells_of, label
from rlhfv_ray.sweep.setting_value import Measure, Objective
from rlhfv_ray.tracking.run import TrackedRun
from rlhfv_ray.tracking.run_folder import HEADLINE

NOTE = "mlflow.note.content"  # the description that MLflow shows on a run's page


def track_outcome(
    outcome: Mapping[str, Any],
    trials: Sequence[TrialResult],
    fresh: Fresh | None,
    run: TrackedRun,
    *,
    folder: Path,
) -> None:
    """Log the outcome of a sweep to its run in MLflow."""
    for name in ("best.json", "trials.json", "settings.json", "config.json"):
        run.log_file(folder / name)
    run.log_table("trials", [trial.flat_row() for trial in trials])
    rates = {f"best/{name}": rate for name, rate in outcome["rates"].items() if rate is not None}
    run.log_metrics(rates)
    run.set_tags({HEADLINE: outcome["sentence"]})
    if fresh is not None:
        numbers = {"mean": fresh.metric.mean, "base": fresh.metric.base}
        numbers["change"] = fresh.metric.change
        run.log_metrics({f"fresh/{name}": x for name, x in numbers.items() if x is not None})


def track_settings(
    order: Sequence[SettingResult],
    close: Sequence[str],
    objective: Objective,
    run: TrackedRun,
    *,
    headline: str,
) -> None:
    """Log every setting's rank, value and verdict to its trials, and all of them as a table.

    The table is the description of the sweep's run. In the list and in the comparison of the
    trials, the tags and metrics say which setting is best, why, and if that is resolved.

    Args:
        order: settings with a value, the best first.
        close: titles of those that the seeds do not tell from the best.
        objective: of the sweep.
        run: of the sweep.
        headline: the result in words.
    """
    measures = [measure for measure in (objective.metric, objective.guard) if measure]
    columns = ["rank", "setting", "verdict", "seeds", *map(label, measures)]
    lines = [headline, "", _row(columns), _row(["---"] * len(columns))]
    for rank, setting in enumerate(order, 1):
        assert setting.value is not None
        verdict = verdict_of(setting, rank, close)
        cells = cells_of(setting.value, objective)
        lines.append(_row([str(rank), setting.title, verdict, *cells]))
        ranked_verdict = f"{rank} of {len(order)}: {verdict}"
        tags = {
            "setting": setting.title,
            "verdict": ranked_verdict,
            "value": _value(cells, measures),
        }
        numbers = {"rank": rank, "mean": setting.value.mean, "guard": setting.value.guard}
        numbers["beyond guard"] = setting.value.violation if objective.guard else None
        for trial in setting.trials:
            child = run.stage(trial.title)
            child.set_tags({"setting": setting.title, **tags})
            metrics = {f"setting/{name}": x for name, x in numbers.items() if x is not None}
            child.log_metrics(metrics)
            child.end("FAILED" if trial.status == "failed" else "FINISHED")
    run.set_tags({NOTE: "\n".join(lines)})


def verdict_of(setting: SettingResult, rank: int, close: Sequence[str]) -> str:
    """Return what is known of a setting beside the best one, in a few words."""
    if setting.outcome != "finished":
        return {"stopped": "stopped early", "failed": "failed"}.get(setting.outcome, "not finished")
    if rank == 1:
        return "best"
    if setting.title in close:
        return "not resolved from the best"
    return "worse" if setting.seeds > 1 else "worse, with one seed: not resolved"


def _value(cells: Sequence[str], measures: Sequence[Measure]) -> str:
    """Return a setting's value in words: its measures, and the seeds that they are means of."""
    seeds, *numbers = cells
    named = zip(measures, numbers, strict=False)
    texts = [f"{humanize(measure.name)} {number}" for measure, number in named]
    return f"{', '.join(texts)}; {seeds} seeds"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
