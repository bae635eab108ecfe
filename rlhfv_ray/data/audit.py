"""Audit the data in one pass before a job starts: usable rows, unusable rows and their reasons."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, median

from rlhfv_ray.data.images import decode_image
from rlhfv_ray.data.reading import Slice, read_slice
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import PreferencePair


@dataclass(frozen=True)
class AnswerLengths:
    """Whitespace-separated words per answer."""

    mean: float
    median: float
    longest: int


@dataclass(frozen=True)
class Audit:
    """Result of an audit. Lengths cover usable pairs and are None if there is none."""

    rows: int
    usable: int
    unusable: Mapping[str, int]  # reason code -> number of rows
    examples: Mapping[str, str]  # reason code -> message of the first such row
    duplicated_ids: tuple[str, ...]
    chosen: AnswerLengths | None
    rejected: AnswerLengths | None


def audit_pairs(slices: Iterable[Slice], *, decode: bool = False) -> Audit:
    """Read every row once and count usable and unusable rows.

    Args:
        slices: slices from `list_slices`.
        decode: decode the images too, which costs far more than reading the rows.

    Raises:
        DataError: a file cannot be read.
    """
    ids: Counter[str] = Counter()
    errors: list[str] = []
    words: list[tuple[int, int]] = []  # of chosen and rejected answer
    for part in slices:
        for row_id, pair in read_slice(part):
            ids[row_id] += 1
            if decode and isinstance(pair, PreferencePair):
                pair = _decoded(pair)
            if isinstance(pair, DataError):
                errors.append(str(pair))
            elif isinstance(pair, PreferencePair):
                words.append((len(pair.chosen.split()), len(pair.rejected.split())))
    codes = [message.partition(":")[0] for message in errors]
    # Reversed, because a dict keeps the last value of a key: the first message of each code stays.
    examples = dict(zip(reversed(codes), reversed(errors), strict=True))
    return Audit(
        rows=ids.total(),
        usable=len(words),
        unusable=Counter(codes),
        examples=examples,
        duplicated_ids=tuple(row_id for row_id, count in ids.items() if count > 1),
        chosen=_lengths([chosen for chosen, _ in words]),
        rejected=_lengths([rejected for _, rejected in words]),
    )


def _decoded(pair: PreferencePair) -> PreferencePair | DataError:
    """Return the pair, or the error of its image."""
    try:
        decode_image(pair.image)
    except DataError as error:
        return DataError(f"{error} (pair {pair.id!r})")
    return pair


def _lengths(words: list[int]) -> AnswerLengths | None:
    return AnswerLengths(fmean(words), median(words), max(words)) if words else None
