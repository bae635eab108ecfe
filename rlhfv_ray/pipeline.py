"""The line as stages: what an experiment makes, in order, and what each step depends on.

    corrections (shapes only) -> reference -> train,    answers of any model to any prompts

Where chosen answers are all that is learnt from, the reference gives way to examples, encoded.

Stages are declared before anything runs: a folder's name follows from its inputs' fingerprints, so later stages know where earlier
ones will be.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhfv_ray.cluster import check_fits, connect
from rlhfv_ray.config import SHAPES, DataConfig, DDPOConfig, ModelConfig, plain
from rlhfv_ray.data import list_slices
from rlhfv_ray.data.reference_table import check_reference
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.inference.reference import compute_reference_logps, reference_inputs
from rlhfv_ray.inference.sft_examples import encode_examples
from rlhfv_ray.models import check_image_tokens
from rlhfv_ray.shapes_stages import PAIRS, shapes_stage
from rlhfv_ray.storage.folder import display_path, fetch, fetch_local
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.storage.stages import Stage, is_done
from rlhfv_ray.training.train import TrainJob, train_ddpo


@dataclass(frozen=True)
class Pipeline:
    """The stages up to an aligned model, and what later stages need to know of them."""

    config: DDPOConfig
    storage: Path
    pairs: str  # path of the data
    stages: tuple[Stage, ...]
    reference: Path
    reference_inputs: Mapping[str, Any]
    train: Stage

    @property
    def aligned(self) -> ModelConfig:
        """The model that training exports."""
        return replace(self.config.model, path=str(self.train.folder(self.storage) / "model"))


def plan_pipeline(
    config: DDPOConfig, storage: Path, *, seen: Callable[[Sequence[Mapping[str, Any]]], None]
) -> Pipeline:
    """Declare the stages from pairs to an aligned model; reads and checks, but makes nothing.

    Args:
        config: the experiment.
        storage: folder of all stages.
        seen: receives training records while training runs.

    Raises:
        ConfigError: model or data are missing, or do not fit together.
        StaleReferenceError: `data.reference` was made from something else.
    """
    if not config.data.path:
        raise ConfigError(
            "data.path is not set: give --data.path a file or folder of preference pairs."
        )
    check_image_tokens(config.model.path, trust_remote_code=config.model.trust_remote_code)
    stages: list[Stage] = []
    data, rows, examples = config.data, None, config.loss.is_sft and not config.data.reference
    if data.path == SHAPES:
        made = shapes_stage(config)
        stages.append(made)
        folder = made.folder(storage)
        data, rows = replace(data, path=str(folder / PAIRS)), folder.name
    else:
        list_slices(
            data.path, format=data.format, examples=examples
        )  # is it there, with the columns of its format?
    inputs = reference_inputs(config.model, data, rows=rows)
    if data.reference:
        reference = finished_reference(fetch_local(data.reference).resolve(), inputs)
    else:
        stage = (
            examples_stage(config, data, inputs)
            if examples
            else reference_stage(config, data, inputs)
        )
        stages.append(stage)
        reference = stage.folder(storage)
    train = train_stage(config, reference, inputs, seen)
    return Pipeline(config, storage, data.path, (*stages, train), reference, inputs, train)


def reference_stage(config: DDPOConfig, data: DataConfig, inputs: Mapping[str, Any]) -> Stage:
    """Log-probs of all pairs under the model as it is."""
    return Stage(
        "reference",
        inputs,
        lambda folder, _: compute_reference_logps(config.model, data, config.scale, folder),
        title="reference log-probs",
    )


def examples_stage(config: DDPOConfig, data: DataConfig, inputs: Mapping[str, Any]) -> Stage:
    """Examples as token ids."""
    return Stage(
        "examples",
        inputs,
        lambda folder, _: encode_examples(config.model, data, config.scale, folder),
        title="examples",
    )


def train_stage(
    config: DDPOConfig,
    reference: Path,
    inputs: Mapping[str, Any],
    seen: Callable[[Sequence[Mapping[str, Any]]], None],
) -> Stage:
    """DDPO on a reference folder."""

    def run(folder: Path, token: str) -> None:
        train_ddpo(TrainJob(config, reference, dict(inputs), folder, token), seen=seen)

    changes = {
        "reference": dict(inputs),
        "rule": config.data.rule,
        **config.model.training,
        "loss": plain(config.loss),
        "optim": {
            name: value for name, value in plain(config.optim).items() if name != "max_skipped"
        },
        "seed": config.seed,
        **({"limit": config.data.limit} if config.data.limit else {}),
    }
    return Stage("train", changes, run, title="training")


def rung_stage(pipeline: Pipeline, config: DDPOConfig, train: Stage, until: int) -> Stage:
    """A look at a training run on its way: the model after `until` updates. The stage `train` goes on from there."""

    def run(folder: Path, _: str) -> None:
        place = train.folder(pipeline.storage)
        with hold_lease(place) as token:
            job = TrainJob(
                config,
                pipeline.reference,
                dict(pipeline.reference_inputs),
                place,
                token,
                until=until,
                export=folder,
            )
            train_ddpo(job)

    inputs = {"train": train.folder(pipeline.storage).name, "until": until}
    return Stage("rung", inputs, run, title=f"training to update {until}")


def finished_reference(folder: Path, inputs: Mapping[str, Any]) -> Path:
    """A reference folder made earlier, checked against the model and data at hand."""
    if not is_done(folder):
        raise ConfigError(
            f"data.reference = {display_path(folder)!r}: there is no finished reference folder (no SUCCESS file in it)."
        )
    fetch(folder)
    check_reference(json.loads((folder / "config.json").read_text()), inputs)
    return folder


def start(config: DDPOConfig) -> None:
    """Join or start Ray and check that the job fits, before the first stage that has work to do.

    Raises:
        ConfigError: more workers or actors than the cluster can hold.
    """
    connect()
    check_fits(config.scale)
