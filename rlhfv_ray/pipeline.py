"""The pipeline as stages: each step of an experiment, in order, with everything it depends on.

    corrections (shapes only) -> reference -> train,    answers of any model to any prompts

Supervised fine-tuning learns from chosen answers alone. Its pipeline has encoded examples in place
of the reference.

Stages are declared before anything runs. A folder's name follows from the fingerprints of its
inputs, so later stages know the folders of earlier ones.
"""

import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhfv_ray.cluster import check_fits, connect
from rlhfv_ray.config import SHAPES, DataConfig, DDPOConfig, ModelConfig, changed_settings
from rlhfv_ray.data import audit_pairs, list_slices
from rlhfv_ray.data.audit_page import write_audit
from rlhfv_ray.data.mixture import list_sources
from rlhfv_ray.data.reference_table import check_reference, share_with_changes, unusable_rows
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.inference.memory_check import check_step_fits
from rlhfv_ray.inference.reference import (
    compute_reference_logps,
    reading_settings,
    reference_inputs,
)
from rlhfv_ray.inference.sft_examples import encode_examples
from rlhfv_ray.loss import check_preference_loss
from rlhfv_ray.models import check_image_tokens, check_pickles, processor_of
from rlhfv_ray.models.augmentation import augmentation
from rlhfv_ray.shapes_stages import PAIRS, pairs_stage, shapes_stages
from rlhfv_ray.storage.folder import display_path, fetch, fetch_local
from rlhfv_ray.storage.lease import hold_lease
from rlhfv_ray.storage.stages import Stage, check_stage, is_done
from rlhfv_ray.training.job import TrainJob
from rlhfv_ray.training.metrics_log import Record
from rlhfv_ray.training.train import train_ddpo

FEW = 0.5  # share of pairs below which gamma does little
logger = logging.getLogger(__name__)

OnRecords = Callable[[Sequence[Record]], None]  # receives the records of new updates


@dataclass(frozen=True)
class Pipeline:
    """The stages up to an aligned model, and the facts about them that later stages need."""

    config: DDPOConfig
    storage: Path
    pairs: str  # path of the data
    stages: tuple[Stage, ...]
    reference: Path
    reference_inputs: Mapping[str, Any]
    train: Stage

    @property
    def aligned(self) -> ModelConfig:
        """Return the model that training exports."""
        return replace(self.config.model, path=str(self.train.folder(self.storage) / "model"))


def plan_pipeline(config: DDPOConfig, storage: Path, *, seen: OnRecords) -> Pipeline:
    """Plan the stages from pairs to an aligned model: read and check files, but write nothing.

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
    check_pickles(config.model.path, allow_pickle=config.model.allow_pickle)
    check_image_tokens(config.model)
    check_data_settings(config)
    check_preference_loss(config.loss)
    has_examples = config.loss.is_sft and not config.data.reference
    stages: list[Stage] = []

    data, pairs_id = config.data, None
    if data.path == SHAPES:
        stages += shapes_stages(config, storage)
        pairs_folder = pairs_stage(stages).folder(storage)
        data = replace(data, path=str(pairs_folder / PAIRS))
        pairs_id = pairs_folder.name  # the pairs do not exist yet, and have no digest
    elif has_examples:  # raises if data is missing, or lacks a column of its format
        list_sources(data)
    else:
        list_slices(data.path, **reading_settings(data))

    inputs = reference_inputs(config.model, data, rows=pairs_id, examples=has_examples)
    if data.reference:
        reference = finished_reference(fetch_local(data.reference).resolve(), inputs)
    else:
        declare = examples_stage if has_examples else reference_stage
        encode = declare(config, data, inputs)
        stages.append(encode)
        reference = encode.folder(storage)

    train = train_stage(config, reference, inputs, seen)
    return Pipeline(config, storage, data.path, (*stages, train), reference, inputs, train)


def check_data_settings(config: DDPOConfig) -> None:
    """Check what the data's settings ask of its number of sources and of the model.

    Raises:
        ConfigError: mixed data has more or fewer weights than sources, or the model's pictures
            cannot be augmented.
    """
    _ = config.data.source_weights  # raises
    if config.data.augment != "none":
        augmentation(config.data, processor_of(config.model))


def finished_reference(folder: Path, inputs: Mapping[str, Any]) -> Path:
    """Return an earlier reference folder, checked against the model and data at hand.

    Raises:
        ConfigError: the folder is not a finished reference.
        StaleReferenceError: it was made from another model or other data.
        StageFailedError: one of its files is missing or damaged.
    """
    if not is_done(folder):
        raise ConfigError(
            f"data.reference = {display_path(folder)!r}: this is no finished reference folder "
            "(it has no SUCCESS file). Give another folder, or leave --data.reference out."
        )
    fetch(folder)
    check_stage(folder)
    check_reference(json.loads((folder / "config.json").read_text()), inputs)
    return folder


def reference_stage(config: DDPOConfig, data: DataConfig, inputs: Mapping[str, Any]) -> Stage:
    """Return the stage of the log-probs of all pairs under the base model."""

    def run(folder: Path, _: str) -> None:
        check_step_fits(config, data, list_slices(data.path, **reading_settings(data)))
        compute_reference_logps(config.model, data, config.scale, folder)
        audit_job(data, folder)

    return Stage("reference", inputs, run, title="reference log-probs")


def audit_job(data: DataConfig, folder: Path) -> None:
    """Write the audit of a job's pairs into its reference folder, which lists the unusable rows."""
    set_aside = {row["id"]: row["reason"] for row in unusable_rows(folder)}
    slices = list_slices(data.path, **reading_settings(data))
    file = Path(data.path)
    title = display_path(file) if file.exists() else data.path  # an address, or a hub name
    write_audit(audit_pairs(slices, set_aside=set_aside), folder, title)


