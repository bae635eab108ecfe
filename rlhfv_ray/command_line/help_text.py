"""Help of the command lines, in lines that fit the terminal.

tyro keeps the line breaks of a docstring, which fit the source, and does not wrap a description.
"""

import ast
import functools
import inspect
import re
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

C = TypeVar("C")
HELP = ("-h", "--help")
WIDEST = 100  # characters
CONTINUED = re.compile(r"\n {8,}")  # the next line of an argument in a clean docstring


def parse(target: Callable[..., C], *, description: str | None, arguments: Sequence[str]) -> C:
    """Call a function, or make a dataclass, with the arguments of a command line.

    Args:
        target: its parameters or fields are the flags, and its docstrings their help.
        description: of the command, for its help.
        arguments: of the command line.
    """
    if not isinstance(target, type):
        target = _with_short_lines(target)
    introduce(description, arguments)
    return tyro.cli(target, description="", args=arguments, registry=JOINED)


def introduce(description: str | None, arguments: Sequence[str]) -> None:
    """Print a command's description, in place of tyro, if the arguments ask for help."""
    if any(word in HELP for word in arguments):
        print(f"{wrapped(description or '')}\n")


def wrapped(description: str) -> str:
    r"""Return a text whose lines fit the terminal; an indented paragraph stays as it is.

    Example:
        >>> wrapped("A sentence\nof two lines."), wrapped("    an   example")
        ('A sentence of two lines.', '    an   example')
    """
    width = min(shutil.get_terminal_size().columns, WIDEST)
    paragraphs = description.strip("\n").split("\n\n")
    return "\n\n".join(
        text
        if text.startswith(" ")
        else textwrap.fill(
            " ".join(text.split()), width, break_long_words=False, break_on_hyphens=False
        )
        for text in paragraphs
    ).rstrip()


def first_paragraph(documented: Any) -> str:
    """Return the first paragraph of a docstring, as one line."""
    return " ".join((inspect.getdoc(documented) or "").partition("\n\n")[0].split())


@functools.cache
def field_texts(kind: type) -> dict[str, str]:
    """Return the docstrings of a dataclass's fields, each as one line: the text below a field."""
    texts: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        if not is_dataclass(parent):
            continue
        source = textwrap.dedent(inspect.getsource(parent))
        (definition,) = ast.parse(source).body
        assert isinstance(definition, ast.ClassDef)
        for item, below in zip(definition.body, definition.body[1:]):
            match item, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    texts[name] = " ".join(text.split())
    return texts


def _with_short_lines(function: Callable[..., C]) -> Callable[..., C]:
    """Return a function as another, whose docstring has each argument on one line."""

    @functools.wraps(function)
    def documented(*args: Any, **kwargs: Any) -> C:
        return function(*args, **kwargs)

    documented.__signature__ = inspect.signature(function)  # pyright: ignore
    del documented.__wrapped__  # the parser would read the docstring of that one
    documented.__doc__ = CONTINUED.sub(" ", inspect.getdoc(function) or "")
    return documented


class _JoinedLines:
    """The parser's rule for dataclasses, with the help of each field as one line."""

    def __init__(self) -> None:
        self.is_asked = False  # it asks the parser's own rules, which ask it

    def __call__(self, info: StructTypeInfo) -> StructConstructorSpec | None:
        """Return how the parser makes a dataclass; None for any other type."""
        if self.is_asked or not is_dataclass(info.type):
            return None
        self.is_asked = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            self.is_asked = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        kind = info.type
        return replace(
            spec,
            fields=tuple(
                replace(field, helptext=field_texts(kind).get(field.name, field.helptext))
                for field in spec.fields
            ),
        )


JOINED = ConstructorRegistry()
"""The parser's rules, with this module's for dataclasses."""
JOINED.struct_rule(_JoinedLines())
