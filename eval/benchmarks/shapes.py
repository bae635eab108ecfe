"""The shapes benchmark: CHAIR, and the exact truth about colours, corners and numbers.

CHAIR is computed on COCO-format annotations. The scenes say which colours, corners and numbers in
an answer are wrong, and which phrases name an object a second time, which CHAIR does not see.

The F1 of phrases takes all together: a phrase is a hit if its object, colour, number and corner are
right. Scenes that training held out have metrics of their own and add to no other one.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.benchmarks.contract import (
    WORDS,
    Benchmark,
    JudgedAnswer,
    Metric,
    Ratio,
    Scores,
    Span,
    chair_ratios,
    in_order,
    judge_manifest,
)
from eval.benchmarks.shapes_metrics import (
    DETAILS,
    HELD_OUT,
    METRICS,
    count_of_groups,
    phrase_ratios,
    recall_ratios,
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
from eval.over_generalization import CocoTruth, SceneType, over_generalization
from rlhfv_ray.endpoint.records import Reply, Request
from rlhfv_ray.records import Answer, Prompt
from rlhfv_ray.shapes.annotator import Mistake, mistakes
from rlhfv_ray.shapes.balance import setting_of
from rlhfv_ray.shapes.captions import QUESTIONS, read_phrases
from rlhfv_ray.shapes.scenes import TYPICAL, Scene
from rlhfv_ray.shapes.world import SYNONYMS, read_scenes, read_world
from rlhfv_ray.shapes.worlds import WORLDS, World


class ShapesBenchmark(Benchmark):
    """A folder written by `rlhfv_ray.shapes.world.write_benchmark`."""

    name = "shapes"

    def __init__(
        self, folder: Path, *, decoding: dict[str, Any], judge: JudgeConfig | None = None
    ) -> None:
        self.folder = folder
        self.judge_config = judge  # None: the answers' own words are read
        self.prompt = JudgePrompt.load(judge.prompt if judge else "", default=PROMPT, fields=FIELDS)
        self.decoding = decoding  # recorded in the manifest
        # The built-in lemmatiser is the same on every machine.
        self.vocabulary = ObjectVocabulary.load(SYNONYMS, lemmatizer="builtin")

    @property
    def prompts_id(self) -> str:
        """Identify the prompts by the stage that draws them, so that they need not exist yet."""
        return self.folder.name

    @cached_property
    def world(self) -> World:
        """The version of the world that the pictures show."""
        return WORLDS[read_world(self.folder)]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics, with those of held-out scenes if the world holds scenes out."""
        return (*METRICS, *HELD_OUT.values()) if self.world.is_balanced else METRICS

    @cached_property
    def instances(self) -> dict[str, Any]:
        """Path of the COCO instances file."""
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
        """The objects in each picture: annotated, or mentioned in its captions."""
        categories = {category["id"]: category["name"] for category in self.instances["categories"]}
        instances = [
            (item["image_id"], categories[item["category_id"]])
            for item in self.instances["annotations"]
        ]
        annotations = json.loads((self.folder / "captions.json").read_text())["annotations"]
        captions = [(item["image_id"], item["caption"]) for item in annotations]
        return ground_truth(instances, captions, self.vocabulary)

    @property
    def judged(self) -> bool:
        """Return True if a judge lists the objects."""
        return self.judge_config is not None

    def requests(self, answers: Sequence[Answer]) -> list[Request]:
        """Return the requests to list each answer's objects, if a judge is configured."""
        if self.judge_config is None:
            return []
        schema = SCHEMA if self.judge_config.structured else ""
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
        """Return whether a judge's reply is a list of names."""
        return parse_objects(text) is not None

    def oracle(self, answers: Sequence[Answer]) -> Callable[[Request], str]:
        """Return a judge that lists the objects by the vocabulary."""
        texts = {answer.id: answer.text for answer in answers}

        def reply(request: Request) -> str:
            mentions = self.vocabulary.locate(texts[request.id])
            return json.dumps([mention.word for mention in mentions])

        return reply

    def score(self, answers: Sequence[Answer], verdicts: Mapping[str, Sequence[Reply]]) -> Scores:
        """Score answers, one per prompt."""
        ordered = in_order(self.prompts, answers)
        scenes = {str(scene.id): scene for scene in read_scenes(self.folder)}
        named: list[Named] = []
        judged: list[JudgedAnswer] = []
        for answer in ordered:
            replies = verdicts.get(answer.id, ())
            objects = self.named(answer.text, replies)
            item = self.judge(answer, scenes[answer.id], objects)
            named.append(objects)
            judged.append(replace(item, verdict="\n\n".join(reply.text for reply in replies)))
        extras: dict[str, Any] = {"over_generalization": self.over_generalization(ordered, named)}
        if self.judge_config and self.judge_config.votes > 1:
            extras["agreement"] = share_unanimous(named)
        return Scores(self.metrics, tuple(judged), self.manifest(), extras)

    def over_generalization(
        self, answers: Sequence[Answer], named: Sequence[Named]
    ) -> dict[str, Any]:
        """Compare how often a setting's typical shapes are hallucinated inside it and overall."""
        settings: dict[str, set[int]] = {}
        for scene in read_scenes(self.folder):
            settings.setdefault(scene.setting, set()).add(scene.id)
        types = {
            name: SceneType(TYPICAL[name], frozenset(settings[name])) for name in sorted(settings)
        }
        objects = {image: frozenset(names) for image, names in self.truth.items()}
        mentions = {
            int(answer.id): names.mentions
            for answer, names in zip(answers, named, strict=True)
            if not names.missing
        }
        return over_generalization(CocoTruth(objects, types), mentions)

    def named(self, answer: str, verdicts: Sequence[Reply]) -> Named:
        """Return the objects that an answer names, by its verdicts or by its own words."""
        if self.judge_config:
            return named_by(verdicts, self.vocabulary)
        return Named(self.vocabulary.mentions(answer))

    def judge(self, answer: Answer, scene: Scene, named: Named | None = None) -> JudgedAnswer:
        """Judge one answer: objects by CHAIR, all else by the scene.

        The rates of wrong colours, corners and numbers are over phrases about objects in the
        picture. The rate of repeated objects is over the same phrases and their repetitions.
        """
        named = named or self.named(answer.text, ())
        words = count_words(answer.text)
        group = self.world.hold_out(scene) or count_of_groups(scene)
        if named.missing:
            ratios = {WORDS.name: Ratio(words, 1)}
            return JudgedAnswer(answer, ratios, group=group, missing=named.missing)
        truth = self.truth[scene.id]
        score = score_answer(named.mentions, truth)
        errors = mistakes(scene, answer.text)
        present = sum(group.shape in truth for group, _ in read_phrases(answer.text))
        repeated = sum(error.kind == "object" and error.said.shape in truth for error in errors)
        counts = Counter(error.kind for error in errors)
        ratios = chair_ratios(score, words)
        for kind, name in DETAILS.items():
            ratios[name] = Ratio(counts[kind], present - repeated)
        ratios["repeated_objects"] = Ratio(repeated, present)
        ratios |= phrase_ratios(answer.text, scene, errors)
        ratios |= recall_ratios(scene, {name for _, name in named.mentions})
        if group in HELD_OUT:
            score_of_group = ratios["response_rate_all" if group == "empty" else "phrase_f1"]
            ratios = {HELD_OUT[group].name: score_of_group}
        hallucinated = {name for _, name in score.hallucinated}
        spans = self._spans(answer.text, errors, hallucinated) + _wrong_setting(answer.text, scene)
        return JudgedAnswer(answer, ratios, tuple(sorted(spans)), group)

    def _spans(
        self, text: str, errors: Sequence[Mistake], hallucinated: AbstractSet[str]
    ) -> tuple[Span, ...]:
        """Locate the wrong phrases, and hallucinated objects that are named outside a phrase."""
        spans = [Span(error.start, error.stop, error.kind) for error in errors]
        covered: set[int] = set()
        for span in spans:
            covered.update(range(span.start, span.stop))
        for mention in self.vocabulary.locate(text) if hallucinated else ():
            if mention.object in hallucinated and mention.start not in covered:
                spans.append(Span(mention.start, mention.stop, "object"))
        return tuple(spans)

    def manifest(self) -> dict[str, Any]:
        """Return everything that scores on this benchmark depend on, except the model."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(f"{prompt.id}\n{prompt.question}\n".encode() + prompt.image)
        return {
            "benchmark": "shapes",
            "prompts": digest.hexdigest(),
            "n": len(self.prompts),
            "decoding": self.decoding,
            "mode": "judge" if self.judge_config else "rule",
            "lemmatizer": self.vocabulary.lemmatizer,
            **(judge_manifest(self.judge_config, self.prompt) if self.judge_config else {}),
        }


def _wrong_setting(text: str, scene: Scene) -> tuple[Span, ...]:
    """Locate the setting that an answer names, if it is another than the picture's."""
    setting = setting_of(text)
    if setting in ("", scene.setting):
        return ()
    word = re.search(rf"\b{setting}\b", text)
    return (Span(*word.span(), "setting"),) if word else ()
