"""changed_tokens against the RLHF-V release (tests/golden/SOURCES.md) and by hand."""

import json
import random
from pathlib import Path

import pytest

from rlhfv_ray.segments import changed_tokens

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/muffin_ddpo.json").read_text())["segments"]


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_muffin_rule_is_the_release(case):
    """Catches: a difflib call with another argument order, junk heuristic or block length."""
    chosen, rejected = changed_tokens(case["chosen"], case["rejected"], rule="muffin")
    assert [i for i, changed in enumerate(chosen) if changed] == case["changed_chosen"]
    assert [i for i, changed in enumerate(rejected) if changed] == case["changed_rejected"]


def test_both_sides_marks_insertion_and_deletion():
    """Catches: a pure deletion that weighs nothing, which only the release's rule wants."""
    long = [1, 2, 3, 7, 8, 4, 5, 6]
    short = [1, 2, 3, 4, 5, 6]
    assert changed_tokens(short, long, rule="both_sides") == (
        [False] * 6,
        [False] * 3 + [True] * 2 + [False] * 3,
    )
    assert changed_tokens(long, short, rule="both_sides") == (
        [False] * 3 + [True] * 2 + [False] * 3,
        [False] * 6,
    )
    assert changed_tokens(short, long, rule="muffin") == ([False] * 6, [False] * 8)


def test_short_island_counts_as_changed():
    """Catches: min_match ignored. 9 and 8 differ; the equal run 5, 6 is shorter than 3."""
    chosen, _ = changed_tokens(
        [1, 2, 3, 9, 5, 6, 9, 2, 3, 4], [1, 2, 3, 8, 5, 6, 8, 2, 3, 4], rule="both_sides"
    )
    assert chosen == [False] * 3 + [True] * 4 + [False] * 3
    chosen, _ = changed_tokens(
        [1, 2, 3, 9, 5, 6, 9, 2, 3, 4],
        [1, 2, 3, 8, 5, 6, 8, 2, 3, 4],
        rule="both_sides",
        min_match=2,
    )
    assert chosen == [False] * 3 + [True, False, False, True] + [False] * 3


def test_unchanged_tokens_are_common_and_in_order():
    """Catches: different tokens left unmarked. The unmarked tokens of both sides must be equal."""
    rng = random.Random(0)
    for _ in range(200):
        a = [rng.randrange(6) for _ in range(rng.randrange(30))]
        b = [rng.randrange(6) for _ in range(rng.randrange(30))]
        mask_a, mask_b = changed_tokens(a, b, rule="both_sides")
        unchanged_a = [token for token, changed in zip(a, mask_a, strict=True) if not changed]
        unchanged_b = [token for token, changed in zip(b, mask_b, strict=True) if not changed]
        assert unchanged_a == unchanged_b


def test_equal_and_empty():
    """Catches: a crash, or marks, where nothing differs."""
    assert changed_tokens([1, 2, 3], [1, 2, 3], rule="muffin") == ([False] * 3, [False] * 3)
    assert changed_tokens([], [], rule="both_sides") == ([], [])
    assert changed_tokens([], [5], rule="both_sides") == ([], [True])


def test_one_changed_word_in_a_long_answer_marks_one_word():
    """Catches: difflib's junk heuristic in our own rule, which marked hundreds of tokens."""
    rng = random.Random(0)
    answer = [rng.randrange(40) for _ in range(600)]
    edited = [*answer[:300], 99, *answer[301:]]
    chosen, _ = changed_tokens(edited, answer, rule="both_sides")
    assert [position for position, flag in enumerate(chosen) if flag] == [300]
    assert sum(changed_tokens(edited, answer, rule="muffin")[0]) > 1  # as the release has it


def test_an_unknown_rule_is_refused():
    """Catches: a misspelt rule that is silently taken for the other one."""
    with pytest.raises(ValueError, match="rule = 'mufin': allowed are muffin, both_sides"):
        changed_tokens([1], [2], rule="mufin")  # pyright: ignore
