"""The metrics of the shapes benchmark, and an answer's contribution to those of phrases and recall.

Scenes that training held out have metrics of their own and add to no other one.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from eval.benchmarks.contract import CHAIR, WORDS, Metric, Ratio
from rlhfv_ray.shapes.annotator import Mistake
from rlhfv_ray.shapes.balance import setting_of
from rlhfv_ray.shapes.captions import caption, read_phrases
from rlhfv_ray.shapes.scenes import TYPICAL, Scene

DETAILS = {
    "attribute": "wrong_attributes",
    "position": "wrong_positions",
    "number": "wrong_numbers",
}
METRICS = (
    *CHAIR,
    Metric(
        "repeated_objects",
        "lower",
        "phrases that name an object in the picture again, of those that name such an object",
    ),
    *(
        Metric(name, "lower", "wrong ones, of the phrases about objects in the picture")
        for name in sorted(DETAILS.values())
    ),
    Metric(
        "phrase_f1",
        "higher",
        "F1 of phrases with the right object, colour, number and corner",
        is_proportion=False,
    ),
    Metric("typical_recall", "higher", "true objects named, of those usual in the setting"),
    Metric("untypical_recall", "higher", "true objects named, of those unusual in the setting"),
    Metric("wrong_settings", "lower", "answers that name another setting, of those that name one"),
    Metric("exact_answers", "higher", "answers that say all of the truth, with the setting"),
    WORDS,
)
# Of scenes that training held out.
HELD_OUT = {
    "setting and shape": Metric(
        "f1_new_setting_and_shape",
        "higher",
        "F1 of phrases; training never shows a shape of the picture in its setting",
        is_proportion=False,
    ),
    "colour and shape": Metric(
        "f1_new_colour_and_shape",
        "higher",
        "F1 of phrases; training never shows a shape of the picture in its colour",
        is_proportion=False,
    ),
    "five groups": Metric(
        "f1_five_groups",
        "higher",
        "F1 of phrases; training shows up to four groups",
        is_proportion=False,
    ),
    "empty": Metric(
        "empty_described", "lower", "answers that name an object, of those on empty pictures"
    ),
}


def count_of_groups(scene: Scene) -> str:
    """Return the number of groups in words, which is the type of a question."""
    count = len(scene.groups)
    return f"{count} group" if count == 1 else f"{count} groups"


def phrase_ratios(text: str, scene: Scene, errors: Sequence[Mistake]) -> dict[str, Ratio]:
    """Return an answer's contribution to the F1 of phrases, wrong settings and exact answers.

    F1 is twice the hits over the phrases said and the groups in the picture. It does not see the
    setting: an answer whose phrases are all right can still name another one.
    """
    phrases = len(read_phrases(text))
    hits = phrases - len({error.start for error in errors})
    setting = setting_of(text)
    is_exact = text.strip() == caption(scene.setting, scene.groups)
    return {
        "phrase_f1": Ratio(2 * hits, phrases + len(scene.groups)),
        "wrong_settings": Ratio(int(setting not in ("", scene.setting)), int(setting != "")),
        "exact_answers": Ratio(int(is_exact), 1),
    }


def recall_ratios(scene: Scene, named: AbstractSet[str]) -> dict[str, Ratio]:
    """Return an answer's contribution to the recall of typical and of untypical objects."""
    shapes = {group.shape for group in scene.groups}
    typical = shapes & set(TYPICAL[scene.setting])
    untypical = shapes - typical
    return {
        "typical_recall": Ratio(len(typical & named), len(typical)),
        "untypical_recall": Ratio(len(untypical & named), len(untypical)),
    }
