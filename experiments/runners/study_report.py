"""The results of a study: every arm's metrics over seeds, differences of arms, and sentences.

Values are fractions, as in scores. The intervals of arms and of differences between arms come from
the seeds (Student's t): each seed has its own training and, in the shapes world, its own pairs and
images.
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
from experiments.runners.sweep_report import TrialResult
from rlhfv_ray.stats import Interval, mean_interval


class Claim(NamedTuple):
    """The claim that one arm is better than another in the first metric, and further contrasts."""

    arm: str
    than: str
    extras: tuple[str, ...] = ()  # more metrics of these two arms; unknown names are skipped
    others: tuple[tuple[str, str], ...] = ()  # more pairs of arms, in the first metric


class Mean(NamedTuple):
    """The mean of a metric over seeds."""

    mean: float
    interval: Interval | None  # 95 %
    values: tuple[float, ...]  # one per seed


@dataclass(frozen=True)
class StudyResults:
    """All values of a study."""

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]  # those that every arm has under every seed
    values: Mapping[tuple[str, str], tuple[float, ...]]  # by arm and metric; one per seed

    @property
    def names(self) -> list[str]:
        """The names of the metrics."""
        return [metric.name for metric in self.metrics]

    def mean(self, arm: str, metric: str) -> Mean:
        """Return an arm's mean over seeds with its interval, which stays within 0 and 1 for a
        proportion.
        """
        values = self.values[arm, metric]
        mean, interval = mean_interval(values)
        is_proportion = {known.name: known.is_proportion for known in self.metrics}
        if interval is not None and is_proportion[metric]:
            interval = Interval(max(0.0, interval.low), min(1.0, interval.high))
        return Mean(mean, interval, values)

    def difference(self, arm: str, than: str, metric: str) -> Mean:
        """Return the difference of two arms, paired by seed: `arm` minus `than`."""
        pairs = zip(self.values[arm, metric], self.values[than, metric], strict=True)
        values = tuple(value - than_value for value, than_value in pairs)
        return Mean(*mean_interval(values), values)

    def as_json(self) -> dict[str, Any]:
        """Return all means with their values, for `study.json`."""
        arms: dict[str, dict[str, Any]] = {}
        for arm in self.arms:
            arms[arm] = {name: self.mean(arm, name)._asdict() for name in self.names}
        metrics = [metric._asdict() for metric in self.metrics]
        return {"seeds": list(self.seeds), "metrics": metrics, "arms": arms}


def study_results(trials: Sequence[TrialResult], arms: Sequence[str]) -> StudyResults:
    """Collect the trials' values, with arms in the study's order and seeds in ascending order."""
    rates: dict[tuple[str, int], Mapping[str, float | None]] = {}
    known: dict[str, Metric] = {}
    metric_names: dict[str, None] = {}  # in the order in which they first appear
    for trial in trials:
        rates[trial.trial_params["arm"], trial.trial_params["seed"]] = trial.rates
        metric_names |= dict.fromkeys(trial.rates)
        known |= {row["name"]: Metric(**row) for row in trial.last["metrics"]}
    seeds = tuple(sorted({seed for _, seed in rates}))
    metrics: list[Metric] = []
    values: dict[tuple[str, str], tuple[float, ...]] = {}
    for name in metric_names:
        by_trial = {trial: trial_rates.get(name) for trial, trial_rates in rates.items()}
        if name in ("n", "missing") or None in by_trial.values():
            continue
        metrics.append(known.get(name, Metric(name, "lower", is_proportion=False)))
        for arm in arms:
            values[arm, name] = tuple(float(by_trial[arm, seed] or 0.0) for seed in seeds)
    return StudyResults(tuple(arms), seeds, tuple(metrics), values)


def verdict(metric: Metric, difference: Mean) -> Literal["better", "worse", "not resolved"]:
    """Return the direction of a difference, which is resolved if its interval excludes 0."""
    interval = difference.interval
    if interval is None or interval.low <= 0 <= interval.high:
        return "not resolved"
    lower = interval.high < 0
    return "better" if lower == (metric.better == "lower") else "worse"


def sentences(title: str, claim: Claim, results: StudyResults) -> list[str]:
    """Say what the data support: the claim first, then its other contrasts."""
    metrics = {metric.name: metric for metric in results.metrics}
    main = results.metrics[0]
    answers = {
        "better": "The data support it",
        "worse": "The data say the opposite",
        "not resolved": f"Not resolved with {len(results.seeds)} seeds",
    }
    answer = answers[verdict(main, results.difference(claim.arm, claim.than, main.name))]
    texts = [f"{title} {answer}: {contrast(main, results, claim.arm, claim.than)}."]
    contrasts = [(metrics[name], claim.arm, claim.than) for name in claim.extras if name in metrics]
    contrasts += [(main, arm, than) for arm, than in claim.others]
    for metric, arm, than in contrasts:
        text = contrast(metric, results, arm, than)
        if metric.better:
            text += f": {verdict(metric, results.difference(arm, than, metric.name))}"
        texts.append(f"{text}.")
    return [text[0].upper() + text[1:] for text in texts]


def contrast(metric: Metric, results: StudyResults, arm: str, than: str) -> str:
    """Return two arms' means of one metric and their difference, in words."""
    arm_mean = format_cell(metric, results.mean(arm, metric.name).mean).number
    than_mean = format_cell(metric, results.mean(than, metric.name).mean).number
    difference = results.difference(arm, than, metric.name)
    bounds = [f"{metric.scale * bound:+.1f}" for bound in difference.interval or ()]
    unit = " %" if metric.scale == 100 else ""
    return (
        f"{humanize(metric.name)} {arm_mean}{unit} with {arm}, {than_mean}{unit} with {than}, "
        f"difference {metric.scale * difference.mean:+.1f} (95 % interval {' to '.join(bounds)})"
    )


