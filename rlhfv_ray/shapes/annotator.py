"""The world knows the truth: it judges a description phrase by phrase, and corrects it as a careful person would.

A person does not only cut what is wrong, a person says what is there instead; so a claimed object that is not in the picture
becomes one that is and was not mentioned, as long as there is one. Wrong colours, numbers and corners are put right.
"""

from dataclasses import dataclass
from typing import Literal

from rlhfv_ray.records import Span
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
    truth: Group | None  # the group in the scene that the phrase is about; None where there is none


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
    chosen_spans: tuple[Span, ...]  # characters of the corrected phrases, after
    rejected_spans: tuple[Span, ...]  # and before


def mistakes(scene: Scene, text: str) -> list[Mistake]:
    """Judge a description: every phrase that is not true of the scene, once per kind of mistake.

    A shape stands in a scene at most once, so the phrases about it are about one group: the truest of them is judged against it, and
    every other claims an object that is not there.
    """
    phrases = read_phrases(text)
    groups = {group.shape: group for group in scene.groups}
    truest: dict[str, int] = {}  # shape -> index of the phrase that is about the group
    for index, (said, _) in enumerate(phrases):
        known = truest.get(said.shape)
        truth = groups.get(said.shape)
        if truth and (
            known is None or len(_kinds(said, truth)) < len(_kinds(phrases[known][0], truth))
        ):
            truest[said.shape] = index
    found: list[Mistake] = []
    for index, (said, (start, stop)) in enumerate(phrases):
        truth = groups[said.shape] if truest.get(said.shape) == index else None
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
    put_in: list[Group] = []
    for said, (start, _) in read_phrases(text):
        truth: Group | None = said
        if start in wrong:
            truth = wrong[start][0].truth or next(
                iter(sorted(missed, key=lambda group: group.corner != said.corner)), None
            )
            missed = [group for group in missed if group is not truth]
            segments.append(
                Segment(
                    tuple(m.kind for m in wrong[start]),
                    phrase(said),
                    phrase(truth) if truth else "",
                )
            )
            put_in += [truth] if truth else []
        corrected += [truth] if truth else []
    if not segments:
        return None
    after = caption(scene.setting, sorted(corrected, key=_corner))
    chosen = tuple(span for said, span in read_phrases(after) if said in put_in)
    rejected = tuple(span for _, span in read_phrases(text) if span[0] in wrong)
    return Correction(after, tuple(segments), chosen, rejected)


def _corner(group: Group) -> int:
    return CORNERS.index(group.corner)
