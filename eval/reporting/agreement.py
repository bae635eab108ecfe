"""Agreement of two models' greedy answers, which shows if a server runs the model it should.

A server that serves the same weights with the same template and pictures decodes the same words.
In half precision, other kernels turn a few near ties: then an answer differs from some word on.
Another template, picture size or model differs in most answers, and from the first words on.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Answer

SHOWN = 60  # characters of an answer that an error quotes


class Agreement(NamedTuple):
    """The agreement of two models' answers to the same prompts."""

    equal: int  # answers that are the same word for word
    answers: int
    prefix: float  # mean share of the first model's words before the first difference, 0 to 1
    first_difference: str  # an id and both answers from the differing word on; empty: none

    @property
    def share(self) -> float:
        """Share of equal answers."""
        return self.equal / self.answers

    def __str__(self) -> str:
        return (
            f"{self.equal} of {self.answers} answers are the same word for word; on average they "
            f"agree in the first {self.prefix:.0%} of the words"
        )


def compare_answers(own: Sequence[Answer], others: Sequence[Answer]) -> Agreement:
    """Compare the answers to the same prompts, in the same order, without regard to white space.

    Example:
        >>> own = [Answer("1", "?", "A red ring."), Answer("2", "?", "A blue star")]
        >>> compare_answers(own, [own[0], Answer("2", "?", "A blue ring")])[:2]
        (1, 2)

    Raises:
        DataError: the answers are not those to the same prompts.
    """
    if not own or [answer.id for answer in own] != [answer.id for answer in others]:
        raise DataError("Answers are compared that are not those to the same prompts.")
    shares: list[float] = []
    first_difference = ""
    equal = 0
    for ours, theirs in zip(own, others, strict=True):
        words, other_words = ours.text.split(), theirs.text.split()
        agreeing = _common(words, other_words)
        shares.append(agreeing / len(words) if words else float(words == other_words))
        if words == other_words:
            equal += 1
        elif not first_difference:
            tails = [" ".join(text[agreeing:])[:SHOWN] for text in (words, other_words)]
            first_difference = f"{ours.id}, from word {agreeing + 1} on: {tails[0]!r}, {tails[1]!r}"
    return Agreement(equal, len(own), sum(shares) / len(shares), first_difference)


def _common(words: Sequence[str], others: Sequence[str]) -> int:
    """Return the number of words before the first difference."""
    pairs = enumerate(zip(words, others, strict=False))
    shorter = min(len(words), len(others))
    return next((number for number, (word, other) in pairs if word != other), shorter)


def check_agreement(answers: Mapping[str, Sequence[Answer]], *, least: float) -> dict[str, str]:
    """Check that every further model answers as the first one does.

    Args:
        answers: of the models, by name.
        least: smallest share of equal answers.

    Returns:
        A sentence for every further model.

    Raises:
        DataError: a model agrees less.
    """
    (first, own), *rest = answers.items()
    sentences: dict[str, str] = {}
    for name, others in rest:
        agreement = compare_answers(own, others)
        sentences[name] = f"{name} and {first}: {agreement}."
        if agreement.share < least:
            raise DataError(
                f"{sentences[name]} That is less than --least-agreement {least:g}. First "
                f"difference, {agreement.first_difference}. Compare weights, chat template, "
                "picture size and precision of both; in bf16 a few answers differ."
            )
    return sentences
