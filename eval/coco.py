"""COCO 2014's annotations, reduced once: the objects in every image, and the images of four scenes.

The files are large (instances_train2014.json: 450 MB, most of it outlines). So they are mapped into
memory, and only the few fields in use are decoded. The result is cached in a file whose name holds
a fingerprint of the annotation files, the vocabulary and the code that reads words.

An image belongs to a scene if one of its human captions names the scene. The scenes are those of
over-generalisation (RLHF-V, arXiv 2312.00849, Table 2; `eval.over_generalization`).
"""

import inspect
import mmap
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from eval import chair
from eval.chair import ObjectVocabulary, ground_truth
from eval.over_generalization import CocoTruth
from eval.words import lemmas, tokens
from rlhfv_ray.config import fingerprint
from rlhfv_ray.console import ProgressBar, progress_bar
from rlhfv_ray.errors import DataError
from rlhfv_ray.storage.files import file_digest, write_json
from rlhfv_ray.storage.folder import fetch

SPLITS = ("train2014", "val2014")
KINDS = ("instances", "captions")
SCENES = ("living room", "kitchen", "bathroom", "street")
TYPICAL = 10  # objects that count as typical of a scene
ADVANCE_EVERY = 5000  # captions between two updates of the progress bar
UNPACK_AGAIN = "it may be cut off: unpack annotations_trainval2014.zip again"
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
class _CachingVocabulary(ObjectVocabulary):
    # Captions have 6 million words, most of them repeated; a lemma takes 3 to 4 us.
    lemmas: dict[str, str] = field(default_factory=dict)

    def lemma(self, word: str) -> str:
        if word not in self.lemmas:
            self.lemmas[word] = super().lemma(word)
        return self.lemmas[word]


def coco_id(value: object) -> int:
    """Return the COCO id in a number or a file name.

    Raises:
        DataError: the value holds no COCO id.

    Example:
        >>> coco_id(42), coco_id("42"), coco_id("COCO_val2014_000000000042.jpg")
        (42, 42, 42)
    """
    is_name = isinstance(value, int | str) and not isinstance(value, bool)
    match = _IMAGE_ID.fullmatch(str(value)) if is_name else None
    if not match:
        raise DataError(
            f"image_id {value!r}: expected a COCO id such as 42 or 'COCO_val2014_000000000042.jpg'"
        )
    return int(match[1])


def find_annotations(folder: Path) -> list[Path]:
    """Return the existing annotation files: instances and captions of each split.

    Raises:
        DataError: no file exists, or one file of a split is missing.
    """
    expected: list[str] = []
    files: list[Path] = []
    for split in SPLITS:
        pair = [folder / f"{kind}_{split}.json" for kind in KINDS]
        existing = [path for path in pair if path.is_file()]
        expected += [path.name for path in pair]
        files += existing
        if len(existing) == 1:
            (missing,) = (path.name for path in pair if path not in existing)
            raise DataError(
                f"COCO annotations: {str(folder)!r} lacks {missing}. "
                f"With {existing[0].name} alone, true objects would count as hallucinated. "
                "Put the missing file there."
            )
    if not files:
        raise DataError(
            f"COCO annotations: {str(folder)!r} holds none of {', '.join(expected)}; "
            "unpack annotations_trainval2014.zip there."
        )
    return files


def image_ids(folder: Path, split: str) -> set[int]:
    """Return the ids of the images of a split that have an annotated object or a caption."""
    path = folder / f"captions_{split}.json"
    return {row.image_id for row in _read(path, _Captions, UNPACK_AGAIN).annotations}


def load_truth(
    folder: Path,
    vocabulary: ObjectVocabulary,
    *,
    cache: Path,
    only: AbstractSet[int] | None = None,
) -> CocoTruth:
    """Reduce the annotations in a folder, or read the cached result.

    Args:
        folder: with instances and captions of train2014, val2014 or both (`*_train2014.json`).
        vocabulary: reads objects, as for `ground_truth`, whose result this is.
        cache: folder of the result.
        only: ids of the images to read; None reads all.

    Raises:
        DataError: a file is missing, cut off, or of another kind; the message names it.
    """
    files = find_annotations(folder)
    path = cache / f"coco-truth-{_fingerprint(files, vocabulary, only)}.json"
    fetch(path)
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        write_json(path, _reduce(files, vocabulary, only))
    return _read(path, CocoTruth, "delete it, and the next run makes it again")


