"""Rows of the reference folder: pairs and examples survive them, stale log-probs are refused."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhfv_ray.data.reference_table import (
    EXAMPLES,
    SCHEMA,
    check_reference,
    from_row,
    load_reference,
    pair_sizes,
    share_with_changes,
    to_row,
)
from rlhfv_ray.errors import StaleReferenceError
from rlhfv_ray.records import ChangedTokens, EncodedPair, ReferencePair

CHANGED = {
    "muffin": ChangedTokens([True, False], [False, False, True]),
    "both_sides": ChangedTokens([False, True], [True, False, False]),
}
PAIR = ReferencePair(
    "a", b"png", [1, 2], [3, 4], [5, 6, 7], CHANGED, None,
    chosen_logps=[-0.5, -1.0], rejected_logps=[-2.0, -0.25, 0.0],
)  # fmt: skip


def stored(row: dict, schema: pa.Schema) -> dict:
    return pa.Table.from_pylist([row], schema=schema).to_pylist()[0]


def test_pair_survives_its_row() -> None:
    """Catches: chosen and rejected, or the masks of two rules, exchanged on the way."""
    assert from_row(stored(to_row(PAIR), SCHEMA)) == PAIR


def test_pair_read_for_its_chosen_answer_has_no_rejected_one() -> None:
    """Catches: rejected tokens or masks left in supervised fine-tuning on pairs."""
    changed = {
        "muffin": ChangedTokens([True, False], []),
        "both_sides": ChangedTokens([False, True], []),
    }
    example = EncodedPair("a", b"png", [1, 2], [3, 4], [], changed)
    assert from_row(stored(to_row(PAIR), SCHEMA), chosen_only=True) == example


def test_example_survives_its_row() -> None:
    """Catches: the mask of a conversation's answers lost, so that its questions are scored."""
    changed = dict.fromkeys(CHANGED, ChangedTokens([False, False], []))
    example = EncodedPair("b", b"png", [1], [3, 4], [], changed, [True, False])
    assert from_row(stored(to_row(example), EXAMPLES)) == example


def test_unusable_rows_are_left_out_of_pairs_and_lengths(tmp_path: Path) -> None:
    """Catches: an unusable row trained on, parts out of order, lengths of one answer only.

    Two prompt tokens, two chosen and three rejected ones: 7.
    """
    parts = [[{"id": "bad", "reason": "too_long: 9"}], [to_row(PAIR)]]
    for number, rows in enumerate(parts):
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        pq.write_table(table, tmp_path / f"part-{number:06}.parquet")
    assert load_reference(tmp_path)["id"][:] == ["a"]
    assert pair_sizes(tmp_path).tokens == [7]


def test_the_share_of_pairs_that_a_rule_weighs(tmp_path: Path) -> None:
    """Catches: a training whose gamma weighs nothing, without a word; marks of another row."""
    flags = {"left": [[], [False], [False, True]], "right": [[True], [False], []]}
    rows = [
        to_row(PAIR) | {"changed/muffin/chosen": chosen, "changed/muffin/rejected": rejected}
        for chosen, rejected in zip(flags["left"], flags["right"], strict=True)
    ]
    rows = [{"id": "bad", "reason": "too_long: 9"}, *rows]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(table, tmp_path / "part-00000.parquet")
    assert share_with_changes(tmp_path, "muffin") == pytest.approx(2 / 3)
    assert share_with_changes(tmp_path / "none", "muffin") == 1


def write_pair(folder: Path, name: str) -> None:
    """Write a reference folder that holds one pair."""
    folder.mkdir()
    row = {**to_row(PAIR), "id": name}
    pq.write_table(pa.Table.from_pylist([row], schema=SCHEMA), folder / "part-00000.parquet")


def test_a_folder_is_read_by_its_name_and_keeps_its_rows_to_itself(tmp_path: Path) -> None:
    """Catches: a sibling's pairs read for a name with `*`, copies in a cache of the user's, and a
    changed part that is not read again.
    """
    import datasets

    for name in ("ref[1]*", "ref1", "ref[1]*-other"):
        write_pair(tmp_path / name, name)
    cached = set(Path(datasets.config.HF_DATASETS_CACHE).rglob("*"))
    for name in ("ref[1]*", "ref1"):
        assert load_reference(tmp_path / name)["id"][:] == [name]
    assert set(Path(datasets.config.HF_DATASETS_CACHE).rglob("*")) == cached
    rows = [{**to_row(PAIR), "id": "new"}]
    path = tmp_path / "ref1" / "part-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    assert load_reference(tmp_path / "ref1")["id"][:] == ["ref1", "new"]


@pytest.mark.parametrize("damage", ["deleted", "emptied", "one byte", "state"])
def test_a_changed_copy_of_the_pairs_is_made_again(tmp_path: Path, damage: str) -> None:
    """Catches: training on the hidden copy of the pairs after a byte of it changed."""
    write_pair(tmp_path / "ref", "a")
    before = load_reference(tmp_path / "ref")[:]
    (copy,) = (tmp_path / "ref").glob(".pairs-*.arrow")
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    {
        "deleted": copy.unlink,
        "emptied": lambda: copy.write_bytes(b""),
        "one byte": lambda: copy.write_bytes(content),
        "state": lambda: copy.with_suffix(".json").write_bytes(b"\xff"),
    }[damage]()
    assert load_reference(tmp_path / "ref")[:] == before
    assert copy.read_bytes() != bytes(content)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_not_be_written_is_read(tmp_path: Path) -> None:
    """Catches: another user's reference folder that can be read, and is refused."""
    write_pair(tmp_path / "theirs", "a")
    opened = [tmp_path, *tmp_path.parents]
    modes = {folder: folder.stat().st_mode for folder in opened if folder.owner() == "root"}
    for folder in modes:
        folder.chmod(0o755)
    os.seteuid(65534)  # nobody
    try:
        assert load_reference(tmp_path / "theirs")["id"][:] == ["a"]
    finally:
        os.seteuid(0)
        for folder, mode in modes.items():
            folder.chmod(mode)


def test_stale_reference_names_what_differs() -> None:
    """Catches: log-probs of another model used in silence, or a message without the field."""
    check_reference({"dtype": "bf16", "rows": "1"}, {"dtype": "bf16", "rows": "1"})
    with pytest.raises(StaleReferenceError, match=r"\(dtype: 'bf16' .*, 'fp32' now\)") as caught:
        check_reference({"dtype": "bf16", "rows": "1"}, {"dtype": "fp32", "rows": "1"})
    assert "rows" not in str(caught.value)
    with pytest.raises(StaleReferenceError, match="spans: None .*, False now"):
        check_reference({}, {"spans": False})
    with pytest.raises(StaleReferenceError, match="all recorded fields agree"):
        check_reference({"rows": "1"}, {"rows": "1"}, unless_equal=False)
