"""What a study found: every arm's measures over seeds, how arms differ seed by seed, and the sentence that the data support.

Values are fractions, as scores have them. An arm's interval, and that of a difference between two arms, comes from the seeds (Student's t): each
seed is a training of its own and, in the shapes world, pairs and pictures of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from eval.benchmarks.contract import Metric
from eval.reporting.figures import BLUE, GREY
from eval.reporting.wording import format_cell, humanize, label
from experiments.runners.sweep_report import Found
from rlhfv_ray.stats import Interval, mean_interval


class Claim(NamedTuple):
    """That one arm is better than another in the first measure; further contrasts are told beside it."""

    arm: str
    than: str
    extras: tuple[
        str, ...
    ] = ()  # further measures of the same two arms, as far as the benchmark has them
    others: tuple[tuple[str, str], ...] = ()  # further pairs of arms, in the first measure


class Mean(NamedTuple):
    """A measure over seeds."""

    mean: float
    interval: Interval | None
    values: tuple[float, ...]  # seed by seed


@dataclass(frozen=True)
class Findings:
    """All values of a study."""

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]  # those that every arm has under every seed
    values: Mapping[tuple[str, str], tuple[float, ...]]  # by arm and measure, seed by seed

    @property
    def names(self) -> list[str]:
        """Of the measures."""
        return [metric.name for metric in self.metrics]

    def mean(self, arm: str, metric: str) -> Mean:
        """An arm over seeds; what counts cases of cases cannot be below 0 or above 1."""
        values = self.values[arm, metric]
        mean, interval = mean_interval(values)
        if (
            interval is not None
            and next(one for one in self.metrics if one.name == metric).is_proportion
        ):
            interval = Interval(max(0.0, interval.low), min(1.0, interval.high))
        return Mean(mean, interval, values)

    def difference(self, arm: str, than: str, metric: str) -> Mean:
        """How an arm differs from another under the same seeds."""
        pairs = zip(self.values[arm, metric], self.values[than, metric], strict=True)
        values = tuple(one - other for one, other in pairs)
        return Mean(*mean_interval(values), values)

    def as_json(self) -> dict[str, Any]:
        """Everything, for `study.json`."""
        arms = {
            arm: {name: self.mean(arm, name)._asdict() for name in self.names} for arm in self.arms
        }
        return {"seeds": list(self.seeds), "arms": arms}


def found_in(trials: Sequence[Found], arms: Sequence[str]) -> Findings:
    """Bring trials into order: arms as the study has them, seeds as they grow."""
    rates = {
        (trial.trial_params["arm"], trial.trial_params["seed"]): trial.rates for trial in trials
    }
    seeds = tuple(sorted({seed for _, seed in rates}))
    known = {row["name"]: Metric(**row) for trial in trials for row in trial.last["metrics"]}
    names = dict.fromkeys(
        name for some in rates.values() for name in some if name not in ("n", "missing")
    )
    whole = [name for name in names if all(some.get(name) is not None for some in rates.values())]
    metrics = tuple(known.get(name, Metric(name, "lower", is_proportion=False)) for name in whole)
    values = {
        (arm, name): tuple(float(rates[arm, seed][name] or 0.0) for seed in seeds)
        for arm in arms
        for name in whole
    }
    return Findings(tuple(arms), seeds, metrics, values)


def verdict(metric: Metric, difference: Mean) -> Literal["better", "worse", "not resolved"]:
    """Whether a difference is one: its interval leaves 0 out."""
    interval = difference.interval
    if interval is None or interval.low <= 0 <= interval.high:
        return "not resolved"
    lower = interval.high < 0
    return "better" if lower == (metric.better == "lower") else "worse"


def sentences(title: str, claim: Claim, found: Findings) -> list[str]:
    """What the data support: the claim first, then what stands beside it."""
    metrics = {metric.name: metric for metric in found.metrics}
    main = found.metrics[0]
    said = verdict(main, found.difference(claim.arm, claim.than, main.name))
    answer = {
        "better": "The data support it",
        "worse": "The data say the opposite",
        "not resolved": f"Not resolved with {len(found.seeds)} seeds",
    }
    out = [f"{title} {answer[said]}: {contrast(main, found, claim.arm, claim.than)}."]
    beside = [metrics[name] for name in claim.extras if name in metrics]
    contrasts = [(metric, claim.arm, claim.than) for metric in beside]
    contrasts += [(main, arm, than) for arm, than in claim.others]
    for metric, arm, than in contrasts:
        kind = verdict(metric, found.difference(arm, than, metric.name)) if metric.better else ""
        out.append(f"{contrast(metric, found, arm, than)}{f': {kind}' if kind else ''}.")
    return [sentence[0].upper() + sentence[1:] for sentence in out]


def contrast(metric: Metric, found: Findings, arm: str, than: str) -> str:
    """Two arms in one measure, in words."""
    one, other = (
        format_cell(metric, found.mean(name, metric.name).mean).number for name in (arm, than)
    )
    difference = found.difference(arm, than, metric.name)
    low_high = ""
    if difference.interval is not None:
        low_high = " to ".join(f"{metric.scale * bound:+.1f}" for bound in difference.interval)
    unit = " %" if metric.scale == 100 else ""
    return (
        f"{humanize(metric.name)} {one}{unit} with {arm}, {other}{unit} with {than}, difference "
        f"{metric.scale * difference.mean:+.1f} (95 % interval {low_high})"
    )


def lines(found: Findings) -> list[list[str]]:
    """One line per measure: its name, which way is better, and every arm's mean with its interval."""
    made = []
    for metric in found.metrics:
        means = [found.mean(arm, metric.name) for arm in found.arms]
        made.append(
            [
                label(metric),
                metric.better,
                *(str(format_cell(metric, m.mean, m.interval)) for m in means),
            ]
        )
    return made


