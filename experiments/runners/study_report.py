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

from eval.benchmarks.contract import Measure
from eval.reporting.figures import BLUE, GREY
from eval.reporting.wording import cell, label, spoken
from experiments.runners.sweep_report import Found
from rlhfv_ray.stats import Interval, mean_interval


class Claim(NamedTuple):
    """That one arm is better than another in the first measure; further contrasts are told beside it."""

    arm: str
    than: str
    beside: tuple[str, ...] = ()  # further measures of the same two arms, as far as the benchmark has them
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
    measures: tuple[Measure, ...]  # those that every arm has under every seed
    values: Mapping[tuple[str, str], tuple[float, ...]]  # by arm and measure, seed by seed

    @property
    def names(self) -> list[str]:
        """Of the measures."""
        return [measure.name for measure in self.measures]

    def mean(self, arm: str, measure: str) -> Mean:
        """An arm over seeds; what counts cases of cases cannot be below 0 or above 1."""
        values = self.values[arm, measure]
        mean, interval = mean_interval(values)
        if interval is not None and next(one for one in self.measures if one.name == measure).counted:
            interval = Interval(max(0.0, interval.low), min(1.0, interval.high))
        return Mean(mean, interval, values)

    def difference(self, arm: str, than: str, measure: str) -> Mean:
        """How an arm differs from another under the same seeds."""
        pairs = zip(self.values[arm, measure], self.values[than, measure], strict=True)
        values = tuple(one - other for one, other in pairs)
        return Mean(*mean_interval(values), values)

    def as_json(self) -> dict[str, Any]:
        """Everything, for `study.json`."""
        arms = {arm: {name: self.mean(arm, name)._asdict() for name in self.names} for arm in self.arms}
        return {"seeds": list(self.seeds), "arms": arms}


def found_in(trials: Sequence[Found], arms: Sequence[str]) -> Findings:
    """Bring trials into order: arms as the study has them, seeds as they grow."""
    rates = {(trial.knobs["arm"], trial.knobs["seed"]): trial.rates for trial in trials}
    seeds = tuple(sorted({seed for _, seed in rates}))
    known = {row["name"]: Measure(**row) for trial in trials for row in trial.last["measures"]}
    names = dict.fromkeys(name for some in rates.values() for name in some if name not in ("n", "missing"))
    whole = [name for name in names if all(some.get(name) is not None for some in rates.values())]
    measures = tuple(known.get(name, Measure(name, "lower", counted=False)) for name in whole)
    values = {
        (arm, name): tuple(float(rates[arm, seed][name] or 0.0) for seed in seeds) for arm in arms for name in whole
    }
    return Findings(tuple(arms), seeds, measures, values)


def verdict(measure: Measure, difference: Mean) -> Literal["better", "worse", "not resolved"]:
    """Whether a difference is one: its interval leaves 0 out."""
    interval = difference.interval
    if interval is None or interval.low <= 0 <= interval.high:
        return "not resolved"
    lower = interval.high < 0
    return "better" if lower == (measure.better == "lower") else "worse"


def sentences(title: str, claim: Claim, found: Findings) -> list[str]:
    """What the data support: the claim first, then what stands beside it."""
    measures = {measure.name: measure for measure in found.measures}
    main = found.measures[0]
    said = verdict(main, found.difference(claim.arm, claim.than, main.name))
    answer = {
        "better": "The data support it",
        "worse": "The data say the opposite",
        "not resolved": f"Not resolved with {len(found.seeds)} seeds",
    }
    out = [f"{title} {answer[said]}: {contrast(main, found, claim.arm, claim.than)}."]
    beside = [measures[name] for name in claim.beside if name in measures]
    contrasts = [(measure, claim.arm, claim.than) for measure in beside]
    contrasts += [(main, arm, than) for arm, than in claim.others]
    for measure, arm, than in contrasts:
        kind = verdict(measure, found.difference(arm, than, measure.name)) if measure.better else ""
        out.append(f"{contrast(measure, found, arm, than)}{f': {kind}' if kind else ''}.")
    return [sentence[0].upper() + sentence[1:] for sentence in out]


def contrast(measure: Measure, found: Findings, arm: str, than: str) -> str:
    """Two arms in one measure, in words."""
    one, other = (cell(measure, found.mean(name, measure.name).mean).number for name in (arm, than))
    difference = found.difference(arm, than, measure.name)
    low_high = ""
    if difference.interval is not None:
        low_high = " to ".join(f"{measure.scale * bound:+.1f}" for bound in difference.interval)
    unit = " %" if measure.scale == 100 else ""
    return (
        f"{spoken(measure.name)} {one}{unit} with {arm}, {other}{unit} with {than}, difference "
        f"{measure.scale * difference.mean:+.1f} (95 % interval {low_high})"
    )


def lines(found: Findings) -> list[list[str]]:
    """One line per measure: its name, which way is better, and every arm's mean with its interval."""
    made = []
    for measure in found.measures:
        means = [found.mean(arm, measure.name) for arm in found.arms]
        made.append([label(measure), measure.better, *(str(cell(measure, m.mean, m.interval)) for m in means)])
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
    return "\n".join([f"# {title}", "", *(f"* {sentence}" for sentence in said), "", head, rule, *body, ""])


SHOWN = ("response_rate", "mention_rate", "object_recall", "wrong_positions", "wrong_numbers", "words")


def arms_figure(found: Findings, path: Path, *, names: Sequence[str] = SHOWN) -> None:
    """One panel per measure, one line per arm: every seed as a dot, the mean with its interval."""
    measures = [measure for measure in found.measures if measure.name in names] or list(found.measures)
    figure = Figure(figsize=(2.2 + 2.3 * len(measures), 1.6 + 0.5 * len(found.arms)), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    places = range(len(found.arms))[::-1]
    for axes, measure in zip(panels, measures, strict=True):
        for place, arm in zip(places, found.arms, strict=True):
            found_mean = found.mean(arm, measure.name)
            axes.scatter(
                [measure.scale * value for value in found_mean.values],
                [place] * len(found_mean.values),
                color=GREY,
                s=16,
                zorder=2,
            )
            if found_mean.interval is not None:
                axes.hlines(place, *(measure.scale * bound for bound in found_mean.interval), color=BLUE, linewidth=1.6)
            axes.scatter(measure.scale * found_mean.mean, place, color=BLUE, marker="|", s=120, zorder=3)
        arrow = {"lower": "←", "higher": "→", "": ""}[measure.better]
        axes.set_title(f"{label(measure)} {arrow}", fontsize=9)
        axes.set_yticks(list(places), found.arms)
        axes.set_ylim(-0.6, len(found.arms) - 0.4)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{len(found.seeds)} seeds: each, their mean and its 95 % interval; arrows point to better", fontsize=9
    )
    figure.savefig(path)
