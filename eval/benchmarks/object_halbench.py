"""Object HalBench: which objects do detailed descriptions of 300 COCO images name that are not there? RLHF-V, arXiv 2312.00849.

    judge mode   a judge lists the objects of an answer; a tagger brings the names into the vocabulary's form; each counts once
    rule mode    the answer's own words, repeats kept; no judge

Facts from the release, `eval/eval_gpt_obj_halbench.py`: an answer of up to three words (between any blanks) is not shown to the judge and
names nothing; its length in the report counts single spaces. A judge that gives no list stops the release's scoring. Here such an answer
has no verdict and adds to no rate, and `release_compatible` keeps the rates in which it names nothing. Of several votes on an answer,
the names that more than half of the readable ones list are taken.
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
from pathlib import Path
from typing import Any, NamedTuple

from eval.benchmarks.contract import (
    CHAIR,
    WORDS,
    Benchmark,
    JudgedAnswer,
    Ratio,
    Scores,
    Span,
    chair_parts,
    in_order,
    judged_by,
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
from rlhfv_ray.data.images import decode_image
from rlhfv_ray.endpoint.records import Reply, Request
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import Answer, Prompt

logger = logging.getLogger(__name__)

MEASURES = (*CHAIR, WORDS)
QUESTIONS = 300  # of the release
COLUMNS = ("image_id", "question", "image")
SHORT = 3  # words
TAGGER = "en_core_web_trf"  # the release's
NO_TAGGER = "object_halbench.tagger: {name} cannot be used: {error} Install it with `python -m spacy download {name}`."


class Tagger(NamedTuple):
    """A spaCy pipeline that is installed; no name: none is used."""

    name: str = ""
    label: str = "none"  # for the manifest


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
                f"object_halbench.questions and .annotations must both be set; given: {config}."
            )
        find_annotations(
            Path(config.annotations).expanduser()
        )  # what is missing shows before answers are made
        self.config, self.judge = config, judge
        self.cache, self.decoding = cache, decoding  # the latter is recorded in the manifest
        self.vocabulary = ObjectVocabulary.load()
        self.by_judge = config.mode == "judge"
        if self.by_judge:
            self.pipeline = find_tagger(config.tagger)
            self.prompt = JudgePrompt.load(judge.prompt, default=PROMPT, fields=FIELDS)

    @cached_property
    def prompts(self) -> list[Prompt]:
        """One question about each image, under its COCO id."""
        return read_questions(Path(self.config.questions).expanduser())

    @cached_property
    def truth(self) -> CocoTruth:
        """What is in the images."""
        truth = load_truth(
            Path(self.config.annotations).expanduser(), self.vocabulary, cache=self.cache
        )
        unknown = [prompt.id for prompt in self.prompts if int(prompt.id) not in truth.objects]
        if unknown:
            raise DataError(
                f"object_halbench.annotations = {self.config.annotations!r}: no annotations of {len(unknown)} of {len(self.prompts)} "
                f"images ({', '.join(unknown[:5])}); both train2014's and val2014's files are needed."
            )
        return truth

    @cached_property
    def tagger(self) -> Callable[[str], Iterable[TaggedWord]] | None:
        """Reads the judge's names; None: nouns by the built-in rules."""
        return load_tagger(self.pipeline.name) if self.pipeline.name else None

    @property
    def judged(self) -> bool:
        """Whether a judge lists the objects."""
        return self.by_judge

    def requests(self, answers: Sequence[Answer]) -> list[Request]:
        """To list an answer's objects, for all but the shortest answers."""
        if not self.by_judge:
            return []
        schema = SCHEMA if self.judge.structured else ""
        return [
            Request(
                prompt.id,
                self.prompt.fill(question=prompt.question, answer=answer.text),
                schema=schema,
            )
            for prompt, answer in zip(self.prompts, in_order(self.prompts, answers), strict=True)
            if not _is_short(answer.text)
        ]

    @staticmethod  # so that it travels to the callers without the images
    def readable(text: str) -> bool:
        """Whether a judge's reply is a list of names."""
        return parse_objects(text) is not None

    def score(self, answers: Sequence[Answer], verdicts: Mapping[str, Sequence[Reply]]) -> Scores:
        """Score answers by the objects that they name, and COCO's truth."""
        named, judged = [], []
        for prompt, answer in zip(self.prompts, in_order(self.prompts, answers), strict=True):
            said = verdicts.get(answer.id, ())
            named.append(self.named(answer.text, said))
            item = self.judge_answer(answer, named[-1], self.truth.objects[int(answer.id)])
            judged.append(
                replace(item, group=prompt.question, verdict="\n\n".join(one.text for one in said))
            )
        known = {
            int(item.answer.id): n.mentions
            for item, n in zip(judged, named, strict=True)
            if not n.missing
        }
        beside: dict[str, Any] = {"over_generalization": over_generalization(self.truth, known)}
        if self.by_judge:
            beside["release_compatible"] = self.release_compatible(judged)
            beside["judge_models"] = sorted(
                {one.model for said in verdicts.values() for one in said if one.model}
            )
        if self.by_judge and self.judge.votes > 1:
            beside["agreement"] = share_unanimous(named)
        return Scores(MEASURES, tuple(judged), self.manifest(), beside)

    def named(self, answer: str, said: Sequence[Reply]) -> Named:
        """What an answer names, by the verdicts on it or by its own words."""
        if not self.by_judge:
            return Named(self.vocabulary.mentions(answer))
        if _is_short(answer):
            return Named()
        return named_by(said, self.vocabulary, read=self.tagger)

    def judge_answer(self, answer: Answer, named: Named, truth: AbstractSet[str]) -> JudgedAnswer:
        """One answer's verdict; where what it names is not known, only its length counts."""
        words = count_words(answer.text)
        if named.missing:
            return JudgedAnswer(answer, {WORDS.name: Ratio(words, 1)}, missing=named.missing)
        objects = score_answer(named.mentions, truth)
        false = {name for _, name in objects.hallucinated}
        spans = (
            Span(m.start, m.stop, "object")
            for m in self.vocabulary.locate(answer.text)
            if m.object in false
        )
        return JudgedAnswer(answer, chair_parts(objects, words), tuple(spans))

    def release_compatible(self, judged: Sequence[JudgedAnswer]) -> dict[str, float | None]:
        """The rates when an answer without a verdict names nothing."""
        truth = self.truth.objects
        mute = [
            self.judge_answer(i.answer, Named(), truth[int(i.answer.id)]) if i.missing else i
            for i in judged
        ]
        rates = Scores(CHAIR, tuple(mute), {}).rates()
        return {metric.name: rates[metric.name] for metric in CHAIR}

    def manifest(self) -> dict[str, Any]:
        """What scores on this benchmark depend on, besides the model."""
        asked = [(p.id, p.question, hashlib.sha256(p.image).hexdigest()) for p in self.prompts]
        manifest = {
            "benchmark": self.name,
            "mode": self.config.mode,
            "n": len(self.prompts),
            "prompts": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
            "truth": self.truth.digest(int(prompt.id) for prompt in self.prompts),
            "lemmatizer": self.vocabulary.lemmatizer,
            "decoding": self.decoding,
        }
        if not self.by_judge:
            return manifest
        structured = {"structured": self.judge.structured, "tagger": self.pipeline.label}
        return manifest | structured | judged_by(self.judge, self.prompt)


