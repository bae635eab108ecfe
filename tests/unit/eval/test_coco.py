"""COCO's annotations reduced: the truth of `ground_truth`, made once, in little memory.

Scenes and over-generalisation are counted by hand.
"""

import json
import os
import random
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from eval import coco
from eval.chair import ObjectVocabulary, ground_truth
from eval.coco import coco_id, find_annotations, load_truth
from eval.words.lemmas import choose_lemmatizer
from rlhfv_ray.errors import DataError

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "chair.json").read_text())
CATEGORIES = {name: number + 1 for number, name in enumerate(GOLDEN["categories"])}


def write_annotations(
    folder: Path,
    instances: Iterable[tuple[int, str]],
    captions: Iterable[tuple[int, str]],
    *,
    split: str = "val2014",
    points: int = 4,
) -> Path:
    """Write a split as COCO stores it: outlines, boxes and all."""
    folder.mkdir(exist_ok=True)
    outline = [[round(0.37 * number, 2) for number in range(2 * points)]]
    boxes = [
        {
            "segmentation": outline,
            "area": 702.1057499999998,
            "iscrowd": 0,
            "image_id": image,
            "bbox": [473.07, 395.93, 38.65, 28.67],
            "category_id": CATEGORIES[name],
            "id": number,
        }
        for number, (image, name) in enumerate(instances)
    ]
    categories = [
        {"supercategory": "thing", "id": number, "name": name}
        for name, number in CATEGORIES.items()
    ]
    captions_rows = [
        {"image_id": image, "id": number, "caption": text}
        for number, (image, text) in enumerate(captions)
    ]
    info: dict[str, Any] = {"info": {"year": 2014}, "licenses": [], "images": []}
    (folder / f"instances_{split}.json").write_text(
        json.dumps({**info, "annotations": boxes, "categories": categories})
    )
    (folder / f"captions_{split}.json").write_text(
        json.dumps({**info, "annotations": captions_rows})
    )
    return folder


@pytest.fixture(scope="module", params=["builtin", "wordnet"])
def vocabulary(request: pytest.FixtureRequest) -> ObjectVocabulary:
    if request.param == "wordnet" and choose_lemmatizer() != "wordnet":
        pytest.skip(
            "WordNet is not installed: sh tests/fetch_wordnet.sh FOLDER; export NLTK_DATA=FOLDER"
        )
    return ObjectVocabulary.load(lemmatizer=request.param)


@pytest.fixture(scope="module")
def builtin() -> ObjectVocabulary:
    return ObjectVocabulary.load(lemmatizer="builtin")


