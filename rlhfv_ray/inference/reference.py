"""JOB: the reference's log-probability of every answer token, for every beta, gamma and rule.

Ray Data streams shards of the data through tasks that validate, decode and encode, into actors that
hold the reference model. The folder has `part-*.parquet` (one row per pair: ids, masks of both
rules, fp32 log-probs, the image), `unusable_rows.parquet` (id and reason of every row that cannot
be used) and `config.json`.
"""

import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rlhfv_ray.config import DataConfig, ModelConfig, ScaleConfig, changed_settings
from rlhfv_ray.data import ReadOptions, Slice, data_digest, list_slices, read_slice
from rlhfv_ray.data.encoding import VERSION
from rlhfv_ray.data.mixture import digest_sources
from rlhfv_ray.data.reference_table import DROPPED_MARKS, MASKED, SCHEMA, UNUSABLE, to_row
from rlhfv_ray.data.repeats import check_ids, repeated_pairs
from rlhfv_ray.data.row_fields import attempt, row_error, unusable
from rlhfv_ray.errors import DataError
from rlhfv_ray.inference.model_check import check_model, encoded_row
from rlhfv_ray.inference.parts import begun_scale, map_parts
from rlhfv_ray.inference.prefetch import prefetched
from rlhfv_ray.logps import policy_token_logps
from rlhfv_ray.models import AnswerPolicy, load_model, model_digests, processor_of
from rlhfv_ray.models.augmentation import augmentation
from rlhfv_ray.models.batch import collate_pairs, to_device
from rlhfv_ray.models.loading import DEVICE_ERRORS
from rlhfv_ray.models.self_check import SelfCheck, checked_layout
from rlhfv_ray.records import EncodedPair, PairBatch, ReferencePair
from rlhfv_ray.storage.folder import display_path

logger = logging.getLogger(__name__)


def reference_inputs(
    model: ModelConfig, data: DataConfig, *, rows: str | None = None, examples: bool = False
) -> dict[str, Any]:
    """Return everything that reference log-probs depend on, by name.

    Args:
        model: the reference.
        data: the pairs.
        rows: identifies the data if it does not exist yet; None: take the files' digest.
        examples: the data's rows are examples to imitate, not pairs.
    """
    return {
        **model_digests(model),
        "dtype": model.dtype,
        "rows": rows or data_digest(data.path, **reading_settings(data, examples=examples)),
        "format": data.format,
        "min_match": data.min_match,
        "max_length": data.max_length,
        "layout": model.layout,  # of rows: bf16 rounds each layout differently
        "attention": model.attention,
        **({} if data.spans else {"spans": False}),
        **reading_changes(data),
        **({"release_labels": True} if data.release_labels else {}),
        **({"mixed_with": digest_sources(data)} if data.mixed_with else {}),
        "version": VERSION,
    }


def reading_settings(data: DataConfig, *, examples: bool = False) -> dict[str, Any]:
    """Return the arguments of `list_slices` and `data_digest` that a job's settings stand for."""
    return {"format": data.format, "examples": examples, "options": ReadOptions.of(data)}


def reading_changes(data: DataConfig) -> dict[str, Any]:
    """Return the settings of reading that are not the default: they change rows or pixels."""
    names = ("columns", "ids", "max_pixels", "short_answers", "augment", "crop_area")
    changed = changed_settings(data)
    return {name: changed[name] for name in names if name in changed}


def compute_reference_logps(
    model: ModelConfig, data: DataConfig, scale: ScaleConfig, folder: Path
) -> None:
    """Fill a folder with the reference log-probs of all pairs; existing parts are kept.

    Raises:
        DataError: more than `data.max_unusable` of the rows are unusable, or none is left.
    """
    scale = begun_scale(folder, scale)
    shards = list_slices(data.path, rows=scale.rows, **reading_settings(data))
    check_ids(shards)
    check = functools.partial(check_model, config=model, data=data, shards=shards, folder=folder)
    map_parts(
        shards,
        folder,
        prepare=functools.partial(encode_slice, model=model, data=data),
        actor=functools.partial(
            ReferenceActor,
            model=model,
            batch=scale.inference_batch,
            check=check,
            schema=MASKED if data.release_labels else SCHEMA,
            data=data,
        ),
        scale=scale,
        title="Reference log-probs",
    )
    collect_unusable(folder, data)


