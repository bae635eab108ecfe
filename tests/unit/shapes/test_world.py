"""The world's files: pairs for the real data's reader, COCO files for the real scorer."""

import json
import random
from collections import Counter

import pytest

from eval.chair import ObjectVocabulary, ground_truth
from rlhfv_ray.data import load_pairs
from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.records import Answer
from rlhfv_ray.shapes.annotator import Segment, correct
from rlhfv_ray.shapes.captions import QUESTIONS, caption, careless_caption
from rlhfv_ray.shapes.scenes import SHAPES, is_unseen, make_scenes, render
from rlhfv_ray.shapes.world import (
    SYNONYMS,
    image_name,
    prompts_of,
    read_scenes,
    scenes_to_correct,
    write_benchmark,
    write_corrections,
    write_rankings,
)


def careless_answers(scenes, seed=0):
    rng = random.Random(seed)
    return [
        Answer(prompt.id, prompt.question, careless_caption(scene, rng))
        for scene, prompt in zip(scenes, prompts_of(scenes))
    ]


def test_prompts_ask_about_their_picture():
    """Catches: pictures and ids shifted against each other; only one question used."""
    scenes = make_scenes(8, seed=1)
    prompts = prompts_of(scenes)
    assert [(prompt.id, prompt.image) for prompt in prompts] == [
        (str(scene.id), render(scene)) for scene in scenes
    ]
    assert {prompt.question for prompt in prompts} == set(QUESTIONS)


def test_pairs_use_scenes_of_neither_pretraining_nor_evaluation():
    """Catches: training on evaluation's compositions, or on the pictures of the pretraining."""
    scenes = scenes_to_correct(100, seed=0)
    assert not any(is_unseen(scene) for scene in scenes)
    assert scenes != make_scenes(100, seed=0)
    assert scenes == scenes_to_correct(100, seed=0) != scenes_to_correct(100, seed=1)


def test_corrections_come_back_from_their_file(tmp_path):
    """Catches: chosen and rejected swapped, another picture, or segments lost in the file."""
    scenes = make_scenes(40, seed=2)
    answers = careless_answers(scenes)
    results = {scene.id: correct(scene, answer.text) for scene, answer in zip(scenes, answers)}
    corrections = {number: correction for number, correction in results.items() if correction}
    assert 10 < len(corrections) < 40
    assert write_corrections(scenes, answers, tmp_path / "pairs.parquet") == len(corrections)
    pairs = list(load_pairs(tmp_path / "pairs.parquet"))
    assert [pair.id for pair in pairs] == [f"shapes:{number}" for number in corrections]
    for pair, (number, correction) in zip(pairs, corrections.items()):
        assert (pair.chosen, pair.rejected) == (correction.text, answers[number].text)
        assert (pair.question, pair.image) == (answers[number].question, render(scenes[number]))
        rows = json.loads(pair.origin["origin_split"])["segments"]
        segments = [Segment(tuple(row["kinds"]), row["rejected"], row["chosen"]) for row in rows]
        assert segments == list(correction.segments)


def test_a_balanced_file_has_fewer_pairs_than_were_corrected(tmp_path):
    """Catches: the number of pairs that stay, given as that of all corrections."""
    scenes = make_scenes(40, seed=2)
    answers = careless_answers(scenes)
    every = write_corrections(scenes, answers, tmp_path / "all.parquet")
    counted = write_corrections(scenes, answers, tmp_path / "even.parquet", is_balanced=True)
    stay = len(list(load_pairs(tmp_path / "even.parquet")))
    assert counted == every > stay > 0


def test_a_model_without_mistakes_is_an_error_with_a_way_out(tmp_path):
    """Catches: an empty file of pairs, which fails two stages later."""
    scenes = make_scenes(5, seed=2)
    answers = [
        Answer(str(scene.id), "What?", caption(scene.setting, scene.groups)) for scene in scenes
    ]
    with pytest.raises(StageFailedError, match="--shapes.scenes"):
        write_corrections(scenes, answers, tmp_path / "pairs.parquet")


