"""Control pairs: what a training gains on them, it gains without looking at the pictures.

A method that claims to learn from pictures should gain much less on these pairs than on the true
ones. The texts stay as they are, except with `blind`.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from rlhfv_ray.records import PreferencePair, Span
from rlhfv_ray.shapes.balance import setting_of
from rlhfv_ray.shapes.captions import caption, read_phrases
from rlhfv_ray.shapes.scenes import TYPICAL, Group, Scene, names_of, render

Control = Literal["none", "permuted", "permuted_all", "blank", "blind"]
DROPPED = 0.5  # share of blind edits that drop a phrase, if another one is left


def controlled(
    pairs: Sequence[PreferencePair], control: Control, *, seed: int
) -> list[PreferencePair]:
    """Return the control pairs of true pairs, in the same order.

    Args:
        pairs: pairs of the shapes world.
        control: `permuted` gives each pair another picture of its setting, `permuted_all` any other
            picture, `blank` a picture of its setting with nothing in it. `blind` replaces the
            correction by an edit of someone who sees no picture.
        seed: random seed.
    """
    rng = random.Random(f"{control}-{seed}")
    if control == "permuted":
        return _permuted(pairs, lambda pair: setting_of(pair.rejected), rng)
    if control == "permuted_all":
        return _permuted(pairs, lambda pair: "", rng)
    if control == "blank":
        return [replace(pair, image=render(_empty(pair))) for pair in pairs]
    if control == "blind":
        edits = [blind_edit(pair, rng) for pair in pairs]
        return [edit for edit in edits if edit is not None]
    return list(pairs)


def blind_edit(pair: PreferencePair, rng: random.Random) -> PreferencePair | None:
    """Return the pair with another chosen text: the rejected one without a typical phrase, or with
    another shape in it.

    Returns:
        None if the rejected text has no typical phrase.
    """
    setting = setting_of(pair.rejected)
    phrases = read_phrases(pair.rejected)
    groups = [group for group, _ in phrases]
    typical = TYPICAL.get(setting, ())
    edited = [index for index, group in enumerate(groups) if group.shape in typical]
    if not edited:
        return None
    index = rng.choice(edited)
    chosen_spans: tuple[Span, ...] = ()
    if len(groups) > 1 and rng.random() < DROPPED:
        text = caption(setting, groups[:index] + groups[index + 1 :])
    else:
        groups[index] = _unusual(groups, index, setting, rng)
        text = caption(setting, groups)
        chosen_spans = (read_phrases(text)[index][1],)
    spans = {"chosen_spans": chosen_spans, "rejected_spans": (phrases[index][1],)}
    return replace(pair, chosen=text, **spans)


def _unusual(groups: Sequence[Group], index: int, setting: str, rng: random.Random) -> Group:
    """Return a group with a shape that neither its setting nor the description makes likely."""
    named = {group.shape for group in groups}
    excluded = named.union(TYPICAL[setting])
    shapes = [shape for shape in names_of(setting) if shape not in excluded]
    return replace(groups[index], shape=rng.choice(shapes))


def _permuted(
    pairs: Sequence[PreferencePair], key: Callable[[PreferencePair], str], rng: random.Random
) -> list[PreferencePair]:
    """Give each pair the picture of another pair with the same key. A pair without another one is
    left out.
    """
    members: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        members.setdefault(key(pair), []).append(index)
    pictures: dict[int, bytes] = {}
    for indices in members.values():
        rng.shuffle(indices)
        # One step around the shuffled circle: no pair keeps its picture.
        for index, giver in zip(indices, indices[1:] + indices[:1], strict=True):
            if index != giver:
                pictures[index] = pairs[giver].image
    return [replace(pairs[index], image=pictures[index]) for index in sorted(pictures)]


def _empty(pair: PreferencePair) -> Scene:
    return Scene(0, setting_of(pair.rejected), ())
