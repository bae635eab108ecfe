"""The labels of the RLHF-V release: which tokens of a conversation its loss covers.

Muffin tokenizes the header and every turn alone, and adds up the counts. Each count includes the
token that begins a text, which stands in for the one that `###` has more inside a text. Covered
are each answer with its own `### Assistant:`, the first two tokens of each question's turn (the
halves of `###`), and the `### ` at the end. Our own labels cover answers and what ends them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from rlhfv_ray.data.templates import render
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Span

CLOSING = "### "  # what every text ends with
UNMASKED = 2  # first tokens of a question's turn


class LabelledTokens(NamedTuple):
    """A conversation's tokens."""

    ids: list[int]
    offsets: list[Span]  # characters of each token in the conversation's text
    covered: list[bool]  # by the release's loss


def release_labels(processor: Any, messages: Sequence[dict[str, Any]]) -> LabelledTokens:
    """Return the tokens of a conversation, and which of them the release's loss covers.

    Args:
        processor: Muffin's.
        messages: questions and answers in turn, as `data.templates` makes them.

    Raises:
        DataError: the template is not Muffin's.
    """
    encoded = processor.tokenizer(render(processor, messages), return_offsets_mapping=True)
    ids = list(encoded["input_ids"])
    header, *turns = piece_lengths(processor, messages)
    covered = [False] * header + [True] * (len(ids) - header)
    start = header
    for message, length in zip(messages, turns, strict=True):
        if message["role"] == "user":
            for position in range(start + UNMASKED, min(start + length, len(ids))):
                covered[position] = False
        start += length
    return LabelledTokens(ids, list(encoded["offset_mapping"]), covered)


def piece_lengths(processor: Any, messages: Sequence[dict[str, Any]]) -> list[int]:
    """Return the number of tokens of the header and of every turn, each tokenized alone."""
    texts = [render(processor, messages[:count]) for count in range(1, len(messages) + 1)]
    header, _, _ = texts[0].partition(CLOSING)
    ends = [len(header), *(len(text) - len(CLOSING) for text in texts)]
    if not all(text.endswith(CLOSING) for text in texts):
        raise DataError(
            f"template: data.release_labels needs the template of Muffin, whose texts end in "
            f"{CLOSING!r}. Leave it off for other models."
        )
    full_text = texts[-1]
    pieces = [header, *(full_text[start:end] for start, end in zip(ends, ends[1:], strict=False))]
    return [len(processor.tokenizer(piece)["input_ids"]) for piece in pieces]
