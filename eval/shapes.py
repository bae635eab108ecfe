"""The shapes benchmark: CHAIR on COCO-format annotations, and the exact truth about colours, corners and numbers."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.benchmark import Count, JudgedAnswer, Mark, Scores, in_order
from eval.chair import ObjectVocabulary, chair_scores, count_words, ground_truth, score_answer
from rlhfv_ray.records import Answer, Prompt
from rlhfv_ray.shapes.annotator import mistakes
from rlhfv_ray.shapes.captions import QUESTIONS, read_phrases
from rlhfv_ray.shapes.scenes import Scene
from rlhfv_ray.shapes.world import SYNONYMS, read_scenes

DETAILS = {"attribute": "wrong_attributes", "position": "wrong_positions", "number": "wrong_numbers"}


class ShapesBenchmark:
    """A folder written by `rlhfv_ray.shapes.world.write_benchmark`."""

    def __init__(self, folder: Path, *, decoding: dict[str, Any]) -> None:
        self.folder = folder
        self.decoding = decoding  # recorded in the manifest
        self.vocabulary = ObjectVocabulary.load(SYNONYMS, lemmatizer="builtin")  # the same on every machine

    @cached_property
    def instances(self) -> dict[str, Any]:
        """The COCO instances file."""
        return json.loads((self.folder / "instances.json").read_text())

    @cached_property
    def prompts(self) -> list[Prompt]:
        """One question about each picture."""
        return [
            Prompt(
                str(image["id"]),
                (self.folder / image["file_name"]).read_bytes(),
                QUESTIONS[image["id"] % len(QUESTIONS)],
            )
            for image in self.instances["images"]
        ]

    @cached_property
    def truth(self) -> dict[int, set[str]]:
        """Objects in each picture: annotated, or mentioned in its captions."""
        names = {category["id"]: category["name"] for category in self.instances["categories"]}
        instances = [(item["image_id"], names[item["category_id"]]) for item in self.instances["annotations"]]
        captions = json.loads((self.folder / "captions.json").read_text())["annotations"]
        return ground_truth(instances, [(item["image_id"], item["caption"]) for item in captions], self.vocabulary)

    def score(self, answers: Sequence[Answer]) -> Scores:
        """Judge answers, one per prompt."""
        ordered = in_order(self.prompts, answers)
        scenes = {str(scene.id): scene for scene in read_scenes(self.folder)}
        judged = tuple(self.judge(answer, scenes[answer.id]) for answer in ordered)
        chair = chair_scores(
            [self.vocabulary.mentions(answer.text) for answer in ordered],
            [self.truth[int(answer.id)] for answer in ordered],
            [item.words for item in judged],
        )
        return Scores(chair, judged, self.manifest())

    def judge(self, answer: Answer, scene: Scene) -> JudgedAnswer:
        """One answer's verdict: objects by CHAIR; by the scene, colours, corners and numbers of the objects that are there, and how
        many of the phrases about them name one a second time, which CHAIR does not see.
        """
        truth = self.truth[scene.id]
        located = self.vocabulary.locate(answer.text)
        objects = score_answer([(m.word, m.object) for m in located], truth)
        found = mistakes(scene, answer.text)
        wrong = [Mark(mistake.start, mistake.stop, mistake.kind) for mistake in found]
        covered = {position for mark in wrong for position in range(mark.start, mark.stop)}
        loose = [m for m in located if m.object not in truth and m.start not in covered]  # named outside the grammar
        marks = tuple(sorted([*wrong, *(Mark(m.start, m.stop, "object") for m in loose)]))
        present = sum(said.shape in truth for said, _ in read_phrases(answer.text))
        repeated = sum(mistake.kind == "object" and mistake.said.shape in truth for mistake in found)
        details = {
            name: Count(sum(m.kind == kind for m in found), present - repeated) for kind, name in DETAILS.items()
        }
        details["repeated_objects"] = Count(repeated, present)
        return JudgedAnswer(answer, objects, count_words(answer.text), marks, details)

    def manifest(self) -> dict[str, Any]:
        """What scores on this benchmark depend on, besides the model."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(f"{prompt.id}\n{prompt.question}\n".encode() + prompt.image)
        return {
            "benchmark": "shapes",
            "prompts": digest.hexdigest(),
            "n": len(self.prompts),
            "decoding": self.decoding,
            "mode": "rule",
            "lemmatizer": self.vocabulary.lemmatizer,
        }
