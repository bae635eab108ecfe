"""Stages that make training data in the shapes world: corrections, rankings or careful captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhfv_ray.config import DDPOConfig, GenerationConfig
from rlhfv_ray.inference.generate import decoding_inputs, generate_answers
from rlhfv_ray.models.loading import model_inputs
from rlhfv_ray.records import Answer
from rlhfv_ray.shapes.scenes import Scene
from rlhfv_ray.shapes.world import (
    WORLD,
    prompts_of,
    scenes_to_correct,
    write_captions,
    write_corrections,
    write_rankings,
)
from rlhfv_ray.storage.stages import Stage

PAIRS = "pairs.parquet"
RANKING_SEED = 1_000_000  # distance between the seeds of a ranking's two answers


def shapes_stage(config: DDPOConfig) -> Stage:
    """Return the stage that makes the training data.

    It corrects or ranks the base model's answers. Supervised fine-tuning gets careful captions.
    """
    if config.loss.is_sft and not config.data.reference:
        return captions_stage(config)
    if config.shapes.pairs == "corrections":
        return corrections_stage(config)
    return rankings_stage(config)


def corrections_stage(config: DDPOConfig) -> Stage:
    """Return the stage of preference pairs in RLHF-V's format.

    The base model describes scenes, and the world's annotator corrects the descriptions.
    """

    def run(folder: Path, _: str) -> None:
        scenes = training_scenes(config)
        answers = sampled_answers(config, scenes, folder, seed=config.shapes.seed)
        write_corrections(scenes, answers, folder / PAIRS)

    return Stage("corrections", sampled_inputs(config), run, title="corrections")


def rankings_stage(config: DDPOConfig) -> Stage:
    """Return the stage of preference pairs of complete answers.

    The base model describes each scene twice, and the world ranks the two descriptions.
    """

    def run(folder: Path, _: str) -> None:
        scenes = training_scenes(config)
        answers = []
        for draw in range(2):
            answers_folder = folder / f"answers-{draw}"
            answers_folder.mkdir(exist_ok=True)
            seed = config.shapes.seed + RANKING_SEED * draw
            answers.append(sampled_answers(config, scenes, answers_folder, seed=seed))
        write_rankings(scenes, answers, folder / PAIRS)

    return Stage("rankings", sampled_inputs(config), run, title="rankings")


def captions_stage(config: DDPOConfig) -> Stage:
    """Return the stage of careful captions of scenes, for supervised fine-tuning."""

    def run(folder: Path, _: str) -> None:
        write_captions(training_scenes(config), folder / PAIRS)

    return Stage("captions", scene_inputs(config), run, title="careful captions")


def training_scenes(config: DDPOConfig) -> Sequence[Scene]:
    """Return the scenes that training data is made of."""
    return scenes_to_correct(config.shapes.scenes, seed=config.shapes.seed)


def scene_inputs(config: DDPOConfig) -> dict[str, Any]:
    """Return everything that the scenes depend on."""
    return {"world": WORLD, "scenes": config.shapes.scenes, "seed": config.shapes.seed}


def sampled_inputs(config: DDPOConfig) -> dict[str, Any]:
    """Return everything that the base model's descriptions of the scenes depend on."""
    decoding = decoding_inputs(sampling(config, seed=config.shapes.seed))
    return {**scene_inputs(config), "decoding": decoding, **model_inputs(config.model)}


def sampling(config: DDPOConfig, *, seed: int) -> GenerationConfig:
    """Return the decoding settings of the descriptions."""
    return GenerationConfig(
        max_new_tokens=config.generation.max_new_tokens,
        temperature=config.shapes.temperature,
        seed=seed,
    )


def sampled_answers(
    config: DDPOConfig, scenes: Sequence[Scene], folder: Path, *, seed: int
) -> list[Answer]:
    """Return descriptions of scenes, sampled from the base model."""
    return generate_answers(
        config.model,
        prompts_of(scenes),
        folder,
        generation=sampling(config, seed=seed),
        scale=config.scale,
        title="Answers to learn from",
    )
