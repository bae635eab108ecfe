"""The documents name files, commands, recipes and tests that exist; every setting has a help."""

import ast
import dataclasses
import inspect
import re
import tomllib
from pathlib import Path

import pytest

from experiments.recipes import RECIPES
from rlhfv_ray import config

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Paths that begin with another name are other repositories' files.
FOLDERS = ("rlhfv_ray", "eval", "experiments", "tests", "benchmarks", "docs")
# A file by its path, or a folder with its final slash, anywhere in a page.
REPOSITORY_PATH = re.compile(
    rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/(?:[\w.-]+/)*(?:[\w-]+\.\w+|(?![\w.*<{{]))"
)
NEW_FILE = re.compile(r"^```python\n# (\S+\.py)$", re.MULTILINE)  # which a page shows whole
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
MAKE = re.compile(r"^\s*\$?\s*make ([a-z]+)", re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def readme() -> str:
    return README.read_text()


def missing_paths(text: str) -> list[str]:
    named = set(REPOSITORY_PATH.findall(text)) - set(NEW_FILE.findall(text))
    return sorted(path for path in named if not (ROOT / path).exists())


def test_paths_are_found_in_text():
    """Catches: a pattern that matches nothing, so that the check passes on every page."""
    text = (
        "`eval/no.py`, rlhfv_ray/config.py (see nowhere/at/all.py), docs/no_such/, "
        "eval/response_rate, docs/<what>.md, Muffin/eval/x.py"
    )
    assert missing_paths(text) == ["docs/no_such/", "eval/no.py"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_pages_name_exist(page):
    """Catches: a command or link in a document that leads nowhere after a file was renamed."""
    text = page.read_text()
    broken_links = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    assert missing_paths(text) == []
    assert broken_links == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_that_pages_name_exist(page):
    """Catches: a `make` target in a document that the Makefile does not have."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(MAKE.findall(page.read_text())) <= targets


def test_readme_names_every_recipe(readme):
    """Catches: a recipe that the README does not mention."""
    assert [name for name in RECIPES if not re.search(rf"\b{name}\b", readme)] == []


def test_tree_of_files_is_complete():
    """Catches: an entry point, or a module or room of the library, left out of the tour."""
    tree = (ROOT / "CONTRIBUTING.md").read_text()
    scripts = {path.name for path in (ROOT / "experiments").glob("*.py")}
    modules = {path.name for path in (ROOT / "rlhfv_ray").glob("*.py")}
    rooms = {f"{path.parent.name}/" for path in (ROOT / "rlhfv_ray").glob("*/__init__.py")}
    names = (scripts | modules | rooms) - {"__init__.py"}
    assert sorted(name for name in names if name not in tree) == []


def fields_of(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


CONFIGS = [kind for _, kind in inspect.getmembers(config, dataclasses.is_dataclass)]


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_every_setting_has_a_docstring(kind):
    """Catches: a field that `--help` lists without an explanation.

    Fields that are configs themselves are described by their class.
    """
    body = ast.parse(inspect.getsource(kind)).body[0].body
    described = {
        first.target.id
        for first, second in zip(body, body[1:])
        if isinstance(first, ast.AnnAssign)
        and isinstance(second, ast.Expr)
        and isinstance(second.value, ast.Constant)
    }
    parts = {field.name for field in dataclasses.fields(kind) if field.type in CONFIGS}
    assert all(
        part.__doc__ and not part.__doc__.startswith(part.__name__ + "(") for part in CONFIGS
    )
    assert fields_of(kind) - described - parts == set()
    assert described <= fields_of(kind)


def test_tests_that_pages_name_exist():
    """Catches: a promise whose test was renamed or removed."""
    named, existing = set(), set()
    for page in PAGES:
        named.update(re.findall(r"`(test_\w+)`", page.read_text()))
    for file in (ROOT / "tests").rglob("*.py"):
        existing.update(re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE))
    assert len(named) > 10
    assert sorted(named - existing) == []


def test_every_architecture_is_in_the_table_of_models():
    """Catches: a new transformers with an architecture that nobody tried or listed; a family that
    the table forgets."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from tests.families import FAMILIES
    from tests.families_a import FAMILIES_A
    from tests.families_b import FAMILIES_B
    from tests.families_c import FAMILIES_C
    from tests.families_d import FAMILIES_D, REFUSED_D
    from tests.families_muffin import muffin
    from tests.families_vision import FAMILIES_VISION

    page = (ROOT / "docs" / "models.md").read_text()
    known = set(re.findall(r"`([\w.-]+)`", page))
    assert sorted(set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - known) == []
    rows = {line.split("|")[2].strip() for line in page.splitlines() if line.startswith("| `")}
    right = (
        *FAMILIES,
        *FAMILIES_A,
        *FAMILIES_B,
        *FAMILIES_C,
        *FAMILIES_D,
        *FAMILIES_VISION,
        muffin,
    )
    assert rows == {make.__name__ for make in (*right, *REFUSED_D)}
    kinds = {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| `")}
    assert f"small models of {len(kinds)} architectures" in README.read_text()


def test_every_marker_of_tests_is_explained():
    """Catches: tests that a marker keeps out of a command, and no page says so."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    markers = {line.partition(":")[0] for line in settings["ini_options"]["markers"]}
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert markers == set(re.findall(r"^\| `(\w+)` \|.*`make \w+` \|$", page, re.MULTILINE))