def read_questions(path: Path) -> list[Prompt]:
    """Read the release's question file; every image must decode.

    Raises:
        DataError: names the file, and the line that cannot be used.
    """
    try:
        with path.open("rb") as stream:
            lines = [(number, line) for number, line in enumerate(stream, 1) if line.strip()]
    except OSError as error:
        raise DataError(
            f"object_halbench.questions = {str(path)!r} cannot be read: {error.strerror}."
        ) from error
    prompts: dict[str, Prompt] = {}
    for number, line in lines:
        prompt = _question(line, f"{path}, line {number}")
        if prompt.id in prompts:
            raise DataError(
                f"{path}, line {number}: image {prompt.id} has a question already; expected one per image."
            )
        prompts[prompt.id] = prompt
    if not prompts:
        raise DataError(f"object_halbench.questions = {str(path)!r} holds no questions.")
    if len(prompts) != QUESTIONS:
        logger.warning("%s has %d questions; Object HalBench has %d", path, len(prompts), QUESTIONS)
    return list(prompts.values())


def find_tagger(wanted: str) -> Tagger:
    """The spaCy pipeline to read names with: the one that is wanted, else the release's if it is installed, else none.

    Raises:
        ConfigError: the one that is wanted is not installed.
    """
    name = wanted or TAGGER
    meta = Path(name).expanduser() / "meta.json"
    try:
        if meta.is_file():
            facts = json.loads(meta.read_text())
            return Tagger(str(meta.parent), f"{facts['lang']}_{facts['name']} {facts['version']}")
        return Tagger(name, f"{name} {importlib.metadata.version(name)}")
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError) as error:
        if wanted:
            raise ConfigError(NO_TAGGER.format(name=name, error=repr(error))) from error
    logger.warning("%s is not installed: every word of an object's name counts as a noun", TAGGER)
    return Tagger()


def load_tagger(name: str) -> Callable[[str], Iterable[TaggedWord]]:
    """Load a spaCy pipeline; a text that comes again is not read again.

    Raises:
        ConfigError: it cannot be loaded.
    """
    import spacy  # slow to import

    try:
        pipeline = spacy.load(name)
    except (
        OSError,
        ImportError,
        ValueError,
        AttributeError,
        TypeError,
    ) as error:  # the last two: it is no pipeline
        raise ConfigError(NO_TAGGER.format(name=name, error=error)) from error
    return functools.cache(lambda text: list(pipeline(text)))


def _question(line: bytes, where: str) -> Prompt:
    try:
        row = json.loads(line)
        image_id, question, image = (row[name] for name in COLUMNS)
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"question {question!r}: expected a text")
        data = base64.b64decode(image, validate=True)
        decode_image(data)
        return Prompt(str(coco_id(image_id)), data, question)
    except (ValueError, KeyError, TypeError) as error:
        what = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        raise DataError(
            f"{where}: {what}. Every line is JSON with {', '.join(COLUMNS)} (base64)."
        ) from error


def _is_short(answer: str) -> bool:
    return len(answer.split()) <= SHORT
