"""The results of a sweep: its trials, the best of them, a table and figures."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from eval.reporting.figures import BLUE, GREY
from eval.reporting.wording import humanize
from rlhfv_ray.sweep.search_space import BETA, SEED, SearchConfig, TrialParams, title_of

NORMALIZE, GAMMA = "loss.normalize", "loss.gamma"
MARKERS = {True: "s", False: "o"}  # by NORMALIZE
MIN_TRIALS = 4  # finished trials that the importance of params needs

Setting = tuple[tuple[str, Any], ...]


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
            return {"rates": {}, "intervals": {}, "objective": float("inf")}
        return self.rungs[max(self.rungs)]

    @property
    def rates(self) -> Mapping[str, float | None]:
        """The rates at the last rung."""
        return self.last["rates"]

    @property
    def objective(self) -> float:
        """The objective at the last rung."""
        return self.last["objective"]

    @property
    def setting(self) -> Setting:
        """The params without the seed."""
        return tuple((name, value) for name, value in self.trial_params.items() if name != SEED)

    def row(self) -> dict[str, Any]:
        """Return the trial ready for JSON."""
        row = {name: value for name, value in asdict(self).items() if name not in ("rungs", "made")}
        return {
            **row,
            "step": max(self.rungs, default=0),
            **self.last,
            "objective": self.objective if self.rungs else None,  # JSON has no infinity
        }

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
        outcome = _read(trial_folder / "outcome.json")
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


def ranked(trials: Sequence[TrialResult], guard: str) -> list[TrialResult]:
    """Return the finished trials, the best first.

    They are ordered by the mean objective over the seeds of their setting, then by the mean guard,
    then by their own objective and guard.
    """

    def own_score(trial: TrialResult) -> tuple[float, float]:
        return trial.objective, -(trial.rates.get(guard) or 0)

    def sort_key(trial: TrialResult) -> tuple[tuple[float, ...], tuple[float, float]]:
        columns = zip(*map(own_score, groups[trial.setting]), strict=True)
        return tuple(map(statistics.fmean, columns)), own_score(trial)

    finished = [trial for trial in trials if trial.status == "finished"]
    groups = by_setting(finished)
    return sorted(finished, key=sort_key)


def by_setting(trials: Sequence[TrialResult]) -> dict[Setting, list[TrialResult]]:
    """Group the trials that differ only by their seed."""
    groups: dict[Setting, list[TrialResult]] = {}
    for trial in trials:
        groups.setdefault(trial.setting, []).append(trial)
    return groups


def best_of(trials: Sequence[TrialResult], guard: str) -> TrialResult:
    """Return the best finished trial of the settings with the most finished seeds."""
    groups = by_setting([trial for trial in trials if trial.status == "finished"])
    most_seeds = max(map(len, groups.values()))
    candidates: list[TrialResult] = []
    for group in groups.values():
        if len(group) == most_seeds:
            candidates += group
    return ranked(candidates, guard)[0]


def sweep_table(trials: Sequence[TrialResult], search: SearchConfig) -> Table:
    """Return a terminal table with one row per trial, the best first."""
    names = [name for name in (search.metric, search.guard) if name]
    table = Table(title=Text("Trials"))
    table.add_column(Text("trial"))
    table.add_column(Text("outcome"))
    for column in ("updates", *names):
        table.add_column(Text(column), justify="right")
    for trial in sorted(trials, key=lambda trial: (trial.status != "finished", trial.objective)):
        rates = [trial.rates.get(name) for name in names]
        values = ["" if rate is None else f"{rate:.1%}" for rate in rates]
        updates = str(max(trial.rungs, default=0))
        texts = [trial.title, trial.error or trial.status, updates, *values]
        table.add_row(*map(Text, texts))
    return table


def write_figures(
    trials: Sequence[TrialResult], base: Mapping[str, Any], search: SearchConfig, folder: Path
) -> list[Path]:
    """Draw all figures that the finished trials suffice for; return their paths."""
    finished = [
        trial
        for trial in trials
        if trial.status == "finished" and trial.rates.get(search.metric) is not None
    ]
    paths = []
    if finished and search.guard:
        pareto_figure(trials, base, search, folder / "pareto.png")
        paths.append(folder / "pareto.png")
    if all(BETA in trial.trial_params and GAMMA in trial.trial_params for trial in finished):
        heat_figure(finished, search, folder / "beta_gamma.png")
        paths.append(folder / "beta_gamma.png")
    if len(finished) >= MIN_TRIALS and (shares := importances(finished)):
        importance_figure(shares, len(finished), folder / "importance.png")
        paths.append(folder / "importance.png")
    return paths


def pareto_figure(
    trials: Sequence[TrialResult], base: Mapping[str, Any], search: SearchConfig, path: Path
) -> None:
    """Draw the metric against the guard, with the Pareto front as a line.

    Finished trials have their intervals; stopped trials are small.
    """
    figure = Figure(figsize=(7.5, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    gammas = sorted({trial.trial_params.get(GAMMA, 0) for trial in trials})
    viridis = colormaps["viridis"]
    colors = {
        gamma: viridis(0.9 * index / max(1, len(gammas) - 1)) for index, gamma in enumerate(gammas)
    }
    points = []
    for trial in trials:
        x = trial.rates.get(search.guard)
        y = trial.rates.get(search.metric)
        if x is None or y is None:
            continue
        color = colors[trial.trial_params.get(GAMMA, 0)]
        _draw_trial(axes, trial, x, y, search, color=color)
        if trial.status == "finished":
            points.append((x, y))
    _draw_front(axes, points, base, search)
    for gamma, color in colors.items():
        axes.scatter([], [], color=color, label=f"gamma {gamma:g}")
    for normalize, marker in MARKERS.items():
        if any(trial.trial_params.get(NORMALIZE) is normalize for trial in trials):
            name = "normalised" if normalize else "summed"
            axes.scatter([], [], color=GREY, marker=marker, label=name)
    axes.scatter([], [], color=GREY, s=14, alpha=0.45, label="stopped early (fewer pictures)")
    axes.legend(fontsize=8)
    axes.set_xlabel(f"{humanize(search.guard)} / %   (dotted: the lowest that the search accepts)")
    axes.set_ylabel(f"{humanize(search.metric)} / %, lower is better")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _draw_trial(
    axes: Axes, trial: TrialResult, x: float, y: float, search: SearchConfig, *, color: Any
) -> None:
    marker = MARKERS[bool(trial.trial_params.get(NORMALIZE))]
    if trial.status != "finished":
        axes.scatter(100 * x, 100 * y, color=color, marker=marker, s=14, alpha=0.45, zorder=3)
        return
    axes.scatter(100 * x, 100 * y, color=color, marker=marker, s=46, zorder=3)
    line = {"color": color, "linewidth": 0.8, "alpha": 0.5}
    intervals = trial.last["intervals"]
    if (interval := intervals.get(search.metric)) is not None:
        axes.vlines(100 * x, 100 * interval[0], 100 * interval[1], **line)
    if (interval := intervals.get(search.guard)) is not None:
        axes.hlines(100 * y, 100 * interval[0], 100 * interval[1], **line)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (guard, metric) that no other point dominates.

    A point dominates another if its guard is as high or higher and its metric as low or lower.

    Example:
        >>> pareto_front([(0.8, 0.1), (0.9, 0.2), (0.7, 0.3)])
        [(0.8, 0.1), (0.9, 0.2)]
    """
    front = []
    for point in points:
        x, y = point
        dominating = [rival for rival in points if rival[0] >= x and rival[1] <= y]
        if all(rival == point for rival in dominating):
            front.append(point)
    return sorted(front)


