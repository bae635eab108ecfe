"""Objects by several votes, counted by hand; `test_object_halbench.py` has replies of judges."""

import json
from collections.abc import Sequence

from eval.chair import ObjectVocabulary
from eval.judge.objects import Named, named_by, share_unanimous
from rlhfv_ray.endpoint.records import Reply

VOCABULARY = ObjectVocabulary.from_synonyms([("dog",), ("cat",)], lemmatizer="builtin")


def votes(*lists: Sequence[str]) -> list[Reply]:
    return [Reply("ok", json.dumps(names)) for names in lists]


def objects(named: Named) -> set[str]:
    return {name for _, name in named.mentions}


def test_an_object_needs_more_than_half_of_the_readable_votes() -> None:
    """Catches: half taken for a majority; unreadable votes counted as votes against.

    Dog has 2 of 3 readable votes and cat 1; of two votes, 1 is no majority.
    """
    unreadable = Reply("ok", "no list")
    named = named_by([*votes(["dog"], ["dog", "cat"], []), unreadable], VOCABULARY)
    assert objects(named) == {"dog"} and named.unanimous is False
    named = named_by(votes(["dog"], ["dog", "cat"]), VOCABULARY)
    assert objects(named) == {"dog"}
    named = named_by([*votes(["dog", "cat"], ["cat", "dog"]), unreadable], VOCABULARY)
    assert objects(named) == {"dog", "cat"} and named.unanimous is True


def test_one_vote_is_neither_unanimous_nor_divided() -> None:
    """Catches: answers with one readable vote that raise the share of unanimous ones."""
    single = named_by(votes(["dog"]), VOCABULARY)
    assert single.unanimous is None
    assert share_unanimous([single]) is None


def test_without_a_readable_vote_the_reason_is_given() -> None:
    """Catches: an answer whose judge failed, scored as one that names nothing."""
    assert named_by([], VOCABULARY) == Named(missing="unavailable")
    assert named_by([Reply("refused")], VOCABULARY) == Named(missing="refused")
    assert named_by([Reply("refused"), Reply("ok", "?")], VOCABULARY) == Named(missing="unparsed")
