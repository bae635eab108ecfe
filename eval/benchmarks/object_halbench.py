"""Object HalBench (RLHF-V, arXiv 2312.00849): hallucinated objects in answers on 300 COCO images.

    judge mode   A judge lists the objects in a detailed description. A tagger brings their names
                 into the vocabulary's form. Each name counts once.
    rule mode    The answer's own words are read, repeats kept. No judge is needed. Words are NLTK's
                 tokens, as in the release. `split_at_punctuation` has the rates in which
                 "cups/mugs" names a cup, and "a bird's-eye view" a bird.

Facts from the release, `eval/eval_gpt_obj_halbench.py`: an answer of up to three words, separated
by any whitespace, is not shown to the judge and names nothing. Its length in the report counts
single spaces. A judge that gives no list stops the release's scoring. Here such an answer has no
verdict and adds to no rate; `release_compatible` has the rates in which it names nothing. Of
several votes on an answer, the names in more than half of the readable ones count.
"""

import base64
import functools
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from eval.benchmarks.contract import (
    CHAIR,
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
    without_images,
)
from eval.chair import ObjectVocabulary, TaggedWord, count_words, score_answer
from eval.coco import coco_id, find_annotations, load_truth
from eval.config import JudgeConfig, ObjectHalBenchConfig
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
from eval.words.tokens import split_tokens
from rlhfv_ray.data.images import decode_image
from rlhfv_ray.endpoint.records import Reply, Request
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import Answer, Prompt

logger = logging.getLogger(__name__)

METRICS = (*CHAIR, WORDS)
QUESTIONS = 300  # in the release's file
COLUMNS = ("image_id", "question", "image")
SHORT = 3  # words
TAGGER = "en_core_web_trf"  # the release's
NO_TAGGER = (
    "object_halbench.tagger: {name} cannot be used: {error} "
    "Install it with `python -m spacy download {name}`. Without a tagger, 'wooden table' names no "
    "table: give --object-halbench.tagger none for such scores, which lose recall and are compared "
    "with their like alone."
)
NO_PIPELINE = "none"


class Tagger(NamedTuple):
    """An installed spaCy pipeline; an empty name stands for none."""

    name: str = ""
    label: str = NO_PIPELINE  # name and version, for the manifest


