"""Judge a description of a scene phrase by phrase, and correct it as a careful person would.

A person does not only cut a wrong phrase but also says what is in the picture instead. So a claimed
object that is not in the picture is replaced by a group that the description missed, if one exists.
Wrong colours, numbers and corners are put right. In the biased world, a group that was left out
stays out unless it replaces another.
"""

import random
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from rlhfv_ray.records import Span
from rlhfv_ray.shapes.captions import caption, phrase, read_phrases
from rlhfv_ray.shapes.scenes import COLORS, CORNERS, Group, Scene

Kind = Literal["object", "attribute", "position", "number"]


@dataclass(frozen=True)
class Mistake:
    """One mistake in one phrase of a description."""

    kind: Kind
    start: int  # characters of the phrase in the text, [start, stop)
    stop: int
    said: Group
    truth: Group | None  # the scene's group that the phrase is about; None: no such group


class Care(NamedTuple):
    """How an annotator works."""

    adds: bool = False  # adds groups that the description left out
    left: float = 0.0  # share of mistakes that are left as they are
    wrong: float = 0.0  # share of corrected phrases with a wrong colour


CAREFUL = Care()


@dataclass(frozen=True)
class Segment:
    """One correction: the kinds of mistake, and the words before and after."""

    kinds: tuple[Kind, ...]
    rejected: str  # empty if the phrase was only added
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


def is_description(scene: Scene, text: str) -> bool:
    """Return True if a text is in the grammar of `captions`, and names the scene's setting."""
    return text == caption(scene.setting, [claim for claim, _ in read_phrases(text)])


def correct(
    scene: Scene, text: str, care: Care = CAREFUL, rng: random.Random | None = None
) -> Correction | None:
    """Correct a description.

    Args:
        scene: the truth.
        text: the description.
        care: how the annotator works.
        rng: random numbers, for an annotator who leaves mistakes or makes some.

    Returns:
        None if nothing is corrected, or the text is no description of this setting in the grammar
        of `captions`.
    """
    if not is_description(scene, text):
        return None
    phrases = read_phrases(text)
    rng = rng or random.Random(0)
    wrong: dict[int, list[Mistake]] = {}  # first character of a phrase -> its mistakes
    for mistake in mistakes(scene, text):
        wrong.setdefault(mistake.start, []).append(mistake)
    wrong = {start: errors for start, errors in wrong.items() if not _happens(care.left, rng)}
    named = {claim.shape for claim, _ in phrases}
    missed = [group for group in scene.groups if group.shape not in named]
    corrected: list[Group] = []
    replacements: list[Group] = []
    segments: list[Segment] = []
    for claim, (start, _) in phrases:
        if start not in wrong:
            corrected.append(claim)
            continue
        truth = wrong[start][0].truth or _replacement(claim, missed)
        missed = [group for group in missed if group is not truth]
        kinds: tuple[Kind, ...] = tuple(mistake.kind for mistake in wrong[start])
        written = [_written(truth, care, rng)] if truth else []
        segments.append(Segment(kinds, phrase(claim), "".join(map(phrase, written))))
        corrected += written
        replacements += written
    added = [_written(group, care, rng) for group in missed if _is_added(care, rng)]
    segments += [Segment(("object",), "", phrase(group)) for group in added]
    if not segments:
        return None
    new_text = caption(scene.setting, sorted([*corrected, *added], key=_corner))
    replacements += added
    chosen = tuple(span for claim, span in read_phrases(new_text) if claim in replacements)
    rejected = tuple(span for _, span in phrases if span[0] in wrong)
    return Correction(new_text, tuple(segments), chosen, rejected)


def _is_added(care: Care, rng: random.Random) -> bool:
    """Return True if a group that the description left out is added."""
    return care.adds and not _happens(care.left, rng)


def _happens(probability: float, rng: random.Random) -> bool:
    return probability > 0 and rng.random() < probability


def _written(group: Group, care: Care, rng: random.Random) -> Group:
    """Return a true group as the annotator writes it: sometimes with a wrong colour."""
    if not _happens(care.wrong, rng):
        return group
    return replace(group, color=rng.choice([color for color in COLORS if color != group.color]))


def _replacement(claim: Group, missed: list[Group]) -> Group | None:
    """Return the missed group that replaces a made-up one, if possible from the same corner."""
    return min(missed, key=lambda group: group.corner != claim.corner, default=None)


def _corner(group: Group) -> int:
    return CORNERS.index(group.corner)
