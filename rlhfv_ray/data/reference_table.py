"""Tables of the reference folder, which the reference stage writes and training reads.

`part-*.parquet` holds one row per pair of the data, and `digest-*.sha256` the digests of these
files. `unusable_rows.parquet` holds id and reason of the rows that cannot be used. `config.json`
holds the inputs that the log-probs depend on.
"""

import errno
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from rlhfv_ray.config import fingerprint
from rlhfv_ray.errors import StaleReferenceError
from rlhfv_ray.records import ChangedTokens, EncodedPair, ReferencePair
from rlhfv_ray.segments import Rule
from rlhfv_ray.storage.transfers import state_of

UNUSABLE = "unusable_rows.parquet"
# Of a part's schema: the marks of a picture that were taken out of later questions of its rows.
DROPPED_MARKS = "dropped_marks"
TOKENS = pa.list_(pa.int32())
FLAGS = pa.list_(pa.bool_())
NATS = pa.list_(pa.float32())


def _schema() -> pa.Schema:
    columns = {
        "id": pa.string(),
        "reason": pa.string(),  # why the row cannot be used; null for a pair
        "image": pa.binary(),
        "prompt_ids": TOKENS,
        "chosen_ids": TOKENS,
        "rejected_ids": TOKENS,
        "chosen_logps": NATS,  # of the reference, one per answer token
        "rejected_logps": NATS,
    }
    for rule in get_args(Rule):
        columns |= {f"changed/{rule}/chosen": FLAGS, f"changed/{rule}/rejected": FLAGS}
    return pa.schema(columns)


SCHEMA = _schema()  # of pairs
# Of examples: they are not compared with a reference, and `scored` marks their answers.
EXAMPLES = pa.schema(
    [*(column for column in SCHEMA if "logps" not in column.name), pa.field("scored", FLAGS)]
)
# Of examples from several sources, and the number of the source.
MIXED = EXAMPLES.append(pa.field("source", pa.int32()))
# Of pairs that the release's labels score, which leave out tokens of both answers.
MASKED = SCHEMA.append(pa.field("scored", FLAGS))


def to_row(pair: EncodedPair) -> dict[str, Any]:
    """Return a pair as a row of `SCHEMA`, or an example as a row of `EXAMPLES`."""
    row = asdict(pair)
    del row["changed"], row["position"]
    for rule, masks in pair.changed.items():
        row |= {f"changed/{rule}/chosen": masks.chosen, f"changed/{rule}/rejected": masks.rejected}
    return row


def from_row(row: Mapping[str, Any], *, chosen_only: bool = False) -> EncodedPair:
    """Return a row of `SCHEMA` as a pair with its log-probs, or a row of `EXAMPLES` as an example.

    Args:
        row: one row of either table.
        chosen_only: return an example also from a row of `SCHEMA`.
    """
    changed = {
        rule: ChangedTokens(row[f"changed/{rule}/chosen"], row[f"changed/{rule}/rejected"])
        for rule in get_args(Rule)
    }
    columns = ("id", "image", "prompt_ids", "chosen_ids", "rejected_ids")
    fields = {name: row[name] for name in columns}
    if chosen_only or "chosen_logps" not in row:
        fields["rejected_ids"] = []
        changed = {rule: masks._replace(rejected=[]) for rule, masks in changed.items()}
        return EncodedPair(**fields, changed=changed, scored=row.get("scored"))
    return ReferencePair(
        **fields,
        changed=changed,
        scored=row.get("scored"),
        chosen_logps=row["chosen_logps"],
        rejected_logps=row["rejected_logps"],
    )


def load_reference(folder: Path) -> Any:
    """Return a reference folder's pairs as a memory-mapped `datasets.Dataset`, in data order.

    The first call on a node writes the pairs into one hidden Arrow file of the folder, which all
    processes of the node map; one that was changed since is written again. In a folder that may not
    be written, each process reads them into its own memory.
    """
    from datasets import Dataset
    from datasets.table import InMemoryTable

    parts = sorted(folder.glob("part-*.parquet"))
    states = {part.name: state_of(part) for part in parts}
    path = folder / f".pairs-{fingerprint(states)}.arrow"
    try:
        with FileLock(folder / ".pairs.lock"):
            if not _is_untouched(path):
                _write_pairs(parts, path)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        tables = [_usable_rows(part) for part in parts]
        return Dataset(InMemoryTable(pa.concat_tables(tables)))
    return Dataset.from_file(str(path))


