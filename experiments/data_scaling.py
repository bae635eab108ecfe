r"""Data scaling (RLHF-V, arXiv 2312.00849, Fig. 2): number of corrections, against rankings.

A ranking is a preference between two whole answers.

    # the shapes world, three seeds, two CPU cores
    rlhfv-ray study data_scaling shapes
    rlhfv-ray study data_scaling paper --ddpo.model.path MODEL \
        --ddpo.data.path rows.parquet --rankings rankings.parquet ...

The first argument is a recipe (default: shapes); every field of it can be changed. Smaller sets are
subsets of larger ones, and every training takes the same number of epochs. After an interruption,
run the same command again to continue.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from experiments.recipes import study_config
from experiments.runners.config import StudyConfig
from rlhfv_ray.config import SHAPES, DDPOConfig
from rlhfv_ray.console import leave, new_console, run_command
from rlhfv_ray.storage.folder import resolve_storage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from eval.benchmarks.contract import Metric
    from experiments.runners.study_results import StudyResults
    from rlhfv_ray.pipeline import Pipeline  # heavy

TITLE = "More corrections, more truthful answers."
KINDS = ("corrections", "rankings")


@dataclass(frozen=True)
class ScalingConfig(StudyConfig):
    """Settings of the study of data scaling."""

    name: str = "data_scaling"
    """Name in MLflow and in the study folder's name."""
    pairs: tuple[int, ...] = (150, 300, 600)
    """Numbers of corrections to train on."""
    ranked: tuple[int, ...] = (150, 300, 600)
    """Numbers of rankings to train on. Outside the shapes world they need `rankings`."""
    rankings: str = ""
    """File or folder of pairs that rank whole answers. The shapes world makes its own."""
    epochs: float = 2.7
    """Passes over the pairs, > 0. They replace the recipe's steps and epochs."""


def sized(
    config: DDPOConfig, pipeline: Pipeline, *, count: int, kind: str, study: ScalingConfig
) -> DDPOConfig:
    """Train on a fixed number of pairs of one kind."""
    data = replace(config.data, limit=count)
    if kind == "rankings":
        data = replace(data, path=study.rankings or config.data.path, format="auto")
        config = replace(config, shapes=replace(config.shapes, pairs="rankings"))
    return replace(config, data=data)


def arm_name(kind: str, count: int) -> str:
    """Return the name of the arm of one size and kind."""
    return f"{count} {kind}"


def draw(results: StudyResults, path: Path) -> None:
    """Draw the claim's metric and the recall over the number of pairs, a line for each kind."""
    from experiments.runners.contrasts import F1_OF_PHRASES

    first = F1_OF_PHRASES if F1_OF_PHRASES in results.names else results.names[0]
    names = (first, "object_recall")
    shown = [metric for metric in results.metrics if metric.name in names]
    figure = Figure(figsize=(5.5 * len(shown), 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, metric in zip(panels, shown, strict=True):
        draw_metric(results, metric, axes)
    figure.suptitle(f"{len(results.seeds)} seeds: mean, 95 % interval, and each")
    figure.savefig(path)


def draw_metric(results: StudyResults, metric: Metric, axes: Axes) -> None:
    """Draw one metric over the number of pairs: mean, interval and each seed."""
    from eval.reporting.figures import BLUE, VERMILION
    from eval.reporting.wording import label

    for kind, color, shift in zip(KINDS, (BLUE, VERMILION), (-6, 6), strict=True):
        arms = {0: "base"}
        arms |= {int(arm.split()[0]): arm for arm in results.arms if arm.endswith(kind)}
        if len(arms) == 1:
            continue
        means = {count + shift: results.mean(arm, metric.name) for count, arm in arms.items()}
        line = sorted((x, metric.scale * mean.mean) for x, mean in means.items())
        axes.plot(*zip(*line, strict=True), color=color, marker="o", label=kind)
        for x, mean in means.items():
            values = [metric.scale * value for value in mean.values]
            axes.scatter([x] * len(values), values, color=color, s=8, alpha=0.5)
            if mean.interval is not None:
                low, high = (metric.scale * bound for bound in mean.interval)
                axes.vlines(x, low, high, color=color, linewidth=1)
    axes.set(xlabel="preference pairs", ylabel=f"{label(metric)}, {metric.better} is better")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()


def main() -> None:
    """Run the command line."""
    config = study_config(ScalingConfig, __doc__)
    optim = replace(config.ddpo.optim, steps=0, epochs=config.epochs)
    config = replace(config, ddpo=replace(config.ddpo, optim=optim))
    # These imports are heavy, and --help needs none of them.
    from experiments.runners.contrasts import Claim
    from experiments.runners.study import run_study
    from experiments.runners.study_arms import Arm, Study

    ranked = config.ranked if config.rankings or config.ddpo.data.path == SHAPES else ()
    sizes = {"corrections": sorted(config.pairs), "rankings": sorted(ranked)}
    arms = [Arm("base")]
    for kind, counts in sizes.items():
        for count in counts:
            change = functools.partial(sized, count=count, kind=kind, study=config)
            arms.append(Arm(arm_name(kind, count), change))
    corrections = ["base", *(arm_name("corrections", count) for count in sizes["corrections"])]
    contrasts = [(more, fewer) for fewer, more in zip(corrections, corrections[1:], strict=False)]
    shared_sizes = [count for count in sizes["corrections"] if count in sizes["rankings"]]
    contrasts += [
        (arm_name("corrections", count), arm_name("rankings", count)) for count in shared_sizes
    ]
    further = ("exact_answers", "wrong_settings", "response_rate", "object_recall", "words")
    claim = Claim(corrections[-1], corrections[1], further, tuple(contrasts))
    study = Study(TITLE, tuple(arms), claim, draw=draw)
    run_study(config, study, resolve_storage(config.ddpo.storage), console=new_console())


if __name__ == "__main__":
    leave(run_command(main))
