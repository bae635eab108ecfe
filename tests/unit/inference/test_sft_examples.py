"""Encoded examples: a table without log-probs."""

from dataclasses import replace

from rlhfv_ray.config import ModelConfig
from rlhfv_ray.data.reference_table import EXAMPLES
from rlhfv_ray.inference.sft_examples import ExampleTables


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
