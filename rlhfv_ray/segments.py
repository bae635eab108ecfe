"""Find the tokens of an answer pair that were corrected.

RLHF-V (arXiv 2312.00849, sec. 3.2) weighs the corrected segments y_c against the unchanged rest
y_u. Spans that a human marked say directly what was corrected. Without them, the two token
sequences are compared here.
"""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Literal, get_args

Rule = Literal["muffin", "both_sides"]


def changed_tokens(
    chosen: Sequence[int], rejected: Sequence[int], *, rule: Rule, min_match: int = 3
) -> tuple[list[bool], list[bool]]:
    """Mark the tokens that differ between two answers.

    Matching blocks come from `difflib.SequenceMatcher`. Blocks shorter than `min_match` count as
    changed. The rules differ where only one side has tokens between two matches. `muffin`, the rule
    of the RLHF-V release (thunlp/Muffin, `get_diff_ids`), ignores such pure insertions and
    deletions. `both_sides` marks them on the side that has them. Only `muffin` has difflib's junk
    heuristic on, as the release has.

    Args:
        chosen: token ids. For `muffin`, pass whole sequences without their first token, prompt
            included: this is what the release compares.
        rejected: token ids, likewise.
        rule: `muffin` or `both_sides`, see above.
        min_match: length of the shortest run of equal tokens that counts as unchanged.

    Returns:
        One flag per token of `chosen`, and one per token of `rejected`.

    Raises:
        ValueError: the rule is unknown.

    Examples:
        One token is replaced, and one is inserted at the end of `chosen`.

        >>> long, short = [1, 2, 3, 9, 4, 5, 6, 7], [1, 2, 3, 8, 4, 5, 6]
        >>> changed_tokens(long, short, rule="both_sides")[0]
        [False, False, False, True, False, False, False, True]
        >>> changed_tokens(long, short, rule="muffin")[0]
        [False, False, False, True, False, False, False, False]
    """
    if rule not in get_args(Rule):
        raise ValueError(f"rule = {rule!r}: allowed are {', '.join(get_args(Rule))}")
    changed_chosen = [False] * len(chosen)  # y_c of y_w: gamma goes on these tokens (Eq. 5)
    changed_rejected = [False] * len(rejected)  # y_c of y_l
    # Rejected comes first because Muffin's does: difflib breaks ties by its first argument.
    autojunk = rule == "muffin"
    for span_rejected, span_chosen in _gaps(rejected, chosen, min_match, autojunk=autojunk):
        # Muffin's quirk: a gap that is empty on one side is skipped, so a pure insertion or
        # deletion gets no extra weight. An unchanged island shorter than min_match does.
        if rule == "muffin" and not (len(span_chosen) and len(span_rejected)):
            continue
        for position in span_chosen:
            changed_chosen[position] = True
        for position in span_rejected:
            changed_rejected[position] = True
    return changed_chosen, changed_rejected


def _gaps(
    a: Sequence[int], b: Sequence[int], min_match: int, *, autojunk: bool
) -> Iterator[tuple[range, range]]:
    """Yield the ranges before, between and after the matching blocks of two sequences.

    With `autojunk`, in sequences of 200 tokens and more, difflib never starts a match at a token
    that makes up over 1 % of `b`.
    """
    *blocks, end = SequenceMatcher(None, a, b, autojunk=autojunk).get_matching_blocks()
    long_blocks = [block for block in blocks if block.size >= min_match]
    start_a = 0
    start_b = 0
    for block in [*long_blocks, end]:  # `end` has size 0 and closes the last gap
        yield range(start_a, block.a), range(start_b, block.b)
        start_a = block.a + block.size
        start_b = block.b + block.size
