"""Leave out pairs until corrections in one direction are as many as in the other.

The base model makes most mistakes as often as their reverse, but not exactly. `even_subset` makes
each shape and colour as frequent in a setting's chosen texts as in its rejected ones. Then
`balanced_subset` sorts the pairs by how the correction changes the `Counts`. Of each change and its
reverse, equally many pairs stay.

Some mistakes have hardly a reverse, because no true text contains them: a shape or a corner that is
named twice, and what training never shows. They would tell the rejected text, so nearly all their
pairs are left out. Different words are counted because careless answers repeat words.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from rlhfv_ray.records import PreferencePair
from rlhfv_ray.shapes.balanced import is_held
from rlhfv_ray.shapes.captions import read_phrases
from rlhfv_ray.shapes.scenes import TYPICAL

LEAST_TAKEN = 4  # squared excess; a smaller one is chance


class Counts(NamedTuple):
    """Numbers of the things that a description says."""

    typical: int  # phrases about shapes that the setting makes likely
    phrases: int
    shapes: int  # single shapes: three stars are three
    words: int  # different ones
    repeated_shapes: int  # phrases whose shape an earlier phrase has
    repeated_corners: int
    held_out: int  # phrases whose shape training never shows in this setting or colour


def words_of(text: str) -> list[str]:
    """Return the words of a text in order, in lower case, without signs."""
    return re.findall(r"\w+", text.lower())


def setting_of(text: str) -> str:
    """Return the setting that a description names; empty if it names none."""
    words = text.replace(".", " ").split()
    return next((word for word in words if word in TYPICAL), "")


def typical_phrases(text: str) -> int:
    """Count the phrases of a description about shapes that its setting makes likely."""
    typical = TYPICAL.get(setting_of(text), ())
    return sum(group.shape in typical for group, _ in read_phrases(text))


def change_of(pair: PreferencePair) -> Counts:
    """Return the counts of the chosen text minus those of the rejected text.

    All of them are 0 if the correction is of colours or places only.
    """
    chosen, rejected = counts_of(pair.chosen), counts_of(pair.rejected)
    return Counts(*(after - before for after, before in zip(chosen, rejected, strict=True)))


def counts_of(text: str) -> Counts:
    """Count what a description says; all but the words are 0 in a text of another world."""
    groups = [group for group, _ in read_phrases(text)]
    setting = setting_of(text)
    return Counts(
        typical=typical_phrases(text),
        phrases=len(groups),
        shapes=sum(group.number for group in groups),
        words=len(set(words_of(text))),
        repeated_shapes=len(groups) - len({group.shape for group in groups}),
        repeated_corners=len(groups) - len({group.corner for group in groups}),
        held_out=sum(is_held(setting, group) for group in groups),
    )


def even_subset(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """Leave out pairs until no shape and no colour is written in or cut much more often.

    For each setting and word, the excess is its number in all chosen texts minus that in all
    rejected ones. The pair whose loss takes most from the sum of the squared excesses is left out,
    again and again, until none takes more than `LEAST_TAKEN`.
    """
    changes = [_word_changes(pair) for pair in pairs]
    excess: Counter[tuple[str, str]] = Counter()
    for change in changes:
        excess.update(change)
    kept = set(range(len(pairs)))

    def taken(index: int) -> int:
        # (e - n)^2 is smaller than e^2 by 2en - n^2.
        return sum(2 * excess[word] * n - n * n for word, n in changes[index].items())

    while kept:
        worst = max(sorted(kept), key=taken)
        if taken(worst) <= LEAST_TAKEN:
            break
        kept.remove(worst)
        excess.subtract(changes[worst])
    return [pairs[index] for index in sorted(kept)]


def balanced_subset(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """Return the first pairs of each change, as many as there are of its reverse, in order."""
    counts = Counter(map(change_of, pairs))
    places: dict[Counts, int] = {}
    for change, count in counts.items():
        reverse = Counts(*(-number for number in change))
        places[change] = min(count, counts[reverse])
    subset: list[PreferencePair] = []
    for pair in pairs:
        change = change_of(pair)
        if places[change] > 0:
            places[change] -= 1
            subset.append(pair)
    return subset


def _word_changes(pair: PreferencePair) -> Counter[tuple[str, str]]:
    """Return how many more phrases of the chosen text have a (setting, shape or colour)."""
    changes = Counter(_words(pair.chosen))
    changes.subtract(_words(pair.rejected))
    return changes


def _words(text: str) -> list[tuple[str, str]]:
    setting = setting_of(text)
    groups = [group for group, _ in read_phrases(text)]
    words = [group.shape for group in groups] + [group.color for group in groups]
    return [(setting, word) for word in words]
