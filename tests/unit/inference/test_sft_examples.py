"""Encoded examples: a table without log-probs."""

from dataclasses import replace

from rlhfv_ray.config import DataConfig, ModelConfig
from rlhfv_ray.data.reference_table import EXAMPLES, MIXED, load_reference
from rlhfv_ray.inference.parts import write_part
from rlhfv_ray.inference.reference import part_table
from rlhfv_ray.inference.sft_examples import ExampleTables, dropped_marks, report_dropped_marks


def test_examples_have_no_log_probs_and_no_rejected_answer(encoded, small_model):
    """Catches: examples lost or reordered, or columns that only a reference has."""
    examples = [replace(pair, rejected_ids=[]) for pair in encoded[:2]]
    checked = []
    model = ModelConfig(path=str(small_model), dtype="fp32")
    tables = ExampleTables(model, lambda *loaded: checked.append(loaded))
    assert len(checked) == 1
    table = tables([examples[0], ("bad", "reason"), examples[1]])
    assert table.schema.equals(EXAMPLES)
    assert "chosen_logps" not in table.column_names
    assert table["id"].to_pylist() == [examples[0].id, examples[1].id, "bad"]
    assert table["rejected_ids"].to_pylist()[:2] == [[], []]
    assert table["reason"].to_pylist() == [None, None, "reason"]


def test_dropped_marks_are_counted_and_sources_kept(encoded, tmp_path, caplog):
    """Catches: pictures of later questions that vanish without a word; a count of one part alone; a
    row of mixed data whose source is forgotten."""
    rows = [replace(pair, rejected_ids=[], source=1) for pair in encoded[:2]]
    marked = [replace(rows[0], dropped_marks=2), rows[1]]
    for number, part in enumerate((rows, marked, marked)):
        write_part(part_table(part, MIXED), tmp_path, number)
    assert dropped_marks(tmp_path) == 4
    assert set(load_reference(tmp_path)["source"]) == {1}
    with caplog.at_level("WARNING"):
        report_dropped_marks(tmp_path, DataConfig(path="a.tsv", mixed_with=("b.tsv",)))
    assert "4 marks <image> in later questions of a.tsv, b.tsv" in caplog.text
