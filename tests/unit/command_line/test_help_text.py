"""Help of the command lines: lines that fit the terminal, and none that a source's width breaks."""

import sys

import pytest

from eval.config import EvalConfig
from experiments import command
from experiments.audit_pairs import audit
from experiments.sync_tracking import sync
from rlhfv_ray.command_line.help_text import field_texts, parse, wrapped
from rlhfv_ray.doctor import Checkup

LONG = "A sentence that is longer than a narrow terminal. " * 4


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (sync, "the `storage` setting of the runs, or the folder of a single experiment."),
        (audit, "a JSON row per line with `image_id`, `image_path` or `image`. Pairs with one"),
        (EvalConfig, "the built-in model, `api` the model of --endpoint, and `api:NAME` another"),
        (Checkup, "that has none up, and check it too. Such nodes are paid for until"),
    ],
)
def test_help_has_no_line_break_of_the_source(monkeypatch, capsys, target, text):
    """Catches: a help whose sentence stops in the middle of a line and goes on in the next."""
    monkeypatch.setenv("COLUMNS", "2000")
    with pytest.raises(SystemExit):
        parse(target, description="d", arguments=["--help"])
    assert text in capsys.readouterr().out


def test_a_description_fits_the_terminal(monkeypatch, capsys):
    """Catches: a sentence that the terminal breaks inside a word; a changed example; a command that
    prints its description without being asked.
    """
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "argv", ["sync"])
    example = "    rlhfv-ray sync   a-folder-with-a-long-name-that-stays-on-one-line"
    text = wrapped(f"{LONG}\n\n{example}\n\n{LONG}\n")
    assert example in text.split("\n")
    assert max(len(line) for line in text.split("\n") if line != example) <= 40
    assert " ".join(text.split("\n\n")[0].split()) == LONG.strip()

    with pytest.raises(SystemExit):
        parse(sync, description=LONG, arguments=["-h"])
    assert capsys.readouterr().out.startswith(wrapped(LONG) + "\n\nusage: ")
    with pytest.raises(SystemExit):
        parse(sync, description=LONG, arguments=["--wrong"])
    assert "narrow" not in capsys.readouterr().out


def test_values_arrive_as_before(tmp_path):
    """Catches: a rule for the help that changes what a dataclass or a function gets."""
    config = parse(
        EvalConfig, description="", arguments=["--model", "a", "b", "--judge.actors", "3"]
    )
    assert config.model == ("a", "b") and config.judge.actors == 3
    assert field_texts(EvalConfig)["benchmarks"] == "Benchmarks to evaluate on."
    assert parse(pair_of, description="", arguments=["--first", "2"]) == (2, "b")


def pair_of(first: int = 1, second: str = "b") -> tuple[int, str]:
    """Return both.

    Args:
        first: one.
        second: two.
    """
    return first, second


def test_the_help_of_the_demo_names_a_command_that_works(monkeypatch, capsys):
    """Catches: `usage: rlhfv-ray demo shapes`, which the demo does not take."""
    monkeypatch.setattr(sys, "argv", ["rlhfv-ray", "demo", "--help"])
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(command.main())
    assert not ended.value.code
    assert capsys.readouterr().out.startswith(
        "rlhfv-ray demo is `rlhfv-ray train shapes --controls permuted blank`.\n\n"
        "usage: rlhfv-ray train shapes [OPTIONS]"
    )
