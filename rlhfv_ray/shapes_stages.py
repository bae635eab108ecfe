"""Stages that make training data in the shapes world: corrections, rankings or careful captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhfv_ray.config import DDPOConfig, GenerationConfig, plain
from rlhfv_ray.inference.generate import generate_answers
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
RANKING_SEED = 1_000_000  # between the two draws of a ranking


def shapes_stage(config: DDPOConfig) -> Stage:
    """What the shapes world teaches: corrections or rankings of the base model's answers, or careful captions to imitate."""
    if config.loss.is_sft and not config.data.reference:
        return captions_stage(config)
    return (
        corrections_stage(config)
        if config.shapes.pairs == "corrections"
        else rankings_stage(config)
    )


def captions_stage(config: DDPOConfig) -> Stage:
    """Careful captions of scenes."""
    shapes = config.shapes

    def run(folder: Path, _: str) -> None:
        write_captions(scenes_to_correct(shapes.scenes, seed=shapes.seed), folder / PAIRS)

    return Stage(
        "captions",
        {"world": WORLD, "scenes": shapes.scenes, "seed": shapes.seed},
        run,
        title="careful captions",
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
            answers.append(
                sampled_answers(
                    config, scenes, place, seed=config.shapes.seed + RANKING_SEED * draw
                )
            )
        write_rankings(scenes, answers, folder / PAIRS)

    return Stage("rankings", sampled_inputs(config), run, title="rankings")


def sampled_inputs(config: DDPOConfig) -> dict[str, Any]:
    """What the base model's descriptions of scenes depend on."""
    shapes, decoding = config.shapes, sampling(config, seed=config.shapes.seed)
    inputs = {
        "world": WORLD,
        "scenes": shapes.scenes,
        "seed": shapes.seed,
        "decoding": plain(decoding),
    }
    return {**inputs, **model_inputs(config.model)}


def sampling(config: DDPOConfig, *, seed: int) -> GenerationConfig:
    """How descriptions are drawn."""
    longest, temperature = config.generation.max_new_tokens, config.shapes.temperature
    return GenerationConfig(max_new_tokens=longest, temperature=temperature, seed=seed)


def sampled_answers(
    config: DDPOConfig, scenes: Sequence[Scene], folder: Path, *, seed: int
) -> list[Answer]:
    """Descriptions of scenes by the base model, drawn at random."""
    return generate_answers(
        config.model,
        prompts_of(scenes),
        folder,
        generation=sampling(config, seed=seed),
        scale=config.scale,
        title="Answers to learn from",
    )
