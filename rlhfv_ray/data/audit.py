"""Audit the data in one pass before a job starts: what it will teach, and what cannot be used."""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from io import BytesIO
from statistics import fmean, median
from typing import get_args

from PIL import Image

from rlhfv_ray.data.images import decode_image
from rlhfv_ray.data.reading import Slice, read_slice
from rlhfv_ray.data.repeats import pair_key
from rlhfv_ray.data.row_fields import attempt, parse_json
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import EncodedPair, PreferencePair
from rlhfv_ray.segments import Rule, changed_tokens

DIGITS = re.compile(r"(\d+)\D*$")
UNKNOWN = "not said"
SAMPLE = 24  # pairs that the page shows
TEXTS = 2000  # pairs whose texts are kept, for figures that need many at once
# Encodes a pair for the model that is to be trained.
Encode = Callable[[PreferencePair], EncodedPair]


@dataclass(frozen=True)
class AnswerLengths:
    """Whitespace-separated words per answer."""

    mean: float
    median: float
    longest: int


@dataclass(frozen=True)
class RuleCounts:
    """Corrected tokens by one rule; words in their place if the audit has no model."""

    chosen_share: float  # of the tokens of all chosen answers
    rejected_share: float
    without_segment: int  # pairs in which the rule gives no token extra weight


@dataclass(frozen=True)
class Audit:
    """Result of an audit. Figures cover usable pairs; lengths are None if there is none."""

    rows: int
    usable: int
    unusable: Mapping[str, int]  # reason code -> number of rows
    examples: Mapping[str, str]  # reason code -> message of the first such row
    duplicated_ids: tuple[str, ...]
    chosen: AnswerLengths | None
    rejected: AnswerLengths | None
    chosen_longer: int = 0  # pairs whose chosen answer has more words
    chosen_shorter: int = 0
    sources: Mapping[str, int] = field(default_factory=dict)  # data set -> pairs
    kinds: Mapping[str, int] = field(default_factory=dict)  # type of question -> pairs
    unit: str = "words"  # of the rules' counts and of the changes: words or tokens
    rules: Mapping[str, RuleCounts] = field(default_factory=dict)
    changes: Mapping[str, int] = field(default_factory=dict)  # insert, delete, replace -> runs
    duplicates: int = 0  # pairs that repeat an earlier one
    pairs_per_image: Mapping[int, int] = field(default_factory=dict)  # pairs -> images
    image_sizes: Mapping[str, int] = field(default_factory=dict)
    image_modes: Mapping[str, int] = field(default_factory=dict)
    evaluated_images: Mapping[str, int] = field(default_factory=dict)  # set -> pairs with its image
    unnamed_images: int = 0  # pairs that no evaluation set can be searched for
    sample: tuple[PreferencePair, ...] = ()
    texts: tuple[PreferencePair, ...] = ()  # a larger sample, without images


def audit_pairs(
    slices: Iterable[Slice],
    *,
    decode: int = 0,
    encode: Encode | None = None,
    evaluations: Mapping[str, frozenset[str]] | None = None,
    set_aside: Mapping[str, str] | None = None,
) -> Audit:
    """Read every row once, and count what it holds.

    Args:
        slices: slices from `list_slices`.
        decode: decode the images too, of up to this number of pixels. It costs far more than
            reading the rows; 0: leave it out.
        encode: encodes a pair for a model, whose tokens are counted in place of words. It decodes
            the images.
        evaluations: image ids of evaluation sets, see `image_id`.
        set_aside: reasons of rows that a job could not use, by id.

    Raises:
        DataError: a file cannot be read.
    """
    counts = _Counts(encode, evaluations or {})
    set_aside = set_aside or {}
    for part in slices:
        for row_id, row in read_slice(part):
            counts.ids[row_id] += 1
            if row_id in set_aside:
                result = DataError(set_aside[row_id])
            elif isinstance(row, PreferencePair):
                if decode or encode:
                    counts.look_at_image(row)
                result = attempt(lambda pair=row: counts.prepared(pair, decode), row.position)
            else:
                result = row
            if isinstance(result, DataError):
                counts.errors.append(str(result))
            elif isinstance(row, PreferencePair):
                counts.add(row, result if isinstance(result, EncodedPair) else None)
    return counts.audit()