def encode_slice(
    shard: Slice, *, model: ModelConfig, data: DataConfig
) -> list[EncodedPair | tuple[str, str]]:
    """Read and encode a shard's pairs or examples; an unusable row becomes (id, reason)."""
    processor = _cached_processor(model)
    rows: list[EncodedPair | tuple[str, str]] = []
    for row_id, row in read_slice(shard):
        encoded = encoded_row(row, processor, data)
        if isinstance(encoded, DataError):
            rows.append((row_id, str(encoded)))
        else:
            rows.append(replace(encoded, source=shard.source) if shard.source else encoded)
    return rows


class ReferenceActor:
    """Holds the reference model, and scores the answers of encoded pairs.

    Args:
        model: the reference.
        batch: pairs of a forward pass.
        check: returns the self-check of a model and its processor.
        schema: of the tables.
        data: of the pairs, for the change of their pictures; None: none.
    """

    def __init__(
        self,
        model: ModelConfig,
        batch: int,
        check: Callable[[Any, Any], SelfCheck],
        schema: pa.Schema = SCHEMA,
        data: DataConfig | None = None,
    ) -> None:
        self.schema = schema
        loaded, self.processor = load_model(model)
        self.augment = augmentation(data or DataConfig(), self.processor)
        outcome = check(loaded, self.processor)
        self.policy = AnswerPolicy(loaded, checked_layout(loaded, outcome))
        self.batch = batch

    def __call__(self, rows: Sequence[EncodedPair | tuple[str, str]]) -> pa.Table:
        """Return one part's table."""
        pairs = [row for row in rows if isinstance(row, EncodedPair)]
        by_length = sorted(pairs, key=self.policy.layout.tokens_of)
        scored: dict[str, ReferencePair | tuple[str, str]] = {}
        starts = range(0, len(pairs), self.batch)
        groups = (by_length[start : start + self.batch] for start in starts)
        for group, batch in prefetched((group, self.collated(group)) for group in groups):
            scored |= self.scored(group, batch)
        return part_table(
            [scored[row.id] if isinstance(row, EncodedPair) else row for row in rows], self.schema
        )

    def collated(self, pairs: Sequence[EncodedPair]) -> PairBatch | DataError:
        """Return the batch of a few pairs, with their pictures changed, or why there is none."""

        def collate() -> PairBatch:
            changed = self.augment.changed if self.augment else None
            pictured = pairs if changed is None else [changed(pair) for pair in pairs]
            layout = self.policy.layout
            return collate_pairs(pictured, self.processor, rule="both_sides", layout=layout)

        return attempt(collate, pairs[0].position)

    def scored(
        self, pairs: Sequence[EncodedPair], batch: PairBatch | DataError
    ) -> dict[str, ReferencePair | tuple[str, str]]:
        """Return the pairs of a batch with their log-probs, by id.

        A batch that fails is scored pair by pair: the pair at fault becomes its id and reason.

        Raises:
            torch.OutOfMemoryError, torch.AcceleratorError: the device fails at a pair alone, which
                is no fault of the pair.
        """
        outcome: list[ReferencePair] | DataError
        if isinstance(batch, DataError):
            outcome = batch
        else:
            # Alone, a pair may fit into memory where several do not.
            raised = DEVICE_ERRORS if len(pairs) == 1 else ()
            outcome = attempt(
                lambda: score_batch(self.policy, batch, pairs), pairs[0].position, raised=raised
            )
        if not isinstance(outcome, DataError):
            return {pair.id: _finite(pair) for pair in outcome}
        if len(pairs) == 1:
            return {pairs[0].id: (pairs[0].id, str(outcome))}
        scored: dict[str, ReferencePair | tuple[str, str]] = {}
        for pair in pairs:
            scored |= self.scored([pair], self.collated([pair]))
        return scored


def _finite(pair: ReferencePair) -> ReferencePair | tuple[str, str]:
    """Return the pair, or its id and reason if one of its log-probs is no number."""
    if all(map(math.isfinite, [*pair.chosen_logps, *pair.rejected_logps])):
        return pair
    error = unusable("not_finite", "the reference gives an answer no finite log-probability")
    return pair.id, str(row_error(error, pair.position))


