"""The end of a sweep: the choice, its estimate on fresh pictures, figures, MLflow, last lines."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.reporting.wording import humanize
from experiments.runners.config import SweepConfig
from experiments.runners.scoring import Measured, delete_training, score_model
from experiments.runners.stage_monitor import flat
from experiments.runners.sweep_estimate import Fresh, compare_fresh, sentence
from experiments.runners.sweep_figures import write_figures
from experiments.runners.sweep_report import (
    SettingResult,
    TrialResult,
    cells_of,
    label,
    ordered,
    read_trials,
    settings_of,
    sweep_table,
)
from rlhfv_ray.config import DDPOConfig, plain
from rlhfv_ray.console import program
from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import display_path, is_there
from rlhfv_ray.sweep.search_space import TrialParams, arguments_of, setting_of
from rlhfv_ray.sweep.setting_value import (
    Measure,
    Objective,
    Rates,
    indistinct,
)
from rlhfv_ray.tracking.run import TrackedRun
from rlhfv_ray.tracking.run_folder import HEADLINE

SHOWN = 20  # settings in the description of a run; MLflow takes 8,000 characters
NOTE = "mlflow.note.content"  # the description that MLflow shows on a run's page


def conclude(
    config: SweepConfig,
    measured: Measured,
    folder: Path,
    run: TrackedRun,
    *,
    retrain: Callable[[TrialParams], str],
    console: Console,
) -> dict[str, Any]:
    """Choose the best setting; write table, figures and estimate to the folder and to the run.

    Args:
        config: of the sweep.
        measured: what settings are compared by.
        folder: of the sweep.
        run: of the sweep in MLflow.
        retrain: returns the command that trains a trial again.
        console: of the terminal.

    Raises:
        StageFailedError: no trial finished.
    """
    trials = read_trials(folder)
    objective = measured.objective
    settings = settings_of(trials, *measured)
    order = ordered(settings, objective)
    write_json(folder / "trials.json", [trial.row() for trial in trials])
    write_json(folder / "settings.json", [setting.row() for setting in order])
    console.print(sweep_table(settings, objective))
    finished = [setting for setting in order if setting.outcome == "finished"]
    if not finished:
        reasons = [f"{trial.title}: {trial.error}" for trial in trials if trial.error]
        raise StageFailedError(f"No trial finished: {'; '.join(reasons) or 'none was started'}")
    best = finished[0]
    fresh = score_fresh(config, best, objective, folder)
    close = close_to_best(settings, objective)
    outcome = {
        **describe(best, folder.parent, base=measured.bases[-1]),
        "indistinct": close,
        "fresh": fresh.as_json() if fresh else None,
        "retrain": retrain(shown_trial(best).trial_params),
        "sentence": sentence(best.title, best.seeds, fresh, close, objective),
    }
    if fresh is None:  # an earlier run scored the models, and --search.keep 0 deleted them
        outcome |= recorded_estimate(folder / "best.json", outcome)
    if not config.search.keep:
        for trial in best.trials:
            if trial.made:
                delete_training(folder.parent / trial.train)
        outcome["model"] = None
    write_json(folder / "best.json", outcome)
    for file in write_figures(settings, measured.bases[-1], objective, folder):
        run.log_file(file, "figures")
    track_outcome(outcome, trials, fresh, run, folder=folder)
    track_settings(order, close, objective, run, headline=outcome["sentence"])
    console.print(outcome["sentence"], highlight=False, soft_wrap=True)
    console.print(f"train it again: {outcome['retrain']}", highlight=False, soft_wrap=True)
    return outcome


def recorded_estimate(path: Path, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Return the estimate that an earlier run of the sweep recorded for the same choice."""
    recorded = json.loads(path.read_text()) if path.exists() else {}
    if recorded.get("value") != json.loads(json.dumps(outcome["value"])):
        return {}
    return {name: recorded[name] for name in ("fresh", "sentence")}


def shown_trial(setting: SettingResult) -> TrialResult:
    """Return the finished trial of a setting's first seed: no result decides which one."""
    return next(trial for trial in setting.trials if trial.status == "finished")


def describe(best: SettingResult, storage: Path, *, base: Rates) -> dict[str, Any]:
    """Return the chosen setting: its value over seeds, and one of its models with its own rates."""
    assert best.value is not None
    trial = shown_trial(best)
    models = {}
    for item in best.trials:
        model = storage / item.train / "model"
        if item.status == "finished" and is_there(model):
            models[item.name] = display_path(model)
    return {
        **trial.row(),
        "setting": setting_of(trial.trial_params),
        "value": best.value._asdict(),
        "keeps_guard": best.value.violation == 0,
        "base": dict(base),
        "models": models,
        "model": models.get(trial.name),
    }


def close_to_best(settings: Mapping[str, SettingResult], objective: Objective) -> list[str]:
    """Return the finished settings that the seeds do not tell from the best one, best first."""
    values = {
        name: setting.value for name, setting in settings.items() if setting.outcome == "finished"
    }
    return [settings[name].title for name in indistinct(values, objective)]


def score_fresh(
    config: SweepConfig, best: SettingResult, objective: Objective, folder: Path
) -> Fresh | None:
    """Score the base model and all models of the best setting on pictures that decided nothing.

    The best of many looks better on the pictures that chose it than it is.

    Returns:
        None if a model of the setting is gone, because an earlier run deleted it.
    """
    storage = folder.parent
    trials = [trial for trial in best.trials if trial.status == "finished"]
    paths = {trial.name: str(storage / trial.train / "model") for trial in trials}
    paths = {"base": config.ddpo.model.path, **paths}
    if not all(is_there(Path(paths[trial.name])) for trial in trials):
        return None
    scores = {
        name: score_model(
            config, path, storage, folder / f"fresh-{name}", pictures=config.pictures("fresh")
        )
        for name, path in paths.items()
    }
    base = scores.pop("base")
    return compare_fresh(base, list(scores.values()), objective)


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
            child.set_tags(tags)
            metrics = {f"setting/{name}": x for name, x in numbers.items() if x is not None}
            child.log_metrics(metrics)
            child.end("FAILED" if trial.status == "failed" else "FINISHED")
    first = lines[: 4 + SHOWN]  # after the headline, an empty line and the table's head
    if len(first) < len(lines):
        first += ["", f"{len(lines) - len(first)} more are in settings.json."]
    run.set_tags({NOTE: "\n".join(first)})


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


def retrain_command(
    trial_params: TrialParams, *, config: DDPOConfig, recipe: DDPOConfig, reference: Path
) -> str:
    """Return the shell command that trains and scores a model with a trial's settings again.

    Args:
        trial_params: of the trial.
        config: that the sweep varies.
        recipe: the named configuration of `rlhfv-ray train` from which `config` was changed.
        reference: folder of the reference log-probs.
    """
    usual = flat(plain(recipe))
    settings = flat(plain(config))
    changed = {name: value for name, value in settings.items() if value != usual[name]}
    words = arguments_of({**changed, **trial_params, "data.reference": display_path(reference)})
    return f"{program('rlhfv-ray')} train {recipe.name} {words}"
