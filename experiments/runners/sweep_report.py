"""What a sweep found: its trials as rows, the best of them, and figures from which a person can decide."""

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
from rlhfv_ray.sweep.search_space import BETA, SEED, SearchConfig, TrialParams, title_of

NORMALIZE, GAMMA = "loss.normalize", "loss.gamma"
MARKERS = {True: "s", False: "o"}
LEAST = 4  # finished trials from which importance is told


@dataclass(frozen=True)
class Found:
    """One trial, as its folder tells."""

    name: str
    trial_params: TrialParams
    rungs: Mapping[int, Mapping[str, Any]]  # by update
    status: str  # finished, stopped or failed; empty: it goes on
    error: str
    seconds: float
    train: str  # folder of its training
    made: bool  # whether this sweep made that

    @property
    def title(self) -> str:
        """For people."""
        return title_of(self.trial_params)

    @property
    def last(self) -> Mapping[str, Any]:
        """Its last look."""
        return (
            self.rungs[max(self.rungs)]
            if self.rungs
            else {"rates": {}, "intervals": {}, "objective": float("inf")}
        )

    @property
    def rates(self) -> Mapping[str, float | None]:
        """At its last look."""
        return self.last["rates"]

    @property
    def objective(self) -> float:
        """At its last look."""
        return self.last["objective"]

    @property
    def setting(self) -> tuple[tuple[str, Any], ...]:
        """Its values without the seed."""
        return tuple((name, value) for name, value in self.trial_params.items() if name != SEED)

    def row(self) -> dict[str, Any]:
        """As JSON."""
        row = {name: value for name, value in asdict(self).items() if name not in ("rungs", "made")}
        return {
            **row,
            "step": max(self.rungs, default=0),
            "objective": self.last["objective"] if self.rungs else None,
            **self.last,
        }

    def flat_row(self) -> dict[str, Any]:
        """For MLflow's table."""
        return {
            "trial": self.name,
            **self.trial_params,
            "status": self.status,
            "step": max(self.rungs, default=0),
            **self.rates,
            "error": self.error,
        }


def read_trials(folder: Path) -> list[Found]:
    """All trials of a sweep's folder, by their values."""
    found = []
    for place in sorted(folder.glob("trials/*")):
        if not (place / "knobs.json").exists():
            continue
        ended, train = _read(place / "outcome.json"), _read(place / "train.json")
        rungs = {look["step"]: look for look in map(_read, sorted(place.glob("rung-*.json")))}
        outcome = (ended.get("status", ""), ended.get("error", ""), ended.get("seconds", 0.0))
        trial_params = _read(place / "knobs.json")
        found.append(
            Found(
                place.name,
                trial_params,
                rungs,
                *outcome,
                train.get("folder", ""),
                train.get("made", False),
            )
        )
    return sorted(found, key=lambda trial: json.dumps(trial.trial_params))


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def ranked(trials: Sequence[Found], guard: str) -> list[Found]:
    """Finished trials, the best first: by the mean objective over the seeds of their setting, then the mean guard, then their own."""

    def order(trial: Found) -> tuple[float, float]:
        return trial.objective, -(trial.rates.get(guard) or 0)

    def key(trial: Found) -> tuple[tuple[float, ...], tuple[float, float]]:
        columns = zip(*(order(other) for other in groups[trial.setting]), strict=True)
        return tuple(map(statistics.fmean, columns)), order(trial)

    finished = [trial for trial in trials if trial.status == "finished"]
    groups = by_setting(finished)
    return sorted(finished, key=key)


def by_setting(trials: Sequence[Found]) -> dict[tuple[tuple[str, Any], ...], list[Found]]:
    """Trials that differ by their seed only, together."""
    groups: dict[tuple[tuple[str, Any], ...], list[Found]] = {}
    for trial in trials:
        groups.setdefault(trial.setting, []).append(trial)
    return groups


def best_of(trials: Sequence[Found], guard: str) -> Found:
    """The best finished trial of those settings of which most seeds have finished."""
    groups = by_setting([trial for trial in trials if trial.status == "finished"])
    most = max(map(len, groups.values()))
    return ranked(
        [trial for group in groups.values() if len(group) == most for trial in group], guard
    )[0]


