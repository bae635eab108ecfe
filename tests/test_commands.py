"""Commands in the documents can be typed: their recipes, flags and values are today's.

`make walk` (tests/walk.py) runs those of the README.
"""

import dataclasses
import importlib
import re
import shlex
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import tyro

from eval.config import EvalConfig
from experiments.command import COMMANDS, STUDIES
from experiments.recipes import (
    RECIPES,
    SFT,
    SWEEP_FLAGS,
    SWEEPS,
    experiment_config,
    study_config,
)
from experiments.runners.config import ExperimentConfig, StudyConfig, SweepConfig
from rlhfv_ray.command_line import RENAMED, choose, read_arguments

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"^( *)```\w*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
SCRIPTS = {
    "experiments/ddpo.py": "train",
    "experiments/sft.py": "sft",
    "experiments/sweep.py": "sweep",
    "eval/run.py": "eval",
    "eval/report.py": "report",
    **{f"experiments/{name}.py": f"study {name}" for name in STUDIES},
}
PARSERS = {
    "train": lambda: experiment_config(RECIPES, None),
    "sft": lambda: experiment_config(SFT, None),
    "sweep": lambda: choose(SWEEPS, description=None, main_flags=SWEEP_FLAGS),
    "eval": lambda: tyro.cli(EvalConfig, args=read_arguments()),
}


def commands_of(text: str) -> Iterator[str]:
    """All command lines in the code blocks of a page, each on one line, without comments."""
    for _, block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.partition("  #")[0].split()
            if words and re.fullmatch(r"rlhfv-ray|python|ray|make|source|mlflow|sbatch", words[0]):
                yield " ".join(words)


def in_our_words(command: str) -> list[str] | None:
    """A command as words after `rlhfv-ray`, with a value for every flag whose value is left out
    (`--judge.prompt ...`); None if it is another program's.
    """
    valued = re.sub(r"(--[\w.-]+) \.\.\.", r"\1 left-out", command)
    words = [word for word in shlex.split(valued, comments=True) if word != "..."]
    if words[0] == "rlhfv-ray":
        return words[1:]
    for script, name in SCRIPTS.items():
        if script in words:
            return [*name.split(), *words[words.index(script) + 1 :]]
    return None


TYPED = [
    pytest.param(words, command, id=f"{page.stem}-{place}")
    for page in PAGES
    if page.stem != "extending"  # whose names tests/test_extending.py adds first
    for place, command in enumerate(commands_of(page.read_text()))
    if (words := in_our_words(command)) and not words[0].startswith("-")
]


def test_commands_are_found():
    """Catches: a pattern that finds nothing, so that every page passes."""
    text = "```\nrlhfv-ray train paper \\\n  --loss.beta 1   # why\nmake demo\n```\nrlhfv-ray no\n"
    assert list(commands_of(text)) == ["rlhfv-ray train paper --loss.beta 1", "make demo"]
    assert in_our_words("ray job submit -- python eval/run.py --model M ...") == [
        "eval",
        "--model",
        "M",
    ]
    assert len(TYPED) > 20


@pytest.mark.parametrize(("words", "command"), TYPED)
def test_commands_of_the_pages_can_be_typed(words, command, monkeypatch):
    """Catches: a flag, a recipe or a subcommand in a document that does not exist any more."""
    name, *rest = words
    assert name in COMMANDS, command
    if "--config" in rest or {"--help", "--help-all"} & set(rest):
        return
    monkeypatch.setattr(sys, "argv", [name, *rest])
    if name == "study":
        kinds = vars(importlib.import_module(f"experiments.{rest[0]}")).values()
        own = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, StudyConfig)]
        monkeypatch.setattr(sys, "argv", [name, *rest[1:]])
        assert study_config(own[-1], None)
    elif name in PARSERS:
        assert PARSERS[name]()


def flags_of(kind: type, prefix: str = "") -> Iterator[str]:
    """All flags of a configuration, without dashes, as the command line spells them."""
    for name, type_ in typing.get_type_hints(kind).items():
        yield f"{prefix}{name}".replace("_", "-")
        for part in (type_, *typing.get_args(type_)):
            if dataclasses.is_dataclass(part):
                yield from flags_of(part, f"{prefix}{name}.")


def test_settings_in_sentences_exist():
    """Catches: a setting that a sentence or table names by a former or mistyped name."""
    existing = set(RENAMED)
    for kind in (ExperimentConfig, SweepConfig, StudyConfig, EvalConfig):
        existing.update(flags_of(kind))
    named = {
        (page.name, flag.replace("_", "-"))
        for page in (*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md")
        for words in re.findall(r"--(?:no-)?([a-z][\w-]*(?:\.[\w-]+)+)", page.read_text())
        for flag in [words.replace(".no-", ".")]  # `--scale.no-gpu` sets `scale.gpu`
    }
    assert len(named) > 150
    assert sorted((page, flag) for page, flag in named if flag not in existing) == []
