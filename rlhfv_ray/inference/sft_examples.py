"""JOB: examples for supervised fine-tuning, encoded.

The folder is like the reference's, without log-probs and without rejected answers.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlhfv_ray.config import DataConfig, ModelConfig, ScaleConfig
from rlhfv_ray.data.mixture import list_sources
from rlhfv_ray.data.reference_table import DROPPED_MARKS, EXAMPLES, MIXED
from rlhfv_ray.data.repeats import check_ids
from rlhfv_ray.inference.model_check import check_model
from rlhfv_ray.inference.parts import begun_scale, map_parts
from rlhfv_ray.inference.reference import (
    collect_unusable,
    encode_slice,
    part_table,
)
from rlhfv_ray.models import load_model
from rlhfv_ray.models.self_check import SelfCheck
from rlhfv_ray.records import EncodedPair

logger = logging.getLogger(__name__)


def encode_examples(model: ModelConfig, data: DataConfig, scale: ScaleConfig, folder: Path) -> None:
    """Fill a folder with all examples as token ids; existing parts are kept.

    Raises:
        DataError: more than `data.max_unusable` of the rows are unusable, or none is left.
    """
    scale = begun_scale(folder, scale)
    shards = list_sources(data, rows=scale.rows)
    check_ids(shards)
    check = functools.partial(check_model, config=model, data=data, shards=shards, folder=folder)
    map_parts(
        shards,
        folder,
        prepare=functools.partial(encode_slice, model=model, data=data),
        actor=functools.partial(
            ExampleTables,
            model=model,
            check=check,
            schema=MIXED if data.mixed_with else EXAMPLES,
        ),
        scale=scale,
        title="Examples",
    )
    collect_unusable(folder, data)
    report_dropped_marks(folder, data)


def dropped_marks(folder: Path) -> int:
    """Return the number of marks of a picture that were taken out of later questions."""
    parts = (pq.read_schema(path).metadata or {} for path in folder.glob("part-*.parquet"))
    return sum(int(metadata.get(DROPPED_MARKS.encode(), 0)) for metadata in parts)


def report_dropped_marks(folder: Path, data: DataConfig) -> None:
    """Warn where questions named a second picture, which a model of one picture does not see."""
    dropped = dropped_marks(folder)
    if dropped:
        logger.warning(
            "%d marks <image> in later questions of %s were taken out, as Muffin does: a "
            "conversation has one picture, before its first question.",
            *(dropped, ", ".join((data.path, *data.mixed_with))),
        )


class ExampleTables:
    """Turns encoded examples into the tables of parts.

    The model is loaded for its self-check alone.
    """

    def __init__(
        self,
        model: ModelConfig,
        check: Callable[[Any, Any], SelfCheck],
        schema: pa.Schema = EXAMPLES,
    ) -> None:
        self.schema = schema
        check(*load_model(model))

    def __call__(self, rows: Sequence[EncodedPair | tuple[str, str]]) -> pa.Table:
        """Return one part's table, in `EXAMPLES` or `MIXED`."""
        return part_table(rows, self.schema)
