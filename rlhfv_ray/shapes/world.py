"""The world as files: pairs and captions for training, COCO-format annotations for evaluation.

Both have the formats of the real data (RLHF-V-Dataset Parquet; COCO instances and captions JSON),
so the code that reads the real data reads them too.
"""

import json
import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rlhfv_ray.data import write_pairs
from rlhfv_ray.data.pair_formats import check_pair
from rlhfv_ray.errors import DataError, StageFailedError
from rlhfv_ray.records import Answer, PreferencePair, Prompt
from rlhfv_ray.shapes.annotator import CAREFUL, Care, correct, is_description, mistakes
from rlhfv_ray.shapes.balance import balanced_subset, even_subset
from rlhfv_ray.shapes.captions import QUESTIONS, caption, read_phrases
from rlhfv_ray.shapes.scenes import Group, Scene, render
from rlhfv_ray.shapes.worlds import WORLDS, WorldName
from rlhfv_ray.storage.files import write_json

PAIRS_SEED = 1_000_000  # of the scenes of pairs; most of them are no scenes of the pretraining
ORIGIN = {"ds_name": "shapes", "origin_dataset": "shapes"}
SYNONYMS = Path(__file__).parent / "synonyms.txt"  # the first word of a line is the object
LEFT_OUT = "left_out.json"  # id and reason of each ranking that could not be made
WORLD_FILE = "world.json"  # in a benchmark's folder; without it, the world is the biased one

log = logging.getLogger(__name__)


def prompts_of(scenes: Iterable[Scene]) -> list[Prompt]:
    """Return one question for each scene, about its picture."""
    return [
        Prompt(str(scene.id), render(scene), QUESTIONS[scene.id % len(QUESTIONS)])
        for scene in scenes
    ]


def pair_id(scene: Scene) -> str:
    """Return the id of the training data that is made of a scene."""
    return f"shapes:{scene.id}"


def scenes_to_correct(count: int, *, seed: int, world: WorldName = "biased") -> list[Scene]:
    """Return the scenes whose descriptions the annotator corrects."""
    return WORLDS[world].training_scenes(count, seed=PAIRS_SEED + seed)


def write_corrections(
    scenes: Sequence[Scene],
    answers: Sequence[Answer],
    path: Path,
    *,
    care: Care = CAREFUL,
    is_balanced: bool = False,
) -> int:
    """Correct descriptions, and write the pairs in the format of RLHF-V-Dataset.

    The corrected phrases are marked. `origin_split` holds the kinds of mistake and the words before
    and after.

    Args:
        scenes: the truth.
        answers: one description of each scene.
        path: the file to write.
        care: how the annotator works.
        is_balanced: leave out pairs until texts say little about the direction (`shapes.balance`).

    Returns:
        The number of corrected descriptions, of which some may be left out.

    Raises:
        StageFailedError: no answer is a description, or no pair is left.
    """
    check_described(scenes, answers)
    pairs = []
    for scene, answer in zip(scenes, answers, strict=True):
        correction = correct(scene, answer.text, care, random.Random(f"annotator-{scene.id}"))
        if correction is None:
            continue
        segments = [asdict(segment) for segment in correction.segments]
        split = {"type": "detailed_description", "segments": segments}
        pairs.append(
            PreferencePair(
                id=pair_id(scene),
                image=render(scene),
                question=answer.question,
                chosen=correction.text,
                rejected=answer.text,
                chosen_spans=correction.chosen_spans,
                rejected_spans=correction.rejected_spans,
                origin={**ORIGIN, "origin_split": json.dumps(split)},
            )
        )
    corrected = len(pairs)
    if is_balanced:
        pairs = balanced_subset(even_subset(pairs))
    if not pairs:
        raise StageFailedError(
            f"{corrected} descriptions of {len(scenes)} had a mistake that the annotator could "
            "correct, and none is left to train on. Give the model more scenes with "
            "--shapes.scenes."
        )
    write_pairs(pairs, path)
    return corrected


def check_described(scenes: Sequence[Scene], answers: Sequence[Answer]) -> None:
    """Check that a model speaks of these pictures, as a base model of another world does not.

    Raises:
        StageFailedError: no answer is a caption of its picture's setting.
    """
    described = (
        is_description(scene, answer.text) for scene, answer in zip(scenes, answers, strict=True)
    )
    if not any(described):
        raise StageFailedError(
            f"None of {len(scenes)} answers is a caption of its picture's setting, such as "
            f"{caption(scenes[0].setting, scenes[0].groups)!r}; the model says "
            f"{answers[0].text!r}. Was it made for another world than --shapes.world?"
        )


