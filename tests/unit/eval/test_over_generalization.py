"""Over-generalisation, counted by hand."""

from collections.abc import Mapping

from eval.over_generalization import CocoTruth, SceneType, over_generalization


def truth_of(
    objects: Mapping[int, set[str]], scenes: Mapping[str, tuple[str, set[int]]]
) -> CocoTruth:
    return CocoTruth(
        {image: frozenset(names) for image, names in objects.items()},
        {
            name: SceneType(tuple(typical.split()), frozenset(images))
            for name, (typical, images) in scenes.items()
        },
    )


def test_over_generalization_by_hand() -> None:
    """Catches: other objects counted, repeats dropped, 0 for a rate without mentions.

    Kitchen (sink, oven): inside (image 1) sink and sink are right, oven is wrong: 1 of 3. Outside,
    sink is wrong: 2 of 4 overall. Street (car): no mention inside (image 2). Bathroom (sink): its
    image 9 has no answer; overall 1 of 3.
    """
    truth = truth_of(
        {1: {"sink"}, 2: {"dog"}, 9: {"sink"}},
        {"kitchen": ("sink oven", {1, 9}), "street": ("car", {2}), "bathroom": ("sink", {9})},
    )
    named = {
        1: [("sink", "sink"), ("basin", "sink"), ("stove", "oven"), ("cat", "cat")],
        2: [("sink", "sink")],
    }
    rates = over_generalization(truth, named)
    assert rates == {
        "kitchen": {"in_scene": 1 / 3, "overall": 2 / 4, "rise": 1 / 3 - 2 / 4, "n": 1},
        "street": {"in_scene": None, "overall": None, "rise": None, "n": 1},
        "bathroom": {"in_scene": None, "overall": 1 / 3, "rise": None, "n": 0},
        "mean_rise": 1 / 3 - 2 / 4,
    }
    assert over_generalization(truth, {})["mean_rise"] is None


def test_a_digest_stands_for_what_is_known_about_the_images() -> None:
    """Catches: scores on different truths compared; a digest of images without questions."""
    scenes = {"kitchen": ("sink", {1, 9})}
    digest = truth_of({1: {"sink", "cup"}, 9: {"dog"}}, scenes).digest([1])
    assert truth_of({1: {"cup", "sink"}, 9: {"cat"}}, scenes).digest([1]) == digest
    different = [
        truth_of({1: {"sink"}}, scenes),
        truth_of({1: {"sink", "cup"}}, {"kitchen": ("oven", {1, 9})}),
        truth_of({1: {"sink", "cup"}}, {"kitchen": ("sink", {9})}),
    ]
    assert digest not in [truth.digest([1]) for truth in different]
