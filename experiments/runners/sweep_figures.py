"""The figures of a sweep: metric against guard, beta against gamma, importance of parameters."""

import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.reporting.figures import BLUE, GREY
from experiments.runners.sweep_report import SettingResult, TrialResult, label
from rlhfv_ray.sweep.search_space import BETA, SEED, TrialParams, has_optuna
from rlhfv_ray.sweep.setting_value import Measure, Objective, Rates

NORMALIZE, GAMMA = "loss.normalize", "loss.gamma"
MARKERS = {True: "s", False: "o"}  # by NORMALIZE
MIN_SETTINGS = 8  # finished settings that the importance of parameters needs
RESAMPLES, TAIL = 20, 5  # bootstrap over settings; per cent cut off at each end
TREES = 8  # of fANOVA's forest

log = logging.getLogger(__name__)


def write_figures(
    settings: Mapping[str, SettingResult], base: Rates, objective: Objective, folder: Path
) -> list[Path]:
    """Draw all figures that the finished trials suffice for; return their paths."""
    trials = [trial for setting in settings.values() for trial in setting.trials]
    metric = objective.metric
    finished = [
        trial
        for trial in trials
        if trial.status == "finished" and metric.shown(trial.rates) is not None
    ]
    paths = []
    if finished and objective.guard:
        pareto_figure(trials, base, objective, folder / "pareto.png")
        paths.append(folder / "pareto.png")
    if finished and all({BETA, GAMMA} <= set(trial.trial_params) for trial in finished):
        heat_figure(finished, metric, folder / "beta_gamma.png")
        paths.append(folder / "beta_gamma.png")
    losses = [
        (setting.trials[0].trial_params, setting.value.loss)
        for setting in settings.values()
        if setting.outcome == "finished" and setting.value
    ]
    shares = importances(losses)
    if shares:
        importance_figure(shares, len(losses), folder / "importance.png")
        paths.append(folder / "importance.png")
    return paths


def pareto_figure(
    trials: Sequence[TrialResult], base: Rates, objective: Objective, path: Path
) -> None:
    """Draw the metric against the guard, with the Pareto front as a line.

    Finished trials have their intervals; stopped trials are small.
    """
    metric, guard = objective.metric, objective.guard
    assert guard is not None
    figure = Figure(figsize=(7.5, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    gammas = sorted({trial.trial_params.get(GAMMA, 0) for trial in trials})
    viridis = colormaps["viridis"]
    colors = {
        gamma: viridis(0.9 * index / max(1, len(gammas) - 1)) for index, gamma in enumerate(gammas)
    }
    points = []
    for trial in trials:
        x, y = guard.shown(trial.rates), metric.shown(trial.rates)
        if x is None or y is None:
            continue
        _draw_trial(axes, trial, (x, y), objective, color=colors[trial.trial_params.get(GAMMA, 0)])
        if trial.status == "finished":
            points.append((x, y))
    _draw_front(axes, points, base, objective)
    for gamma, color in colors.items():
        axes.scatter([], [], color=color, label=f"gamma {gamma:g}")
    for normalize, marker in MARKERS.items():
        if any(trial.trial_params.get(NORMALIZE) is normalize for trial in trials):
            name = "normalised" if normalize else "summed"
            axes.scatter([], [], color=GREY, marker=marker, label=name)
    axes.scatter([], [], color=GREY, s=14, alpha=0.45, label="stopped early (fewer pictures)")
    axes.legend(fontsize=8)
    axes.set_xlabel(f"{label(guard)}   (dotted: the limit of the search)")
    axes.set_ylabel(label(metric))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _draw_trial(
    axes: Axes, trial: TrialResult, point: tuple[float, float], objective: Objective, *, color: Any
) -> None:
    marker = MARKERS[bool(trial.trial_params.get(NORMALIZE))]
    x, y = point
    if trial.status != "finished":
        axes.scatter(x, y, color=color, marker=marker, s=14, alpha=0.45, zorder=3)
        return
    axes.scatter(x, y, color=color, marker=marker, s=46, zorder=3)
    line = {"color": color, "linewidth": 0.8, "alpha": 0.5}
    intervals = trial.last["intervals"]
    metric, guard = objective.metric, objective.guard
    if (interval := intervals.get(metric.name)) is not None:
        axes.vlines(x, metric.scale * interval[0], metric.scale * interval[1], **line)
    if guard and (interval := intervals.get(guard.name)) is not None:
        axes.hlines(y, guard.scale * interval[0], guard.scale * interval[1], **line)


def pareto_front(
    points: Sequence[tuple[float, float]], objective: Objective
) -> list[tuple[float, float]]:
    """Return the points (guard, metric) that no other point dominates.

    A point dominates another if neither its guard nor its metric is worse.

    Example:
        >>> objective = Objective(Measure("rate", "lower"), Measure("recall", "higher"))
        >>> pareto_front([(0.8, 0.1), (0.9, 0.2), (0.7, 0.3)], objective)
        [(0.8, 0.1), (0.9, 0.2)]
    """
    measures = (objective.guard, objective.metric)
    signs = [1 if measure and measure.better == "higher" else -1 for measure in measures]
    front = []
    for point in points:
        x, y = (sign * number for sign, number in zip(signs, point, strict=True))
        dominating = [
            rival for rival in points if signs[0] * rival[0] >= x and signs[1] * rival[1] >= y
        ]
        if all(rival == point for rival in dominating):
            front.append(point)
    return sorted(front)


def _draw_front(
    axes: Axes, points: Sequence[tuple[float, float]], base: Rates, objective: Objective
) -> None:
    front = np.array(pareto_front(points, objective)).reshape(-1, 2)  # (points, 2): guard, metric
    axes.plot(front[:, 0], front[:, 1], color=GREY, linewidth=1, zorder=1)
    guard = objective.guard
    x, y = guard.shown(base) if guard else None, objective.metric.shown(base)
    if guard is None or x is None or y is None:
        return
    axes.scatter(x, y, marker="*", s=120, color="black", zorder=3)
    axes.annotate("base", (x, y), xytext=(6, 6), textcoords="offset points")
    limit = x - objective.within if guard.better == "higher" else x + objective.within
    axes.axvline(limit, color=GREY, linestyle=":", linewidth=1)


def heat_figure(trials: Sequence[TrialResult], metric: Measure, path: Path) -> None:
    """Draw the metric by beta and gamma, a panel each for summed and normalised log-probs.

    A cell has the mean, the standard deviation over seeds, and the number of trials.
    """
    kinds = sorted({trial.trial_params.get(NORMALIZE) for trial in trials}, key=str)
    figure = Figure(figsize=(1 + 4.2 * len(kinds), 4.2), dpi=150, layout="constrained")
    values = [metric.shown(trial.rates) or 0.0 for trial in trials]
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        cells: dict[tuple[float, float], list[float]] = {}  # by beta and gamma
        for trial in trials:
            if trial.trial_params.get(NORMALIZE) == kind:
                key = (trial.trial_params[BETA], trial.trial_params[GAMMA])
                cells.setdefault(key, []).append(metric.shown(trial.rates) or 0.0)
        betas = sorted({beta for beta, _ in cells})
        gammas = sorted({gamma for _, gamma in cells})
        mean = np.full((len(gammas), len(betas)), np.nan)
        for (beta, gamma), rates in cells.items():
            row = gammas.index(gamma)
            column = betas.index(beta)
            mean[row, column] = statistics.fmean(rates)
            spread = f"\n± {statistics.stdev(rates):.1f}" if len(rates) > 1 else ""
            text = f"{mean[row, column]:.1f}{spread}\nn = {len(rates)}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8)
        axes.imshow(
            mean,
            cmap="YlOrRd" if metric.better == "lower" else "YlOrRd_r",
            alpha=0.7,
            origin="lower",
            vmin=min(values),
            vmax=max(*values, min(values) + 1e-9),
            aspect="auto",
        )
        axes.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas])
        axes.set_yticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])
        titles = {None: "", True: "normalised log-probs", False: "summed log-probs"}
        axes.set(xlabel="beta", ylabel="gamma", title=titles[kind])
    figure.suptitle(f"{label(metric)}, finished trials")
    figure.savefig(path)


