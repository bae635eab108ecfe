"""The arm on cropped images reads the data as the other arms do."""

from pathlib import Path

from experiments.ablation import cropped_pairs
from rlhfv_ray.config import DataConfig
from rlhfv_ray.data import decode_image
from tests.unit.data.rows import CHOSEN, jsonl, plain_row


def test_crops_are_of_the_pairs_that_the_data_options_read(tmp_path: Path) -> None:
    """Catches: an arm that ends on a row which the others set aside, or reads other columns."""
    rows = [plain_row(id="same"), plain_row(id="same"), plain_row(chosen=""), plain_row()]
    rows = [{**row, "good": row["chosen"], "chosen": "other"} for row in rows]
    rows[3]["image"] = "torn.png"
    path = jsonl(tmp_path / "x.jsonl", rows)
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    data = DataConfig(path=str(path), columns=("chosen=good",), ids="position")
    pairs = list(cropped_pairs(data))
    assert [(pair.id, pair.chosen) for pair in pairs] == [
        ("x.jsonl:0", CHOSEN),
        ("x.jsonl:1", CHOSEN),
    ]
    assert decode_image(pairs[0].image).size == (8, 8)
    assert list(cropped_pairs(DataConfig(path=str(path), max_pixels=16))) == []
