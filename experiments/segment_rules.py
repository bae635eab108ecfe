r"""Compare which tokens weigh more: none, the release's, all changed, human-marked spans.

    # the shapes world, three seeds, two CPU cores
    rlhfv-ray study segment_rules shapes
    rlhfv-ray study segment_rules paper --ddpo.model.path MODEL \
        --ddpo.data.path rows.parquet --benchmark object_halbench ...

The first argument is a recipe (default: shapes); every field of it can be changed. For data without
marked spans the last arm uses the recipe's own rule. After an interruption, run the same command
again to continue.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from experiments.recipes import study_config
from experiments.runners.config import WeighingConfig
from rlhfv_ray.config import DDPOConfig
from rlhfv_ray.console import leave, new_console, run_command
from rlhfv_ray.storage.folder import resolve_storage

if TYPE_CHECKING:
    from rlhfv_ray.pipeline import Pipeline  # heavy

TITLE = "Weighing human-marked spans gives more truthful answers than equal weights."


@dataclass(frozen=True)
class RulesConfig(WeighingConfig):
    """The study of segment rules."""

    name: str = "segment_rules"
    """Name in MLflow and in the study folder's name."""


def compared(
    config: DDPOConfig, pipeline: Pipeline, *, rule: Literal["muffin", "both_sides"]
) -> DDPOConfig:
    """Segments by comparing tokens."""
    return replace(config, data=replace(config.data, rule=rule, spans=False))


def main() -> None:
    """Run the command line."""
    config = study_config(RulesConfig, __doc__)
    # These imports are heavy, and --help needs none of them.
    from experiments.runners.contrasts import Claim
    from experiments.runners.study import run_study
    from experiments.runners.study_arms import Arm, Study, plain_dpo

    arms = (
        Arm("base"),
        Arm("no weighting", functools.partial(plain_dpo, beta=config.dpo_beta)),
        Arm("muffin", functools.partial(compared, rule="muffin")),
        Arm("both sides", functools.partial(compared, rule="both_sides")),
        Arm("human spans", lambda ddpo, line: replace(ddpo, data=replace(ddpo.data, spans=True))),
    )
    further = (
        "exact_answers",  # of the shapes world, as the next one: they see the setting, F1 does not
        "wrong_settings",
        "response_rate",
        "object_recall",
        "mention_rate",
        "wrong_positions",
        "wrong_numbers",
        "words",
    )
    contrasts = (
        ("muffin", "no weighting"),
        ("both sides", "no weighting"),
        ("human spans", "both sides"),
    )
    study = Study(TITLE, arms, Claim("human spans", "no weighting", further, contrasts))
    run_study(config, study, resolve_storage(config.ddpo.storage), console=new_console())


if __name__ == "__main__":
    leave(run_command(main))