def write_rankings(scenes: Sequence[Scene], answers: Sequence[Sequence[Answer]], path: Path) -> int:
    """Rank two descriptions of each scene, write the pairs, return their number.

    The description with fewer mistakes is chosen. With equally many, the one with more true phrases
    is chosen. Equally good ones give no pair, nor does one that is no text. Each of those without
    text is logged, and listed in `left_out.json` beside the pairs with id and reason.

    Raises:
        StageFailedError: no answer is a description, or no two differ in quality.
    """
    check_described(scenes, answers[0])
    pairs: list[PreferencePair] = []
    reasons: list[dict[str, str]] = []
    for scene, first, second in zip(scenes, *answers, strict=True):
        better, worse = sorted((first, second), key=lambda answer: _rank(scene, answer.text))
        if _rank(scene, better.text) == _rank(scene, worse.text):
            continue
        pair = PreferencePair(
            id=pair_id(scene),
            image=render(scene),
            question=first.question,
            chosen=better.text,
            rejected=worse.text,
            origin=ORIGIN,
        )
        try:
            check_pair(pair)
        except DataError as error:  # a model may sample a NUL, or nothing
            log.warning("No ranking of %s: %s", pair.id, error)
            reasons.append({"id": pair.id, "reason": str(error)})
            continue
        pairs.append(pair)
    if not pairs:
        raise StageFailedError(
            "No two answers differed in quality. Give the model more scenes with --shapes.scenes."
        )
    write_pairs(pairs, path)
    write_json(path.with_name(LEFT_OUT), reasons)
    return len(pairs)


def _rank(scene: Scene, text: str) -> tuple[int, int]:
    """Return wrong phrases and minus the true ones: the smaller, the better."""
    wrong = {mistake.start for mistake in mistakes(scene, text)}
    return len(wrong), len(wrong) - len(read_phrases(text))


def write_captions(scenes: Sequence[Scene], path: Path) -> None:
    """Write careful descriptions of scenes as questions and answers for supervised fine-tuning."""
    prompts = prompts_of(scenes)
    columns = {
        "id": [pair_id(scene) for scene in scenes],
        "image": [prompt.image for prompt in prompts],
        "question": [prompt.question for prompt in prompts],
        "answer": [caption(scene.setting, scene.groups) for scene in scenes],
    }
    pq.write_table(pa.table(columns), path)


def write_benchmark(
    folder: Path, *, count: int, seed: int, world: WorldName = "biased", part: str = ""
) -> None:
    """Write scenes of unseen compositions as a benchmark.

    The folder receives the pictures, COCO annotations, and the exact truth (`scenes.json`).
    """
    scenes = WORLDS[world].benchmark_scenes(count, seed=seed, part=part)
    if world != "biased":
        write_json(folder / WORLD_FILE, {"world": world})
    (folder / "images").mkdir(exist_ok=True)
    for scene in scenes:
        (folder / image_name(scene)).write_bytes(render(scene))
    names = WORLDS[world].names
    numbers = {name: number for number, name in enumerate(names, start=1)}  # COCO counts from 1
    categories = [{"id": number, "name": shape} for shape, number in numbers.items()]
    images = [{"id": scene.id, "file_name": image_name(scene)} for scene in scenes]
    annotations: list[dict[str, int]] = []
    captions: list[dict[str, int | str]] = []
    for scene in scenes:
        text = caption(scene.setting, scene.groups)
        captions.append({"id": scene.id, "image_id": scene.id, "caption": text})
        for group in scene.groups:
            for _ in range(group.number):
                row = {"image_id": scene.id, "category_id": numbers[group.shape]}
                annotations.append({"id": len(annotations), **row})
    instances = {"images": images, "categories": categories, "annotations": annotations}
    write_json(folder / "instances.json", instances)
    write_json(folder / "captions.json", {"images": images, "annotations": captions})
    write_json(folder / "scenes.json", [asdict(scene) for scene in scenes])


def image_name(scene: Scene) -> str:
    """Return the path of a scene's picture inside a benchmark's folder."""
    return f"images/{scene.id:06d}.png"


def read_world(folder: Path) -> WorldName:
    """Return the name of a benchmark's world."""
    path = folder / WORLD_FILE
    return json.loads(path.read_text())["world"] if path.exists() else "biased"


def read_scenes(folder: Path) -> list[Scene]:
    """Return the scenes of a benchmark, which are its exact truth."""
    scenes = []
    for row in json.loads((folder / "scenes.json").read_text()):
        groups = tuple(Group(**group) for group in row["groups"])
        scenes.append(Scene(row["id"], row["setting"], groups))
    return scenes
