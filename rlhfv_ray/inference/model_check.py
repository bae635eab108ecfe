"""The self-check of a job's model, in the actor that loads it, on the job's own first rows.

The outcome stands in the folder of the reference (or of the examples) and decides the layout of
rows there and in training. The first actor of a folder writes it. Every later one takes it, also
one that came to its own outcome meanwhile, so that the file stays as it is once parts are written.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rlhfv_ray.config import DataConfig, ModelConfig
from rlhfv_ray.data import Slice, read_slice
from rlhfv_ray.data.encoding import encode_example, encode_pair
from rlhfv_ray.data.images import check_pixels
from rlhfv_ray.data.row_fields import attempt
from rlhfv_ray.data.templates import context_messages
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.models.self_check import Sample, SelfCheck, choose_samples, self_check
from rlhfv_ray.records import EncodedPair, Example, PreferencePair
from rlhfv_ray.storage.files import sealed, unsealed, write_json
from rlhfv_ray.storage.folder import display_path, make, open_folder

logger = logging.getLogger(__name__)

CHECK = "self_check.json"
LOOKED_AT = 8  # first usable rows, of which the shortest and the longest are taken


def check_model(
    model: Any,
    processor: Any,
    config: ModelConfig,
    data: DataConfig,
    shards: Sequence[Slice],
    folder: Path,
) -> SelfCheck:
    """Return the outcome of the self-check of a folder; made now if the folder has none.

    Args:
        model: as loaded for the job.
        processor: the model's.
        config: its settings.
        data: the job's.
        shards: of the data.
        folder: of the reference or the examples.

    Raises:
        ConfigError: the model is not understood.
    """
    recorded = _recorded(folder)
    if recorded is not None:
        return recorded
    samples = list(itertools.islice(usable_samples(processor, data, shards), LOOKED_AT))
    if not samples:  # no row is usable, which ends the stage with its own error
        return SelfCheck("plain", False, "none", 0, 0.0, None, {})
    outcome = self_check(model, processor, choose_samples(samples), layout=config.layout)
    recorded = _recorded(folder)
    if recorded is None:
        make(folder)
        write_json(folder / CHECK, sealed(asdict(outcome)))
    return recorded or outcome


def _recorded(folder: Path) -> SelfCheck | None:
    """Return the outcome that a folder holds; None if it holds none, or a damaged one."""
    path = folder / CHECK
    open_folder(folder).fetch_missing(path)
    try:
        return SelfCheck(**unsealed(path.read_text(), required=True))
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("%s is damaged (%s): the model is checked again", display_path(path), error)
        return None


def read_check(folder: Path) -> SelfCheck:
    """Return the outcome that a finished folder holds.

    Raises:
        ConfigError: it holds none.
    """
    try:
        return SelfCheck(**unsealed((folder / CHECK).read_text()))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{display_path(folder)} has no {CHECK}: it was made before models were checked. "
            "Leave out --data.reference to make the log-probs again."
        ) from error


def encode(row: PreferencePair | Example, processor: Any, data: DataConfig) -> EncodedPair:
    """Encode a pair or an example."""
    check_pixels(row.image, data.max_pixels)
    limits = {"max_length": data.max_length, "release_labels": data.release_labels}
    if isinstance(row, Example):
        return encode_example(row, processor, **limits)
    return encode_pair(row, processor, min_match=data.min_match, spans=data.spans, **limits)


def encoded_row(
    row: PreferencePair | Example | DataError, processor: Any, data: DataConfig
) -> EncodedPair | DataError:
    """Return a row encoded, or the error that sets it aside, with its position.

    Any error of a row is the row's alone. Settings and storage are not a row's: their errors are
    raised.
    """
    if isinstance(row, DataError):
        return row
    return attempt(lambda: encode(row, processor, data), row.position)


def usable_samples(processor: Any, data: DataConfig, shards: Sequence[Slice]) -> Iterator[Sample]:
    """Yield the usable rows of the data, with their first questions.

    Prompts are those that the model answers, whatever labels score.
    """
    data = replace(data, release_labels=False)
    for _, row in itertools.chain.from_iterable(map(read_slice, shards)):
        encoded = encoded_row(row, processor, data)
        if isinstance(row, DataError) or isinstance(encoded, DataError):
            continue
        question = row.turns[0][0] if isinstance(row, Example) else row.question
        history = () if isinstance(row, Example) else row.history
        before = context_messages(processor, row.system, history)
        yield Sample(question, encoded, before)
