"""The world as files: preference pairs and captions for training, COCO-format annotations for evaluation.

Both go out in the formats of the real thing (RLHF-V-Dataset Parquet; COCO instances and captions JSON) and are read back by the code
that reads the real thing.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rlhfv_ray.data import write_pairs
from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.records import Answer, PreferencePair, Prompt
from rlhfv_ray.shapes.annotator import correct, mistakes
from rlhfv_ray.shapes.captions import QUESTIONS, caption, read_phrases
from rlhfv_ray.shapes.scenes import SHAPES, Group, Scene, make_scenes, render
from rlhfv_ray.storage.files import write_json

PAIRS_SEED = 1_000_000  # scenes of pairs are none of those the model was pretrained on
SYNONYMS = Path(__file__).parent / "synonyms.txt"  # first word of a line is the object
WORLD = 2  # version: raised when the same seed gives another world


def prompts_of(scenes: Iterable[Scene]) -> list[Prompt]:
    """A question about each scene's picture."""
    return [
        Prompt(str(scene.id), render(scene), QUESTIONS[scene.id % len(QUESTIONS)])
        for scene in scenes
    ]


def scenes_to_correct(count: int, *, seed: int) -> list[Scene]:
    """The scenes whose descriptions the annotator corrects."""
    return make_scenes(count, seed=PAIRS_SEED + seed)


def write_corrections(scenes: Sequence[Scene], answers: Sequence[Answer], path: Path) -> int:
    """Correct descriptions and write the pairs, in the format of RLHF-V-Dataset; returns how many.

    The corrected phrases are marked; `origin_split` carries the kinds of mistake, the words before and after.
    """
    pairs = []
    for scene, answer in zip(scenes, answers, strict=True):
        correction = correct(scene, answer.text)
        if correction is None:
            continue
        split = {
            "type": "detailed_description",
            "segments": [asdict(segment) for segment in correction.segments],
        }
        origin = {
            "ds_name": "shapes",
            "origin_dataset": "shapes",
            "origin_split": json.dumps(split),
        }
        pairs.append(
            PreferencePair(
                f"shapes:{scene.id}",
                render(scene),
                answer.question,
                correction.text,
                answer.text,
                correction.chosen_spans,
                correction.rejected_spans,
                origin,
            )
        )
    if not pairs:
        raise StageFailedError(
            "The model made no mistake that the annotator could correct; give it more --shapes.scenes."
        )
    write_pairs(pairs, path)
    return len(pairs)


def write_rankings(scenes: Sequence[Scene], answers: Sequence[Sequence[Answer]], path: Path) -> int:
    """Rank two descriptions of each scene and write the pairs; returns how many.

    The one with fewer mistakes is chosen; of equally many, the one that says more that is true. Equally good ones give no pair.
    """
    pairs = []
    for scene, first, second in zip(scenes, *answers, strict=True):
        better, worse = sorted((first, second), key=lambda answer: _rank(scene, answer.text))
        if _rank(scene, better.text) < _rank(scene, worse.text):
            origin = {"ds_name": "shapes", "origin_dataset": "shapes"}
            image = render(scene)
            pairs.append(
                PreferencePair(
                    f"shapes:{scene.id}",
                    image,
                    first.question,
                    better.text,
                    worse.text,
                    origin=origin,
                )
            )
    if not pairs:
        raise StageFailedError(
            "No two answers were of different quality; give it more --shapes.scenes."
        )
    write_pairs(pairs, path)
    return len(pairs)


def _rank(scene: Scene, text: str) -> tuple[int, int]:
    wrong = {mistake.start for mistake in mistakes(scene, text)}
    return len(wrong), len(wrong) - len(read_phrases(text))


def write_captions(scenes: Sequence[Scene], path: Path) -> None:
    """Write careful descriptions of scenes as questions and answers to be imitated."""
    prompts = prompts_of(scenes)
    columns = {
        "id": [f"shapes:{prompt.id}" for prompt in prompts],
        "image": [prompt.image for prompt in prompts],
        "question": [prompt.question for prompt in prompts],
        "answer": [caption(scene.setting, scene.groups) for scene in scenes],
    }
    pq.write_table(pa.table(columns), path)


def write_benchmark(folder: Path, *, count: int, seed: int) -> None:
    """Write scenes of unseen compositions as a benchmark: pictures, COCO annotations, and the exact truth."""
    scenes = make_scenes(count, seed=seed, unseen=True)
    (folder / "images").mkdir(exist_ok=True)
    for scene in scenes:
        (folder / image_name(scene)).write_bytes(render(scene))
    categories = [{"id": number, "name": shape} for number, shape in enumerate(SHAPES, start=1)]
    numbers = {category["name"]: category["id"] for category in categories}
    instances = [
        (scene.id, numbers[g.shape])
        for scene in scenes
        for g in scene.groups
        for _ in range(g.number)
    ]
    images = [{"id": scene.id, "file_name": image_name(scene)} for scene in scenes]
    annotations = [
        {"id": i, "image_id": image, "category_id": kind}
        for i, (image, kind) in enumerate(instances)
    ]
    captions = [
        {"id": s.id, "image_id": s.id, "caption": caption(s.setting, s.groups)} for s in scenes
    ]
    write_json(
        folder / "instances.json",
        {"images": images, "categories": categories, "annotations": annotations},
    )
    write_json(folder / "captions.json", {"images": images, "annotations": captions})
    write_json(folder / "scenes.json", [asdict(scene) for scene in scenes])


def image_name(scene: Scene) -> str:
    """A scene's picture inside a benchmark's folder."""
    return f"images/{scene.id:06d}.png"


def read_scenes(folder: Path) -> list[Scene]:
    """The exact truth of a benchmark's scenes."""
    rows = json.loads((folder / "scenes.json").read_text())
    return [
        Scene(row["id"], row["setting"], tuple(Group(**group) for group in row["groups"]))
        for row in rows
    ]
