"""The walk (tests/walk.py) types what today's README says, without typing it."""

import re
import subprocess
from pathlib import Path

from tests.walk import NOT_RUN, ROOT, readme_commands, script, step

README = (ROOT / "README.md").read_text()
SERVERS = {"base": "http://127.0.0.1:1/v1", "tuned": "http://127.0.0.1:2/v1"}
PLACEHOLDER = re.compile(r"\b(MODEL|PATH|PAIRS|BASE|ALIGNED|host)\b|<\w+>|\{\w+\}|\.\.\.")


def test_commands_in_sentences_and_blocks_are_in_order():
    """Catches: a name of a subcommand that is typed without what it needs; a command that wraps."""
    text = "`rlhfv-ray audit` and `rlhfv-ray study\nablation`:\n```\nmake demo\n```\n`make docs`"
    assert list(readme_commands(text)) == ["rlhfv-ray study ablation", "make demo", "make docs"]


def test_the_environment_is_switched_on_first():
    """Catches: a command in a sentence in front of the line that puts `rlhfv-ray` on the path."""
    commands = list(readme_commands(README))
    start = commands.index("source .venv/bin/activate")
    assert commands[:start] == ["make demo", "make test"]


def test_no_placeholder_is_typed():
    """Catches: a new command in the README with a placeholder that the walk has no value for."""
    steps = [step(command, SERVERS) for command in readme_commands(README)]
    typed = [each.typed for each in steps if each.typed]
    assert [line for line in typed if PLACEHOLDER.search(line)] == []
    assert len(typed) > 15
    assert all(NOT_RUN.search(each.command) for each in steps if not each.typed)


def test_every_command_is_run_or_named(capsys):
    """Catches: a script that no shell reads; a command that is neither typed nor named."""
    text = script(Path("/nowhere/clone"), SERVERS)
    assert subprocess.run(["bash", "-n", "-c", text], check=False).returncode == 0
    printed = text + capsys.readouterr().out
    for command in readme_commands(README):
        assert command.startswith("source ") or command in printed, command
    assert text.count("touch /nowhere/done/") == text.count("if [ ! -e /nowhere/done/")