def sweep_table(trials: Sequence[Found], search: SearchConfig) -> Table:
    """One line per trial, the best first."""
    names = [name for name in (search.metric, search.guard) if name]
    shown = Table(title=Text("Trials"))
    for column in ("trial", "outcome", "updates", *names):
        shown.add_column(
            Text(column), justify="left" if column in ("trial", "outcome") else "right"
        )
    for trial in sorted(trials, key=lambda trial: (trial.status != "finished", trial.objective)):
        values = [
            "" if trial.rates.get(name) is None else f"{trial.rates[name]:.1%}" for name in names
        ]
        shown.add_row(
            *map(
                Text,
                (
                    trial.title,
                    trial.error or trial.status,
                    str(max(trial.rungs, default=0)),
                    *values,
                ),
            )
        )
    return shown


def write_figures(
    trials: Sequence[Found], base: Mapping[str, Any], search: SearchConfig, folder: Path
) -> list[Path]:
    """All figures for which there is enough to show."""
    finished = [
        trial
        for trial in trials
        if trial.status == "finished" and trial.rates.get(search.metric) is not None
    ]
    made = []
    if finished and search.guard:
        pareto_figure(trials, base, search, folder / "pareto.png")
        made.append(folder / "pareto.png")
    if all(BETA in trial.trial_params and GAMMA in trial.trial_params for trial in finished):
        heat_figure(finished, search, folder / "beta_gamma.png")
        made.append(folder / "beta_gamma.png")
    if len(finished) >= LEAST and (shares := importances(finished)):
        importance_figure(shares, len(finished), folder / "importance.png")
        made.append(folder / "importance.png")
    return made


