"""JOB: examples for supervised fine-tuning, encoded.

The folder is like the reference's, without log-probs and without rejected answers.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from rlhfv_ray.config import DataConfig, ModelConfig, ScaleConfig
from rlhfv_ray.data import list_slices
from rlhfv_ray.data.reference_table import EXAMPLES
from rlhfv_ray.data.repeats import check_ids
from rlhfv_ray.inference.model_check import check_model
from rlhfv_ray.inference.parts import begun_scale, map_parts
from rlhfv_ray.inference.reference import (
    collect_unusable,
    encode_slice,
    part_table,
    reading_settings,
)
from rlhfv_ray.models import load_model
from rlhfv_ray.models.self_check import SelfCheck
from rlhfv_ray.records import EncodedPair


def encode_examples(model: ModelConfig, data: DataConfig, scale: ScaleConfig, folder: Path) -> None:
    """Fill a folder with all examples as token ids; existing parts are kept.

    Raises:
        DataError: more than `data.max_unusable` of the rows are unusable, or none is left.
    """
    scale = begun_scale(folder, scale)
    shards = list_slices(data.path, rows=scale.rows, **reading_settings(data, examples=True))
    check_ids(shards)
    check = functools.partial(check_model, config=model, data=data, shards=shards, folder=folder)
    map_parts(
        shards,
        folder,
        prepare=functools.partial(encode_slice, model=model, data=data),
        actor=functools.partial(ExampleTables, model=model, check=check),
        scale=scale,
        title="Examples",
    )
    collect_unusable(folder, data)


class ExampleTables:
    """Turns encoded examples into the tables of parts.

    The model is loaded for its self-check alone.
    """

    def __init__(self, model: ModelConfig, check: Callable[[Any, Any], SelfCheck]) -> None:
        check(*load_model(model))

    def __call__(self, rows: Sequence[EncodedPair | tuple[str, str]]) -> pa.Table:
        """Return one part's table, in `EXAMPLES`."""
        return part_table(rows, EXAMPLES)