class ObjectHalBench(Benchmark):
    """The benchmark, on the release's question file and COCO 2014's annotations."""

    name = "object_halbench"

    def __init__(
        self,
        config: ObjectHalBenchConfig,
        judge: JudgeConfig,
        *,
        cache: Path,
        decoding: dict[str, Any],
    ) -> None:
        if not config.questions or not config.annotations:
            raise ConfigError(
                "object_halbench.questions or .annotations is not set: give "
                "--object-halbench.questions the release's file of questions with their images, "
                "and --object-halbench.annotations the folder of COCO 2014's annotations."
            )
        # A missing file is reported here, before hours of generation.
        find_annotations(Path(config.annotations).expanduser())
        self.config = config
        self.judge = judge
        self.cache = cache
        self.decoding = decoding  # recorded in the manifest
        self.vocabulary = ObjectVocabulary.load()
        self.by_judge = config.mode == "judge"
        if self.by_judge:
            self.pipeline = find_tagger(config.tagger)
            self.prompt = JudgePrompt.load(judge.prompt, default=PROMPT, fields=FIELDS)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The numbers that its scores have."""
        return METRICS

    @cached_property
    def prompts(self) -> list[Prompt]:
        """One question about each image, under its COCO id."""
        return read_questions(Path(self.config.questions).expanduser())

    @cached_property
    def truth(self) -> CocoTruth:
        """The objects in the images, and the images of each scene."""
        truth = load_truth(
            Path(self.config.annotations).expanduser(), self.vocabulary, cache=self.cache
        )
        unknown = [prompt.id for prompt in self.prompts if int(prompt.id) not in truth.objects]
        if unknown:
            raise DataError(
                f"object_halbench.annotations = {self.config.annotations!r}: no annotations of "
                f"{len(unknown)} of {len(self.prompts)} images ({', '.join(unknown[:5])}); "
                "both train2014's and val2014's files are needed."
            )
        return truth

    @cached_property
    def tagger(self) -> Callable[[str], Iterable[TaggedWord]] | None:
        """The reader of the judge's names; None takes every word for a noun."""
        return load_tagger(self.pipeline.name) if self.pipeline.name else None

    @property
    def judged(self) -> bool:
        """Return True if a judge lists the objects."""
        return self.by_judge

    def requests(self, answers: Sequence[Answer]) -> list[Request]:
        """Return a request to list the objects of each answer, except the shortest answers."""
        if not self.by_judge:
            return []
        ordered = in_order(self.prompts, answers)
        return [
            self._request(prompt, answer)
            for prompt, answer in zip(self.prompts, ordered, strict=True)
            if not _is_short(answer.text)
        ]

    def _request(self, prompt: Prompt, answer: Answer) -> Request:
        text = self.prompt.fill(question=prompt.question, answer=answer.text)
        schema = SCHEMA if self.judge.structured else ""
        if self.prompt.is_shipped:
            return Request(prompt.id, text, schema=schema)
        return Request(prompt.id, "", system=text, schema=schema)  # as the release asks

    @staticmethod  # so that it is sent to the clients without the images
    def readable(text: str) -> bool:
        """Return True if a judge's reply can be read as a JSON list of object names."""
        return parse_objects(text) is not None

    def score(self, answers: Sequence[Answer], verdicts: Mapping[str, Sequence[Reply]]) -> Scores:
        """Score answers by the objects that they name and COCO's truth."""
        named: list[Named] = []
        judged: list[JudgedAnswer] = []
        known: dict[int, Sequence[tuple[str, str]]] = {}  # mentions by image
        for prompt, answer in zip(self.prompts, in_order(self.prompts, answers), strict=True):
            replies = verdicts.get(answer.id, ())
            names = self.named(answer.text, replies)
            item = self.judge_answer(answer, names, self.truth.objects[int(answer.id)])
            review = "\n\n".join(reply.text for reply in replies)
            named.append(names)
            judged.append(replace(item, group=prompt.question, verdict=review))
            if not names.missing:
                known[int(answer.id)] = names.mentions
        extras: dict[str, Any] = {"over_generalization": over_generalization(self.truth, known)}
        extras["release_compatible"] = self.release_compatible(judged)
        if not self.by_judge:
            extras["split_at_punctuation"] = self.split_at_punctuation(judged)
        if self.by_judge:
            replies = chain.from_iterable(verdicts.values())
            extras["judge_models"] = sorted({reply.model for reply in replies if reply.model})
        if self.by_judge and self.judge.votes > 1:
            extras["agreement"] = share_unanimous(named)
        return Scores(self.metrics, tuple(judged), self.manifest(), extras)

    def named(self, answer: str, verdicts: Sequence[Reply]) -> Named:
        """Return the objects that an answer names, by its verdicts or by its own words."""
        if not self.by_judge:
            return Named(self.vocabulary.mentions(answer))
        if _is_short(answer):
            return Named()
        return named_by(verdicts, self.vocabulary, read=self.tagger)

    def judge_answer(self, answer: Answer, named: Named, truth: AbstractSet[str]) -> JudgedAnswer:
        """Judge one answer; without a verdict only its length counts."""
        words = count_words(answer.text)
        if named.missing:
            return JudgedAnswer(answer, {WORDS.name: Ratio(words, 1)}, missing=named.missing)
        score = score_answer(named.mentions, truth)
        hallucinated = {name for _, name in score.hallucinated}
        spans = tuple(
            Span(mention.start, mention.stop, "object")
            for mention in self.vocabulary.locate(answer.text)
            if mention.object in hallucinated
        )
        return JudgedAnswer(answer, chair_ratios(score, words), spans)

    def release_compatible(self, judged: Sequence[JudgedAnswer]) -> dict[str, float | None]:
        """Compute the rates in which an answer without a verdict names nothing."""
        return _chair_rates(
            self._rejudge(item, Named()) if item.missing else item for item in judged
        )

    def split_at_punctuation(self, judged: Sequence[JudgedAnswer]) -> dict[str, float | None]:
        """Compute the rates in which every punctuation mark but a hyphen splits words."""
        rejudged: list[JudgedAnswer] = []
        for item in judged:
            mentions = self.vocabulary.read(split_tokens(item.answer.text))
            named = Named([(mention.word, mention.object) for mention in mentions])
            rejudged.append(self._rejudge(item, named))
        return _chair_rates(rejudged)

    def _rejudge(self, item: JudgedAnswer, named: Named) -> JudgedAnswer:
        """Judge an answer again, as if it named other objects."""
        return self.judge_answer(item.answer, named, self.truth.objects[int(item.answer.id)])

    def manifest(self) -> dict[str, Any]:
        """Return everything that scores on this benchmark depend on, except the model."""
        questions = [
            (prompt.id, prompt.question, hashlib.sha256(prompt.image).hexdigest())
            for prompt in self.prompts
        ]
        manifest = {
            "benchmark": self.name,
            "mode": self.config.mode,
            "n": len(self.prompts),
            "prompts": hashlib.sha256(json.dumps(questions).encode()).hexdigest(),
            "truth": self.truth.digest(int(prompt.id) for prompt in self.prompts),
            "lemmatizer": self.vocabulary.lemmatizer,
            "decoding": self.decoding,
            **without_images(self.prompts),
        }
        if not self.by_judge:
            return manifest | {"words": "NLTK's tokens"}
        manifest |= {"structured": self.judge.structured, "tagger": self.pipeline.label}
        if not self.prompt.is_shipped:
            manifest["prompt_role"] = "system"
        return manifest | judge_manifest(self.judge, self.prompt)


