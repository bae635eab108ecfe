"""The world knows the truth: it judges a description phrase by phrase, and corrects it as a careful person would.

A person does not only cut what is wrong, a person says what is there instead; so a claimed object that is not in the picture
becomes one that is and was not mentioned, as long as there is one. Wrong colours, numbers and corners are put right.
"""

from dataclasses import dataclass
from typing import Literal

from rlhfv_ray.shapes.captions import caption, phrase, read_phrases
from rlhfv_ray.shapes.scenes import CORNERS, Group, Scene

Kind = Literal["object", "attribute", "position", "number"]


@dataclass(frozen=True)
class Mistake:
    """What is wrong with one phrase of a description."""

    kind: Kind
    start: int  # characters of the phrase in the text, [start, stop)
    stop: int
    said: Group
    truth: Group | None  # the group of that shape in the scene; None where there is no such shape


@dataclass(frozen=True)
class Segment:
    """One correction: which kinds of mistake, and the words before and after."""

    kinds: tuple[Kind, ...]
    rejected: str
    chosen: str  # empty where the phrase was only cut


@dataclass(frozen=True)
class Correction:
    """A corrected description and what was corrected in it."""

    text: str
    segments: tuple[Segment, ...]


def mistakes(scene: Scene, text: str) -> list[Mistake]:
    """Judge a description: every phrase that is not true of the scene, once per kind of mistake.

    A shape stands in a scene at most once, so a phrase is about the group of its shape. A phrase about a shape named before is a made-up
    object: there is no second one.
    """
    found: list[Mistake] = []
    named: set[str] = set()
    for said, (start, stop) in read_phrases(text):
        truth = next((group for group in scene.groups if group.shape == said.shape), None)
        truth = None if said.shape in named else truth
        named.add(said.shape)
        found += [Mistake(kind, start, stop, said, truth) for kind in _kinds(said, truth)]
    return found


def _kinds(said: Group, truth: Group | None) -> list[Kind]:
    if truth is None:
        return ["object"]
    wrong: list[Kind] = []
    if said.color != truth.color:
        wrong.append("attribute")
    if said.corner != truth.corner:
        wrong.append("position")
    if said.number != truth.number:
        wrong.append("number")
    return wrong


def correct(scene: Scene, text: str) -> Correction | None:
    """Correct a description; None where nothing is wrong with it, or it is no description of such a setting at all."""
    phrases = [said for said, _ in read_phrases(text)]
    if caption(scene.setting, phrases) != text:
        return None
    wrong: dict[int, list[Mistake]] = {}
    for mistake in mistakes(scene, text):
        wrong.setdefault(mistake.start, []).append(mistake)
    named = {said.shape for said in phrases}
    missed = [group for group in scene.groups if group.shape not in named]
    corrected: list[Group] = []
    segments: list[Segment] = []
    for said, (start, _) in read_phrases(text):
        truth: Group | None = said
        if start in wrong:
            truth = wrong[start][0].truth or (missed.pop(0) if missed else None)
            segments.append(Segment(tuple(m.kind for m in wrong[start]), phrase(said), phrase(truth) if truth else ""))
        corrected += [truth] if truth else []
    if not segments:
        return None
    return Correction(caption(scene.setting, sorted(corrected, key=_corner)), tuple(segments))


def _corner(group: Group) -> int:
    return CORNERS.index(group.corner)
