"""Training records on their way to the terminal."""

from io import StringIO

from rich.console import Console

from experiments.runners.stage_monitor import TrainingFeed, flat, without
from rlhfv_ray.console import ProgressBar


def test_a_skipped_update_is_named_with_its_pairs():
    """Catches: an update that DeepSpeed skipped without a word."""
    console = Console(file=StringIO(), width=200)
    feed = TrainingFeed(console)
    feed.bar = ProgressBar("Updates", 2, None)
    feed([{"step": 1, "skipped": True, "skipped_pairs": ["a", "b"]}])
    feed([{"step": 2, "skipped": False, "loss": 0.5, "rewards/margins": 0.25}])
    printed = console.file.getvalue()
    assert printed.split("\n")[0] == "update 1 skipped, not finite, with pairs a, b"
    assert feed.bar.done == 2


def test_records_of_a_finished_stage_print_nothing():
    """Catches: old skipped updates that are reported as new ones."""
    console = Console(file=StringIO())
    TrainingFeed(console)([{"step": 1, "skipped": True, "skipped_pairs": ["a"]}])
    assert console.file.getvalue() == ""


def test_flat_names_and_names_left_out():
    """Catches: a nested setting under another name than its flag."""
    assert flat({"a": {"b": {"c": 1}}, "d": ()}) == {"a.b.c": 1, "d": ()}
    assert without({"a": 1, "b": 2}, "a", "x") == {"b": 2}
