"""How many corrections it takes (RLHF-V, arXiv 2312.00849, Fig. 2), and whether rankings of whole answers do as well.

    python experiments/data_scaling.py shapes                   the embedded world, three seeds, two CPU cores
    python experiments/data_scaling.py paper --ddpo.model.path MODEL --ddpo.data.path rows.parquet --rankings rankings.parquet ...

The first argument is a recipe; every field can be changed. Smaller sets are parts of larger ones; every training goes over its pairs equally
often. Run again after an interruption, the same command goes on where it was.
"""

import functools
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from experiments.recipes import study_config
from experiments.runners.config import StudyConfig
from rlhfv_ray.config import SHAPES, DDPOConfig
from rlhfv_ray.console import run_command
from rlhfv_ray.storage.folder import resolve_storage

TITLE = "More corrections, fewer hallucinations."
KINDS = ("corrections", "rankings")


@dataclass(frozen=True)
class ScalingConfig(StudyConfig):
    """The study of data scaling."""

    name: str = "data_scaling"
    """Shown in MLflow and in the study folder's name."""
    pairs: tuple[int, ...] = (200, 800, 1400, 2200)
    """Numbers of corrections to train on."""
    ranked: tuple[int, ...] = (200, 800, 1400)
    """Numbers of rankings to train on; outside the shapes world only with `rankings`."""
    rankings: str = ""
    """File or folder of preference pairs that rank whole answers; the shapes world makes its own."""
    epochs: float = 2.4
    """Passes over the pairs, in place of the recipe's steps or epochs."""
    scenes: int = 3800
    """Scenes to make pairs from, in the shapes world."""


def sized(
    config: DDPOConfig, line: Any, *, count: int, kind: str, study: ScalingConfig
) -> DDPOConfig:
    """So many pairs of a kind."""
    data = replace(config.data, limit=count)
    if kind == "rankings":
        data = replace(data, path=study.rankings or config.data.path, format="auto")
        config = replace(config, shapes=replace(config.shapes, pairs="rankings"))
    return replace(config, data=data)


def arm_name(kind: str, count: int) -> str:
    """Of a size and kind."""
    return f"{count} {kind}"


def draw(found: Any, path: Path) -> None:
    """The first measure and the recall over the number of pairs, a line for each kind, with intervals over seeds."""
    from eval.reporting.figures import BLUE, VERMILION
    from eval.reporting.wording import label

    shown = [metric for metric in found.metrics if metric.name in (found.names[0], "object_recall")]
    figure = Figure(figsize=(5.5 * len(shown), 4.2), dpi=150, layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for kind, color, shift in zip(KINDS, (BLUE, VERMILION), (-6, 6), strict=True):
            arms = {0: "base"} | {
                int(arm.split()[0]): arm for arm in found.arms if arm.endswith(kind)
            }
            if len(arms) == 1:
                continue
            means = {count: found.mean(arm, metric.name) for count, arm in sorted(arms.items())}
            places = [count + shift for count in means]
            axes.plot(
                places,
                [metric.scale * one.mean for one in means.values()],
                color=color,
                marker="o",
                label=kind,
            )
            for place, one in zip(places, means.values(), strict=True):
                axes.scatter(
                    [place] * len(one.values),
                    [metric.scale * v for v in one.values],
                    color=color,
                    s=8,
                    alpha=0.5,
                )
                if one.interval is not None:
                    axes.vlines(
                        place,
                        *(metric.scale * bound for bound in one.interval),
                        color=color,
                        linewidth=1,
                    )
        axes.set(xlabel="preference pairs", ylabel=f"{label(metric)}, {metric.better} is better")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend()
    figure.suptitle(f"{len(found.seeds)} seeds: mean, 95 % interval, and each")
    figure.savefig(path)


def main() -> None:
    """Run the command line."""
    config = study_config(ScalingConfig, __doc__)
    optim = replace(config.ddpo.optim, steps=0, epochs=config.epochs)
    config = replace(
        config,
        ddpo=replace(
            config.ddpo, optim=optim, shapes=replace(config.ddpo.shapes, scenes=config.scenes)
        ),
    )
    # heavy; --help and a mistyped field need none of it
    from experiments.runners.study import Arm, Study, run_study
    from experiments.runners.study_report import Claim

    ranked = config.ranked if config.rankings or config.ddpo.data.path == SHAPES else ()
    sizes = {"corrections": sorted(config.pairs), "rankings": sorted(ranked)}
    arms = (
        Arm("base"),
        *(
            Arm(
                arm_name(kind, count),
                functools.partial(sized, count=count, kind=kind, study=config),
            )
            for kind, counts in sizes.items()
            for count in counts
        ),
    )
    corrections = ["base", *(arm_name("corrections", count) for count in sizes["corrections"])]
    others = [(more, fewer) for fewer, more in zip(corrections, corrections[1:], strict=False)]
    both = [count for count in sizes["corrections"] if count in sizes["rankings"]]
    others += [(arm_name("corrections", count), arm_name("rankings", count)) for count in both]
    claim = Claim(corrections[-1], corrections[1], ("object_recall", "words"), tuple(others))
    study = Study(TITLE, arms, claim, draw=draw)
    run_study(config, study, resolve_storage(config.ddpo.storage), console=Console())


if __name__ == "__main__":
    sys.exit(run_command(main))