class _Counts:
    """The figures of the rows that were read so far."""

    def __init__(self, encode: Encode | None, evaluations: Mapping[str, frozenset[str]]) -> None:
        self.encode, self.evaluations = encode, evaluations
        self.rng = random.Random(0)
        self.ids: Counter[str] = Counter()
        self.errors: list[str] = []
        self.words: list[tuple[int, int]] = []  # of chosen and rejected answer
        self.named: dict[str, Counter[str]] = {
            name: Counter() for name in ("source", "kind", "change", "size", "mode", "evaluation")
        }
        self.masked = {rule: Counter[str]() for rule in get_args(Rule)}
        self.unnamed = 0  # pairs whose image has no name
        self.images: Counter[bytes] = Counter()
        self.pairs: Counter[bytes] = Counter()
        self.sample: list[PreferencePair] = []
        self.texts: list[PreferencePair] = []

    def look_at_image(self, pair: PreferencePair) -> None:
        """Count size and mode of a readable image, from its header."""
        header = attempt(lambda: Image.open(BytesIO(pair.image)), pair.position)
        if not isinstance(header, DataError):
            self.named["mode"][f"{header.format} {header.mode}"] += 1
            self.named["size"][size_class(*header.size)] += 1

    def prepared(self, pair: PreferencePair, decode: int) -> PreferencePair | EncodedPair:
        """Return a pair that can be trained on, encoded if there is a model."""
        if self.encode is not None:
            return self.encode(pair)
        if decode:
            decode_image(pair.image, max_pixels=decode)
        return pair

    def add(self, pair: PreferencePair, encoded: EncodedPair | None) -> None:
        """Count a usable pair."""
        words = (pair.chosen.split(), pair.rejected.split())
        self.words.append((len(words[0]), len(words[1])))
        self.named["source"][pair.origin.get("origin_dataset") or _source(pair)] += 1
        self.named["kind"][_kind(pair)] += 1
        self.images[pair_key(pair.image)] += 1
        self.pairs[pair_key(pair.image, pair.question, pair.chosen, pair.rejected)] += 1
        self.unnamed += not pair.image_path
        image = image_id(pair.image_path) if pair.image_path else None
        for name, ids in self.evaluations.items():
            self.named["evaluation"][name] += image in ids
        chosen, rejected = word_numbers(*words)
        if encoded is not None:
            chosen, rejected = encoded.chosen_ids, encoded.rejected_ids
        for rule, counter in self.masked.items():
            if encoded is None:
                masks = changed_tokens(chosen, rejected, rule=rule)
            else:
                masks = encoded.changed[rule]
            counter["pairs"] += not any(map(any, masks))
            counter.update({"chosen": sum(masks[0]), "rejected": sum(masks[1])})
            counter.update({"all chosen": len(masks[0]), "all rejected": len(masks[1])})
        # From the model's answer to its correction.
        matcher = SequenceMatcher(None, rejected, chosen, autojunk=False)
        for operation, *_ in matcher.get_opcodes():
            self.named["change"][operation] += operation != "equal"
        self._draw(self.sample, SAMPLE, pair)
        self._draw(self.texts, TEXTS, replace(pair, image=b""))

    def _draw(self, sample: list[PreferencePair], size: int, pair: PreferencePair) -> None:
        """Keep a uniform sample of the pairs so far."""
        if len(sample) < size:
            sample.append(pair)
        elif (index := self.rng.randrange(len(self.words))) < size:
            sample[index] = pair

    def audit(self) -> Audit:
        """Return the result."""
        codes = [message.partition(":")[0] for message in self.errors]
        # Reversed, because a dict keeps the last value of a key: the first of each code stays.
        examples = dict(zip(reversed(codes), reversed(self.errors), strict=True))
        changes = {name: self.named["change"][name] for name in ("insert", "delete", "replace")}
        return Audit(
            rows=self.ids.total(),
            usable=len(self.words),
            unusable=_by_count(Counter(codes)),
            examples=examples,
            duplicated_ids=tuple(row_id for row_id, count in self.ids.items() if count > 1),
            chosen=_lengths([chosen for chosen, _ in self.words]),
            rejected=_lengths([rejected for _, rejected in self.words]),
            chosen_longer=sum(chosen > rejected for chosen, rejected in self.words),
            chosen_shorter=sum(chosen < rejected for chosen, rejected in self.words),
            sources=_by_count(self.named["source"]),
            kinds=_by_count(self.named["kind"]),
            unit="words" if self.encode is None else "tokens",
            rules={rule: _rule_counts(counter) for rule, counter in self.masked.items()},
            changes=changes,
            duplicates=self.pairs.total() - len(self.pairs),
            pairs_per_image=dict(sorted(Counter(self.images.values()).items())),
            image_sizes=_by_count(self.named["size"]),
            image_modes=_by_count(self.named["mode"]),
            evaluated_images=dict(self.named["evaluation"]),
            unnamed_images=self.unnamed,
            sample=tuple(self.sample),
            texts=tuple(self.texts),
        )


def _by_count(counter: Counter[str]) -> dict[str, int]:
    return dict(counter.most_common())


def _rule_counts(counter: Mapping[str, int]) -> RuleCounts:
    return RuleCounts(
        chosen_share=counter["chosen"] / max(counter["all chosen"], 1),
        rejected_share=counter["rejected"] / max(counter["all rejected"], 1),
        without_segment=counter["pairs"],
    )


def _source(pair: PreferencePair) -> str:
    return pair.origin.get("ds_name") or UNKNOWN


def _kind(pair: PreferencePair) -> str:
    """Return the type of question that RLHF-V's `origin_split` names."""
    split = attempt(lambda: parse_json(pair.origin.get("origin_split")))
    kind = split.get("type") if isinstance(split, Mapping) else None
    return kind if isinstance(kind, str) else UNKNOWN


def size_class(width: int, height: int) -> str:
    """Return an image's class of size, by its longer side.

    Example:
        >>> size_class(640, 480)
        '513 to 1024 pixels'
    """
    longer = max(width, height)
    for low, high in ((0, 256), (257, 512), (513, 1024), (1025, 2048)):
        if longer <= high:
            return f"{low} to {high} pixels"
    return "above 2048 pixels"


def image_id(name: str) -> str:
    """Return the id of an image: the last number in its name, or the name without its folder.

    Example:
        >>> image_id("val2014/COCO_val2014_000000000042.jpg"), image_id("42")
        ('42', '42')
    """
    stem = name.rpartition("/")[2].partition(".")[0]
    match = DIGITS.search(stem)
    return match.group(1).lstrip("0") or "0" if match else stem


def word_numbers(chosen: Sequence[str], rejected: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return two texts as numbers that are equal where their words are."""
    number_of: dict[str, int] = {}
    sides = [
        [number_of.setdefault(word, len(number_of)) for word in side] for side in (chosen, rejected)
    ]
    return sides[0], sides[1]


def _lengths(words: list[int]) -> AnswerLengths | None:
    return AnswerLengths(fmean(words), median(words), max(words)) if words else None