def _chair_rates(judged: Iterable[JudgedAnswer]) -> dict[str, float | None]:
    rates = Scores(CHAIR, tuple(judged), {}).rates()
    return {metric.name: rates[metric.name] for metric in CHAIR}


def read_questions(path: Path) -> list[Prompt]:
    """Read the release's question file and check that every image in it decodes.

    Raises:
        DataError: the message names the file, and the line that cannot be used.
    """
    try:
        with path.open("rb") as stream:
            lines = [(number, line) for number, line in enumerate(stream, 1) if line.strip()]
    except OSError as error:
        raise DataError(
            f"object_halbench.questions = {str(path)!r} cannot be read: {error.strerror}."
        ) from error
    # Files of answers are scored without images, if no line has one.
    has_images = any(b'"image"' in line for _, line in lines)
    prompts: dict[str, Prompt] = {}
    for number, line in lines:
        position = f"{path}, line {number}"
        prompt = _parse_question(line, position, has_images=has_images)
        if prompt.id in prompts:
            raise DataError(
                f"{position}: image {prompt.id} has a question already; expected one per image."
            )
        prompts[prompt.id] = prompt
    if not prompts:
        raise DataError(f"object_halbench.questions = {str(path)!r} holds no questions.")
    if len(prompts) != QUESTIONS:
        logger.warning("%s has %d questions; Object HalBench has %d", path, len(prompts), QUESTIONS)
    return list(prompts.values())


def find_tagger(name: str) -> Tagger:
    """Find a spaCy pipeline by name or folder; without a name, the release's.

    The name `none` asks for the built-in rules, by which every word of a name is a noun. Attributes
    that a judge leaves in a name then hide its object, and recall is lost.

    Raises:
        ConfigError: the pipeline is not installed.
    """
    if name == NO_PIPELINE:
        return Tagger()
    package = name or TAGGER
    meta_file = Path(package).expanduser() / "meta.json"
    try:
        if meta_file.is_file():
            meta = json.loads(meta_file.read_text())
            label = f"{meta['lang']}_{meta['name']} {meta['version']}"
            return Tagger(str(meta_file.parent), label)
        return Tagger(package, f"{package} {importlib.metadata.version(package)}")
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError) as error:
        raise ConfigError(NO_TAGGER.format(name=package, error=repr(error))) from error


def load_tagger(name: str) -> Callable[[str], Iterable[TaggedWord]]:
    """Load a spaCy pipeline; its reading of a text is cached.

    Raises:
        ConfigError: the pipeline cannot be loaded.
    """
    import spacy  # slow to import

    try:
        pipeline = spacy.load(name)
    except (OSError, ImportError, ValueError, AttributeError, TypeError) as error:
        # The last two mean that the package is no pipeline.
        raise ConfigError(NO_TAGGER.format(name=name, error=error)) from error
    return functools.cache(lambda text: list(pipeline(text)))


def _parse_question(line: bytes, position: str, *, has_images: bool) -> Prompt:
    try:
        row = json.loads(line)
        if not has_images:
            row["image"] = ""
        image_id, question, image = (row[name] for name in COLUMNS)
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"question {question!r}: expected a text")
        data = base64.b64decode(image, validate=True)
        if has_images:
            decode_image(data)
        return Prompt(str(coco_id(image_id)), data, question)
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        raise DataError(
            f"{position}: {reason}. Every line is JSON with {', '.join(COLUMNS)} (base64)."
        ) from error


def _is_short(answer: str) -> bool:
    return len(answer.split()) <= SHORT
