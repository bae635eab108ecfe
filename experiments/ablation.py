r"""Ablation (RLHF-V, arXiv 2312.00849, Table 3): compare DDPO with other ways to train.

They are plain DPO, fine-tuning on the chosen answers, and DDPO on cropped images. Where the recipe
adds fine-tuning to the loss (`loss.sft_weight`), as `shapes` does, DDPO without it is another arm.

    # the shapes world, three seeds, two CPU cores
    rlhfv-ray study ablation shapes
    rlhfv-ray study ablation paper --ddpo.model.path MODEL \
        --ddpo.data.path rows.parquet --benchmark object_halbench ...

The first argument is a recipe (default: shapes); every field of it can be changed. All arms use the
recipe's settings except where their names differ. After an interruption, run the same command again
to continue.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from experiments.recipes import study_config
from experiments.runners.config import WeighingConfig
from rlhfv_ray.config import DataConfig, DDPOConfig, LossConfig
from rlhfv_ray.console import leave, new_console, run_command
from rlhfv_ray.records import PreferencePair
from rlhfv_ray.storage.folder import resolve_storage

if TYPE_CHECKING:
    from rlhfv_ray.pipeline import Pipeline  # heavy

TITLE = "Weighing the corrected segments (DDPO) gives more truthful answers than DPO."
ALONE = "DDPO, no SFT term"  # an arm
# The ranges of the release's training transform (Muffin, torchvision's RandomResizedCrop).
AREA = (0.5, 1.0)  # share of the image's area that a crop keeps
ASPECT = (3 / 4, 4 / 3)  # width over height of the crop, relative to the image's own


@dataclass(frozen=True)
class AblationConfig(WeighingConfig):
    """Settings of the ablation."""

    name: str = "ablation"
    """Name in MLflow and in the study folder's name."""
    sft_learning_rate: float = 0.0
    """Peak learning rate of fine-tuning on the chosen answers, >= 0; 0 uses the recipe's."""


def fine_tuned(config: DDPOConfig, pipeline: Pipeline, *, rate: float) -> DDPOConfig:
    """Imitate the same chosen answers, by the mean log-probability of each answer's tokens."""
    loss = LossConfig(gamma=1.0, normalize=True, sft_weight=1.0, preference_weight=0.0)
    optim = replace(config.optim, learning_rate=rate or config.optim.learning_rate)
    return replace(
        config, loss=loss, optim=optim, data=replace(config.data, reference=str(pipeline.reference))
    )


def without_sft(config: DDPOConfig, pipeline: Pipeline) -> DDPOConfig:
    """Leave the preference loss alone, as in the paper."""
    return replace(config, loss=replace(config.loss, sft_weight=0.0))


def cropped(config: DDPOConfig, pipeline: Pipeline) -> DDPOConfig:
    """Crop each image at random once; reference and policy see the same crop."""
    from rlhfv_ray.data import write_pairs
    from rlhfv_ray.inference.reference import reading_changes
    from rlhfv_ray.storage.stages import Stage, run_stages

    def run(folder: Path, _: str) -> None:
        pairs = cropped_pairs(replace(config.data, path=pipeline.pairs))
        write_pairs(pairs, folder / "pairs.parquet")

    stage = Stage(
        "cropped",
        {
            **{"rows": pipeline.reference_inputs["rows"], "area": AREA, "aspect": ASPECT},
            **reading_changes(config.data),
        },
        run,
        title="crops",
    )
    run_stages([stage], pipeline.storage)
    path = str(stage.folder(pipeline.storage) / "pairs.parquet")
    # The written file has its ids and its images in itself, under the usual names.
    data = replace(config.data, path=path, format="auto", columns=(), image_root="", ids="own")
    return replace(config, data=data)


def cropped_pairs(data: DataConfig) -> Iterator[PreferencePair]:
    """Yield the usable pairs of some data with cropped images; the uncropped arms list the rest."""
    from rlhfv_ray.data import ReadOptions, list_slices, read_slice
    from rlhfv_ray.data.images import check_pixels
    from rlhfv_ray.data.row_fields import attempt

    def with_crop(pair: PreferencePair) -> PreferencePair:
        check_pixels(pair.image, data.max_pixels)
        return replace(pair, image=crop(pair.image, pair.id))

    for part in list_slices(data.path, format=data.format, options=ReadOptions.of(data)):
        for _, row in read_slice(part):
            pair = attempt(functools.partial(with_crop, row)) if is_pair(row) else row
            if is_pair(pair):
                yield pair


def is_pair(row: object) -> TypeGuard[PreferencePair]:
    """Return True for a pair, and False for the error that sets a row aside."""
    return isinstance(row, PreferencePair)


def crop(image: bytes, seed: str) -> bytes:
    """Return a random part of an image, scaled to the image's own size, as PNG."""
    from rlhfv_ray.data import decode_image

    picture = decode_image(image)
    draw = random.Random(seed)
    area = draw.uniform(*AREA) * picture.width * picture.height
    aspect = draw.uniform(*ASPECT)
    width = min(picture.width, max(1, round((area * aspect) ** 0.5)))
    height = min(picture.height, max(1, round((area / aspect) ** 0.5)))
    left = draw.randint(0, picture.width - width)
    top = draw.randint(0, picture.height - height)
    part = picture.crop((left, top, left + width, top + height)).resize(picture.size)
    file = BytesIO()
    part.save(file, format="PNG")
    return file.getvalue()


def main() -> None:
    """Run the command line."""
    config = study_config(AblationConfig, __doc__)
    # These imports are heavy, and --help needs none of them.
    from experiments.runners.contrasts import Claim
    from experiments.runners.study import run_study
    from experiments.runners.study_arms import Arm, Study, plain_dpo

    arms = (
        Arm("base"),
        Arm("DDPO", lambda ddpo, pipeline: ddpo),
        Arm("DPO", functools.partial(plain_dpo, beta=config.dpo_beta)),
        Arm("SFT on chosen", functools.partial(fine_tuned, rate=config.sft_learning_rate)),
        Arm("DDPO, cropped", cropped),
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
        ("DDPO", "base"),
        ("DPO", "base"),
        ("SFT on chosen", "base"),
        ("DDPO", "SFT on chosen"),
        ("DDPO", "DDPO, cropped"),
    )
    if config.ddpo.loss.sft_weight:
        arms += (Arm(ALONE, without_sft),)
        contrasts += (("DDPO", ALONE),)
    study = Study(TITLE, arms, Claim("DDPO", "DPO", further, contrasts))
    run_study(config, study, resolve_storage(config.ddpo.storage), console=new_console())


if __name__ == "__main__":
    leave(run_command(main))