def row_texts(results: StudyResults) -> list[list[str]]:
    """Return one row per metric: its name, the better direction, and every arm's mean."""
    rows = []
    for metric in results.metrics:
        means = [results.mean(arm, metric.name) for arm in results.arms]
        cells = [str(format_cell(metric, mean.mean, mean.interval)) for mean in means]
        rows.append([label(metric), metric.better, *cells])
    return rows


def study_table(title: str, results: StudyResults) -> Table:
    """Return the results as a table for the terminal."""
    table = Table(title=Text(f"{title} Mean over {len(results.seeds)} seeds (95 % interval)"))
    for index, column in enumerate(("metric", "better", *results.arms)):
        table.add_column(Text(column), justify="right" if index > 1 else "left")
    for texts in row_texts(results):
        table.add_row(*map(Text, texts))
    return table


def markdown(title: str, results: StudyResults, claim_sentences: Sequence[str]) -> str:
    """Return the results as Markdown: title, sentences and table."""
    first_column = f"metric, mean over {len(results.seeds)} seeds (95 % interval)"
    lines = [
        f"# {title}",
        "",
        *(f"* {sentence}" for sentence in claim_sentences),
        "",
        f"| {first_column} | better | {' | '.join(results.arms)} |",
        f"|---|---|{'---:|' * len(results.arms)}",
        *(f"| {' | '.join(texts)} |" for texts in row_texts(results)),
        "",
    ]
    return "\n".join(lines)


SHOWN = (
    "response_rate",
    "mention_rate",
    "object_recall",
    "wrong_positions",
    "wrong_numbers",
    "words",
)


def arms_figure(results: StudyResults, path: Path, *, names: Sequence[str] = SHOWN) -> None:
    """Draw one panel per metric, one line per arm: seeds as dots, and the mean with its interval.

    Without any metric of these `names`, all metrics are drawn.
    """
    metrics = [metric for metric in results.metrics if metric.name in names]
    metrics = metrics or list(results.metrics)
    figure = Figure(
        figsize=(2.2 + 2.3 * len(metrics), 1.6 + 0.5 * len(results.arms)),
        dpi=150,
        layout="constrained",
    )
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    heights = range(len(results.arms))[::-1]  # the first arm on top
    for axes, metric in zip(panels, metrics, strict=True):
        for y, arm in zip(heights, results.arms, strict=True):
            over_seeds = results.mean(arm, metric.name)
            values = [metric.scale * value for value in over_seeds.values]
            axes.scatter(values, [y] * len(values), color=GREY, s=16, zorder=2)
            if over_seeds.interval is not None:
                low, high = over_seeds.interval
                axes.hlines(y, metric.scale * low, metric.scale * high, color=BLUE, linewidth=1.6)
            mean = metric.scale * over_seeds.mean
            axes.scatter(mean, y, color=BLUE, marker="|", s=120, zorder=3)
        arrow = {"lower": "←", "higher": "→", "": ""}[metric.better]
        axes.set_title(f"{label(metric)} {arrow}", fontsize=9)
        axes.set_yticks(list(heights), results.arms)
        axes.set_ylim(-0.6, len(results.arms) - 0.4)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    intervals = "each, their mean and its 95 % interval"
    figure.suptitle(f"{len(results.seeds)} seeds: {intervals}; arrows point to better", fontsize=9)
    figure.savefig(path)