def pareto_figure(
    trials: Sequence[Found], base: Mapping[str, Any], search: SearchConfig, path: Path
) -> None:
    """The metric against the guard: finished trials with their intervals, stopped ones small, the front as a line."""
    figure = Figure(figsize=(7.5, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    gammas = sorted({trial.trial_params.get(GAMMA, 0) for trial in trials})
    shade = {gamma: place / max(1, len(gammas) - 1) for place, gamma in enumerate(gammas)}
    colors = colormaps["viridis"]
    points = []
    for trial in trials:
        x, y = trial.rates.get(search.guard), trial.rates.get(search.metric)
        if x is None or y is None:
            continue
        color, whole = (
            colors(0.9 * shade[trial.trial_params.get(GAMMA, 0)]),
            trial.status == "finished",
        )
        marker = MARKERS[bool(trial.trial_params.get(NORMALIZE))]
        axes.scatter(
            100 * x,
            100 * y,
            color=color,
            marker=marker,
            s=46 if whole else 14,
            alpha=1 if whole else 0.45,
            zorder=3,
        )
        if whole:
            points.append((x, y))
            for name, direction in ((search.metric, axes.vlines), (search.guard, axes.hlines)):
                if (interval := trial.last["intervals"].get(name)) is not None:
                    at = x if name == search.metric else y
                    direction(
                        100 * at,
                        100 * interval[0],
                        100 * interval[1],
                        color=color,
                        linewidth=0.8,
                        alpha=0.5,
                    )
    _draw_front(axes, points, base, search)
    for gamma in gammas:
        axes.scatter([], [], color=colors(0.9 * shade[gamma]), label=f"gamma {gamma:g}")
    for normalize in [
        kind
        for kind in MARKERS
        if any(trial.trial_params.get(NORMALIZE) is kind for trial in trials)
    ]:
        axes.scatter(
            [],
            [],
            color=GREY,
            marker=MARKERS[normalize],
            label="normalised" if normalize else "summed",
        )
    axes.scatter([], [], color=GREY, s=14, alpha=0.45, label="stopped early (fewer pictures)")
    axes.legend(fontsize=8)
    axes.set_xlabel(f"{search.guard.replace('_', ' ')} / %   (dotted: what the search asks for)")
    axes.set_ylabel(f"{search.metric.replace('_', ' ')} / %, lower is better")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _draw_front(
    axes: Axes, points: Sequence[tuple[float, float]], base: Mapping[str, Any], search: SearchConfig
) -> None:
    front = sorted(
        p for p in points if not any(q[0] >= p[0] and q[1] <= p[1] and q != p for q in points)
    )
    axes.plot(
        [100 * x for x, _ in front], [100 * y for _, y in front], color=GREY, linewidth=1, zorder=1
    )
    if base.get(search.guard) is not None and base.get(search.metric) is not None:
        axes.scatter(
            100 * base[search.guard],
            100 * base[search.metric],
            marker="*",
            s=120,
            color="black",
            zorder=3,
        )
        axes.annotate(
            "base",
            (100 * base[search.guard], 100 * base[search.metric]),
            xytext=(6, 6),
            textcoords="offset points",
        )
        axes.axvline(
            100 * base[search.guard] - search.within, color=GREY, linestyle=":", linewidth=1
        )


def heat_figure(trials: Sequence[Found], search: SearchConfig, path: Path) -> None:
    """The metric by beta and gamma, a panel for summed and one for normalised log-probs; mean, spread over seeds, number of trials."""
    kinds = sorted({trial.trial_params.get(NORMALIZE) for trial in trials}, key=str)
    figure = Figure(figsize=(1 + 4.2 * len(kinds), 4.2), dpi=150, layout="constrained")
    values = [100 * (trial.rates[search.metric] or 0) for trial in trials]
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        some = [trial for trial in trials if trial.trial_params.get(NORMALIZE) == kind]
        betas, gammas = (
            sorted({trial.trial_params[name] for trial in some}) for name in (BETA, GAMMA)
        )
        mean = np.full((len(gammas), len(betas)), np.nan)
        for row, gamma in enumerate(gammas):
            for column, beta in enumerate(betas):
                cell = [
                    100 * (t.rates[search.metric] or 0)
                    for t in some
                    if t.trial_params[BETA] == beta and t.trial_params[GAMMA] == gamma
                ]
                if cell:
                    mean[row, column] = statistics.fmean(cell)
                    spread = f"\n± {statistics.stdev(cell):.1f}" if len(cell) > 1 else ""
                    axes.text(
                        column,
                        row,
                        f"{mean[row, column]:.1f}{spread}\nn = {len(cell)}",
                        ha="center",
                        va="center",
                        fontsize=8,
                    )
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
        form = (
            {True: "normalised log-probs", False: "summed log-probs"}.get(bool(kind))
            if kind is not None
            else ""
        )
        axes.set(xlabel="beta", ylabel="gamma", title=form)
    figure.suptitle(f"{search.metric.replace('_', ' ')} / %, finished trials")
    figure.savefig(path)


def importances(trials: Sequence[Found]) -> dict[str, float]:
    """The share of the objective's variance that each knob explains, by Optuna's fANOVA; empty where nothing varies."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    names = [
        name
        for name in trials[0].trial_params
        if len({str(trial.trial_params.get(name)) for trial in trials}) > 1
    ]
    if not names or len({trial.objective for trial in trials}) < 2:
        return {}
    kinds: dict[str, Any] = {}
    for name in names:
        values = sorted({trial.trial_params.get(name) for trial in trials}, key=str)
        kinds[name] = optuna.distributions.CategoricalDistribution(values)
    study = optuna.create_study()
    for trial in trials:
        params = {name: trial.trial_params.get(name) for name in names}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=kinds, value=trial.objective)
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return {
        name: float(share)
        for name, share in optuna.importance.get_param_importances(
            study, evaluator=evaluator
        ).items()
    }


def importance_figure(shares: Mapping[str, float], count: int, path: Path) -> None:
    """Bars, the weightiest knob on top."""
    figure = Figure(figsize=(6.5, 1.2 + 0.45 * len(shares)), dpi=150, layout="constrained")
    axes = figure.subplots()
    names = sorted(shares, key=lambda name: shares[name])
    axes.barh(names, [100 * shares[name] for name in names], color=BLUE)
    axes.set_xlabel(
        f"share of the objective's variance that it explains / % (fANOVA, {count} finished trials)"
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
