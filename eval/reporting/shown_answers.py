"""Which answers a page shows: drawn by lot, with a share of those that changed, or are worst, so that these are seen at all."""

import random
from typing import Literal, NamedTuple

from eval.benchmarks.contract import JudgedAnswer, Scores
from eval.reporting.wording import Models


class ShownAnswer(NamedTuple):
    """An answer that is shown, and which draw it comes from."""

    item: int  # its place in the scores
    drawn: Literal["better", "worse", "worst", "random"]


class ChangeCounts(NamedTuple):
    """What is drawn from, in numbers."""

    better: int
    worse: int
    all: int


def choose_answers(models: Models, *, count: int, seed: int) -> list[ShownAnswer]:
    """Draw answers to show.

    Of two models or more, half are among those that changed from the first to the last (those that got worse by their share, one at least); of
    one, half are its worst. The rest is drawn from all others.
    """
    draw = random.Random(seed)
    picked = (
        _worst(models, count // 2, draw) if len(models) == 1 else _changed(models, count // 2, draw)
    )
    total = len(next(iter(models.values())).answers)
    taken = {choice.item for choice in picked}
    others = [i for i in range(total) if i not in taken]
    rest = draw.sample(others, min(len(others), count - len(picked)))
    return [*picked, *(ShownAnswer(i, "random") for i in rest)]


def _changed(models: Models, most: int, draw: random.Random) -> list[ShownAnswer]:
    added = harm_added(models)
    better, worse = (
        [i for i, k in enumerate(added) if k < 0],
        [i for i, k in enumerate(added) if k > 0],
    )
    changed = min(most, len(better) + len(worse))
    share = round(changed * len(worse) / max(1, len(better) + len(worse)))
    from_worse = min(len(worse), changed, max(share, 1))
    picked = [ShownAnswer(i, "better") for i in draw.sample(better, changed - from_worse)]
    return [*picked, *(ShownAnswer(i, "worse") for i in draw.sample(worse, from_worse))]


def _worst(models: Models, most: int, draw: random.Random) -> list[ShownAnswer]:
    (scores,) = models.values()
    harms = {
        i: (len(item.spans), _harm(item, scores))
        for i, item in enumerate(scores.answers)
        if not item.missing
    }
    best = min(harms.values(), default=None)
    bad = [i for i, harm in harms.items() if harm != best]
    draw.shuffle(bad)  # lots are drawn among those that are equally bad
    return [
        ShownAnswer(i, "worst") for i in sorted(bad, key=harms.__getitem__, reverse=True)[:most]
    ]


def harm_added(models: Models) -> list[float]:
    """Of each answer how much worse the last model's is than the first's: by marks, or where there are none by the first measure."""
    base, *_, last = [*models.values(), *models.values()]  # one model is both
    return [_added(*both, base) for both in zip(base.answers, last.answers, strict=True)]


def _added(before: JudgedAnswer, after: JudgedAnswer, scores: Scores) -> float:
    if before.missing or after.missing:
        return 0
    if before.spans or after.spans:
        return len(after.spans) - len(before.spans)
    return _harm(after, scores) - _harm(before, scores)


def _harm(item: JudgedAnswer, scores: Scores) -> float:
    """The first measure that the answer adds to; the higher the worse."""
    for metric in scores.metrics:
        part = item.ratios.get(metric.name)
        if metric.better and part and part.denominator:
            rate = part.numerator / part.denominator
            return rate if metric.better == "lower" else 1 - rate
    return 0


def pool(models: Models) -> ChangeCounts:
    """How many answers got better and worse from the first model to the last, of how many."""
    added = harm_added(models)
    return ChangeCounts(sum(k < 0 for k in added), sum(k > 0 for k in added), len(added))
