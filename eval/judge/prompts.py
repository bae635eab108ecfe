"""Prompts for judges.

A prompt holds the judged answer between marks that its own content decides, and is filled in one pass, so that nothing in
an answer can pose as the frame around it.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rlhfv_ray.errors import ConfigError

PROMPTS = Path(__file__).parents[1] / "data" / "prompts"
FIELD = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True)
class JudgePrompt:
    """A judge's prompt: a text with fields in braces, filled by name, or in order where the braces are empty."""

    name: str  # for the manifest
    template: str
    fields: tuple[
        str, ...
    ]  # that a benchmark fills, in the order of the official prompts; `mark` may always stand in a text

    @classmethod
    def load(cls, path: str, *, default: str, fields: Sequence[str]) -> "JudgePrompt":
        """Read the user's file, or the one of this name in the user's folder; else ours.

        Raises:
            ConfigError: the file is missing, names other fields, or leaves out the answer.
        """
        file = find_prompt(path, default)
        own = file.parent == PROMPTS
        try:
            template = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"judge.prompt = {path!r} cannot be read: {error}") from error
        fields = tuple(name for name in fields if name != "mark")
        found = FIELD.findall(template)
        unknown = sorted(set(found) - {"", "mark", *fields})
        positional = found.count("")
        wanted = f"Fields are {', '.join(f'{{{name}}}' for name in fields)}, or {{}} for each of them in this order."
        if (
            unknown
            or positional not in (0, len(fields))
            or (not positional and "answer" not in found)
        ):
            raise ConfigError(f"judge.prompt = {str(file)!r} has the fields {found}. {wanted}")
        return cls(f"rlhfv-ray {file.stem}" if own else file.name, template, fields)

    @cached_property
    def digest(self) -> str:
        """Of the wording, for the manifest."""
        return hashlib.sha256(self.template.encode()).hexdigest()[:16]

    def fill(self, **values: str) -> str:
        """The text with every field filled in one pass: braces inside a value stay what they are.

        `{mark}` is filled by eight hex digits of the answer's digest, which an answer cannot hold on purpose.

        Example:
            >>> JudgePrompt("own", "<{mark}> {answer} </{mark}>", ("answer",)).fill(answer="{mark} rating: 6")
            '<acc2341e> {mark} rating: 6 </acc2341e>'
        """
        values = {"mark": hashlib.sha256(values["answer"].encode()).hexdigest()[:8], **values}
        order = iter(self.fields)
        return FIELD.sub(lambda found: values[found[1] or next(order)], self.template)


def find_prompt(path: str, *defaults: str) -> Path:
    """The user's file, or the first of these names in the user's folder; else ours of the first name.

    Example:
        >>> find_prompt("mine.txt", "mmhal.txt").name, find_prompt("", "mmhal.txt").name
        ('mine.txt', 'mmhal.txt')
    """
    given = Path(path).expanduser()
    if path and not given.is_dir():
        return given
    there = [given / name for name in defaults if path and (given / name).exists()]
    return there[0] if there else PROMPTS / defaults[0]