def test_an_answer_that_is_no_text_costs_its_own_ranking(tmp_path):
    """Catches: one NUL that a model sampled, which ends the stage of all rankings."""
    scenes = make_scenes(3, seed=2)
    said = [caption(scene.setting, scene.groups) for scene in scenes]
    worse = ["a street.", "a red\x00", ""]
    answers = [
        [Answer(str(scene.id), "What?", text) for scene, text in zip(scenes, texts, strict=True)]
        for texts in (said, worse)
    ]
    assert write_rankings(scenes, answers, tmp_path / "pairs.parquet") == 1
    (pair,) = load_pairs(tmp_path / "pairs.parquet")
    assert (pair.chosen, pair.rejected) == (said[0], "a street.")
    listed = json.loads((tmp_path / "left_out.json").read_text())
    assert [row["id"] for row in listed] == ["shapes:1", "shapes:2"]
    assert all(row["reason"] for row in listed)


def test_a_model_of_another_world_is_told_so(tmp_path):
    """Catches: advice to make more scenes, where none helps; rankings of such answers."""
    scenes = make_scenes(3, seed=2)
    answers = [Answer(str(scene.id), "What?", "a market.") for scene in scenes]
    for write in (
        lambda: write_corrections(scenes, answers, tmp_path / "pairs.parquet"),
        lambda: write_rankings(scenes, [answers, answers], tmp_path / "pairs.parquet"),
    ):
        with pytest.raises(StageFailedError, match=r"says 'a market\.'\..*--shapes\.world"):
            write()


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    write_benchmark(folder, count=30, seed=5)
    return folder


def test_benchmark_is_in_coco_format(benchmark):
    """Catches: a key that COCO tools need and do not find; ids that point nowhere."""
    instances, captions = (
        json.loads((benchmark / name).read_text()) for name in ("instances.json", "captions.json")
    )
    assert instances.keys() == {"images", "categories", "annotations"}
    assert captions.keys() == {"images", "annotations"}
    images = {image["id"] for image in instances["images"]}
    categories = {category["id"]: category["name"] for category in instances["categories"]}
    assert set(categories.values()) == set(SHAPES)
    assert 0 not in categories  # COCO counts from 1
    for annotation in instances["annotations"]:
        assert annotation["image_id"] in images and annotation["category_id"] in categories
    for annotations in (instances["annotations"], captions["annotations"]):
        assert len({annotation["id"] for annotation in annotations}) == len(annotations)
    assert {annotation["image_id"] for annotation in captions["annotations"]} == images
    for image in instances["images"]:
        assert (benchmark / image["file_name"]).is_file()


def test_benchmark_is_its_scenes(benchmark):
    """Catches: truth, pictures and annotations of different scenes; compositions of training."""
    scenes = read_scenes(benchmark)
    assert scenes == make_scenes(30, seed=5, unseen=True)
    assert all((benchmark / image_name(scene)).read_bytes() == render(scene) for scene in scenes)
    instances = json.loads((benchmark / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in instances["categories"]}
    for scene in scenes:
        drawn = [
            names[item["category_id"]]
            for item in instances["annotations"]
            if item["image_id"] == scene.id
        ]
        numbers = {group.shape: group.number for group in scene.groups}
        assert Counter(drawn) == numbers


@pytest.mark.parametrize("source", ["instances", "captions"])
def test_chair_finds_the_scenes_shapes(benchmark, source):
    """Catches: a shape that CHAIR has no word for, or a caption word taken for another shape, from
    either file alone."""
    vocabulary = ObjectVocabulary.load(SYNONYMS, lemmatizer="builtin")
    instances = json.loads((benchmark / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in instances["categories"]}
    drawn = [(item["image_id"], names[item["category_id"]]) for item in instances["annotations"]]
    rows = json.loads((benchmark / "captions.json").read_text())["annotations"]
    captions = [(item["image_id"], item["caption"]) for item in rows]
    truth = ground_truth(
        drawn if source == "instances" else [], captions if source == "captions" else [], vocabulary
    )
    scenes = read_scenes(benchmark)
    assert truth.keys() == {scene.id for scene in scenes}
    for scene in scenes:
        assert truth[scene.id] == {group.shape for group in scene.groups}
