"""Which tokens should weigh more: none, the release's rule, every changed token, or the spans a human marked.

    python experiments/segment_rules.py shapes                  the embedded world, three seeds, two CPU cores
    python experiments/segment_rules.py paper --ddpo.model.path MODEL --ddpo.data.path rows.parquet --benchmark object_halbench ...

The first argument is a recipe; every field can be changed. Data without marked spans gives the last way the recipe's own rule. Run again
after an interruption, the same command goes on where it was.
"""

import functools
import sys
from dataclasses import dataclass, replace
from typing import Any, Literal

from rich.console import Console

from experiments.recipes import study_config
from experiments.runners.config import StudyConfig
from rlhfv_ray.config import DDPOConfig
from rlhfv_ray.console import run_command
from rlhfv_ray.storage.folder import resolve_storage

TITLE = "Weighing the spans that a human marked hallucinates less than weighing no token more than another."


@dataclass(frozen=True)
class RulesConfig(StudyConfig):
    """The study of segment rules."""

    name: str = "segment_rules"
    """Shown in MLflow and in the study folder's name."""


def compared(config: DDPOConfig, line: Any, *, rule: Literal["muffin", "both_sides"]) -> DDPOConfig:
    """Segments by comparing tokens."""
    return replace(config, data=replace(config.data, rule=rule, spans=False))


def main() -> None:
    """Run the command line."""
    config = study_config(RulesConfig, __doc__)
    # heavy; --help and a mistyped field need none of it
    from experiments.runners.study import Arm, Study, run_study
    from experiments.runners.study_report import Claim

    arms = (
        Arm("base"),
        Arm("no weighting", lambda ddpo, line: replace(ddpo, loss=replace(ddpo.loss, gamma=1.0))),
        Arm("muffin", functools.partial(compared, rule="muffin")),
        Arm("both sides", functools.partial(compared, rule="both_sides")),
        Arm("human spans", lambda ddpo, line: replace(ddpo, data=replace(ddpo.data, spans=True))),
    )
    beside = ("object_recall", "mention_rate", "wrong_positions", "wrong_numbers", "words")
    others = (
        ("muffin", "no weighting"),
        ("both sides", "no weighting"),
        ("human spans", "both sides"),
    )
    study = Study(TITLE, arms, Claim("human spans", "no weighting", beside, others))
    run_study(config, study, resolve_storage(config.ddpo.storage), console=Console())


if __name__ == "__main__":
    sys.exit(run_command(main))
