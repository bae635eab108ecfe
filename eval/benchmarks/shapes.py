"""The shapes benchmark: CHAIR on COCO-format annotations, and the exact truth about colours, corners and numbers."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.benchmarks.contract import (
    CHAIR,
    WORDS,
    Benchmark,
    JudgedAnswer,
    Metric,
    Ratio,
    Scores,
    Span,
    chair_parts,
    in_order,
    judged_by,
)
from eval.chair import ObjectVocabulary, count_words, ground_truth, score_answer
from eval.config import JudgeConfig
from eval.judge.objects import (
    FIELDS,
    PROMPT,
    SCHEMA,
    Named,
    named_by,
    parse_objects,
    share_unanimous,
)
from eval.judge.prompts import JudgePrompt
from eval.over_generalization import CocoTruth, over_generalization
from eval.over_generalization import SceneType as CocoScene
from rlhfv_ray.endpoint.records import Reply, Request
from rlhfv_ray.records import Answer, Prompt
from rlhfv_ray.shapes.annotator import mistakes
from rlhfv_ray.shapes.captions import QUESTIONS, read_phrases
from rlhfv_ray.shapes.scenes import TYPICAL, Scene
from rlhfv_ray.shapes.world import SYNONYMS, read_scenes

DETAILS = {
    "attribute": "wrong_attributes",
    "position": "wrong_positions",
    "number": "wrong_numbers",
}
MEASURES = (
    *CHAIR,
    Metric(
        "repeated_objects",
        "lower",
        "phrases that name an object of the picture a second time, of those that name one",
    ),
    *(
        Metric(name, "lower", "of the phrases about objects that are there")
        for name in sorted(DETAILS.values())
    ),
    WORDS,
)


class ShapesBenchmark(Benchmark):
    """A folder written by `rlhfv_ray.shapes.world.write_benchmark`."""

    name = "shapes"

    def __init__(
        self, folder: Path, *, decoding: dict[str, Any], judge: JudgeConfig | None = None
    ) -> None:
        self.folder, self.by = folder, judge  # a judge, or the answers' own words
        self.prompt = JudgePrompt.load(judge.prompt if judge else "", default=PROMPT, fields=FIELDS)
        self.decoding = decoding  # recorded in the manifest
        self.vocabulary = ObjectVocabulary.load(
            SYNONYMS, lemmatizer="builtin"
        )  # the same on every machine

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
        instances = [
            (item["image_id"], names[item["category_id"]]) for item in self.instances["annotations"]
        ]
        captions = json.loads((self.folder / "captions.json").read_text())["annotations"]
        return ground_truth(
            instances, [(item["image_id"], item["caption"]) for item in captions], self.vocabulary
        )

    @property
    def judged(self) -> bool:
        """Whether a judge lists the objects."""
        return self.by is not None

    def requests(self, answers: Sequence[Answer]) -> list[Request]:
        """To list an answer's objects, where a judge does that."""
        if self.by is None:
            return []
        schema = SCHEMA if self.by.structured else ""
        return [
            Request(
                answer.id,
                self.prompt.fill(question=answer.question, answer=answer.text),
                schema=schema,
            )
            for answer in in_order(self.prompts, answers)
        ]

    @staticmethod
    def readable(text: str) -> bool:
        """Whether a judge's reply is a list of names."""
        return parse_objects(text) is not None

    def oracle(self, answers: Sequence[Answer]) -> Callable[[Request], str]:
        """The world reads answers itself."""
        texts = {answer.id: answer.text for answer in answers}
        return lambda request: json.dumps(
            [m.word for m in self.vocabulary.locate(texts[request.id])]
        )

    def score(self, answers: Sequence[Answer], verdicts: Mapping[str, Sequence[Reply]]) -> Scores:
        """Judge answers, one per prompt."""
        ordered = in_order(self.prompts, answers)
        scenes = {str(scene.id): scene for scene in read_scenes(self.folder)}
        said = {answer.id: verdicts.get(answer.id, ()) for answer in ordered}
        named = [self.named(answer.text, said[answer.id]) for answer in ordered]
        judged = [
            self.judge(a, scenes[a.id], names) for a, names in zip(ordered, named, strict=True)
        ]
        kept = (
            replace(one, verdict="\n\n".join(v.text for v in said[one.answer.id])) for one in judged
        )
        beside: dict[str, Any] = {"over_generalization": self.over_generalization(ordered, named)}
        if self.by and self.by.votes > 1:
            beside["agreement"] = share_unanimous(named)
        return Scores(MEASURES, tuple(kept), self.manifest(), beside)

    def over_generalization(
        self, answers: Sequence[Answer], named: Sequence[Named]
    ) -> dict[str, Any]:
        """How much oftener a setting's typical shapes are hallucinated in that setting than anywhere."""
        settings: dict[str, set[int]] = {}
        for scene in read_scenes(self.folder):
            settings.setdefault(scene.setting, set()).add(scene.id)
        typical = {
            name: CocoScene(TYPICAL[name], frozenset(images))
            for name, images in sorted(settings.items())
        }
        truth = CocoTruth(
            {image: frozenset(objects) for image, objects in self.truth.items()}, typical
        )
        known = {
            int(a.id): some.mentions
            for a, some in zip(answers, named, strict=True)
            if not some.missing
        }
        return over_generalization(truth, known)

    def named(self, answer: str, said: Sequence[Reply]) -> Named:
        """What an answer names, by the verdicts on it or by its own words."""
        return (
            named_by(said, self.vocabulary) if self.by else Named(self.vocabulary.mentions(answer))
        )

    def judge(self, answer: Answer, scene: Scene, named: Named | None = None) -> JudgedAnswer:
        """One answer's verdict: objects by CHAIR; by the scene, colours, corners and numbers of the objects that are there, and how
        many of the phrases about them name one a second time, which CHAIR does not see.
        """
        named, words = named or self.named(answer.text, ()), count_words(answer.text)
        if named.missing:
            return JudgedAnswer(answer, {WORDS.name: Ratio(words, 1)}, missing=named.missing)
        truth = self.truth[scene.id]
        objects = score_answer(named.mentions, truth)
        false = {name for _, name in objects.hallucinated}
        found = mistakes(scene, answer.text)
        wrong = [Span(mistake.start, mistake.stop, mistake.kind) for mistake in found]
        covered = {position for span in wrong for position in range(span.start, span.stop)}
        # Named outside the grammar.
        loose = [
            m
            for m in self.vocabulary.locate(answer.text)
            if m.object in false and m.start not in covered
        ]
        spans = tuple(sorted([*wrong, *(Span(m.start, m.stop, "object") for m in loose)]))
        present = sum(said.shape in truth for said, _ in read_phrases(answer.text))
        repeated = sum(
            mistake.kind == "object" and mistake.said.shape in truth for mistake in found
        )
        parts = {
            name: Ratio(sum(m.kind == kind for m in found), present - repeated)
            for kind, name in DETAILS.items()
        }
        parts["repeated_objects"] = Ratio(repeated, present)
        return JudgedAnswer(answer, chair_parts(objects, words) | parts, spans)

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
            "mode": "judge" if self.by else "rule",
            "lemmatizer": self.vocabulary.lemmatizer,
            **(judged_by(self.by, self.prompt) if self.by else {}),
        }
