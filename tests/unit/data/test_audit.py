"""The audit counts usable and unusable rows before a job starts."""

from pathlib import Path

from rlhfv_ray.data import (
    audit_pairs,
    list_slices,
)
from tests.unit.data.rows import (
    jsonl,
    plain_row,
)


def test_audit_counts_what_is_there(tmp_path: Path) -> None:
    """Bug: duplicates and unusable rows are found after hours of training."""
    rows = [
        plain_row(id="a", chosen="one two three", rejected="one"),
        plain_row(id="a", chosen="one", rejected="one two"),
        plain_row(id="b", chosen=""),
        plain_row(id="c", image="absent.png"),
        plain_row(id="d", image="broken.png"),
    ]
    path = jsonl(tmp_path / "x.jsonl", rows)
    (tmp_path / "broken.png").write_bytes(b"broken")
    audit = audit_pairs(list_slices(path))
    assert (audit.rows, audit.usable, audit.duplicated_ids) == (5, 3, ("a",))
    assert audit.unusable == {"empty_answer": 1, "image_missing": 1}
    assert audit.examples["empty_answer"].endswith("(x.jsonl:3)")
    decoded = audit_pairs(list_slices(path), decode=True)
    assert decoded.unusable["image_unreadable"] == 1
    assert decoded.chosen is not None
    assert (decoded.chosen.mean, decoded.chosen.median, decoded.chosen.longest) == (
        2,
        2,
        3,
    )  # 3 and 1 words
    assert audit_pairs([]).chosen is None
