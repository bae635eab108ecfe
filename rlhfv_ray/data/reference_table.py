"""The reference folder's rows: what the reference stage writes and training reads.

`part-*.parquet` holds one row per pair of the data, `unusable_rows.parquet` id and reason of those that cannot be used, `config.json` what the
log-probs depend on.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from rlhfv_ray.errors import StaleReferenceError
from rlhfv_ray.records import ChangedTokens, EncodedPair, ReferencePair
from rlhfv_ray.segments import Rule

UNUSABLE = "unusable_rows.parquet"
TOKENS, FLAGS, NATS = pa.list_(pa.int32()), pa.list_(pa.bool_()), pa.list_(pa.float32())
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "reason": pa.string(),  # why the row cannot be used; null for a pair
        "image": pa.binary(),
        "prompt_ids": TOKENS,
        "chosen_ids": TOKENS,
        "rejected_ids": TOKENS,
        "chosen_logps": NATS,
        "rejected_logps": NATS,
        **{
            f"changed/{rule}/{side}": FLAGS
            for rule in get_args(Rule)
            for side in ("chosen", "rejected")
        },
    }
)
EXAMPLES = pa.schema(
    [*(kept for kept in SCHEMA if "logps" not in kept.name), pa.field("scored", FLAGS)]
)  # nothing is rejected


def to_row(pair: EncodedPair) -> dict[str, Any]:
    """A pair as a row of `SCHEMA`, or an example of `EXAMPLES`."""
    row = asdict(pair)
    del row["changed"]
    for rule, masks in pair.changed.items():
        row |= {f"changed/{rule}/chosen": masks.chosen, f"changed/{rule}/rejected": masks.rejected}
    return row


def from_row(row: Mapping[str, Any], *, chosen_only: bool = False) -> EncodedPair:
    """A row of `SCHEMA` as a pair with its log-probs; of `EXAMPLES`, or with `chosen_only`, as an example."""
    masks = {
        rule: (row[f"changed/{rule}/chosen"], row[f"changed/{rule}/rejected"])
        for rule in get_args(Rule)
    }
    fields = {
        name: row[name] for name in ("id", "image", "prompt_ids", "chosen_ids", "rejected_ids")
    }
    if chosen_only or "chosen_logps" not in row:
        alone = {rule: ChangedTokens(chosen, []) for rule, (chosen, _) in masks.items()}
        return EncodedPair(
            **{**fields, "rejected_ids": []}, changed=alone, scored=row.get("scored")
        )
    changed = {rule: ChangedTokens(*both) for rule, both in masks.items()}
    logps = {name: row[name] for name in ("chosen_logps", "rejected_logps")}
    return ReferencePair(**fields, **logps, changed=changed)


def load_reference(folder: Path) -> Any:
    """A reference folder's pairs as a memory-mapped `datasets.Dataset`, in the order of the data."""
    import datasets

    datasets.disable_progress_bars()
    table = datasets.Dataset.from_parquet(
        [str(path) for path in sorted(folder.glob("part-*.parquet"))]
    )
    usable = [row for row, reason in enumerate(table["reason"]) if reason is None]
    return table.select(usable) if len(usable) < len(table) else table


def pair_lengths(folder: Path) -> list[int]:
    """Tokens of prompt and both answers of every pair, in the order of `load_reference`."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    parts = [
        pq.read_table(path, columns=["reason", *names])
        for path in sorted(folder.glob("part-*.parquet"))
    ]
    table = pa.concat_tables(parts)
    table = table.filter(table["reason"].is_null())
    columns = [table[name].combine_chunks().value_lengths().to_pylist() for name in names]
    return [sum(lengths) for lengths in zip(*columns, strict=True)]


def unusable_rows(folder: Path) -> list[dict[str, str]]:
    """Id and reason of the rows a reference folder could not use."""
    return pq.read_table(folder / UNUSABLE).to_pylist()


def check_reference(
    found: Mapping[str, Any], wanted: Mapping[str, Any], *, unless_equal: bool = True
) -> None:
    """Say in what the origin of reference log-probs differs from what is about to be trained.

    Args:
        found: `config.json` of the reference folder.
        wanted: the same fields of the model and data at hand.
        unless_equal: raise nothing where no field differs.

    Raises:
        StaleReferenceError: naming the fields that differ.
    """
    differ = sorted(
        name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
    )
    if differ or not unless_equal:
        details = "; ".join(
            f"{name}: {found.get(name)!r} there, {wanted.get(name)!r} now" for name in differ
        )
        raise StaleReferenceError(
            f"The reference log-probs are not those of the model to be trained ({details or 'all recorded fields agree'}). "
            "Leave --data.reference out to compute them anew."
        )
