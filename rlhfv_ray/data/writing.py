"""Write preference pairs in RLHF-V-Dataset's layout, which the original tools read too."""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from rlhfv_ray.data.pair_formats import HISTORY, ORIGIN_COLUMNS, SYSTEM, check_pair
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import PreferencePair

_ROW_GROUP = 256  # pairs; a slice reads whole row groups
_FEATURES = {  # RLHF-V-Dataset
    "ds_name": pa.string(),
    "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    "text": pa.string(),
    "origin_dataset": pa.string(),
    "origin_split": pa.string(),
    "idx": pa.int64(),
    "image_path": pa.string(),
}
_HUGGINGFACE = {  # metadata for `datasets`, which then shows the image column as images
    name: {"_type": "Image"} if name == "image" else {"dtype": str(kind), "_type": "Value"}
    for name, kind in _FEATURES.items()
}
_SCHEMA = pa.schema(
    _FEATURES, metadata={"huggingface": json.dumps({"info": {"features": _HUGGINGFACE}})}
)


def write_pairs(pairs: Iterable[PreferencePair], path: str | Path) -> None:
    """Write pairs as an RLHF-V-Dataset Parquet file; `load_pairs` gives back the same pairs.

    Fields without a column in that layout (id, marked spans, further origin) are stored in `text`.
    The file gets its name only when it is complete.

    Raises:
        DataError: a pair is unusable.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid4().hex}")
    rows = (_stored(pair, row) for row, pair in enumerate(pairs))
    try:
        with pq.ParquetWriter(part, _SCHEMA) as writer:
            while group := list(islice(rows, _ROW_GROUP)):
                writer.write_table(pa.Table.from_pylist(group, _SCHEMA))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _stored(pair: PreferencePair, row: int) -> dict[str, object]:
    try:
        check_pair(pair)
    except DataError as error:
        raise DataError(f"{error} (pair {pair.id!r})") from error
    names = ("id", "question", "chosen", "rejected", "chosen_spans", "rejected_spans")
    text = {name: value for name in names if (value := getattr(pair, name)) is not None}
    text |= {SYSTEM: pair.system} if pair.system else {}
    text |= {HISTORY: pair.history} if pair.history else {}
    origin = {name: value for name, value in pair.origin.items() if name not in ORIGIN_COLUMNS}
    if origin:
        text["origin"] = origin
    number = pair.id.rpartition(":")[2]
    is_int64 = number.isdecimal() and len(number) < 19  # 18 digits always fit
    return {
        **{name: pair.origin.get(name) for name in ORIGIN_COLUMNS},
        "image": {"bytes": pair.image, "path": None},
        "text": json.dumps(text, ensure_ascii=False),
        "idx": int(number) if is_int64 else row,
    }
