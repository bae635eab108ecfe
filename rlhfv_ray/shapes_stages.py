"""Stages that make training data in the shapes world: corrections, rankings or careful captions.

Corrections of the balanced world pass a gate: a classifier that reads only the texts must not tell
the chosen ones. Control pairs are made from the true pairs, after the gate.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhfv_ray.config import DDPOConfig, GenerationConfig
from rlhfv_ray.data import load_pairs, write_pairs
from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.inference.generate import decoding_inputs, generate_answers
from rlhfv_ray.models.loading import model_inputs
from rlhfv_ray.records import Answer
from rlhfv_ray.shapes.annotator import Care
from rlhfv_ray.shapes.controls import controlled
from rlhfv_ray.shapes.scenes import Scene
from rlhfv_ray.shapes.world import (
    prompts_of,
    scenes_to_correct,
    write_captions,
    write_corrections,
    write_rankings,
)
from rlhfv_ray.shapes.worlds import WORLDS
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.stages import Stage

PAIRS = "pairs.parquet"
CORRECTED = "corrected.json"  # numbers of scenes and of corrected descriptions
AUDITED = "audit"  # name of the stage that makes no data
AUDIT = "audit.json"
RANKING_SEED = 1_000_000  # distance between the seeds of a ranking's two answers
MOST_TOLD = 0.55  # share of pairs that texts alone may tell apart in the balanced world


def shapes_stages(config: DDPOConfig, storage: Path) -> list[Stage]:
    """Return the stages that make the training data, which is in the folder of `pairs_stage`.

    They correct or rank the base model's answers. Supervised fine-tuning gets careful captions.
    """
    if config.loss.is_sft and not config.data.reference:
        return [captions_stage(config)]
    if config.shapes.pairs == "corrections":
        stages = [corrections_stage(config)]
    else:
        stages = [rankings_stage(config)]
    if WORLDS[config.shapes.world].is_balanced and config.shapes.pairs == "corrections":
        stages.append(audit_stage(stages[-1].folder(storage)))
    if config.shapes.control != "none":
        stages.append(control_stage(config, stages[0].folder(storage)))
    return stages


def pairs_stage(stages: Sequence[Stage]) -> Stage:
    """Return the last of the stages that makes training data."""
    return next(stage for stage in reversed(stages) if stage.name != AUDITED)


def corrections_stage(config: DDPOConfig) -> Stage:
    """Return the stage of preference pairs in RLHF-V's format.

    The base model describes scenes, and the world's annotator corrects the descriptions.
    """
    world = WORLDS[config.shapes.world]
    care = Care(adds=world.is_balanced, left=config.shapes.left, wrong=config.shapes.wrong)

    def run(folder: Path, _: str) -> None:
        scenes = training_scenes(config)
        answers = sampled_answers(config, scenes, folder, seed=config.shapes.seed)
        path, is_balanced = folder / PAIRS, world.is_balanced
        corrected = write_corrections(scenes, answers, path, care=care, is_balanced=is_balanced)
        write_json(folder / CORRECTED, {"scenes": len(scenes), "corrected": corrected})

    shares = {name: getattr(care, name) for name in ("left", "wrong") if getattr(care, name)}
    return Stage("corrections", {**sampled_inputs(config), **shares}, run, title="corrections")


def audit_stage(corrections: Path) -> Stage:
    """Return the gate of the balanced world: it measures how well texts tell the chosen answers.

    The stage fails if they are told in more than `MOST_TOLD` of the pairs, and in more than half
    beyond chance. It leaves no figure of fewer pairs than a classifier needs.
    """

    def run(folder: Path, _: str) -> None:
        from rlhfv_ray.shapes.text_audit import FEWEST, audit_texts  # loads scikit-learn

        pairs = list(load_pairs(str(corrections / PAIRS)))
        if len(pairs) < FEWEST:
            write_json(folder / AUDIT, {"pairs": len(pairs)})
            return
        audit = audit_texts(pairs)
        write_json(folder / AUDIT, asdict(audit))
        if audit.told > MOST_TOLD and audit.told_interval.low > 0.5:
            raise StageFailedError(
                f"A classifier without pictures tells {100 * audit.told:.1f} % of the chosen "
                f"answers; allowed: {100 * MOST_TOLD:.0f} %. Sample answers as the base model "
                "learnt them (--shapes.temperature 1), or make more with --shapes.scenes."
            )

    return Stage(AUDITED, {"pairs": corrections.name}, run, title="audit of the texts")


def read_audit(stages: Sequence[Stage], storage: Path) -> dict[str, Any] | None:
    """Return the figures of the finished gate among some stages; None if there is no gate.

    Of too few pairs, the only figure is their number.
    """
    audits = [stage for stage in stages if stage.name == AUDITED]
    if not audits:
        return None
    return json.loads((audits[0].folder(storage) / AUDIT).read_text())


def left_out(stages: Sequence[Stage], storage: Path) -> tuple[int, int] | None:
    """Return the number of corrections that were left out, so that texts say little, and of all.

    None where the stages have no gate, or were made before the numbers were recorded.
    """
    audit = read_audit(stages, storage)
    record = stages[0].folder(storage) / CORRECTED
    if audit is None or not record.exists():
        return None
    corrected = json.loads(record.read_text())["corrected"]
    return corrected - audit["pairs"], corrected


def control_stage(config: DDPOConfig, pairs: Path) -> Stage:
    """Return the stage that makes control pairs of the true ones."""
    control, seed = config.shapes.control, config.shapes.seed

    def run(folder: Path, _: str) -> None:
        true_pairs = list(load_pairs(str(pairs / PAIRS)))
        write_pairs(controlled(true_pairs, control, seed=seed), folder / PAIRS)

    inputs = {"pairs": pairs.name, "control": control, "seed": seed}
    return Stage("control", inputs, run, title=f"control pairs, {control}")


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
    shapes = config.shapes
    return scenes_to_correct(shapes.scenes, seed=shapes.seed, world=shapes.world)


def scene_inputs(config: DDPOConfig) -> dict[str, Any]:
    """Return everything that the scenes depend on."""
    shapes = config.shapes
    version = WORLDS[shapes.world].version
    return {"world": version, "scenes": shapes.scenes, "seed": shapes.seed}


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
