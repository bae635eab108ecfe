"""Readability figures of the source code: `python benchmarks/density.py`.

A code line is neither blank nor part of a comment or docstring. A docstring is any string that
stands alone as a statement. A nested comprehension stands inside another, or has two `for`.
"""

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGES = ("rlhfv_ray", "eval", "experiments")
NUMERIC = tuple(
    ROOT / "rlhfv_ray" / name
    for name in (
        "models/batch.py", "data/encoding.py", "models/policy.py", "logps.py", "loss.py",
        "segments.py",
    )
)  # fmt: skip
WIDTH = 100
FILLER = {
    "some", "found", "said", "told", "there", "where", "made", "kept", "wanted", "seen", "one",
    "other", "others", "place", "asked", "what", "of", "mine", "both", "here", "at", "look", "rest",
    "whole", "them", "everyone", "bare", "without", "loose", "odd", "names",
}  # fmt: skip
OPENINGS = ("What", "Whether", "How", "Of")
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER, tokenize.ENCODING,
}  # fmt: skip


class Density(NamedTuple):
    """Counts over the lines of some files."""

    lines: int = 0
    code_lines: int = 0
    comments: int = 0
    nested: int = 0
    long_lines: int = 0
    local_names: int = 0  # assignments to a name inside a function, loop targets included
    filler_names: int = 0
    docstrings: tuple[str, ...] = ()  # first words

    def opening_with(self, *words: str) -> int:
        """Return how many docstrings open with one of these words."""
        return sum(word in words for word in self.docstrings)

    @property
    def row(self) -> str:
        """Format the figures as one line of the table."""
        code_lines = max(1, self.code_lines)
        return (
            f"{self.code_lines:10} {100 * self.comments / code_lines:14.1f} "
            f"{1000 * self.nested / code_lines:12.1f} "
            f"{100 * self.long_lines / max(1, self.lines):10.1f} "
            f"{100 * self.filler_names / max(1, self.local_names):14.1f} "
            + " ".join(f"{self.opening_with(word):8}" for word in OPENINGS)
        )


def measure_source(source: str) -> Density:
    r"""Measure one file's text.

    Example:
        >>> measure_source("x = 1  # why\n").comments
        1
    """
    tree = ast.parse(source)
    docstrings = list(_docstrings(tree))
    texts = [str(node.value).split() for node in docstrings]
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    code_lines: set[int] = set()
    for token in tokens:
        if token.type not in NO_CODE:
            code_lines.update(range(token.start[0], token.end[0] + 1))
    for node in docstrings:
        code_lines.difference_update(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = source.splitlines()
    local_names = _local_names(tree)
    return Density(
        lines=len(lines),
        code_lines=len(code_lines),
        comments=sum(token.type == tokenize.COMMENT for token in tokens),
        nested=_nested(tree),
        long_lines=sum(len(line) > WIDTH for line in lines),
        local_names=len(local_names),
        filler_names=sum(name in FILLER for name in local_names),
        docstrings=tuple(words[0] for words in texts if words),
    )


def measure(files: Iterable[Path]) -> Density:
    """Sum the measurements of files."""
    parts = [measure_source(file.read_text()) for file in files]
    totals: list[Any] = [sum(column, start=type(column[0])()) for column in zip(*parts)]
    return Density(*totals)


def python_files(*folders: str) -> list[Path]:
    """List the Python files of folders of this repository."""
    files: list[Path] = []
    for folder in folders:
        files += sorted((ROOT / folder).rglob("*.py"))
    return files


def _docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value


def _local_names(tree: ast.AST) -> list[str]:
    targets: set[ast.Name] = set()  # a set: an inner function's names also belong to the outer one
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for node in ast.walk(function):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    targets.add(node)
    return [node.id for node in targets]


def _nested(node: ast.AST, *, inside: bool = False) -> int:
    is_comprehension = isinstance(node, COMPREHENSIONS)
    count = int(is_comprehension and (inside or len(node.generators) > 1))
    for child in ast.iter_child_nodes(node):
        count += _nested(child, inside=inside or is_comprehension)
    return count


def main() -> None:
    """Print the table."""
    print(f"{'':24}code lines comments/100 nested/1000  % > {WIDTH} ch % filler names", end=" ")
    print(" ".join(f"{word:>8}" for word in OPENINGS))
    print(f"{'numeric files':24}{measure(NUMERIC).row}")
    for package in PACKAGES:
        print(f"{package:24}{measure(python_files(package)).row}")
    print(f"{'all':24}{measure(python_files(*PACKAGES)).row}")
    print(f"{'tests':24}{measure(python_files('tests')).row}")


if __name__ == "__main__":
    main()
