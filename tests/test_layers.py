"""Who may import whom: the table of design.md, read from the source with `ast`.

Rows are numbered from the lowest. A module imports from lower rows only; within a row, `<` orders the columns below, and modules of one
column are strangers. A file that is in no row fails, so that a new one has to be placed.
"""

import ast
import fnmatch
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("rlhfv_ray", "eval", "experiments")

# One list per row, one tuple per column of it; `*` stands for the modules of a package. The first pattern that fits counts.
ROWS: list[list[tuple[str, ...]]] = [
    [("rlhfv_ray.errors",)],
    [("rlhfv_ray.config", "rlhfv_ray.records"), ("rlhfv_ray.space",)],
    [("rlhfv_ray.segments",), ("rlhfv_ray.logps",), ("rlhfv_ray.loss",)],
    [
        ("rlhfv_ray.data.images", "rlhfv_ray.remote"),
        ("rlhfv_ray.data.formats", "rlhfv_ray.data.reference_rows"),
        ("rlhfv_ray.data.examples",),
        ("rlhfv_ray.data.sources", "rlhfv_ray.data.writing"),
        ("rlhfv_ray.data.audit",),
        ("rlhfv_ray.data",),
        ("rlhfv_ray.encoding", "rlhfv_ray.leases", "rlhfv_ray.terminal"),
        ("rlhfv_ray.stages",),
        ("rlhfv_ray.batch", "rlhfv_ray.order", "rlhfv_ray.tracking_replay"),
        ("rlhfv_ray.tracking",),
        ("rlhfv_ray.shapes.scenes",),
        ("rlhfv_ray.shapes.captions", "rlhfv_ray.shapes.model"),
        ("rlhfv_ray.shapes.annotator",),
        ("rlhfv_ray.shapes.world",),
        ("rlhfv_ray.shapes",),
    ],
    [
        ("rlhfv_ray.models.layouts", "rlhfv_ray.models.policy"),
        ("rlhfv_ray.models.loading",),
        ("rlhfv_ray.models.adapters",),
        ("rlhfv_ray.models.memory",),
        ("rlhfv_ray.models",),
        ("rlhfv_ray.reshard", "rlhfv_ray.progress", "rlhfv_ray.cluster"),
        ("rlhfv_ray.checkpoint",),
    ],
    [("rlhfv_ray.reference", "rlhfv_ray.generate", "rlhfv_ray.train"), ("rlhfv_ray.examples",)],
    [("rlhfv_ray.line", "rlhfv_ray.sweep", "rlhfv_ray.doctor")],
    [
        ("eval.lemmas", "eval.statistics", "eval.config", "eval.images", "eval.rows"),
        ("eval.chair", "eval.judge", "eval.limits"),
        ("eval.calls", "eval.coco", "eval.nouns", "eval.objects"),
        ("eval.desk",),
        ("eval.benchmark", "eval.judging"),
        ("eval.shapes", "eval.object_halbench", "eval.mmhal_bench", "eval.llava_bench", "eval.pope", "eval.amber"),
        ("eval.answers", "eval.figures", "eval.saved", "eval.findings"),
        ("eval.choices",),
        ("eval.page",),
        ("eval.tracking",),
        ("eval.report",),
        ("eval.experiment", "eval.evaluation"),
        ("eval.sweep_report",),
        ("eval.scoring", "eval.study_report"),
        ("eval.sweep", "eval.study"),
        ("eval.run",),
    ],
    [("experiments.recipes",), ("experiments.*",)],
]
EMPTY = {"rlhfv_ray", "eval", "experiments"}  # packages whose __init__ imports nothing
RAY = {
    f"rlhfv_ray.{name}"
    for name in ("cluster", "progress", "train", "reference", "examples", "generate", "line", "sweep", "doctor")
} | {"eval.judging"}
NO_TORCH = (
    "rlhfv_ray.data*",
    "rlhfv_ray.config",
    "rlhfv_ray.records",
    "rlhfv_ray.errors",
    "rlhfv_ray.stages",
    "rlhfv_ray.tracking*",
)
NUMERIC_CORE = ("records", "segments", "logps", "loss", "batch", "encoding", "models")


class Import(NamedTuple):
    """One imported module, as it stands in a file."""

    importer: str
    module: str
    lazy: bool  # inside a function
    typing: bool  # under `if TYPE_CHECKING`


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imports_of(name: str) -> Iterator[Import]:
    yield from _walk(name, ast.parse(FILES[name].read_text()), lazy=False, typing=False)