Share = tuple[float, float, float]  # of the variance of the loss: all settings, low, high


def importances(losses: Sequence[tuple[TrialParams, float]]) -> dict[str, Share]:
    """Return the share of the loss's variance that each parameter explains, by Optuna's fANOVA.

    The bounds are those of a bootstrap over settings. A few settings give large shares to noise. So
    the result is empty below `MIN_SETTINGS`, and if the largest share is no larger than the largest
    one of every permutation of the losses (p < 0.05). It is empty without Optuna, which is logged.

    Args:
        losses: the parameters and the loss of every finished setting.
    """
    if len(losses) < MIN_SETTINGS or len({loss for _, loss in losses}) < 2:
        return {}
    if not has_optuna():
        log.warning("importance.png needs Optuna: pip install 'rlhfv-ray[bayes]'")
        return {}
    shares = _fanova(losses)
    draw = np.random.default_rng(0)
    for _ in range(RESAMPLES):
        order = draw.permutation(len(losses))
        permuted = [(losses[i][0], losses[j][1]) for i, j in enumerate(order)]
        if max(shares.values(), default=0.0) <= max(_fanova(permuted).values(), default=0.0):
            return {}
    resampled = []
    for _ in range(RESAMPLES):
        rows = [losses[index] for index in draw.integers(len(losses), size=len(losses))]
        if len({loss for _, loss in rows}) > 1:
            resampled.append(_fanova(rows))
    bounded: dict[str, Share] = {}
    for name, share in shares.items():
        values = [row[name] for row in resampled if name in row] or [0.0, 1.0]
        low, high = np.percentile(values, [TAIL, 100 - TAIL])
        bounded[name] = (share, float(low), float(high))
    return bounded


def _fanova(losses: Sequence[tuple[TrialParams, float]]) -> dict[str, float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions: dict[str, Any] = {}
    for name in losses[0][0]:
        values = sorted({params.get(name) for params, _ in losses}, key=str)
        if name != SEED and len(set(map(str, values))) > 1:
            distributions[name] = optuna.distributions.CategoricalDistribution(values)
    if len(distributions) < 2:  # one parameter explains all, which says nothing
        return {}
    study = optuna.create_study()
    for params, loss in losses:
        varied = {name: params.get(name) for name in distributions}
        study.add_trial(
            optuna.trial.create_trial(params=varied, distributions=distributions, value=loss)
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items()}


def importance_figure(shares: Mapping[str, Share], count: int, path: Path) -> None:
    """Draw the shares as bars with their intervals, the largest on top."""
    figure = Figure(figsize=(6.5, 1.2 + 0.45 * len(shares)), dpi=150, layout="constrained")
    axes = figure.subplots()
    names = sorted(shares, key=lambda name: shares[name])
    table = 100 * np.array([shares[name] for name in names])  # (parameters, 3): share, low, high
    errors = np.abs(table[:, 1:] - table[:, :1]).T
    axes.barh(names, table[:, 0], xerr=errors, color=BLUE, ecolor=GREY)
    axes.set_xlabel(f"share of the loss's variance / % (fANOVA, {count} settings, 90 % interval)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