def many(annotations: int) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Instances and half as many captions, in COCO's proportions."""
    rng = random.Random(0)
    names = list(CATEGORIES)
    words = [
        *ObjectVocabulary.load(lemmatizer="builtin").objects,
        "wine glasses",
        "buses",
        "kitchen",
        "red",
        "two",
        "on",
    ]
    instances = [(rng.randrange(annotations // 7), rng.choice(names)) for _ in range(annotations)]
    captions = [
        (rng.randrange(annotations // 7), " ".join(rng.choices(words, k=9)))
        for _ in range(annotations // 2)
    ]
    return instances, captions


def test_truth_is_the_release_s(tmp_path: Path, vocabulary: ObjectVocabulary) -> None:
    """Catches: captions, categories or a split lost, words read by other rules."""
    instances = [(row["image_id"], row["category"]) for row in GOLDEN["instances"]]
    captions = [(row["image_id"], row["caption"]) for row in GOLDEN["captions"]]
    half = sorted({image for image, _ in captions})[20]
    for split, first in (("train2014", True), ("val2014", False)):
        write_annotations(
            tmp_path / "coco",
            [pair for pair in instances if (pair[0] < half) == first],
            [pair for pair in captions if (pair[0] < half) == first],
            split=split,
        )
    expected = {int(image): set(objects) for image, objects in GOLDEN["ground_truth"].items()}
    assert load_truth(tmp_path / "coco", vocabulary, cache=tmp_path / "cache").objects == expected


@pytest.mark.slow
def test_many_annotations_are_the_same_truth_in_little_memory(
    tmp_path: Path, builtin: ObjectVocabulary
) -> None:
    """Catches: a whole file of dicts, ten times its size; wrong cached lemmas; lost images.

    Outlines of 40 points make a row 600 bytes long, and two of its numbers are needed.
    """
    instances, captions = many(20_000)
    folder = write_annotations(tmp_path / "coco", instances, captions, points=40)
    expected = ground_truth(instances, captions, builtin)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size > 12e6
    tracemalloc.start()
    truth = load_truth(folder, builtin, cache=tmp_path / "cache")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert truth.objects == expected
    assert peak < size


def test_annotations_are_read_once(
    tmp_path: Path, builtin: ObjectVocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: minutes of reading before every evaluation; a stale truth of changed files."""
    captions = [(1, "A cat in the kitchen.")]
    folder = write_annotations(tmp_path / "coco", [(1, "dog")], captions)
    cache = tmp_path / "cache"
    truth = load_truth(folder, builtin, cache=cache)
    with monkeypatch.context() as reading:
        reading.setattr(coco, "_reduce", lambda *_: pytest.fail("the annotations were read again"))
        assert load_truth(folder, builtin, cache=cache) == truth
    path = folder / "captions_val2014.json"
    facts = path.stat()
    path.write_bytes(b"#" * facts.st_size)  # unreadable, and of the same size and time
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(DataError, match="captions_val2014.json"):
        load_truth(folder, builtin, cache=cache)
    assert [path.suffix for path in cache.iterdir()] == [".json"]  # nothing half-written stays


def test_another_vocabulary_is_another_truth(
    tmp_path: Path, builtin: ObjectVocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: the truth of one vocabulary, lemmatiser or set of rules is taken for another's."""
    folder = write_annotations(tmp_path / "coco", [(1, "dog")], [(1, "A puppy.")])
    cache = tmp_path / "cache"
    own = ObjectVocabulary.from_synonyms([("animal", "dog", "puppy")], lemmatizer="builtin")
    extended = ObjectVocabulary(builtin.objects, {**builtin.phrases, "a puppy": "cat"}, "builtin")
    truths = [
        load_truth(folder, words, cache=cache).objects[1] for words in (builtin, own, extended)
    ]
    assert truths == [{"dog"}, {"animal"}, {"dog", "cat"}]
    monkeypatch.setattr("eval.words.lemmas.__file__", __file__)  # as if its rules had been changed
    load_truth(folder, builtin, cache=cache)
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("missing", ["instances_val2014.json", "captions_val2014.json"])
def test_a_missing_half_is_named(tmp_path: Path, builtin: ObjectVocabulary, missing: str) -> None:
    """Catches: true objects that count as hallucinated because the captions are missing."""
    folder = write_annotations(tmp_path / "coco", [(1, "dog")], [(1, "A cat.")])
    write_annotations(folder, [(2, "dog")], [(2, "A cat.")], split="train2014")
    (folder / missing).unlink()
    with pytest.raises(DataError, match=f"lacks {missing}"):
        load_truth(folder, builtin, cache=tmp_path / "cache")


def test_a_wrong_folder_is_named(tmp_path: Path) -> None:
    """Catches: a folder without annotations is a truth in which every object is hallucinated."""
    with pytest.raises(
        DataError, match=r"absent.*instances_train2014.json, captions_train2014.json"
    ):
        find_annotations(tmp_path / "absent")


@pytest.mark.parametrize("kind", ["instances", "captions"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace('"image_id": 1', '"image_id": null'),
        lambda text: text.replace('"annotations"', '"annotation"'),
        lambda text: "[]",
    ],
    ids=["cut off", "empty", "no id", "no annotations", "a list"],
)
def test_a_bad_file_is_named_with_what_to_do(
    tmp_path: Path, builtin: ObjectVocabulary, kind: str, damage: Any
) -> None:
    """Catches: a truncated download that is a traceback, or half a truth that is cached."""
    folder = write_annotations(tmp_path / "coco", [(1, "dog")], [(1, "A cat.")])
    path = folder / f"{kind}_val2014.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(
        DataError,
        match=rf"{kind}_val2014.json cannot be read: .*unpack annotations_trainval2014.zip again",
    ):
        load_truth(folder, builtin, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_unlisted_category_is_named(tmp_path: Path, builtin: ObjectVocabulary) -> None:
    """Catches: a KeyError; or an annotated object is dropped and counts as hallucinated."""
    path = (
        write_annotations(tmp_path / "coco", [(7, "dog")], [(7, "A cat.")])
        / "instances_val2014.json"
    )
    path.write_text(
        path.read_text().replace(f'"category_id": {CATEGORIES["dog"]}', '"category_id": 999')
    )
    with pytest.raises(DataError, match=r"instances_val2014.json: image 7 .* category 999"):
        load_truth(path.parent, builtin, cache=tmp_path / "cache")


def test_a_damaged_cache_says_so(tmp_path: Path, builtin: ObjectVocabulary) -> None:
    """Catches: a cache file that someone cut off is a traceback in every later run."""
    folder = write_annotations(tmp_path / "coco", [(1, "dog")], [(1, "A cat.")])
    cache = tmp_path / "cache"
    load_truth(folder, builtin, cache=cache)
    (path,) = cache.iterdir()
    path.write_text(path.read_text()[:20])
    with pytest.raises(DataError, match=rf"{path.name} cannot be read: .*delete it"):
        load_truth(folder, builtin, cache=cache)


def test_scenes_are_what_captions_say(tmp_path: Path, builtin: ObjectVocabulary) -> None:
    """Catches: a street in "streetcar", no scene in "Living-room", objects counted per mention.

    Street: 1 (person, car), 2 (person), 3 (person, car, dog): person 3, car 2, dog 1. Image 4 is in
    two scenes.
    """
    instances = [
        (1, "car"),
        (1, "person"),
        (2, "person"),
        (2, "person"),
        (3, "car"),
        (3, "person"),
        (3, "dog"),
    ]
    captions = [
        (1, "A man on a street."),
        (1, "Streets and cars."),
        (2, "The STREET."),
        (3, "two streets meet."),
        (4, "A Living-room with a kitchen."),
        (5, "living rooms"),
        (6, "A streetcar."),
        (7, "Two kitchens, livingroom"),
    ]
    truth = load_truth(
        write_annotations(tmp_path / "coco", instances, captions), builtin, cache=tmp_path / "cache"
    )
    assert list(truth.scenes) == ["living room", "kitchen", "bathroom", "street"]
    assert {name: set(scene.images) for name, scene in truth.scenes.items()} == {
        "living room": {4, 5, 7},
        "kitchen": {4, 7},
        "bathroom": set(),
        "street": {1, 2, 3},
    }
    assert truth.scenes["street"].objects == ("person", "car", "dog")


def test_ten_objects_are_typical_and_ties_are_settled(
    tmp_path: Path, builtin: ObjectVocabulary
) -> None:
    """Catches: more than ten objects; an order of ties that depends on the file."""
    names = sorted(CATEGORIES)[:12]
    instances = [(1, name) for name in reversed(names)] + [(2, names[-1])]
    captions = [(1, "A kitchen."), (2, "A kitchen.")]
    truth = load_truth(
        write_annotations(tmp_path / "coco", instances, captions), builtin, cache=tmp_path / "cache"
    )
    assert truth.scenes["kitchen"].objects == (names[-1], *names[:9])


@pytest.mark.parametrize(
    "value",
    [42, "42", "000000000042", "42.jpg", "COCO_val2014_000000000042.jpg", "val2014/42.jpeg"],
)
def test_forms_of_an_image_id(value: object) -> None:
    """Catches: the release's ids and file names do not meet COCO's numbers."""
    assert coco_id(value) == 42


@pytest.mark.parametrize(
    "value",
    [None, True, 4.2, -1, "", "cat.jpg", "42.png.exe", "12 34", "-7", ["42"], "1" * 13, "٤٢"],
)
def test_what_is_no_image_id(value: object) -> None:
    """Catches: any text with a digit in it is taken for some image."""
    with pytest.raises(DataError, match="expected a COCO id"):
        coco_id(value)
