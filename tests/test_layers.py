"""Who may import whom: rooms in rows, read from the source with `ast`.

A room is a package or a module directly below `rlhfv_ray`, `eval` or `experiments`. Rows are
numbered from the lowest. A room imports from lower rows, or from an earlier group of its own row
(`<` in CONTRIBUTING's table); rooms of one group are strangers. Within a room the modules import
each other without a cycle. A new room fails until it has its place here.
"""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("rlhfv_ray", "eval", "experiments")
LARGEST_FOLDER = 18  # files

# One list per row, one string per group of the row, blanks between the rooms of a group;
# `experiments.*` is any other room there.
ROWS = [
    ["rlhfv_ray.errors rlhfv_ray.redaction rlhfv_ray.entry", "rlhfv_ray.registry"],
    ["rlhfv_ray.config rlhfv_ray.records"],
    [
        "rlhfv_ray.segments rlhfv_ray.logps rlhfv_ray.stats",
        "rlhfv_ray.loss rlhfv_ray.hierarchical rlhfv_ray.image_clusters",
        "rlhfv_ray.losses",
    ],
    ["rlhfv_ray.storage", "rlhfv_ray.console rlhfv_ray.data", "rlhfv_ray.command_line"],
    [
        "rlhfv_ray.shapes rlhfv_ray.autoscaling",
        "rlhfv_ray.cluster",
        "rlhfv_ray.crew rlhfv_ray.models rlhfv_ray.tracking rlhfv_ray.endpoint",
    ],
    ["rlhfv_ray.inference", "rlhfv_ray.training rlhfv_ray.sweep rlhfv_ray.shapes_stages"],
    ["rlhfv_ray.pipeline rlhfv_ray.doctor"],
    [
        "eval.words eval.config eval.inputs",
        "eval.chair",
        "eval.over_generalization eval.judge",
        "eval.coco",
        "eval.benchmarks",
        "eval.plan eval.reporting",
        "eval.evaluation",
        "eval.run eval.report",
    ],
    ["experiments.runners", "experiments.recipes", "experiments.*", "experiments.command"],
]
EMPTY = {"rlhfv_ray", "eval", "experiments"}  # packages whose __init__ imports nothing
RAY = {
    f"rlhfv_ray.{name}"
    for name in [
        "autoscaling",
        "cluster",
        "crew",
        "inference",
        "training",
        "sweep",
        "endpoint",
        "pipeline",
        "doctor",
    ]
}
NO_TORCH = (
    "data",
    "config",
    "records",
    "errors",
    "storage",
    "tracking",
    "endpoint",
    "console",
    "stats",
    "image_clusters",
    "redaction",
    "registry",
)
NUMERIC_CORE = (
    "records",
    "segments",
    "logps",
    "loss",
    "stats",
    "data.encoding",
    "models",
    "models.batch",
)


class Import(NamedTuple):
    """One imported module, as it stands in a file."""

    importer: str
    module: str
    lazy: bool  # inside a function
    typing: bool  # under `if TYPE_CHECKING`


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_name(path): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


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
    checking = isinstance(node, ast.If) and ast.unparse(node.test) in (
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    )
    for child in ast.iter_child_nodes(node):
        yield from _walk(name, child, lazy=lazy, typing=typing or (checking and child in node.body))


ALL = [found for name in FILES for found in imports_of(name)]


def room(module: str) -> str:
    """The package or module directly below one of ours that a module belongs to."""
    return ".".join(module.split(".")[:2])


PLACES = {
    name: (row, group)
    for row, groups in enumerate(ROWS)
    for group, names in enumerate(groups)
    for name in names.split()
}


def place(module: str) -> tuple[int, int] | None:
    """Row and group of a module's room."""
    name = room(module)
    return PLACES.get(name) or PLACES.get(f"{name.split('.')[0]}.*")


def is_of(module: str, *libraries: str) -> bool:
    return module.split(".")[0] in libraries


def test_every_room_has_a_place():
    """Catches: a new room that nobody decided who may import; a place for a room that is gone."""
    rooms = {room(name) for name in FILES} - EMPTY
    assert sorted(name for name in rooms if place(name) is None) == []
    assert sorted(name for name in PLACES if name not in rooms and not name.endswith("*")) == []
    imported = {found.module for found in ALL if found.importer in EMPTY and not found.typing}
    # gc: its threshold must be set before any import. importlib: for names that are asked for.
    assert imported == {"gc", "importlib", "typing"}


@pytest.mark.parametrize("name", [name for name in FILES if name not in EMPTY])
def test_imports_point_down(name):
    """Catches: an import cycle between rooms, or low code that leans on high code."""
    ours = [found.module for found in imports_of(name) if is_of(found.module, *PACKAGES)]
    others = [module for module in ours if room(module) != room(name)]
    assert [
        module for module in others if not (place(module) and place(module) < place(name))
    ] == []


