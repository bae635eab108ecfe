"""The pages as a site, without building it: its list of pages, and what they quote of the code.

`make docs` builds it and fails for a link or a function that is not there.
"""

import ast
import pkgutil
import re
from pathlib import Path

import yaml

import rlhfv_ray

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
MESSAGES = re.compile(r"^\| `([^`|]+)` \|", re.MULTILINE)
FUNCTIONS = re.compile(r"^::: (\S+)", re.MULTILINE)


def pages_of(nav) -> list[str]:
    """All pages below an entry of the list."""
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [page for entry in entries for page in pages_of(entry)]


def texts_of(path: Path) -> str:
    """The texts in a module, with a blank for every value that a text is filled with."""
    texts = []
    for node in ast.walk(ast.parse(path.read_text())):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        constants = [part.value if isinstance(part, ast.Constant) else "\0" for part in parts]
        texts.append("".join(text for text in constants if isinstance(text, str)))
    return "\n".join(texts)


def test_every_page_is_in_the_list_once():
    """Catches: a page that no reader finds, or an entry without a page."""
    pages = pages_of(SITE["nav"])
    files = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(pages) == sorted(files)


def test_messages_of_the_troubleshooting_are_those_of_the_code():
    """Catches: a message that the code words in another way, so that nobody finds its row."""
    sources = [
        path
        for name in ("rlhfv_ray", "eval", "experiments")
        for path in (ROOT / name).rglob("*.py")
    ]
    texts = "\n".join(map(texts_of, sources))
    messages = MESSAGES.findall((DOCS / "troubleshooting.md").read_text())
    assert len(messages) > 25
    assert [message for message in messages if message.strip() not in texts] == []


def test_functions_of_the_reference_exist():
    """Catches: a function in the reference that was moved or renamed; one that `rlhfv_ray` is said
    to lend and does not.
    """
    page = (DOCS / "api.md").read_text()
    names = FUNCTIONS.findall(page)
    assert len(names) > 10
    assert all(pkgutil.resolve_name(name).__doc__ for name in names)
    lent = page.partition("can be imported from `rlhfv_ray`")[0]
    assert set(re.findall(r"`(\w+)`", lent)) == rlhfv_ray.PUBLIC.keys()


def test_examples_of_the_reference_are_shown_as_code():
    """Catches: a docstring's `Example:`, which the site takes for text: the brackets of its output
    then are links to nowhere, and `make docs` fails.
    """
    names = FUNCTIONS.findall((DOCS / "api.md").read_text())
    places = {*names, *(name.rpartition(".")[0] for name in names)}
    files = [ROOT / f"{place.replace('.', '/')}.py" for place in places]
    texts = {path.name: path.read_text() for path in files if path.is_file()}
    assert len(texts) > 8
    headed = re.compile(r"^ *Example:$", re.MULTILINE)
    assert [name for name, text in texts.items() if headed.search(text)] == []
