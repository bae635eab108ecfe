"""How much the texts of preference pairs say without the pictures.

If texts alone tell the chosen answer from the rejected one, a model can learn to prefer it without
looking. A logistic regression on words, pairs of words and length measures this. It is trained on
some pairs and tested on others.

Symbols: x is the features of the chosen text minus those of the rejected text, w the weights. The
chosen text is told by w x > 0.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix, vstack
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, LeaveOneGroupOut

from rlhfv_ray.errors import DataError
from rlhfv_ray.records import PreferencePair
from rlhfv_ray.shapes.balance import change_of, counts_of, words_of
from rlhfv_ray.stats import Interval, wilson_interval

FOLDS = 5
STRENGTH = 0.1  # inverse of the L2 penalty, on features divided by their largest value
FEWEST = 50  # pairs; fewer train no classifier


@dataclass(frozen=True)
class TextAudit:
    """Properties of pairs that their texts alone show."""

    pairs: int
    told: float  # share of pairs in which the classifier prefers the chosen text
    told_interval: Interval  # 95 %, over the pairs
    shorter: float  # share of pairs in which the chosen text has fewer words; equal ones count 1/2
    chosen_words: float  # mean
    rejected_words: float
    # Pairs of the shapes world whose chosen text names more or fewer typical shapes, or phrases.
    more_typical: int
    fewer_typical: int
    more_phrases: int
    fewer_phrases: int


def audit_texts(pairs: Sequence[PreferencePair]) -> TextAudit:
    """Measure how well texts alone tell the chosen answer from the rejected one.

    Raises:
        DataError: there are too few pairs to train a classifier.
    """
    if len(pairs) < FEWEST:
        raise DataError(f"{len(pairs)} pairs; an audit of texts needs {FEWEST} or more.")
    texts = [(pair.chosen, pair.rejected) for pair in pairs]
    accuracy = told_apart(texts)
    lengths = np.array([(len(chosen.split()), len(rejected.split())) for chosen, rejected in texts])
    shorter = _share_below(lengths[:, 0] - lengths[:, 1])
    changes = [change_of(pair) for pair in pairs]
    typical = [change.typical for change in changes]
    phrases = [change.phrases for change in changes]
    interval = wilson_interval(round(accuracy * len(pairs)), len(pairs))
    assert interval is not None  # there are pairs
    chosen_words, rejected_words = lengths.mean(axis=0)
    return TextAudit(
        pairs=len(pairs),
        told=accuracy,
        told_interval=interval,
        shorter=shorter,
        chosen_words=float(chosen_words),
        rejected_words=float(rejected_words),
        more_typical=sum(change > 0 for change in typical),
        fewer_typical=sum(change < 0 for change in typical),
        more_phrases=sum(change > 0 for change in phrases),
        fewer_phrases=sum(change < 0 for change in phrases),
    )


def told_apart(
    texts: Sequence[tuple[str, str]],
    groups: Sequence[int] = (),
    features: Callable[[str], Mapping[str, int]] | None = None,
) -> float:
    """Return the share of (chosen, rejected) texts that a classifier tells apart; chance is 1/2.

    It sees `text_features`, or what another function returns. Every pair is tested by a classifier
    that was trained on the other folds; with `groups`, one number for each pair, on the other
    groups. Folds of pairs that are balanced as a whole have opposite excesses, so that their share
    may fall below 1/2. Groups that were balanced each by itself do not.
    """
    count_features = features or text_features
    vectorizer = DictVectorizer()
    counts = vectorizer.fit_transform(map(count_features, itertools.chain.from_iterable(texts)))
    differences = csr_matrix(counts[0::2] - counts[1::2])  # (pairs, features)
    largest = np.maximum(abs(differences).max(axis=0).toarray().ravel(), 1)
    differences = csr_matrix(differences.multiply(1 / largest))
    scores = np.zeros(len(texts))  # w x of each pair
    folds = LeaveOneGroupOut() if groups else KFold(FOLDS, shuffle=True, random_state=0)
    for train, test in folds.split(scores, groups=groups or None):
        rows = differences[train]
        # Each pair is seen in both orders, so that the sign of w x is all that counts.
        both_orders = vstack([rows, -rows])
        labels = np.repeat([1, 0], len(train))
        model = LogisticRegression(C=STRENGTH, fit_intercept=False, max_iter=1000)
        scores[test] = model.fit(both_orders, labels).decision_function(differences[test])
    return _share_below(-scores)


def text_features(text: str) -> dict[str, int]:
    """Return counts of words, of neighbours, of words by setting, and the length of a text.

    The words after the first two are also counted by these two: `a street`, `a beach`. So the
    classifier can learn what is usual in a setting. All of `balance.Counts` are features too.
    """
    words = words_of(text)
    opening = " ".join(words[:2])
    features: Counter[str] = Counter(words)
    features.update(f"{first} {second}" for first, second in itertools.pairwise(words))
    features.update(f"{opening}: {word}" for word in words[2:])
    features["length"] = len(words)
    for name, number in counts_of(text)._asdict().items():
        features[f"number of {name.replace('_', ' ')}"] = number  # beside the word `shapes` itself
    return dict(features)


def _share_below(values: np.ndarray) -> float:
    """Return the share of values below 0; a value of 0 counts one half."""
    return float(((values < 0) + 0.5 * (values == 0)).mean())
