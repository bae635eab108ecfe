"""Reference parts: log-probs beside their pairs, and rows that cannot be used."""

import pyarrow.parquet as pq
import pytest

from rlhfv_ray.config import DataConfig, ModelConfig
from rlhfv_ray.data.reference_table import SCHEMA, unusable_rows
from rlhfv_ray.errors import DataError
from rlhfv_ray.inference.parts import write_part
from rlhfv_ray.inference.reference import ReferenceActor, collect_unusable, part_table, score_pairs
from rlhfv_ray.models.self_check import SelfCheck


def write_rows(folder, encoded, unusable: list[tuple[str, str]]) -> None:
    write_part(part_table([*encoded, *unusable], SCHEMA), folder, 0)


def test_unusable_rows_are_listed_with_their_reasons(encoded, tmp_path):
    """Catches: unusable rows that vanish, usable ones in the list, or a limit off by one."""
    bad = [("bad 1", "too_long: 600 tokens"), ("bad 2", "image_unreadable")]
    write_rows(tmp_path, encoded[:8], bad)
    collect_unusable(tmp_path, DataConfig(path="pairs.parquet", max_unusable=0.2))
    assert [(row["id"], row["reason"]) for row in unusable_rows(tmp_path)] == bad
    with pytest.raises(DataError, match=r"2 of 10 rows.*bad 1: too_long.*max-unusable 0.19"):
        collect_unusable(tmp_path, DataConfig(path="pairs.parquet", max_unusable=0.19))


def test_all_usable_leaves_an_empty_list(encoded, tmp_path):
    """Catches: a clean folder without its list, which readers expect."""
    write_rows(tmp_path, encoded[:3], [])
    collect_unusable(tmp_path, DataConfig(path="pairs.parquet", max_unusable=0.0))
    assert unusable_rows(tmp_path) == []


def test_no_usable_row_is_an_error_at_any_limit(tmp_path):
    """Catches: training on nothing."""
    write_rows(tmp_path, [], [("bad", "reason")])
    with pytest.raises(DataError, match="no pair is left"):
        collect_unusable(tmp_path, DataConfig(path="pairs.parquet", max_unusable=1.0))


def test_repeated_ids_are_refused(encoded, tmp_path):
    """Catches: two rows of one id, whose answers and scores would be mixed."""
    write_rows(tmp_path, [encoded[0], encoded[1], encoded[0]], [])
    with pytest.raises(DataError, match=f"1 row ids .* not unique .*{encoded[0].id}"):
        collect_unusable(tmp_path, DataConfig(path="pairs.parquet"))


def test_actor_keeps_the_order_and_scores_as_single_pairs_do(small_model, encoded):
    """Catches: log-probs shifted against ids, where pairs are sorted by length for batches."""
    outcome = SelfCheck("shared", True, "float32", 0, 0.0, None, {})
    actor = ReferenceActor(
        ModelConfig(path=str(small_model), dtype="fp32"), batch=2, check=lambda *_: outcome
    )
    rows = [encoded[0], ("bad", "reason"), *encoded[1:5]]
    written = actor(rows)
    assert written["id"].to_pylist() == [*(pair.id for pair in encoded[:5]), "bad"]
    for row, pair in zip(written.to_pylist(), encoded[:5], strict=False):
        [single] = score_pairs(actor.policy, actor.processor, [pair])
        assert row["chosen_logps"] == pytest.approx(single.chosen_logps, abs=1e-5)
        assert row["rejected_logps"] == pytest.approx(single.rejected_logps, abs=1e-5)
        assert len(row["chosen_logps"]) == len(pair.chosen_ids)


def test_parts_have_the_schema_of_the_folder(encoded, tmp_path):
    """Catches: a part of unusable rows alone whose columns have other types."""
    write_rows(tmp_path, [], [("bad", "reason")])
    assert pq.read_schema(tmp_path / "part-00000.parquet").names == SCHEMA.names