def part_table(rows: Sequence[EncodedPair | tuple[str, str]], schema: pa.Schema) -> pa.Table:
    """Return one part: the pairs, then id and reason of the rows that cannot be used."""
    pairs = [to_row(row) for row in rows if isinstance(row, EncodedPair)]
    unusable = [{"id": row[0], "reason": row[1]} for row in rows if isinstance(row, tuple)]
    table = pa.Table.from_pylist([*pairs, *unusable], schema=schema)
    dropped = sum(row.dropped_marks for row in rows if isinstance(row, EncodedPair))
    return table.replace_schema_metadata({DROPPED_MARKS: str(dropped)}) if dropped else table


def score_pairs(
    policy: AnswerPolicy, processor: Any, pairs: Sequence[EncodedPair]
) -> list[ReferencePair]:
    """Return pairs with their reference log-probs, from the forward pass that training uses."""
    batch = collate_pairs(pairs, processor, rule="both_sides", layout=policy.layout)
    return score_batch(policy, batch, pairs)


@torch.no_grad()
def score_batch(
    policy: AnswerPolicy, batch: PairBatch, pairs: Sequence[EncodedPair]
) -> list[ReferencePair]:
    """Return the pairs that a batch was made of with their reference log-probs."""
    batch = to_device(batch, policy.model.device, policy.model.dtype)
    logps = policy_token_logps(policy, batch).float().cpu()  # (2P, A): chosen, then rejected
    scored = []
    for row, pair in enumerate(pairs):
        chosen = logps[row, : len(pair.chosen_ids)].tolist()
        rejected = logps[row + len(pairs), : len(pair.rejected_ids)].tolist()
        scored.append(ReferencePair(**vars(pair), chosen_logps=chosen, rejected_logps=rejected))
    return scored


@functools.lru_cache(maxsize=1)
def _cached_processor(model: ModelConfig) -> Any:
    return processor_of(model)


def collect_unusable(folder: Path, data: DataConfig) -> None:
    """Write `unusable_rows.parquet` of a folder whose parts all exist.

    Raises:
        DataError: a row id is not unique, too many rows are unusable, or all are.
    """
    table = pa.concat_tables(
        pq.read_table(path, columns=["id", "reason"])
        for path in sorted(folder.glob("part-*.parquet"))
    )
    repeated = [row_id for row_id, count in Counter(table["id"].to_pylist()).items() if count > 1]
    if repeated:
        raise DataError(
            f"{len(repeated)} row ids of {data.path} are not unique "
            f"(first: {', '.join(repeated[:5])}). Give every row its own id, or --data.ids "
            "position."
        )
    listed = table.filter(table["reason"].is_valid())
    pq.write_table(listed, folder / UNUSABLE)
    _report_repeats(folder, data)
    if not listed.num_rows:
        return
    first_rows = listed.slice(0, 3).to_pylist()
    reasons = "; ".join(f"{row['id']}: {row['reason']}" for row in first_rows)
    summary = (
        f"{listed.num_rows} of {table.num_rows} rows of {data.path} cannot be used ({reasons})"
    )
    logger.warning("%s; all are listed in %s", summary, display_path(folder / UNUSABLE))
    if listed.num_rows == table.num_rows:
        raise DataError(
            f"{summary}; no pair is left. All are listed in {display_path(folder / UNUSABLE)}."
        )
    if listed.num_rows > data.max_unusable * table.num_rows:
        raise DataError(
            f"{summary}; more than --data.max-unusable {data.max_unusable:g} allows. "
            f"All are listed in {display_path(folder / UNUSABLE)}."
        )


def _report_repeats(folder: Path, data: DataConfig) -> None:
    """Warn about pairs that the data holds several times, which then count several times."""
    repeats = repeated_pairs(folder)
    if repeats:
        shown = "; ".join(f"{later} repeats {earlier}" for earlier, later in repeats[:3])
        logger.warning(
            "%d rows of %s repeat another one (same image, question and answers), and count as "
            "often: %s",
            *(len(repeats), data.path, shown),
        )
