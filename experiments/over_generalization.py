r"""Over-generalisation (RLHF-V, arXiv 2312.00849, Table 2) of the base model, plain DPO and DDPO.

A model over-generalises when it hallucinates the objects that are frequent in a scene more often
there than elsewhere. The study measures by how much.

    # the shapes world, three seeds, two CPU cores
    rlhfv-ray study over_generalization shapes
    rlhfv-ray study over_generalization paper --ddpo.model.path MODEL \
        --ddpo.data.path rows.parquet --benchmark object_halbench ...

The first argument is a recipe (default: shapes); every field of it can be changed. In the shapes
world a scene is a setting. On Object HalBench the scenes are the paper's, found by COCO's
annotations. After an interruption, run the same command again to continue.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.recipes import study_config
from experiments.runners.config import WeighingConfig
from rlhfv_ray.console import leave, new_console, run_command
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.storage.folder import resolve_storage

if TYPE_CHECKING:
    from eval.benchmarks.contract import Scores
    from experiments.runners.study_results import StudyResults

TITLE = "DDPO over-generalises less than the base model."
RISE = "over_generalization"


@dataclass(frozen=True)
class OverGeneralizationConfig(WeighingConfig):
    """Settings of the study of over-generalisation."""

    name: str = "over_generalization"
    """Name in MLflow and in the study folder's name."""


def rises(scores: Scores) -> Mapping[str, float | None]:
    """Return the mean rise over scenes, each scene's rise, and all rates of the benchmark."""
    rise = scores.extras.get(RISE)
    if rise is None:
        raise ConfigError(
            f"benchmark = {scores.manifest['benchmark']!r} has no scenes: use shapes or "
            "object_halbench."
        )
    scenes = {name: values for name, values in rise.items() if isinstance(values, dict)}
    inside = [values["in_scene"] for values in scenes.values() if values["in_scene"] is not None]
    return {
        RISE: rise["mean_rise"],
        "rate_in_scene": sum(inside) / len(inside) if inside else None,
        **{f"rise_{name}": values["rise"] for name, values in scenes.items()},
        **scores.rates(),
    }


def draw(results: StudyResults, path: Path) -> None:
    """Draw how much more often objects typical of a scene are hallucinated in that scene: the rate
    there, the mean rise, and the rise in every type of scene.
    """
    from experiments.runners.study_report import arms_figure

    arms_figure(
        results,
        path,
        names=[name for name in results.names if name.startswith((RISE, "rate_in", "rise_"))],
    )


def main() -> None:
    """Run the command line."""
    config = study_config(OverGeneralizationConfig, __doc__)
    # These imports are heavy, and --help needs none of them.
    from experiments.runners.contrasts import Claim
    from experiments.runners.study import run_study
    from experiments.runners.study_arms import Arm, Study, plain_dpo

    arms = (
        Arm("base"),
        Arm("DPO", functools.partial(plain_dpo, beta=config.dpo_beta)),
        Arm("DDPO", lambda ddpo, pipeline: ddpo),
    )
    claim = Claim(
        "DDPO",
        "base",
        ("rate_in_scene", "response_rate", "phrase_f1", "exact_answers", "object_recall"),
        (("DPO", "base"), ("DDPO", "DPO")),
        measure=RISE,
    )
    study = Study(TITLE, arms, claim, rises, draw)
    run_study(config, study, resolve_storage(config.ddpo.storage), console=new_console())


if __name__ == "__main__":
    leave(run_command(main))
