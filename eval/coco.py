"""COCO 2014's annotations, reduced once to what evaluations need: the objects of every image, and the images of four scenes.

The files are large (instances_train2014.json: 450 MB, most of it outlines), so they are mapped into memory, and only the few fields in use are
decoded. The result is kept beside other caches, under a name that stands for the files, the vocabulary and the rules in force.

A scene's images are those that a human caption says it of. Over-generalisation (RLHF-V, arXiv 2312.00849, Table 2) asks whether a model
names the objects typical of a scene more wrongly inside it than anywhere.
"""

import hashlib
import mmap
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from eval import chair
from eval.chair import ObjectVocabulary, ground_truth
from eval.over_generalization import CocoTruth
from eval.words import lemmas
from rlhfv_ray.config import fingerprint
from rlhfv_ray.console import ProgressBar as Progress
from rlhfv_ray.console import progress_bar
from rlhfv_ray.errors import DataError
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import fetch

SPLITS = ("train2014", "val2014")
KINDS = ("instances", "captions")
SCENES = ("living room", "kitchen", "bathroom", "street")
TYPICAL = 10  # objects of a scene
ADVANCE_EVERY = 5000  # captions
_SCENE = re.compile(r"\b(?:(living)[ -]?room|(kitchen)|(bathroom)|(street))s?\b", re.IGNORECASE)
_IMAGE_ID = re.compile(r"(?:.*/)?(?:COCO_[a-z]+\d{4}_)?([0-9]{1,12})(?:\.jpe?g)?")
T = TypeVar("T")


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str


class _Instance(msgspec.Struct, gc=False):
    image_id: int
    category_id: int


class _Instances(msgspec.Struct):
    categories: list[_Category]
    annotations: list[_Instance]


class _Caption(msgspec.Struct, gc=False):
    image_id: int
    caption: str


class _Captions(msgspec.Struct):
    annotations: list[_Caption]


@dataclass(frozen=True)
class _RememberingVocabulary(ObjectVocabulary):
    # Captions have 6 million words, most of which come again and again; a lemma takes 3 to 4 us.
    lemmas: dict[str, str] = field(default_factory=dict)

    def lemma(self, word: str) -> str:
        if word not in self.lemmas:
            self.lemmas[word] = super().lemma(word)
        return self.lemmas[word]


def coco_id(value: object) -> int:
    """The COCO id that a number or a file name stands for.

    Raises:
        DataError: it stands for none.

    Example:
        >>> coco_id(42), coco_id("42"), coco_id("COCO_val2014_000000000042.jpg")
        (42, 42, 42)
    """
    number = (
        isinstance(value, int | str)
        and not isinstance(value, bool)
        and _IMAGE_ID.fullmatch(str(value))
    )
    if not number:
        raise DataError(
            f"image_id {value!r}: expected a COCO id such as 42 or 'COCO_val2014_000000000042.jpg'"
        )
    return int(number[1])


def find_annotations(folder: Path) -> list[Path]:
    """The annotation files that are there: instances and captions of each split.

    Raises:
        DataError: there are none, or one of a pair is missing.
    """
    splits = {split: [folder / f"{kind}_{split}.json" for kind in KINDS] for split in SPLITS}
    files = [path for pair in splits.values() for path in pair if path.is_file()]
    where = f"COCO annotations: {str(folder)!r}"
    if not files:
        names = ", ".join(f"{kind}_{split}.json" for split in SPLITS for kind in KINDS)
        raise DataError(
            f"{where} holds none of {names}; unpack annotations_trainval2014.zip there."
        )
    for pair in splits.values():
        missing = [path.name for path in pair if path not in files]
        if len(missing) == 1:
            there = next(path.name for path in pair if path in files)
            raise DataError(
                f"{where} lacks {missing[0]}: {there} alone makes true objects look hallucinated. Put it there."
            )
    return files


def load_truth(folder: Path, vocabulary: ObjectVocabulary, *, cache: Path) -> CocoTruth:
    """Reduce the annotations in a folder, or find what was made of them before.

    Args:
        folder: with instances_{train,val}2014.json and captions_{train,val}2014.json, or one split of them.
        vocabulary: what counts as an object, as for `ground_truth`, whose result this is.
        cache: folder of the result.

    Raises:
        DataError: a file is missing, cut off, or holds something else; names the file.
    """
    files = find_annotations(folder)
    path = cache / f"coco-truth-{_fingerprint(files, vocabulary)}.json"
    fetch(path)
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        write_json(path, _reduce(files, vocabulary))
    return _read(path, CocoTruth, "delete it, and it is made anew")


def _fingerprint(files: Sequence[Path], vocabulary: ObjectVocabulary) -> str:
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    # Other rules make another truth of the same files: without this, a corrected lemma would never be seen.
    rules = [
        hashlib.sha256(Path(str(file)).read_bytes()).hexdigest()
        for file in (__file__, chair.__file__, lemmas.__file__)
    ]
    words = [dict(vocabulary.objects), dict(vocabulary.phrases), vocabulary.lemmatizer]
    return fingerprint({"files": facts, "vocabulary": words, "rules": rules})


def _reduce(files: Sequence[Path], vocabulary: ObjectVocabulary) -> dict[str, Any]:
    again = "it may be cut off: unpack annotations_trainval2014.zip again"
    instances, captions = ([path for path in files if path.name.startswith(kind)] for kind in KINDS)
    said = [row for path in captions for row in _read(path, _Captions, again).annotations]
    images: dict[str, set[int]] = {scene: set() for scene in SCENES}
    remembering = _RememberingVocabulary(
        vocabulary.objects, vocabulary.phrases, vocabulary.lemmatizer
    )
    with progress_bar("COCO annotations", len(said)) as counter:
        annotated = (pair for path in instances for pair in _annotated(path, again))
        truth = ground_truth(annotated, _captioned(said, images, counter), remembering)
        counter.advance(len(said))
    return {
        "objects": {str(image): sorted(truth[image]) for image in sorted(truth)},
        "scenes": {
            scene: {"objects": _typical(truth, images[scene]), "images": sorted(images[scene])}
            for scene in SCENES
        },
    }


def _annotated(path: Path, again: str) -> Iterator[tuple[int, str]]:
    found = _read(path, _Instances, again)
    names = {category.id: category.name for category in found.categories}
    for row in found.annotations:
        if row.category_id not in names:
            raise DataError(
                f"{path}: image {row.image_id} has an object of category {row.category_id}, which is not listed."
            )
        yield row.image_id, names[row.category_id]


def _captioned(
    said: Iterable[_Caption], images: Mapping[str, set[int]], counter: Progress
) -> Iterator[tuple[int, str]]:
    """Hand captions on, and note the scenes they speak of."""
    for number, row in enumerate(said):
        for found in _SCENE.finditer(row.caption):
            images[SCENES[int(found.lastindex or 0) - 1]].add(row.image_id)
        if number % ADVANCE_EVERY == 0:
            counter.advance(number)
        yield row.image_id, row.caption


def _typical(truth: Mapping[int, AbstractSet[str]], images: Iterable[int]) -> list[str]:
    """The objects in most of the images; of equally frequent ones the first by name."""
    counts = Counter(name for image in images for name in truth[image])
    return sorted(counts, key=lambda name: (-counts[name], name))[:TYPICAL]


def _read(path: Path, kind: type[T], what_to_do: str) -> T:
    try:
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return msgspec.json.decode(data, type=kind)
    except (
        OSError,
        ValueError,
        msgspec.MsgspecError,
    ) as error:  # ValueError: an empty file cannot be mapped
        raise DataError(f"{path} cannot be read: {error}; {what_to_do}.") from error
