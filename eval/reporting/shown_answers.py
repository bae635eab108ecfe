"""The random sample of answers that a page shows.

Half of the sample is drawn from answers that changed between models, or, for one model, from its
worst answers. A sample of all answers alone might show none of them.
"""

import random
from typing import Literal, NamedTuple

from eval.benchmarks.contract import JudgedAnswer, Scores
from eval.reporting.wording import Models


class ShownAnswer(NamedTuple):
    """An answer on the page, and the stratum from which it was drawn."""

    item: int  # its index in the scores
    drawn: Literal["better", "worse", "worst", "random"]


class ChangeCounts(NamedTuple):
    """Three counts of answers: those that got better, those that got worse, and all."""

    better: int
    worse: int
    all: int


def choose_answers(models: Models, *, count: int, seed: int) -> list[ShownAnswer]:
    """Draw answers to show.

    With two models or more, half of them changed from the first model to the last; those that got
    worse have their share among these, at least one. With one model, half are its worst answers.
    The rest is drawn from all other answers.
    """
    generator = random.Random(seed)
    stratum = _worst if len(models) == 1 else _changed
    drawn = stratum(models, count // 2, generator)
    drawn_items = {answer.item for answer in drawn}
    total = len(next(iter(models.values())).answers)
    remaining = [item for item in range(total) if item not in drawn_items]
    others_drawn = generator.sample(remaining, min(len(remaining), count - len(drawn)))
    return [*drawn, *(ShownAnswer(item, "random") for item in others_drawn)]


def _changed(models: Models, most: int, generator: random.Random) -> list[ShownAnswer]:
    changes = harm_added(models)
    better = [item for item, change in enumerate(changes) if change < 0]
    worse = [item for item, change in enumerate(changes) if change > 0]
    changed = len(better) + len(worse)
    size = min(most, changed)
    worse_share = round(size * len(worse) / max(1, changed))
    worse_size = min(len(worse), size, max(worse_share, 1))
    drawn = [ShownAnswer(item, "better") for item in generator.sample(better, size - worse_size)]
    return [*drawn, *(ShownAnswer(item, "worse") for item in generator.sample(worse, worse_size))]


def _worst(models: Models, most: int, generator: random.Random) -> list[ShownAnswer]:
    (scores,) = models.values()
    harms = {
        index: (len(item.spans), _harm(item, scores))
        for index, item in enumerate(scores.answers)
        if not item.missing
    }
    least = min(harms.values(), default=None)
    harmful = [index for index, harm in harms.items() if harm != least]
    generator.shuffle(harmful)  # the sort is stable, so ties are in random order
    harmful.sort(key=harms.__getitem__, reverse=True)
    return [ShownAnswer(index, "worst") for index in harmful[:most]]


def harm_added(models: Models) -> list[float]:
    """Return for each prompt how much worse the last model's answer is than the first model's.

    The difference is in the number of hallucinated spans. Where neither answer has a span, it is
    in the first metric that has a better direction. It is 0 where a verdict is missing.
    """
    all_scores = list(models.values())
    first = all_scores[0]
    last = all_scores[-1]
    pairs = zip(first.answers, last.answers, strict=True)
    return [_added(before, after, first) for before, after in pairs]


def _added(before: JudgedAnswer, after: JudgedAnswer, scores: Scores) -> float:
    if before.missing or after.missing:
        return 0
    if before.spans or after.spans:
        return len(after.spans) - len(before.spans)
    return _harm(after, scores) - _harm(before, scores)


def _harm(item: JudgedAnswer, scores: Scores) -> float:
    """Return the first metric with a direction that the answer counts for; higher is worse."""
    for metric in scores.metrics:
        ratio = item.ratios.get(metric.name)
        if metric.better and ratio and ratio.denominator:
            rate = ratio.numerator / ratio.denominator
            return rate if metric.better == "lower" else 1 - rate
    return 0


def count_changes(models: Models) -> ChangeCounts:
    """Count the answers that got better and worse from the first model to the last."""
    changes = harm_added(models)
    better = sum(change < 0 for change in changes)
    worse = sum(change > 0 for change in changes)
    return ChangeCounts(better, worse, len(changes))
