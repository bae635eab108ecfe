"""What makes the difference (RLHF-V, arXiv 2312.00849, Table 3): DDPO, plain DPO, fine-tuning on the chosen answers, DDPO on cropped pictures.

    python experiments/ablation.py shapes                       the embedded world, three seeds, two CPU cores
    python experiments/ablation.py paper --ddpo.model.path MODEL --ddpo.data.path rows.parquet --benchmark object_halbench ...

The first argument is a recipe; every field can be changed. All ways have its settings but for what their names say. Run again after an
interruption, the same command goes on where it was.
"""

import functools
import random
import sys
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.recipes import study_config
from experiments.runners.config import StudyConfig
from rlhfv_ray.config import DDPOConfig, LossConfig
from rlhfv_ray.console import run_command
from rlhfv_ray.storage.folder import resolve_storage

TITLE = "Weighing the corrected segments (DDPO) hallucinates less than DPO."
AREA = (
    0.5,
    1.0,
)  # of a picture that a crop keeps: the release's training transform (Muffin, RandomResizedCrop)
ASPECT = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class AblationConfig(StudyConfig):
    """The ablation."""

    name: str = "ablation"
    """Shown in MLflow and in the study folder's name."""
    sft_learning_rate: float = 0.0
    """Of fine-tuning on the chosen answers; 0: as the others."""


def plain_dpo(config: DDPOConfig, line: Any) -> DDPOConfig:
    """No token weighs more than another."""
    return replace(config, loss=replace(config.loss, gamma=1.0))


def fine_tuned(config: DDPOConfig, line: Any, *, rate: float) -> DDPOConfig:
    """The same chosen answers, imitated; the mean over each answer's tokens."""
    loss = LossConfig(gamma=1.0, normalize=True, sft_weight=1.0, preference_weight=0.0)
    optim = replace(config.optim, learning_rate=rate or config.optim.learning_rate)
    return replace(
        config, loss=loss, optim=optim, data=replace(config.data, reference=str(line.reference))
    )


def cropped(config: DDPOConfig, line: Any) -> DDPOConfig:
    """The same pairs, each picture cropped at random once, for reference and policy alike."""
    from rlhfv_ray.data import load_pairs, write_pairs
    from rlhfv_ray.storage.stages import Stage, run_stages

    def run(folder: Path, _: str) -> None:
        pairs = load_pairs(line.pairs, format=config.data.format)
        write_pairs(
            (replace(pair, image=crop(pair.image, pair.id)) for pair in pairs),
            folder / "pairs.parquet",
        )

    stage = Stage(
        "cropped",
        {"rows": line.reference_inputs["rows"], "area": AREA, "aspect": ASPECT},
        run,
        title="crops",
    )
    run_stages([stage], line.storage)
    path = str(stage.folder(line.storage) / "pairs.parquet")
    return replace(config, data=replace(config.data, path=path, format="auto"))


def crop(image: bytes, seed: str) -> bytes:
    """A random part of a picture, at the picture's own size."""
    from rlhfv_ray.data import decode_image

    whole, draw = decode_image(image), random.Random(seed)
    area, aspect = draw.uniform(*AREA) * whole.width * whole.height, draw.uniform(*ASPECT)
    width = min(whole.width, max(1, round((area * aspect) ** 0.5)))
    height = min(whole.height, max(1, round((area / aspect) ** 0.5)))
    left, top = draw.randint(0, whole.width - width), draw.randint(0, whole.height - height)
    part = whole.crop((left, top, left + width, top + height)).resize(whole.size)
    file = BytesIO()
    part.save(file, format="PNG")
    return file.getvalue()


def main() -> None:
    """Run the command line."""
    config = study_config(AblationConfig, __doc__)
    # heavy; --help and a mistyped field need none of it
    from experiments.runners.study import Arm, Study, run_study
    from experiments.runners.study_report import Claim

    arms = (
        Arm("base"),
        Arm("DDPO", lambda ddpo, line: ddpo),
        Arm("DPO", plain_dpo),
        Arm("SFT on chosen", functools.partial(fine_tuned, rate=config.sft_learning_rate)),
        Arm("DDPO, cropped", cropped),
    )
    beside = ("object_recall", "mention_rate", "wrong_positions", "wrong_numbers", "words")
    others = (
        ("DDPO", "base"),
        ("DPO", "base"),
        ("SFT on chosen", "base"),
        ("DDPO", "SFT on chosen"),
        ("DDPO", "DDPO, cropped"),
    )
    study = Study(TITLE, arms, Claim("DDPO", "DPO", beside, others))
    run_study(config, study, resolve_storage(config.ddpo.storage), console=Console())


if __name__ == "__main__":
    sys.exit(run_command(main))
