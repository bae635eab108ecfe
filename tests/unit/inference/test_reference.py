"""Reference parts: log-probs beside their pairs, and rows that cannot be used."""

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch

from rlhfv_ray.config import DataConfig, ModelConfig
from rlhfv_ray.data import list_slices
from rlhfv_ray.data.reference_table import SCHEMA, load_reference, unusable_rows
from rlhfv_ray.data.repeats import check_ids
from rlhfv_ray.errors import DataError
from rlhfv_ray.inference.parts import write_part
from rlhfv_ray.inference.reference import (
    ReferenceActor,
    collect_unusable,
    encode_slice,
    part_table,
    score_pairs,
)
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


def test_batches_made_ahead_are_the_same_to_the_bit(small_model, encoded):
    """Catches: a thread that makes other batches, or batches scored as another group's."""
    outcome = SelfCheck("shared", True, "float32", 0, 0.0, None, {})
    actor = ReferenceActor(
        ModelConfig(path=str(small_model), dtype="fp32"), batch=2, check=lambda *_: outcome
    )
    pairs = sorted(encoded[:6], key=actor.policy.layout.tokens_of)
    expected = []
    for start in (0, 2, 4):
        expected += score_pairs(actor.policy, actor.processor, pairs[start : start + 2])
    rows = actor(pairs).to_pylist()
    assert [row["chosen_logps"] for row in rows] == [pair.chosen_logps for pair in expected]
    assert [row["rejected_logps"] for row in rows] == [pair.rejected_logps for pair in expected]


def test_parts_have_the_schema_of_the_folder(encoded, tmp_path):
    """Catches: a part of unusable rows alone whose columns have other types."""
    write_rows(tmp_path, [], [("bad", "reason")])
    assert pq.read_schema(tmp_path / "part-00000.parquet").names == SCHEMA.names


def test_a_pair_that_the_model_cannot_take_costs_itself(small_model, encoded):
    """Catches: a forward pass that fails on one pair and ends the job, or takes its batch along."""
    outcome = SelfCheck("shared", True, "float32", 0, 0.0, None, {})
    actor = ReferenceActor(
        ModelConfig(path=str(small_model), dtype="fp32"), batch=4, check=lambda *_: outcome
    )
    outside = replace(
        encoded[1], chosen_ids=[*encoded[1].chosen_ids, 10**6], position="pairs.jsonl:2"
    )
    torn = replace(encoded[2], image=b"torn", position="pairs.jsonl:3")
    table = actor([encoded[0], outside, torn, encoded[3]])
    reasons = dict(zip(table["id"].to_pylist(), table["reason"].to_pylist(), strict=True))
    assert reasons[encoded[0].id] is reasons[encoded[3].id] is None
    assert reasons[outside.id].startswith("unexpected: ")
    assert reasons[outside.id].endswith("(pairs.jsonl:2)")
    assert reasons[torn.id].startswith("image_unreadable: ")
    with torch.no_grad():
        for weight in actor.policy.model.parameters():
            weight.fill_(torch.nan)
    (reason,) = actor([encoded[0]])["reason"].to_pylist()
    assert reason.startswith("not_finite: ")


DEVICE_FAILURES = {
    torch.OutOfMemoryError: "CUDA out of memory",
    torch.AcceleratorError: "CUDA error: unspecified launch failure",
}


@pytest.mark.parametrize("failure", DEVICE_FAILURES)
def test_a_device_that_fails_is_no_fault_of_a_row(failure, small_model, encoded):
    """Catches: good rows set aside one by one because their GPU is full or broken."""
    outcome = SelfCheck("shared", True, "float32", 0, 0.0, None, {})
    actor = ReferenceActor(
        ModelConfig(path=str(small_model), dtype="fp32"), batch=2, check=lambda *_: outcome
    )

    def fail(*_: object) -> None:
        raise failure(DEVICE_FAILURES[failure])

    embeddings = actor.policy.model.get_input_embeddings()
    embeddings.register_forward_pre_hook(fail)
    with pytest.raises(failure, match="CUDA"):
        actor(encoded[:2])


BAD = {  # code of the reason -> what is wrong with the row
    "image_token": {"rejected": "a ring . <image>"},
    "system_prompt": {"system": "Answer in French."},  # the model's template has no such role
    "bad_row": {"chosen": {"text": "a star"}},
    "image_unreadable": {"image": "torn.png"},
    "image_path": {"image": "/etc/a.png"},
    "too_long": {"chosen": "a star and " * 600},
    "unsupported_field": {"rejected_images": ["b.png"]},
    "special_token": {"question": "what </s> ?"},
}


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.soak)])
def test_bad_rows_of_eight_kinds_cost_themselves(count, small_model, pairs, tmp_path):
    """Catches: one bad row of any kind that ends the job, or that takes good rows along."""
    (tmp_path / "torn.png").write_bytes(pairs[0].image[:90])
    kinds = iter(BAD.values())
    lines = []
    for number in range(count):
        pair = pairs[number % len(pairs)]
        (tmp_path / f"{number % len(pairs)}.png").write_bytes(pair.image)
        row = {"question": pair.question, "chosen": pair.chosen, "rejected": pair.rejected}
        row |= {"id": f"row {number}", "image": f"{number % len(pairs)}.png"}
        is_bad = number % (count // 8) == count // 16
        lines.append(json.dumps(row | next(kinds, {}) if is_bad else row))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    model = ModelConfig(path=str(small_model), dtype="fp32")
    data = DataConfig(path=str(tmp_path / "rows.jsonl"), max_length=400, max_unusable=8 / count)
    outcome = SelfCheck("shared", True, "float32", 0, 0.0, None, {})
    actor = ReferenceActor(model, batch=16, check=lambda *_: outcome)
    shards = list_slices(data.path)
    check_ids(shards)
    for shard in shards:
        table = actor(encode_slice(shard, model=model, data=data))
        write_part(table, tmp_path / "parts", shard.index)
    collect_unusable(tmp_path / "parts", data)
    reasons = {row["reason"].partition(":")[0] for row in unusable_rows(tmp_path / "parts")}
    assert reasons == BAD.keys()
    assert all("(rows.jsonl:" in row["reason"] for row in unusable_rows(tmp_path / "parts"))
    assert len(load_reference(tmp_path / "parts")) == count - 8