def _walk(name: str, node: ast.AST, *, lazy: bool, typing: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(name, alias.name, lazy, typing) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{name} has a relative import"
        for alias in node.names:
            submodule = f"{node.module}.{alias.name}"
            yield Import(name, submodule if submodule in FILES else str(node.module), lazy, typing)
    lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    checking = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    for child in ast.iter_child_nodes(node):
        yield from _walk(name, child, lazy=lazy, typing=typing or (checking and child in node.body))


ALL = [found for name in FILES for found in imports_of(name)]


def place(name: str) -> tuple[int, int] | None:
    """Row and column of a module; those that are named win over those that a pattern fits."""
    named = [
        (row, column) for row, columns in enumerate(ROWS) for column, patterns in enumerate(columns) if name in patterns
    ]
    fitting = [
        (row, column)
        for row, columns in enumerate(ROWS)
        for column, patterns in enumerate(columns)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]
    return next(iter(named + fitting), None)


def is_of(module: str, *libraries: str) -> bool:
    return module.split(".")[0] in libraries


def test_every_module_has_a_place():
    """Catches: a new module that nobody decided who may import."""
    assert [name for name in FILES if name not in EMPTY and place(name) is None] == []
    assert [found for found in ALL if found.importer in EMPTY] == []


@pytest.mark.parametrize("name", [name for name in FILES if name not in EMPTY])
def test_imports_point_down(name):
    """Catches: an import cycle, or low code that leans on high code."""
    upward = [
        found.module
        for found in imports_of(name)
        if is_of(found.module, *PACKAGES) and not (place(found.module) and place(found.module) < place(name))
    ]
    assert upward == []


def test_library_knows_no_evaluation_and_no_experiment():
    """Catches: a wheel (it holds rlhfv_ray alone) that cannot be imported; an experiment used as a library."""
    assert [f for f in ALL if is_of(f.importer, "rlhfv_ray") and is_of(f.module, "eval", "experiments")] == []
    assert [f for f in ALL if is_of(f.module, "experiments") and f.module != "experiments.recipes"] == []
    assert [f for f in ALL if is_of(f.module, "experiments") and not is_of(f.importer, "experiments")] == []


def test_heavy_libraries_stay_where_they_belong():
    """Catches: `--help`, data checks or the loss that need Ray, DeepSpeed, torch or transformers to be installed and started."""
    running = [found for found in ALL if not found.typing]
    assert [f for f in running if is_of(f.module, "ray") and f.importer not in RAY] == []
    assert [f for f in running if is_of(f.module, "deepspeed") and not f.lazy] == []
    assert [
        f for f in running if is_of(f.module, "mlflow") and (f.importer != "rlhfv_ray.tracking_replay" or not f.lazy)
    ] == []
    torchless = [f for f in running if any(fnmatch.fnmatchcase(f.importer, pattern) for pattern in NO_TORCH)]
    assert len({f.importer for f in torchless}) > 8
    assert [f for f in torchless if is_of(f.module, "torch", "transformers")] == []
    low = [f for f in running if f.importer not in EMPTY and place(f.importer)[0] <= 2]
    assert [f for f in low if is_of(f.module, "transformers")] == []


def run_blocked(blocked: tuple[str, ...], modules: tuple[str, ...]) -> subprocess.CompletedProcess:
    """Import modules in a fresh process where the blocked libraries are not to be had."""
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({blocked!r}))  # None: an import fails, and find_spec finds nothing
for module in {modules!r}:
    importlib.import_module("rlhfv_ray." + module)
"""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_numeric_core_needs_no_orchestration():
    """Catches: the loss, or loading a model, impossible to use without Ray, DeepSpeed, MLflow or datasets."""
    done = run_blocked(("ray", "deepspeed", "mlflow", "datasets"), NUMERIC_CORE)
    assert done.returncode == 0, done.stderr
    assert run_blocked(("ray",), ("cluster",)).returncode != 0  # the block does block


def test_data_and_settings_need_no_torch():
    """Catches: torch imported on the way by a data reader or by `--help`."""
    modules = ("config", "records", "data", "data.reference_rows", "stages", "tracking")
    done = run_blocked(("torch", "transformers", "ray", "deepspeed", "mlflow"), modules)
    assert done.returncode == 0, done.stderr