def examples_stage(config: DDPOConfig, data: DataConfig, inputs: Mapping[str, Any]) -> Stage:
    """Return the stage of the examples of supervised fine-tuning as token ids."""

    def run(folder: Path, _: str) -> None:
        slices = list_sources(data)
        for _source, shards in itertools.groupby(slices, key=lambda shard: shard.source):
            check_step_fits(config, data, list(shards))
        encode_examples(config.model, data, config.scale, folder)

    return Stage("examples", inputs, run, title="examples")


def train_stage(
    config: DDPOConfig, reference: Path, inputs: Mapping[str, Any], on_records: OnRecords
) -> Stage:
    """Return the stage of training on a reference folder."""

    def run(folder: Path, token: str) -> None:
        warn_of_equal_weights(config, reference)
        job = TrainJob(with_full_path(config), reference, dict(inputs), folder, token)
        train_ddpo(job, on_records=on_records)

    optim = changed_settings(config.optim)
    optim.pop("max_skipped", None)  # stops a run, but does not change its model
    changes = {
        "reference": dict(inputs),
        "rule": config.data.rule,
        **config.model.training,
        "loss": changed_settings(config.loss),
        "optim": optim,
        "seed": config.seed,
        # bf16's gradients were once added up in bf16.
        **({"gradients": "fp32"} if config.model.dtype == "bf16" else {}),
        **({"limit": config.data.limit} if config.data.limit else {}),
        **({"mix_weights": config.data.source_weights} if config.data.mixed_with else {}),
    }
    return Stage("train", changes, run, title="training")


def warn_of_equal_weights(config: DDPOConfig, reference: Path) -> None:
    """Warn if the rule finds no corrected tokens in most pairs, which gamma then does not weigh."""
    loss, rule = config.loss, config.data.rule
    if loss.is_sft or loss.gamma == 1:
        return
    share = share_with_changes(reference, rule)
    if share < FEW:
        logger.warning(
            "loss.gamma = %g weighs tokens of %.0f %% of the pairs only. In the others, data.rule "
            "= %s finds no corrected tokens, and all weigh the same. `rlhfv-ray audit` counts the "
            "tokens of every rule.",
            *(loss.gamma, 100 * share, rule),
        )


def with_full_path(config: DDPOConfig) -> DDPOConfig:
    """Return a configuration with its model's folder from the root on.

    Training workers have another current folder than the driver.
    """
    folder = Path(config.model.path)
    if not folder.is_dir():  # a hub name, or an address
        return config
    return replace(config, model=replace(config.model, path=str(folder.resolve())))


def rung_stage(pipeline: Pipeline, config: DDPOConfig, train: Stage, step: int) -> Stage:
    """Return the stage that trains up to `step` updates; the stage `train` continues from there."""

    def run(folder: Path, _: str) -> None:
        train_folder = train.folder(pipeline.storage)
        with hold_lease(train_folder) as token:
            inputs = dict(pipeline.reference_inputs)
            settings = with_full_path(config)
            job = TrainJob(settings, pipeline.reference, inputs, train_folder, token)
            train_ddpo(replace(job, stop_after=step, export=folder))

    inputs = {"train": train.folder(pipeline.storage).name, "step": step}
    return Stage("rung", inputs, run, title=f"training to update {step}")


def start(config: DDPOConfig) -> None:
    """Join or start Ray and check that the job fits, before the first stage that has work to do.

    Raises:
        ConfigError: the cluster has too few resources for the workers or actors.
    """
    connect()
    check_fits(config.scale)