def test_no_cycle_within_a_room():
    """Catches: two modules of a room that import each other."""
    graph = {name: {found.module for found in imports_of(name)} & set(FILES) for name in FILES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


def test_no_folder_hides_its_shape():
    """Catches: a room so full that its shape can no longer be seen."""
    folders = [
        folder for package in PACKAGES for folder in (ROOT / package, *(ROOT / package).rglob("*/"))
    ]
    assert {
        str(folder): count
        for folder in folders
        if (count := len(list(folder.glob("*.py")))) > LARGEST_FOLDER
    } == {}


def layer_table() -> str:
    """The table of CONTRIBUTING.md, made from `ROWS`."""
    lines = ["| row | rooms |", "|---|---|"]
    for row, groups in enumerate(ROWS):
        names = [
            ", ".join(
                f"`{name.removeprefix('rlhfv_ray.').replace('.', '/')}`" for name in group.split()
            )
            for group in groups
        ]
        lines.append(f"| {row} | {' < '.join(names)} |")
    return "\n".join(lines)


def test_the_table_people_read_is_the_one_enforced():
    """Catches: CONTRIBUTING.md telling newcomers a structure that is gone."""
    assert layer_table() in (ROOT / "CONTRIBUTING.md").read_text()


def test_only_storage_knows_disk_from_bucket():
    """Catches: callers of the storage that go separate ways on a disk and in a bucket."""
    private = {"address_of", "mirror_path", "mirror_root", "DiskFolder", "BucketFolder"}
    private_modules = {f"rlhfv_ray.storage.{name}" for name in ("bucket", "disk", "mirror")}
    users: dict[str, set[str]] = {}
    for name, path in FILES.items():
        tree = ast.walk(ast.parse(path.read_text()))
        words = {word for node in tree for word in vars(node).values() if isinstance(word, str)}
        modules = {found.module for found in imports_of(name)}
        users[name] = words & private | modules & private_modules
    assert users["rlhfv_ray.storage.folder"] >= {"address_of", "DiskFolder"}
    outside = {name: used for name, used in users.items() if room(name) != "rlhfv_ray.storage"}
    assert {name: used for name, used in outside.items() if used} == {}


def test_library_knows_no_evaluation_and_no_experiment():
    """Catches: a library that leans on evaluation; evaluation that trains; an experiment used as a
    library.
    """
    assert [
        f for f in ALL if is_of(f.importer, "rlhfv_ray") and is_of(f.module, "eval", "experiments")
    ] == []
    trains = (
        "rlhfv_ray.training",
        "rlhfv_ray.pipeline",
        "rlhfv_ray.sweep",
        "rlhfv_ray.shapes_stages",
    )
    assert [f for f in ALL if is_of(f.importer, "eval") and room(f.module) in trains] == []
    shared = ("experiments.recipes", "experiments.runners")
    scripts = [f for f in ALL if is_of(f.module, "experiments") and room(f.module) not in shared]
    assert [f for f in scripts if f.importer != "experiments.command"] == []
    assert [
        f for f in ALL if is_of(f.module, "experiments") and not is_of(f.importer, "experiments")
    ] == []


def test_heavy_libraries_stay_where_they_belong():
    """Catches: `--help`, data checks or the loss that need Ray, DeepSpeed, torch or transformers to
    be installed and started.
    """
    running = [found for found in ALL if not found.typing]
    assert [f for f in running if is_of(f.module, "ray") and room(f.importer) not in RAY] == []
    assert [f for f in running if is_of(f.module, "deepspeed") and not f.lazy] == []
    mlflow = [f for f in running if is_of(f.module, "mlflow")]
    assert [f for f in mlflow if room(f.importer) != "rlhfv_ray.tracking" or not f.lazy] == []
    torchless = [f for f in running if room(f.importer).removeprefix("rlhfv_ray.") in NO_TORCH]
    assert len({f.importer for f in torchless}) > 8
    assert [f for f in torchless if is_of(f.module, "torch", "transformers")] == []
    low = [f for f in running if f.importer not in EMPTY and place(f.importer)[0] <= 2]
    assert [f for f in low if is_of(f.module, "transformers")] == []


def test_libraries_of_extras_are_imported_where_they_are_used():
    """Catches: a program that does not start in a plain installation, for want of an extra."""
    extras = ("optuna", "torchvision", "flash_attn", "s3fs", "boto3", "trl")
    loaded = [found for found in ALL if not found.typing and not found.lazy]
    needing = {found.importer for found in loaded if is_of(found.module, *extras)}
    assert needing == {"rlhfv_ray.sweep.bayes"}
    assert [found for found in loaded if found.module in needing] == []


def run_blocked(blocked: tuple[str, ...], modules: tuple[str, ...]) -> subprocess.CompletedProcess:
    """Import modules in a fresh process where the blocked libraries are not to be had."""
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({blocked!r}))  # None: an import fails, and find_spec finds nothing
for module in {modules!r}:
    importlib.import_module("rlhfv_ray." + module)
"""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_numeric_core_needs_no_orchestration():
    """Catches: a loss or a model that needs Ray, DeepSpeed, MLflow or datasets."""
    done = run_blocked(("ray", "deepspeed", "mlflow", "datasets"), NUMERIC_CORE)
    assert done.returncode == 0, done.stderr
    assert run_blocked(("ray",), ("cluster",)).returncode != 0  # the block does block


def test_data_and_settings_need_no_torch():
    """Catches: torch imported on the way by a data reader or by `--help`."""
    modules = (
        "config",
        "records",
        "data",
        "data.reference_table",
        "storage.stages",
        "tracking.run",
        "console",
    )
    done = run_blocked(("torch", "transformers", "ray", "deepspeed", "mlflow"), modules)
    assert done.returncode == 0, done.stderr