def _draw_front(
    axes: Axes, points: Sequence[tuple[float, float]], base: Mapping[str, Any], search: SearchConfig
) -> None:
    front = 100 * np.array(pareto_front(points)).reshape(-1, 2)  # (points, 2): guard, metric
    axes.plot(front[:, 0], front[:, 1], color=GREY, linewidth=1, zorder=1)
    if base.get(search.guard) is None or base.get(search.metric) is None:
        return
    x = 100 * base[search.guard]
    y = 100 * base[search.metric]
    axes.scatter(x, y, marker="*", s=120, color="black", zorder=3)
    axes.annotate("base", (x, y), xytext=(6, 6), textcoords="offset points")
    axes.axvline(x - search.within, color=GREY, linestyle=":", linewidth=1)


def heat_figure(trials: Sequence[TrialResult], search: SearchConfig, path: Path) -> None:
    """Draw the metric by beta and gamma, a panel each for summed and normalised log-probs.

    A cell has the mean, the standard deviation over seeds, and the number of trials.
    """
    kinds = sorted({trial.trial_params.get(NORMALIZE) for trial in trials}, key=str)
    figure = Figure(figsize=(1 + 4.2 * len(kinds), 4.2), dpi=150, layout="constrained")
    values = [100 * (trial.rates[search.metric] or 0) for trial in trials]
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        panel = [trial for trial in trials if trial.trial_params.get(NORMALIZE) == kind]
        cells: dict[tuple[float, float], list[float]] = {}  # by beta and gamma
        for trial in panel:
            key = (trial.trial_params[BETA], trial.trial_params[GAMMA])
            cells.setdefault(key, []).append(100 * (trial.rates[search.metric] or 0))
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
            cmap="YlOrRd",
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
    figure.suptitle(f"{humanize(search.metric)} / %, finished trials")
    figure.savefig(path)


def importances(trials: Sequence[TrialResult]) -> dict[str, float]:
    """Return the share of the objective's variance that each param explains, by Optuna's fANOVA.

    The result is empty if no param varies, or if all objectives are equal.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions: dict[str, Any] = {}
    for name in trials[0].trial_params:
        values = sorted({trial.trial_params.get(name) for trial in trials}, key=str)
        if len(set(map(str, values))) > 1:
            distributions[name] = optuna.distributions.CategoricalDistribution(values)
    if not distributions or len({trial.objective for trial in trials}) < 2:
        return {}
    study = optuna.create_study()
    for trial in trials:
        params = {name: trial.trial_params.get(name) for name in distributions}
        frozen = optuna.trial.create_trial(
            params=params, distributions=distributions, value=trial.objective
        )
        study.add_trial(frozen)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items()}


def importance_figure(shares: Mapping[str, float], count: int, path: Path) -> None:
    """Draw the shares as bars, the largest on top."""
    figure = Figure(figsize=(6.5, 1.2 + 0.45 * len(shares)), dpi=150, layout="constrained")
    axes = figure.subplots()
    names = sorted(shares, key=lambda name: shares[name])
    axes.barh(names, [100 * shares[name] for name in names], color=BLUE)
    axes.set_xlabel(
        f"share of the objective's variance that it explains / % (fANOVA, {count} finished trials)"
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
