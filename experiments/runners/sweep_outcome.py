"""The end of a sweep: the choice, its estimate on fresh pictures, figures, and the last lines."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.runners.config import SweepConfig
from experiments.runners.scoring import Measured, delete_training, score_model
from experiments.runners.stage_monitor import flat
from experiments.runners.sweep_estimate import Fresh, compare_fresh, sentence
from experiments.runners.sweep_figures import write_figures
from experiments.runners.sweep_report import (
    SettingResult,
    TrialResult,
    ordered,
    read_trials,
    settings_of,
    sweep_table,
)
from experiments.runners.sweep_tracking import track_outcome, track_settings
from rlhfv_ray.config import DDPOConfig, plain
from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import display_path, is_there
from rlhfv_ray.sweep.search_space import TrialParams, arguments_of, setting_of
from rlhfv_ray.sweep.setting_value import (
    Objective,
    Rates,
    indistinct,
)
from rlhfv_ray.tracking.run import TrackedRun


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


def retrain_command(
    trial_params: TrialParams, *, config: DDPOConfig, recipe: DDPOConfig, reference: Path
) -> str:
    """Return the shell command that trains and scores a model with a trial's settings again.

    Args:
        trial_params: of the trial.
        config: that the sweep varies.
        recipe: the named configuration of experiments/ddpo.py from which `config` was changed.
        reference: folder of the reference log-probs.
    """
    usual = flat(plain(recipe))
    settings = flat(plain(config))
    changed = {name: value for name, value in settings.items() if value != usual[name]}
    words = arguments_of({**changed, **trial_params, "data.reference": display_path(reference)})
    return f"python experiments/ddpo.py {recipe.name} {words}"