def _fingerprint(
    files: Sequence[Path], vocabulary: ObjectVocabulary, only: AbstractSet[int] | None
) -> str:
    digests = [(path.name, file_digest(path)) for path in files]
    # The code is part of the fingerprint, so that a corrected lemma makes a new truth.
    sources = (__file__, chair.__file__, lemmas.__file__, tokens.__file__)
    rules = [file_digest(Path(str(file))) for file in sources]
    words = [dict(vocabulary.objects), dict(vocabulary.phrases), vocabulary.lemmatizer]
    inputs = {"files": digests, "vocabulary": words, "rules": rules}
    if only is not None:
        reader = file_digest(Path(inspect.getfile(type(vocabulary))))
        inputs |= {"only": sorted(only), "reader": reader}
    return fingerprint(inputs)


def _reduce(
    files: Sequence[Path], vocabulary: ObjectVocabulary, only: AbstractSet[int] | None
) -> dict[str, Any]:
    captions: list[_Caption] = []
    for path in _files_of("captions", files):
        captions += _read(path, _Captions, UNPACK_AGAIN).annotations
    if only is not None:
        captions = [row for row in captions if row.image_id in only]
    images: dict[str, set[int]] = {scene: set() for scene in SCENES}
    reader = vocabulary
    if only is None:
        reader = _CachingVocabulary(vocabulary.objects, vocabulary.phrases, vocabulary.lemmatizer)
    everything = chain.from_iterable(map(_read_instances, _files_of("instances", files)))
    instances = (row for row in everything if only is None or row[0] in only)
    with progress_bar("COCO annotations", len(captions)) as bar:
        truth = ground_truth(instances, _sort_into_scenes(captions, images, bar), reader)
        bar.advance(len(captions))
    scenes = {}
    for scene in SCENES:
        typical = _typical_objects(truth, images[scene])
        scenes[scene] = {"objects": typical, "images": sorted(images[scene])}
    objects = {str(image): sorted(truth[image]) for image in sorted(truth)}
    return {"objects": objects, "scenes": scenes}


def _files_of(kind: str, files: Sequence[Path]) -> list[Path]:
    return [path for path in files if path.name.startswith(kind)]


def _read_instances(path: Path) -> Iterator[tuple[int, str]]:
    """Yield image id and category of each annotated object."""
    instances = _read(path, _Instances, UNPACK_AGAIN)
    category_names = {category.id: category.name for category in instances.categories}
    for row in instances.annotations:
        if row.category_id not in category_names:
            raise DataError(
                f"{path}: image {row.image_id} has an object of category {row.category_id}, "
                "which is not listed. Use the original file."
            )
        yield row.image_id, category_names[row.category_id]


def _sort_into_scenes(
    captions: Iterable[_Caption], images: Mapping[str, set[int]], bar: ProgressBar
) -> Iterator[tuple[int, str]]:
    """Yield image id and text of each caption, and add the image to the scenes that it names."""
    for number, row in enumerate(captions):
        for match in _SCENE.finditer(row.caption):
            images[SCENES[int(match.lastindex or 0) - 1]].add(row.image_id)
        if number % ADVANCE_EVERY == 0:
            bar.advance(number)
        yield row.image_id, row.caption


def _typical_objects(truth: Mapping[int, AbstractSet[str]], images: Iterable[int]) -> list[str]:
    """Return the objects in most of the images; equally frequent ones are sorted by name."""
    counts = Counter(chain.from_iterable(truth[image] for image in images))
    return sorted(counts, key=lambda name: (-counts[name], name))[:TYPICAL]


def _read(path: Path, kind: type[T], remedy: str) -> T:
    try:
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return msgspec.json.decode(data, type=kind)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        # ValueError: an empty file cannot be mapped.
        raise DataError(f"{path} cannot be read: {error}; {remedy}.") from error
