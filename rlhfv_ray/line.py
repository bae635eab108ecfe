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
from rlhfv_ray.config import SHAPES, DataConfig, DDPOConfig, GenerationConfig, ModelConfig, ScaleConfig, plain
from rlhfv_ray.data import list_slices
from rlhfv_ray.data.reference_rows import check_reference
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.examples import encode_examples
from rlhfv_ray.generate import generate_answers
from rlhfv_ray.leases import hold_lease
from rlhfv_ray.models import check_image_tokens, model_digests
from rlhfv_ray.records import Answer, Prompt
from rlhfv_ray.reference import compute_reference_logps, reference_inputs
from rlhfv_ray.remote import fetch, local, shown
from rlhfv_ray.shapes.scenes import Scene
from rlhfv_ray.shapes.world import (
    WORLD,
    prompts_of,
    scenes_to_correct,
    write_captions,
    write_corrections,
    write_rankings,
)
from rlhfv_ray.stages import Stage, is_done
from rlhfv_ray.train import TrainJob, train_ddpo

PAIRS = "pairs.parquet"
RANKING_SEED = 1_000_000  # between the two draws of a ranking


@dataclass(frozen=True)
class Line:
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


def plan_line(config: DDPOConfig, storage: Path, *, seen: Callable[[Sequence[Mapping[str, Any]]], None]) -> Line:
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
        raise ConfigError("data.path is not set: give --data.path a file or folder of preference pairs.")
    check_image_tokens(config.model.path, trust_remote_code=config.model.trust_remote_code)
    stages: list[Stage] = []
    data, rows, examples = config.data, None, config.loss.imitates and not config.data.reference
    if data.path == SHAPES:
        made = shapes_stage(config)
        stages.append(made)
        folder = made.folder(storage)
        data, rows = replace(data, path=str(folder / PAIRS)), folder.name
    else:
        list_slices(data.path, format=data.format, examples=examples)  # is it there, with the columns of its format?
    inputs = reference_inputs(config.model, data, rows=rows)
    if data.reference:
        reference = finished_reference(local(data.reference).resolve(), inputs)
    else:
        stage = examples_stage(config, data, inputs) if examples else reference_stage(config, data, inputs)
        stages.append(stage)
        reference = stage.folder(storage)
    train = train_stage(config, reference, inputs, seen)
    return Line(config, storage, data.path, (*stages, train), reference, inputs, train)


def shapes_stage(config: DDPOConfig) -> Stage:
    """What the shapes world teaches: corrections or rankings of the base model's answers, or careful captions to imitate."""
    if config.loss.imitates and not config.data.reference:
        return captions_stage(config)
    return corrections_stage(config) if config.shapes.pairs == "corrections" else rankings_stage(config)


def captions_stage(config: DDPOConfig) -> Stage:
    """Careful captions of scenes."""
    shapes = config.shapes

    def run(folder: Path, _: str) -> None:
        write_captions(scenes_to_correct(shapes.scenes, seed=shapes.seed), folder / PAIRS)

    return Stage(
        "captions", {"world": WORLD, "scenes": shapes.scenes, "seed": shapes.seed}, run, title="careful captions"
    )


def corrections_stage(config: DDPOConfig) -> Stage:
    """The base model describes scenes, the world's annotator corrects: preference pairs in RLHF-V's format."""

    def run(folder: Path, _: str) -> None:
        scenes = scenes_to_correct(config.shapes.scenes, seed=config.shapes.seed)
        answers = sampled_answers(config, scenes, folder, seed=config.shapes.seed)
        write_corrections(scenes, answers, folder / PAIRS)

    return Stage("corrections", sampled_inputs(config), run, title="corrections")


def rankings_stage(config: DDPOConfig) -> Stage:
    """The base model describes scenes twice, the world ranks: preference pairs of whole answers."""

    def run(folder: Path, _: str) -> None:
        scenes = scenes_to_correct(config.shapes.scenes, seed=config.shapes.seed)
        answers = []
        for draw in range(2):
            place = folder / f"answers-{draw}"
            place.mkdir(exist_ok=True)
            answers.append(sampled_answers(config, scenes, place, seed=config.shapes.seed + RANKING_SEED * draw))
        write_rankings(scenes, answers, folder / PAIRS)

    return Stage("rankings", sampled_inputs(config), run, title="rankings")


def sampled_inputs(config: DDPOConfig) -> dict[str, Any]:
    """What the base model's descriptions of scenes depend on."""
    shapes, decoding = config.shapes, sampling(config, seed=config.shapes.seed)
    inputs = {"world": WORLD, "scenes": shapes.scenes, "seed": shapes.seed, "decoding": plain(decoding)}
    return {**inputs, **model_inputs(config.model)}


def sampling(config: DDPOConfig, *, seed: int) -> GenerationConfig:
    """How descriptions are drawn."""
    longest, temperature = config.generation.max_new_tokens, config.shapes.temperature
    return GenerationConfig(max_new_tokens=longest, temperature=temperature, seed=seed)


def sampled_answers(config: DDPOConfig, scenes: Sequence[Scene], folder: Path, *, seed: int) -> list[Answer]:
    """Descriptions of scenes by the base model, drawn at random."""
    return generate_answers(
        config.model,
        prompts_of(scenes),
        folder,
        generation=sampling(config, seed=seed),
        scale=config.scale,
        title="Answers to learn from",
    )


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
        "optim": {name: value for name, value in plain(config.optim).items() if name != "max_skipped"},
        "seed": config.seed,
        **({"limit": config.data.limit} if config.data.limit else {}),
    }
    return Stage("train", changes, run, title="training")


def rung_stage(line: Line, config: DDPOConfig, train: Stage, until: int) -> Stage:
    """A look at a training run on its way: the model after `until` updates. The stage `train` goes on from there."""

    def run(folder: Path, _: str) -> None:
        place = train.folder(line.storage)
        with hold_lease(place) as token:
            job = TrainJob(
                config, line.reference, dict(line.reference_inputs), place, token, until=until, export=folder
            )
            train_ddpo(job)

    inputs = {"train": train.folder(line.storage).name, "until": until}
    return Stage("rung", inputs, run, title=f"training to update {until}")


def answers_stage(
    model: ModelConfig,
    prompts: Callable[[], Sequence[Prompt]],
    inputs: Mapping[str, Any],
    *,
    generation: GenerationConfig,
    scale: ScaleConfig,
    title: str,
) -> Stage:
    """A model's answers to prompts; `inputs` say which model and which prompts."""

    def run(folder: Path, _: str) -> None:
        generate_answers(model, prompts(), folder, generation=generation, scale=scale, title=title)

    settings = {"decoding": plain(generation), "dtype": model.dtype}
    return Stage("answers", {**inputs, **settings}, run, title=title)


def model_inputs(model: ModelConfig) -> dict[str, Any]:
    """What a model's answers depend on."""
    return {**model_digests(model), "dtype": model.dtype}


def finished_reference(folder: Path, inputs: Mapping[str, Any]) -> Path:
    """A reference folder made earlier, checked against the model and data at hand."""
    if not is_done(folder):
        raise ConfigError(
            f"data.reference = {shown(folder)!r}: there is no finished reference folder (no SUCCESS file in it)."
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
