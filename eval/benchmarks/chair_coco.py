"""CHAIR on COCO images by OPERA's protocol (arXiv 2311.17911), which most methods report.

A model describes 500 images of COCO val2014. CHAIRs is the share of descriptions that name an
object which is not there, CHAIRi the share of mentions. Facts from github.com/shikiw/OPERA,
`chair.py`:

* Words are NLTK's tokens of the lower-case text. Each is reduced by WordNet as what NLTK's tagger
  takes it for: a noun, a verb, an adjective, an adverb, or else a noun. So "a man is booking a
  room" names a book. Two lemmas in a row that are one term are one word.
* The objects of an image are those that COCO annotates, and those that its five captions name by
  the same reading. Recall is the share of them that a description names, summed over images.
* The length of a description counts these words, punctuation included.

It is not Object HalBench's rule mode, which reads every word as a noun: scores of the two are not
compared.
"""

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.benchmarks.contract import (
    CHAIR,
    OBJECT_RECALL,
    RESPONSE_RATE,
    WORDS,
    Benchmark,
    JudgedAnswer,
    Metric,
    Scores,
    Span,
    chair_ratios,
    in_order,
    without_images,
)
from eval.chair import Mention, ObjectVocabulary, score_answer
from eval.coco import coco_id, find_annotations, image_ids, load_truth
from eval.config import ChairConfig
from eval.inputs.images import image_bytes
from eval.inputs.json_rows import read_json_rows
from eval.over_generalization import CocoTruth
from eval.words.tagged import Tagged, tagged_lemma, tagged_words
from rlhfv_ray.endpoint.records import Reply
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import Answer, Prompt

LENGTH = WORDS._replace(meaning="mean length in words and punctuation; shorter is not better")
_BY_NAME = {metric.name: metric for metric in CHAIR}
METRICS = (
    _BY_NAME["response_rate_all"]._replace(
        meaning="CHAIRs: answers with a hallucinated object, of all answers"
    ),
    _BY_NAME["mention_rate"]._replace(
        meaning="CHAIRi: hallucinated object mentions, of all object mentions"
    ),
    OBJECT_RECALL,
    RESPONSE_RATE,
    LENGTH,
)


@dataclass(frozen=True)
class TaggedVocabulary(ObjectVocabulary):
    """COCO's objects, read from words that a tagger has classified."""

    tag: Callable[[str], Sequence[Tagged]] = tagged_words

    def locate(self, text: str) -> list[Mention]:
        """Return the mentions with their character positions."""
        tokens = self.tag(text)
        words = self.words([(token.word, token.tag) for token in tokens])
        counted = self._counted([word for word, _, _ in words])
        return [
            Mention(word, self.objects[word], tokens[first].start, tokens[last].stop)
            for word, first, last in words
            if word in counted
        ]

    def mentions_in(self, words: Sequence[str]) -> list[tuple[str, str]]:
        """Return the mentions (word, object) among the words of a text, repeats kept."""
        counted = self._counted(words)
        return [(word, self.objects[word]) for word in words if word in counted]

    def words(self, tagged: Sequence[tuple[str, str]]) -> list[tuple[str, int, int]]:
        """Return the words of a text, each with its first and its last token.

        Args:
            tagged: tokens with their Penn Treebank tags.
        """
        lemmas = [tagged_lemma(word, tag) for word, tag in tagged]
        return [
            (phrase or lemmas[index], index, index + (phrase is not None))
            for index, phrase in self._phrases_in(lemmas)
        ]


class ChairCoco(Benchmark):
    """Descriptions of COCO val2014's images."""

    name = "chair"

    def __init__(
        self,
        config: ChairConfig,
        *,
        cache: Path,
        decoding: dict[str, Any],
        tag: Callable[[str], Sequence[Tagged]] = tagged_words,
    ) -> None:
        if not config.annotations:
            raise ConfigError(
                "chair.annotations is not set: give --chair.annotations the folder of COCO 2014's "
                "annotations."
            )
        find_annotations(Path(config.annotations).expanduser())
        loaded = ObjectVocabulary.load(lemmatizer="wordnet")
        self.vocabulary = TaggedVocabulary(loaded.objects, loaded.phrases, "wordnet", tag)
        self.vocabulary.mentions("a dog")  # says now what of NLTK's data is missing
        self.config = config
        self.cache = cache
        self.decoding = decoding  # recorded in the manifest

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The numbers that its scores have."""
        return METRICS

    @cached_property
    def images(self) -> list[int]:
        """COCO ids of the images: those of the list, or drawn from val2014 by the seed."""
        if self.config.image_ids:
            setting = "chair.image_ids"
            rows = read_json_rows(self.config.image_ids, (), what=setting)
            ids = [coco_id(row.get("image_id") if isinstance(row, dict) else row) for row in rows]
            if len(set(ids)) < len(ids):
                raise DataError(f"{setting} = {self.config.image_ids!r}: an image is there twice.")
            return ids
        drawn_from = image_ids(Path(self.config.annotations).expanduser(), "val2014")
        if len(drawn_from) < self.config.count:
            raise DataError(
                f"chair.count = {self.config.count}: COCO's files have {len(drawn_from)} images."
            )
        return random.Random(self.config.seed).sample(sorted(drawn_from), self.config.count)

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The question about every image, under the image's COCO id."""
        names = [f"COCO_val2014_{image:012d}.jpg" for image in self.images]
        contents = image_bytes(self.config.images, names)
        return [
            Prompt(str(image), contents[name], self.config.question)
            for image, name in zip(self.images, names, strict=True)
        ]

    @cached_property
    def truth(self) -> CocoTruth:
        """The objects in the images."""
        folder = Path(self.config.annotations).expanduser()
        only = frozenset(self.images)
        truth = load_truth(folder, self.vocabulary, cache=self.cache, only=only)
        unknown = sorted(only - truth.objects.keys())
        if unknown:
            raise DataError(
                f"chair.annotations = {self.config.annotations!r}: no annotations of "
                f"{len(unknown)} images, the first {unknown[0]}."
            )
        return truth

    def score(self, answers: Sequence[Answer], verdicts: Mapping[str, Sequence[Reply]]) -> Scores:
        """Score the descriptions."""
        judged = tuple(map(self.judge, in_order(self.prompts, answers)))
        return Scores(METRICS, judged, self.manifest())

    def judge(self, answer: Answer) -> JudgedAnswer:
        """Judge one description."""
        mentions = self.vocabulary.locate(answer.text)
        truth = self.truth.objects[int(answer.id)]
        score = score_answer([(mention.word, mention.object) for mention in mentions], truth)
        tokens = self.vocabulary.tag(answer.text)
        length = len(self.vocabulary.words([(token.word, token.tag) for token in tokens]))
        spans = tuple(
            Span(mention.start, mention.stop, "object")
            for mention in mentions
            if mention.object not in truth
        )
        return JudgedAnswer(answer, chair_ratios(score, length), spans)

    def manifest(self) -> dict[str, Any]:
        """Return everything that scores on this benchmark depend on, except the model."""
        questions = [
            (prompt.id, prompt.question, hashlib.sha256(prompt.image).hexdigest())
            for prompt in self.prompts
        ]
        return {
            "benchmark": self.name,
            "protocol": "OPERA",
            "n": len(self.prompts),
            "prompts": hashlib.sha256(json.dumps(questions).encode()).hexdigest(),
            "truth": self.truth.digest(self.images),
            "decoding": self.decoding,
            **without_images(self.prompts),
        }
