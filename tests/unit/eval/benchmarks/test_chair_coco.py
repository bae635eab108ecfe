"""CHAIR by OPERA's protocol, on OPERA's own figures for made captions."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks.chair_coco import ChairCoco
from eval.config import ChairConfig
from eval.words.lemmas import choose_lemmatizer
from eval.words.tagged import Tagged, positioned
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import Answer
from tests.unit.eval.test_coco import CATEGORIES, write_annotations

GOLDEN = json.loads((Path(__file__).parents[3] / "golden" / "chair_opera.json").read_text())
SENTENCES = GOLDEN["sentences"]
# NLTK's tokens and tags of each caption; its data is a download of its own.
TAGGED = {case["caption"]: [(word, tag) for word, tag in case["tagged"]] for case in SENTENCES}

pytestmark = pytest.mark.skipif(
    choose_lemmatizer() != "wordnet",
    reason="WordNet is missing: sh tests/fetch_wordnet.sh FOLDER; export NLTK_DATA=FOLDER",
)


def tag(text: str) -> list[Tagged]:
    pairs = TAGGED.get(text) or [(word, "NN") for word in text.lower().split()]
    return positioned(text.lower(), pairs)


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """The golden truths as COCO's files: a part annotated, the rest in captions."""
    instances, captions = [], []
    for case in SENTENCES:
        for place, name in enumerate(case["truth"]):
            if place % 2 and name in CATEGORIES:
                instances.append((case["image_id"], name))
            else:
                captions.append((case["image_id"], f"a {name}"))
        captions.append((case["image_id"], "nothing"))
    return write_annotations(tmp_path / "coco", instances, captions)


def chair(annotations: Path, **settings: Any) -> ChairCoco:
    config = ChairConfig(str(annotations), **settings)
    return ChairCoco(config, cache=annotations.parent / "cache", decoding={}, tag=tag)


def test_scores_are_operas(annotations: Path) -> None:
    """Catches: another reading of words, truths, recall or length than the protocol's."""
    images = annotations.parent / "answers.jsonl"
    rows = [{"image_id": case["image_id"], "caption": case["caption"]} for case in SENTENCES]
    images.write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = chair(annotations, image_ids=str(images))
    answers = [Answer(str(case["image_id"]), "?", case["caption"]) for case in SENTENCES]
    scores = benchmark.score(answers, {})
    rates = scores.rates()
    overall = GOLDEN["overall"]
    assert rates["response_rate_all"] == pytest.approx(overall["CHAIRs"], abs=1e-12)
    assert rates["mention_rate"] == pytest.approx(overall["CHAIRi"], abs=1e-12)
    assert rates["object_recall"] == pytest.approx(overall["Recall"], abs=1e-12)
    assert rates["words"] == pytest.approx(100 * overall["Len"], abs=1e-12)
    for case, item in zip(SENTENCES, scores.answers, strict=True):
        assert len(item.spans) == len(case["hallucinated"])
    assert scores.manifest["images"] == "not given" and scores.manifest["protocol"] == "OPERA"


def test_images_are_drawn_by_the_seed(annotations: Path) -> None:
    """Catches: other images with the same seed; images that COCO does not have."""
    drawn = chair(annotations, count=5).images
    assert drawn == chair(annotations, count=5).images != chair(annotations, count=5, seed=1).images
    assert set(drawn) <= {case["image_id"] for case in SENTENCES}
    with pytest.raises(DataError, match="chair.count = 500: COCO's files have 60 images"):
        _ = chair(annotations).images


def test_lists_that_cannot_be_used(annotations: Path) -> None:
    """Catches: an image scored twice; one without truth, of which everything is hallucinated."""
    path = annotations.parent / "ids.json"
    path.write_text("[1000, 1000]")
    with pytest.raises(DataError, match="an image is there twice"):
        _ = chair(annotations, image_ids=str(path)).images
    path.write_text('["COCO_val2014_000000001000.jpg", 5]')
    with pytest.raises(DataError, match="no annotations of 1 images, the first 5"):
        _ = chair(annotations, image_ids=str(path)).truth
    with pytest.raises(ConfigError, match="chair.annotations is not set"):
        ChairCoco(ChairConfig(), cache=path.parent, decoding={}, tag=tag)