def study_table(title: str, found: Findings) -> Table:
    """For the terminal."""
    shown = Table(title=Text(f"{title} Mean over {len(found.seeds)} seeds (95 % interval)"))
    for place, column in enumerate(("measure", "better", *found.arms)):
        shown.add_column(Text(column), justify="right" if place > 1 else "left")
    for line in lines(found):
        shown.add_row(*map(Text, line))
    return shown


def markdown(title: str, found: Findings, said: Sequence[str]) -> str:
    """For people who paste it."""
    head = f"| measure, mean over {len(found.seeds)} seeds (95 % interval) | better | {' | '.join(found.arms)} |"
    rule = f"|---|---|{'---:|' * len(found.arms)}"
    body = [f"| {' | '.join(line)} |" for line in lines(found)]
    return "\n".join(
        [f"# {title}", "", *(f"* {sentence}" for sentence in said), "", head, rule, *body, ""]
    )


SHOWN = (
    "response_rate",
    "mention_rate",
    "object_recall",
    "wrong_positions",
    "wrong_numbers",
    "words",
)


def arms_figure(found: Findings, path: Path, *, names: Sequence[str] = SHOWN) -> None:
    """One panel per measure, one line per arm: every seed as a dot, the mean with its interval."""
    metrics = [metric for metric in found.metrics if metric.name in names] or list(found.metrics)
    figure = Figure(
        figsize=(2.2 + 2.3 * len(metrics), 1.6 + 0.5 * len(found.arms)),
        dpi=150,
        layout="constrained",
    )
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    places = range(len(found.arms))[::-1]
    for axes, metric in zip(panels, metrics, strict=True):
        for place, arm in zip(places, found.arms, strict=True):
            found_mean = found.mean(arm, metric.name)
            axes.scatter(
                [metric.scale * value for value in found_mean.values],
                [place] * len(found_mean.values),
                color=GREY,
                s=16,
                zorder=2,
            )
            if found_mean.interval is not None:
                axes.hlines(
                    place,
                    *(metric.scale * bound for bound in found_mean.interval),
                    color=BLUE,
                    linewidth=1.6,
                )
            axes.scatter(
                metric.scale * found_mean.mean, place, color=BLUE, marker="|", s=120, zorder=3
            )
        arrow = {"lower": "←", "higher": "→", "": ""}[metric.better]
        axes.set_title(f"{label(metric)} {arrow}", fontsize=9)
        axes.set_yticks(list(places), found.arms)
        axes.set_ylim(-0.6, len(found.arms) - 0.4)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{len(found.seeds)} seeds: each, their mean and its 95 % interval; arrows point to better",
        fontsize=9,
    )
    figure.savefig(path)