def _write_pairs(parts: Sequence[Path], path: Path) -> None:
    """Write the pairs of all parts, then the state of the file that holds them."""
    draft = path.with_suffix(".draft")
    with pa.ipc.new_stream(draft, pq.read_schema(parts[0])) as stream:
        for part in parts:
            stream.write_table(_usable_rows(part))
    draft.replace(path)
    path.with_suffix(".json").write_text(json.dumps(state_of(path)))


def _is_untouched(path: Path) -> bool:
    """Return True if the file of all pairs is as `_write_pairs` left it."""
    try:
        return json.loads(path.with_suffix(".json").read_text()) == state_of(path)
    except (FileNotFoundError, ValueError):
        return False


def _usable_rows(part: Path) -> pa.Table:
    table = pq.read_table(part)
    return table.filter(table["reason"].is_null())


class PairSizes(NamedTuple):
    """Sizes of pairs, one number for each."""

    tokens: list[int]  # of the prompt and both answers
    scored: list[int]  # scored tokens of the chosen answer

    def of(self, rows: Sequence[int]) -> "PairSizes":
        """Return the sizes of some of the pairs."""
        return PairSizes(
            tokens=[self.tokens[row] for row in rows], scored=[self.scored[row] for row in rows]
        )


def pair_sizes(folder: Path) -> PairSizes:
    """Return the sizes of every pair, in `load_reference`'s order."""
    answer_columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    paths = sorted(folder.glob("part-*.parquet"))
    columns = {"reason", "scored", *answer_columns} & set(pq.read_schema(paths[0]).names)
    table = pa.concat_tables(pq.read_table(path, columns=sorted(columns)) for path in paths)
    table = table.filter(table["reason"].is_null())
    lengths = [table[name].combine_chunks().value_lengths().to_pylist() for name in answer_columns]
    tokens = [sum(parts) for parts in zip(*lengths, strict=True)]
    _, scored, _ = lengths
    if "scored" in columns:  # None: all tokens of the answer are scored
        masks = table["scored"].to_pylist()
        scored = [
            length if mask is None else length - mask.count(False)
            for length, mask in zip(scored, masks, strict=True)
        ]
    return PairSizes(tokens, scored)


def share_with_changes(folder: Path, rule: Rule) -> float:
    """Return the share of pairs with a token in either answer that a rule marks as changed; 1 if
    there are none.
    """
    pairs = marked = 0
    for path in sorted(folder.glob("part-*.parquet")):
        names = [f"changed/{rule}/{side}" for side in ("chosen", "rejected")]
        table = pq.read_table(path, columns=["reason", *names])
        table = table.filter(table["reason"].is_null())
        has_mark = np.zeros(len(table), dtype=bool)
        for name in names:
            flags = table[name].combine_chunks()
            marks = flags.flatten().to_numpy(zero_copy_only=False)
            has_mark[flags.value_parent_indices().to_numpy()[marks]] = True
        pairs, marked = pairs + len(table), marked + int(has_mark.sum())
    return marked / pairs if pairs else 1.0


def unusable_rows(folder: Path) -> list[dict[str, str]]:
    """Return id and reason of the rows that cannot be used."""
    return pq.read_table(folder / UNUSABLE).to_pylist()


def reference_digest(folder: Path) -> str:
    """Return a digest of all parts of a reference folder, from the digests beside them."""
    digests = {path.name: path.read_text() for path in folder.glob("digest-*.sha256")}
    return fingerprint(digests)


def check_reference(
    recorded: Mapping[str, Any], current: Mapping[str, Any], *, unless_equal: bool = True
) -> None:
    """Refuse reference log-probs that were computed from other inputs than the current ones.

    Args:
        recorded: `config.json` of the reference folder.
        current: the same fields of the model and data at hand.
        unless_equal: return silently if no field differs. False raises in any case, for a caller
            that has seen wrong log-probs and asks for the reason.

    Raises:
        StaleReferenceError: the message names the fields that differ.
    """
    fields = sorted(recorded.keys() | current.keys())
    differences = [
        f"{name}: {recorded.get(name)!r} in the folder, {current.get(name)!r} now"
        for name in fields
        if recorded.get(name) != current.get(name)
    ]
    if differences or not unless_equal:
        details = "; ".join(differences) or "all recorded fields agree"
        raise StaleReferenceError(
            "The reference log-probs are not those of the model to be trained "
            f"({details}). Leave out --data.reference to compute them again."
        )
