"""Judge a description of a scene phrase by phrase, and correct it as a careful person would.

A person does not only cut a wrong phrase but also says what is in the picture instead. So a claimed
object that is not in the picture is replaced by a group that the description missed, if one exists.
Wrong colours, numbers and corners are put right.
"""

from dataclasses import dataclass
from typing import Literal

from rlhfv_ray.records import Span
from rlhfv_ray.shapes.captions import caption, phrase, read_phrases
from rlhfv_ray.shapes.scenes import CORNERS, Group, Scene

Kind = Literal["object", "attribute", "position", "number"]


@dataclass(frozen=True)
class Mistake:
    """One mistake in one phrase of a description."""

    kind: Kind
    start: int  # characters of the phrase in the text, [start, stop)
    stop: int
    said: Group
    truth: Group | None  # the scene's group that the phrase is about; None: no such group


@dataclass(frozen=True)
class Segment:
    """One correction: the kinds of mistake, and the words before and after."""

    kinds: tuple[Kind, ...]
    rejected: str
    chosen: str  # empty if the phrase was only cut


@dataclass(frozen=True)
class Correction:
    """A corrected description and its corrections."""

    text: str
    segments: tuple[Segment, ...]
    chosen_spans: tuple[Span, ...]  # characters of the corrected phrases in the new text
    rejected_spans: tuple[Span, ...]  # characters of the wrong phrases in the old text


def mistakes(scene: Scene, text: str) -> list[Mistake]:
    """Return the mistakes of a description: one per phrase and kind of mistake.

    A shape stands in a scene at most once, so all phrases about it are about one group. The phrase
    with the fewest mistakes is judged against that group. Every other phrase claims an object that
    is not in the scene.
    """
    phrases = read_phrases(text)
    groups = {group.shape: group for group in scene.groups}
    truest: dict[str, int] = {}  # shape -> index of the phrase that is about its group
    for index, (claim, _) in enumerate(phrases):
        truth = groups.get(claim.shape)
        if truth is None:
            continue
        best = truest.get(claim.shape)
        if best is None or len(_kinds(claim, truth)) < len(_kinds(phrases[best][0], truth)):
            truest[claim.shape] = index
    result: list[Mistake] = []
    for index, (claim, (start, stop)) in enumerate(phrases):
        truth = groups[claim.shape] if truest.get(claim.shape) == index else None
        result += [Mistake(kind, start, stop, claim, truth) for kind in _kinds(claim, truth)]
    return result


def _kinds(claim: Group, truth: Group | None) -> list[Kind]:
    """Return the kinds of mistake of a phrase; `truth` None means that its object is made up."""
    if truth is None:
        return ["object"]
    kinds: list[Kind] = []
    if claim.color != truth.color:
        kinds.append("attribute")
    if claim.corner != truth.corner:
        kinds.append("position")
    if claim.number != truth.number:
        kinds.append("number")
    return kinds


def correct(scene: Scene, text: str) -> Correction | None:
    """Correct a description.

    Returns:
        None if the description has no mistake, or is no description of this setting in the grammar
        of `captions`.
    """
    phrases = read_phrases(text)
    if caption(scene.setting, [claim for claim, _ in phrases]) != text:
        return None
    wrong: dict[int, list[Mistake]] = {}  # first character of a phrase -> its mistakes
    for mistake in mistakes(scene, text):
        wrong.setdefault(mistake.start, []).append(mistake)
    if not wrong:
        return None
    named = {claim.shape for claim, _ in phrases}
    missed = [group for group in scene.groups if group.shape not in named]
    corrected: list[Group] = []
    segments: list[Segment] = []
    replacements: list[Group] = []
    for claim, (start, _) in phrases:
        if start not in wrong:
            corrected.append(claim)
            continue
        replacement = wrong[start][0].truth or _replacement(claim, missed)
        missed = [group for group in missed if group is not replacement]
        kinds: tuple[Kind, ...] = tuple(mistake.kind for mistake in wrong[start])
        words = phrase(replacement) if replacement else ""
        segments.append(Segment(kinds, phrase(claim), words))
        if replacement:
            replacements.append(replacement)
            corrected.append(replacement)
    new_text = caption(scene.setting, sorted(corrected, key=_corner))
    chosen = tuple(span for claim, span in read_phrases(new_text) if claim in replacements)
    rejected = tuple(span for _, span in phrases if span[0] in wrong)
    return Correction(new_text, tuple(segments), chosen, rejected)


def _replacement(claim: Group, missed: list[Group]) -> Group | None:
    """Return the missed group that replaces a made-up one, if possible from the same corner."""
    return min(missed, key=lambda group: group.corner != claim.corner, default=None)


def _corner(group: Group) -> int:
    return CORNERS.index(group.corner)
