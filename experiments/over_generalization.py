"""Does a model name what a scene makes likely (RLHF-V, arXiv 2312.00849, Table 2)? By how much objects that are frequent in a scene are
hallucinated oftener there than anywhere, for the base model, plain DPO and DDPO.

    python experiments/over_generalization.py shapes            the embedded world, three seeds, two CPU cores
    python experiments/over_generalization.py paper --ddpo.model.path MODEL --ddpo.data.path rows.parquet --benchmark object_halbench ...

The first argument is a recipe; every field can be changed. In the shapes world a scene is a setting; on Object HalBench they are the paper's, by
COCO's annotations. Run again after an interruption, the same command goes on where it was.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.recipes import study_config
from experiments.runners.config import StudyConfig
from rlhfv_ray.console import run_command
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.storage.folder import resolve_storage

TITLE = "DDPO over-generalises less than the base model."
RISE = "over_generalization"


@dataclass(frozen=True)
class OverGeneralizationConfig(StudyConfig):
    """The study of over-generalisation."""

    name: str = "over_generalization"
    """Shown in MLflow and in the study folder's name."""


def rises(scores: Any) -> Mapping[str, float | None]:
    """The mean rise over scenes, every scene's own, and the rates of all."""
    found = scores.extras.get(RISE)
    if found is None:
        raise ConfigError(
            f"benchmark = {scores.manifest['benchmark']!r}: no scenes are known there; use shapes or object_halbench."
        )
    scenes = {name: values for name, values in found.items() if isinstance(values, dict)}
    inside = [values["in_scene"] for values in scenes.values() if values["in_scene"] is not None]
    return {
        RISE: found["mean_rise"],
        "rate_in_scene": sum(inside) / len(inside) if inside else None,
        **{f"rise_{name}": values["rise"] for name, values in scenes.items()},
        **scores.rates(),
    }


def draw(found: Any, path: Path) -> None:
    """The mean rise, the rate behind it, and every scene."""
    from experiments.runners.study_report import arms_figure

    arms_figure(
        found,
        path,
        names=[name for name in found.names if name.startswith((RISE, "rate_in", "rise_"))],
    )


def main() -> None:
    """Run the command line."""
    config = study_config(OverGeneralizationConfig, __doc__)
    # heavy; --help and a mistyped field need none of it
    from experiments.runners.study import Arm, Study, run_study
    from experiments.runners.study_report import Claim

    arms = (
        Arm("base"),
        Arm("DPO", lambda ddpo, line: replace(ddpo, loss=replace(ddpo.loss, gamma=1.0))),
        Arm("DDPO", lambda ddpo, line: ddpo),
    )
    claim = Claim(
        "DDPO",
        "base",
        ("rate_in_scene", "response_rate", "object_recall"),
        (("DPO", "base"), ("DDPO", "DPO")),
    )
    study = Study(TITLE, arms, claim, rises, draw)
    run_study(config, study, resolve_storage(config.ddpo.storage), console=Console())


if __name__ == "__main__":
    sys.exit(run_command(main))
