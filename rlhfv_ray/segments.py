"""Which tokens of an answer pair were corrected.

RLHF-V (arXiv 2312.00849, sec. 3.2) weighs the corrected segments y_c against the unchanged rest y_u. Human-marked spans
say directly what was corrected; without them the two token sequences are compared.
"""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Literal

Rule = Literal["muffin", "both_sides"]


def changed_tokens(
    chosen: Sequence[int], rejected: Sequence[int], *, rule: Rule, min_match: int = 3
) -> tuple[list[bool], list[bool]]:
    """Mark the tokens that differ between two answers.

    Matching blocks come from `difflib.SequenceMatcher` with its junk heuristic on, as in the RLHF-V release
    (thunlp/Muffin, `get_diff_ids`); blocks shorter than `min_match` count as changed. The rules differ where only one
    side has tokens between two matches: `muffin`, the release's rule, ignores such pure insertions and deletions;
    `both_sides` marks them on the side that has them.

    Args:
        chosen: token ids; with `muffin` the release compares whole sequences, prompt included, first token left out.
        rejected: token ids, likewise.
        rule: see above.
        min_match: shortest run of equal tokens that counts as unchanged.

    Returns:
        One flag per token of `chosen`, and of `rejected`.

    Example:
        One token replaced, one inserted at the end of `chosen`.

        >>> changed_tokens([1, 2, 3, 9, 4, 5, 6, 7], [1, 2, 3, 8, 4, 5, 6], rule="both_sides")[0]
        [False, False, False, True, False, False, False, True]
        >>> changed_tokens([1, 2, 3, 9, 4, 5, 6, 7], [1, 2, 3, 8, 4, 5, 6], rule="muffin")[0]
        [False, False, False, True, False, False, False, False]
    """
    changed_chosen, changed_rejected = [False] * len(chosen), [False] * len(rejected)
    # The release compares rejected with chosen, in this order; difflib breaks ties by its first argument.
    for span_rejected, span_chosen in _gaps(rejected, chosen, min_match):
        if rule == "muffin" and not (len(span_chosen) and len(span_rejected)):
            continue
        for position in span_chosen:
            changed_chosen[position] = True
        for position in span_rejected:
            changed_rejected[position] = True
    return changed_chosen, changed_rejected


def _gaps(a: Sequence[int], b: Sequence[int], min_match: int) -> Iterator[tuple[range, range]]:
    """The ranges between (and around) the matching blocks of two sequences."""
    start_a = start_b = 0
    *blocks, end = SequenceMatcher(None, a, b).get_matching_blocks()
    for block in [*(block for block in blocks if block.size >= min_match), end]:
        yield range(start_a, block.a), range(start_b, block.b)
        start_a, start_b = block.a + block.size, block.b + block.size
